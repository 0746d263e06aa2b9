package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// maxTimeout bounds the patience that a client may ask an agent for.
const maxTimeout = 24 * time.Hour

// An Agent serves images of this machine to a client. The zero Agent serves
// whatever the user it runs as may open.
type Agent struct {
	Root     *os.Root // if set, all paths are beneath it, and nothing else can be reached
	ReadOnly bool     // changes nothing
	StateDir string   // for what is stored about devices, in place of what the client says
}

// Serve holds one conversation over carrier and closes it. The client is told
// what went wrong, if anything did.
func (a Agent) Serve(ctx context.Context, carrier Carrier) error {
	c, err := NewConn(ctx, carrier, DefaultTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	var req *wire.Request
	err = c.interruptible(ctx, func() error {
		m, err := c.read()
		if err != nil {
			return err
		}
		var ok bool
		if req, ok = m.(*wire.Request); !ok {
			return c.fail(fmt.Errorf("the client began with a %T", m))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if req.Timeout > 0 {
		c.timeout = min(max(req.Timeout, minTimeout), maxTimeout)
	}
	return a.carryOut(ctx, c, req)
}

// fail tells the other side why the conversation ends, and returns the reason.
func (c *Conn) fail(reason error) error {
	if err := c.write(&wire.Error{Code: code(reason), Text: reason.Error()}); err != nil {
		return errors.Join(reason, err)
	}
	return reason
}

func (a Agent) carryOut(ctx context.Context, c *Conn, req *wire.Request) error {
	if req.Verb == wire.VerbRemove {
		return a.remove(c, req)
	}
	place, err := a.locate(req.Path)
	if err != nil {
		return c.fail(err)
	}
	defer place.Close()
	if a.Root != nil || a.StateDir != "" {
		req.StateDir = a.StateDir // a client that is locked in does not choose folders
	}
	switch req.Verb {
	case wire.VerbTarget:
		return a.beTarget(ctx, c, place, req)
	case wire.VerbClean:
		return a.clean(c, place, req)
	case wire.VerbTouch:
		return a.touch(c, place, req)
	}
	choice, err := image.ParseChoice(req.Format)
	if err != nil {
		return c.fail(err)
	}
	img, err := image.Open(place, image.Options{Choice: choice, Examine: req.Verb != wire.VerbSource, Force: req.Force,
		Checksum: req.Checksum, ReadOnly: a.ReadOnly, StateDir: req.StateDir})
	if err != nil {
		return c.fail(err)
	}
	defer img.Close()
	if err := c.write(&wire.Opened{Note: img.Note(), Format: string(img.Format()), Guessed: img.Guessed()}); err != nil {
		return err
	}
	if req.Verb == wire.VerbSource {
		_, err = Send(ctx, c, At(img, req.Modified), Options{DryRun: req.DryRun})
		return err
	}
	return serveInspection(ctx, c, img, InspectOptions{Read: req.Verb == wire.VerbVerify, Record: !a.ReadOnly})
}

func (a Agent) locate(path string) (*image.Place, error) {
	if a.Root != nil {
		return image.LocateIn(a.Root, path)
	}
	return image.Locate(path)
}

func (a Agent) beTarget(ctx context.Context, c *Conn, place *image.Place, req *wire.Request) (err error) {
	if a.ReadOnly && !req.DryRun {
		return c.fail(readOnly(req))
	}
	img, err := image.OpenTarget(place, image.TargetOptions{Raw: req.Raw, DryRun: req.DryRun, InPlace: req.InPlace,
		Checksum: req.Checksum, StateDir: req.StateDir})
	if err != nil {
		return c.fail(err)
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	if err := c.write(&wire.Opened{Note: img.Note(), Format: string(img.Format())}); err != nil {
		return err
	}
	_, err = Receive(ctx, c, img, Options{})
	return err
}

func readOnly(req *wire.Request) error {
	return refusal(fmt.Sprintf("image %s: this agent changes nothing (it was started with --read-only)", req.Path))
}

// clean drops what interrupted runs have left.
func (a Agent) clean(c *Conn, place *image.Place, req *wire.Request) error {
	if a.ReadOnly {
		return c.fail(readOnly(req))
	}
	done, err := image.Clean(place, req.StateDir)
	if err != nil {
		return c.fail(err)
	}
	return c.write(&wire.Opened{Note: done})
}

// touch sets when an image was modified.
func (a Agent) touch(c *Conn, place *image.Place, req *wire.Request) error {
	if a.ReadOnly {
		return c.fail(readOnly(req))
	}
	if err := image.SetModified(place, time.Unix(0, req.Modified)); err != nil {
		return c.fail(err)
	}
	return c.write(&wire.Opened{})
}

// remove removes an image, or a link to one.
func (a Agent) remove(c *Conn, req *wire.Request) error {
	if a.ReadOnly {
		return c.fail(readOnly(req))
	}
	if err := image.RemoveAt(a.Root, req.Path); err != nil {
		return c.fail(err)
	}
	return c.write(&wire.Opened{})
}

// Open asks the agent at the other end to open an image. On success the agent
// is ready for what the request's verb says.
func (c *Conn) Open(ctx context.Context, req wire.Request) (*wire.Opened, error) {
	if req.Timeout == 0 {
		req.Timeout = c.timeout
	}
	if _, err := wire.Append(nil, &req); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	var opened *wire.Opened
	err := c.interruptible(ctx, func() error {
		// As in NewConn, what the agent said last says more than that it is gone.
		werr := c.write(&req)
		m, err := c.read()
		if err != nil {
			return err
		}
		var ok bool
		if opened, ok = m.(*wire.Opened); !ok {
			return lost("the agent answered with a %T", m)
		}
		return werr
	})
	return opened, err
}
