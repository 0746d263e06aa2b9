package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// reach says how other machines are reached.
type reach struct {
	transport.Options
	timeout time.Duration
	limit   byteRate
	verbose bool
}

func (r *reach) flags(f *pflag.FlagSet) {
	f.StringVar(&r.SSHFlags, "ssh-flags", "", "further `flags` for ssh, such as \"-p 2222 -i id_file\"")
	f.StringVar(&r.RSH, "rsh", "", "reach the other machine by this `command` in place of ssh, such as \"kubectl exec -i pod --\"; %h is the host")
	f.StringVar(&r.CmdPath, "cmd-path", "", "`path` of diskrsync on the other machine (default \"diskrsync\")")
	f.DurationVar(&r.timeout, "timeout", session.DefaultTimeout, "give up when the other side has been silent for so long")
	f.Var(&r.limit, "bwlimit", "limit what crosses the wire to so many `bytes` a second, such as 10M")
	f.BoolVarP(&r.verbose, "verbose", "v", false, "say what is done, and show what ssh prints")
}

// check refuses values that make no sense.
func (r *reach) check() error {
	if r.timeout < minTimeout {
		return usageError{fmt.Errorf("--timeout %v: must be %v or longer", r.timeout, minTimeout)}
	}
	return nil
}

// minTimeout is the shortest silence that can mean anything.
const minTimeout = time.Second

// A byteRate is a flag of bytes a second, with the suffixes K, M, G for powers of
// 1024. Zero is no limit.
type byteRate int64

func (b *byteRate) String() string {
	if *b == 0 {
		return "" // no limit, and no default to show
	}
	return units.BytesSize(float64(*b))
}
func (b *byteRate) Type() string { return "bytes" }
func (b *byteRate) Set(s string) error {
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 || n == 0 && s != "0" {
		return fmt.Errorf("%q is not a number of bytes such as 500K or 10M", s)
	}
	*b = byteRate(n)
	return nil
}

// location parses an argument, which must not be a folder.
func location(arg string) (transport.Location, error) {
	l, err := transport.ParseLocation(arg)
	if err != nil {
		return l, usageError{err}
	}
	return l, nil
}

// inFolder puts the name of the source behind a target that names a folder.
func inFolder(target, source transport.Location) (transport.Location, error) {
	if !strings.HasSuffix(target.Path, "/") {
		return target, nil
	}
	name := path.Base(strings.ReplaceAll(source.Path, `\`, "/"))
	if name == "." || name == ".." || name == "/" {
		return target, usageError{fmt.Errorf("%s: the source %s has no name to use there", target, source)}
	}
	target.Path += name
	return target, nil
}

// A remote is an image that an agent has opened.
type remote struct {
	where   transport.Location
	carrier *transport.Conn
	*session.Conn
	note    string
	format  string
	guessed bool
}

// open starts an agent where l is and has it open the image.
func (a *app) open(ctx context.Context, l transport.Location, req wire.Request) (*remote, error) {
	opt := a.reach.Options
	if err := a.reach.check(); err != nil {
		return nil, err
	}
	if l.Host == "" && opt.RSH == "" && !opt.Local {
		return nil, usageError{fmt.Errorf("%s: there is no host before the colon", l)}
	}
	if a.reach.verbose {
		opt.Stderr = a.stderr
	}
	carrier, err := transport.Dial(ctx, l.Host, opt)
	if err != nil {
		return nil, err
	}
	r := &remote{where: l, carrier: carrier}
	var way session.Carrier = carrier
	if a.reach.limit > 0 {
		way = transport.Limit(carrier, int64(a.reach.limit))
	}
	if r.Conn, err = session.NewConn(ctx, way, a.reach.timeout); err != nil {
		return nil, r.explain(err)
	}
	req.Path, req.Timeout = l.Path, a.reach.timeout
	opened, err := r.Open(ctx, req)
	if err != nil {
		return nil, r.explain(err)
	}
	r.note, r.format, r.guessed = opened.Note, opened.Format, opened.Guessed
	return r, nil
}

// explain adds to an error from the other machine whose it is, and to one of a
// connection that was lost what is known about that. Errors of this side stay as
// they are.
func (r *remote) explain(err error) error {
	var lost *session.LostError
	var peer *session.PeerError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &lost):
		return fmt.Errorf("%s: %w", r.host(), r.carrier.Explain(err))
	case errors.As(err, &peer):
		err = fmt.Errorf("%s: %w", r.host(), err)
	}
	_ = r.carrier.Close() // err tells what matters
	return err
}

// host is what the other machine is called in messages.
func (r *remote) host() string {
	if r.where.Host == "" {
		return "the far side"
	}
	return r.where.Host
}
