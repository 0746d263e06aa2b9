// Package endpoint carries out syncs for rclone's backends: between images of this
// machine, images that an agent has, and whatever else rclone can read.
//
// # Which way a sync goes
//
// What rclone hands to Put and Update is a stream. If the object behind it is
// [Placed], the stream is left alone, and both images are opened where they lie: then
// holes are not read, stored hashes save reading, and only what differs is read again.
// Anything else is a session.Stream, of which a bounded part is in memory.
//
//	source ╲ target   here              agent
//	here              session.Pair      session.Send
//	agent             session.Receive   session.Relay
//	stream            session.Pair      session.Send
//
// # What is counted
//
// What rclone shows as transferred is the part of the image that has been compared,
// so that percentage and time left are right; what crossed the wire is told in one
// line at the end. --bwlimit is for the wire alone: connections over ssh are limited
// where they are made, and the pipe between two images of this machine here.
// --max-transfer counts what is shown.
package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/fserrors"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// A Place is where an image lies: at a path of this machine, or of one on which an
// agent can be started.
type Place struct {
	Path string

	// Root, if set, is the folder of this machine that Path is relative to, and that
	// no symbolic link leads out of.
	Root string

	// Dial starts an agent there, and is nil for this machine.
	Dial func(ctx context.Context) (Carrier, error)

	// Host is what the other machine is called in messages.
	Host string
}

// A Carrier takes bytes to an agent and back. Explain adds to err what else is known
// about why the connection broke.
type Carrier interface {
	io.ReadWriteCloser
	Explain(err error) error
}

// A Source is an image that a sync reads.
type Source struct {
	Place
	Format   image.Choice
	Checksum bool // believe no stored hashes
	Force    bool // read what is known to be incomplete or damaged
	ReadOnly bool // change nothing, not even to complete an update that waits
	StateDir string
}

// options say how an image of this machine is opened.
func (s Source) options() image.Options {
	return image.Options{Choice: s.Format, Checksum: s.Checksum, Force: s.Force, ReadOnly: s.ReadOnly, StateDir: s.StateDir}
}

// A Target is an image that a sync writes.
type Target struct {
	Place
	Device   bool // refuse anything but a device; else refuse devices
	Raw      bool // make a new image raw
	InPlace  bool
	Checksum bool
	StateDir string
	Budget   *Budget // that it shares with others; may be nil
}

// Placed is implemented by objects of our backends, so that what they hold is opened
// as an image and not as a stream.
type Placed interface {
	fs.Object

	// ImageSource returns where the image is that the object shows. It fails with
	// ErrNotPlaced if it can only be read as a stream. Who calls it does not read what
	// rclone has opened.
	ImageSource(ctx context.Context) (Source, error)
}

// ErrNotPlaced says that an object can only be read through its Open.
var ErrNotPlaced = errors.New("can only be read as a stream")

// placed returns the image behind what rclone says is the source, or false if it
// is to be read as a stream.
func placed(ctx context.Context, src fs.ObjectInfo) (Source, bool, error) {
	if o, ok := src.(*fs.OverrideRemote); ok {
		src = o.ObjectInfo // and no further: what wraps an object may show other content
	}
	p, ok := src.(Placed)
	if !ok {
		return Source{}, false, nil
	}
	s, err := p.ImageSource(ctx)
	if errors.Is(err, ErrNotPlaced) {
		return Source{}, false, nil
	}
	return s, err == nil, err
}

// here reports whether an image is one of this machine.
func (p Place) here() bool { return p.Dial == nil }

// Locate finds the place of an image of this machine.
func (p Place) Locate() (*image.Place, error) {
	if p.Root == "" {
		return image.Locate(p.Path)
	}
	root, err := os.OpenRoot(p.Root)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of images: %w", err)
	}
	place, err := image.LocateIn(root, p.Path)
	if closeErr := root.Close(); closeErr != nil {
		return nil, fmt.Errorf("closing the folder of images %s: %w", p.Root, closeErr)
	}
	return place, err
}

// An agent has opened an image.
type agent struct {
	*session.Conn
	carrier Carrier
	host    string
	opened  *wire.Opened
}

// open has an agent open the image at p.
func (p Place) open(ctx context.Context, req wire.Request) (*agent, error) {
	carrier, err := p.Dial(ctx)
	if err != nil {
		return nil, err
	}
	a := &agent{carrier: carrier, host: p.Host}
	if a.Conn, err = session.NewConn(ctx, carrier, timeout(ctx)); err != nil {
		return nil, a.explain(err)
	}
	req.Path, req.Timeout = p.Path, timeout(ctx)
	if a.opened, err = a.Open(ctx, req); err != nil {
		return nil, a.explain(err)
	}
	return a, nil
}

// timeout returns how long a silent peer is waited for. The user may have turned
// that off, which a session does not know.
func timeout(ctx context.Context) time.Duration {
	const forever = 24 * time.Hour
	return min(forever, fs.GetConfig(ctx).TimeoutOrInfinite())
}

// explain adds to an error of the connection what is known about that, and to one
// that the other machine has told whose it is.
func (a *agent) explain(err error) error {
	var lost *session.LostError
	var peer *session.PeerError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &lost):
		err = a.carrier.Explain(err)
	case !errors.As(err, &peer):
		return err
	}
	_ = a.carrier.Close() // err tells what matters
	return fmt.Errorf("%s: %w", a.host, err)
}

// Classify tells rclone what trying again is good for. What was refused would be
// refused again. A connection that was lost is worth another try at once, which
// goes on where this one has stopped.
func Classify(err error) error {
	var lost *session.LostError
	switch {
	case err == nil:
		return nil
	case fserrors.IsNoRetryError(err):
		return err
	case errors.Is(err, image.ErrRefused):
		return fserrors.NoRetryError(fserrors.NoLowLevelRetryError(err))
	case errors.As(err, &lost):
		return fserrors.RetryError(err)
	}
	return err
}
