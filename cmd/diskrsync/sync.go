package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// syncRun is the main job.
type syncRun struct {
	*app
	noCompress, dryRun, checksum, inPlace, force bool
	stateDir                                     string
	format                                       string
	progress                                     bool
	progressGiven                                bool

	source, target transport.Location
	choice         image.Choice
	mon            session.Monitor
}

func (s *syncRun) flags(f *pflag.FlagSet) {
	f.BoolVar(&s.noCompress, "no-compress", false, "make a new image at the target raw rather than spgz (an existing one keeps its format)")
	f.BoolVar(&s.dryRun, "dry-run", false, "find out what would be sent, and change nothing")
	f.BoolVar(&s.checksum, "checksum", false, "read and hash both sides, whatever is stored about them")
	f.BoolVar(&s.inPlace, "inplace", false, "change an existing image block by block, which needs no space for a journal; until it is done the image is incomplete, and marked so")
	f.BoolVar(&s.force, "force", false, "read a source that is known to be incomplete or damaged")
	f.StringVar(&s.stateDir, "state-dir", "", "store hashes of devices in this `folder`, and believe them as long as the kernel has counted no other writes")
	f.StringVar(&s.format, "source-format", string(image.Auto), "the source file is `auto`, raw, or spgz")
	f.BoolVar(&s.progress, "progress", false, "show progress (default: if standard error is a terminal)")
	f.BoolVar(&s.json, "json", false, "write one JSON object a line to standard output")
}

func (s *syncRun) run(cmd *cobra.Command, args []string) error {
	s.progressGiven = cmd.Flags().Changed("progress")
	if err := s.parse(args); err != nil {
		return err
	}
	show, err := s.newDisplay()
	if err != nil {
		return err
	}
	started := time.Now()
	result, err := s.sync(cmd.Context())
	if err := errors.Join(err, show.stop()); err != nil {
		return err
	}
	return s.summary(result, time.Since(started))
}

func (s *syncRun) parse(args []string) (err error) {
	if s.choice, err = image.ParseChoice(s.format); err != nil {
		return usageError{err}
	}
	if err := s.reach.check(); err != nil {
		return err
	}
	if s.source, err = location(args[0]); err != nil {
		return err
	}
	if s.target, err = location(args[1]); err != nil {
		return err
	}
	s.target, err = inFolder(s.target, s.source)
	return err
}

func (s *syncRun) sync(ctx context.Context) (session.Result, error) {
	switch {
	case s.source.Remote && s.target.Remote:
		return s.between(ctx)
	case s.target.Remote:
		return s.push(ctx)
	case s.source.Remote:
		return s.pull(ctx)
	}
	return s.here(ctx)
}

func (s *syncRun) options() session.Options {
	return session.Options{DryRun: s.dryRun, Monitor: &s.mon}
}

func (s *syncRun) openSource() (*localImage, error) {
	img, err := openLocal(s.source.Path, image.Options{Choice: s.choice, Checksum: s.checksum, Force: s.force, StateDir: s.stateDir})
	if err == nil {
		s.note(img.Note())
		s.announce("source", string(img.Format()), img.Guessed())
	}
	return img, err
}

// announce tells which format was found, if the user wants to know, and always
// if a source was taken for spgz by its bytes: a guest may have written what makes
// its raw disk look like that.
func (s *syncRun) announce(side, format string, guessed bool) {
	switch {
	case side == "source" && format == string(image.Spgz) && guessed:
		s.note("the source looks like an spgz image and is read as one (--source-format raw or spgz decides)")
	case s.reach.verbose:
		s.note(fmt.Sprintf("the %s is %s", side, format))
	}
}

// withTarget calls do with the local target, which it closes.
func (s *syncRun) withTarget(do func(*image.Target) error) error {
	place, err := image.Locate(s.target.Path)
	if err != nil {
		return err
	}
	defer place.Close()
	img, err := image.OpenTarget(place, image.TargetOptions{Raw: s.noCompress, DryRun: s.dryRun, InPlace: s.inPlace,
		Checksum: s.checksum, StateDir: s.stateDir})
	if err != nil {
		return err
	}
	s.note(img.Note())
	s.announce("target", string(img.Format()), false)
	return errors.Join(do(img), img.Close())
}

func (s *syncRun) openRemote(ctx context.Context, verb wire.Verb) (*remote, error) {
	where, side := s.source, "source"
	if verb == wire.VerbTarget {
		where, side = s.target, "target"
	}
	r, err := s.open(ctx, where, wire.Request{Verb: verb, Format: string(s.choice), Raw: s.noCompress, DryRun: s.dryRun,
		Checksum: s.checksum, InPlace: s.inPlace, Force: s.force, StateDir: s.stateDir})
	if err == nil {
		s.note(r.note)
		s.announce(side, r.format, r.guessed)
	}
	return r, err
}

// push sends an image of this machine to another.
func (s *syncRun) push(ctx context.Context) (session.Result, error) {
	img, err := s.openSource()
	if err != nil {
		return session.Result{}, err
	}
	defer img.Close()
	r, err := s.openRemote(ctx, wire.VerbTarget)
	if err != nil {
		return session.Result{}, err
	}
	result, err := session.Send(ctx, r.Conn, img, s.options())
	return result, r.explain(err)
}

// pull brings an image from another machine here.
func (s *syncRun) pull(ctx context.Context) (result session.Result, err error) {
	err = s.withTarget(func(img *image.Target) error {
		r, err := s.openRemote(ctx, wire.VerbSource)
		if err != nil {
			return err
		}
		result, err = session.Receive(ctx, r.Conn, img, s.options())
		return r.explain(err)
	})
	return result, err
}

// between has two other machines talk to each other.
func (s *syncRun) between(ctx context.Context) (session.Result, error) {
	src, err := s.openRemote(ctx, wire.VerbSource)
	if err != nil {
		return session.Result{}, err
	}
	defer src.Close()
	dst, err := s.openRemote(ctx, wire.VerbTarget)
	if err != nil {
		return session.Result{}, err
	}
	result, err := session.Relay(ctx, src.Conn, dst.Conn, s.options())
	var lost *session.LostError
	var peer *session.PeerError
	switch {
	case errors.As(err, &lost): // either may be the one that went
		err = src.explain(dst.explain(err))
	case errors.As(err, &peer) && peer.From == "source":
		err = src.explain(err)
	case err != nil:
		err = dst.explain(err)
	}
	return result, err
}

// here syncs two images of this machine.
func (s *syncRun) here(ctx context.Context) (result session.Result, err error) {
	img, err := s.openSource()
	if err != nil {
		return result, err
	}
	defer img.Close()
	err = s.withTarget(func(target *image.Target) error {
		near, far := transport.Pipe()
		result, err = session.Pair(ctx, transport.Limit(near, int64(s.reach.limit)), far, img, target, s.reach.timeout, s.options())
		return err
	})
	return result, err
}

// summary tells what was done.
func (s *syncRun) summary(r session.Result, took time.Duration) error {
	s.note(r.Note)
	if n := r.Target.Repaired; n > 0 {
		s.note("unreadable in the target, and rewritten: " + blocks(n))
	}
	if s.json {
		return s.emit(summaryMessage(r, took, s.dryRun))
	}
	if s.dryRun {
		_, err := fmt.Fprintf(s.stderr, "would send %s: %s whole, %d patched, %d holes (nothing was changed)\n",
			size(r.Source.Payload), blocks(r.Source.Changed), r.Source.Patched, r.Source.Holes)
		return err
	}
	if !s.reach.verbose {
		return nil
	}
	_, err := fmt.Fprintf(s.stderr, "%s of image in %.1f s: sent %s whole, %d patched, %d holes; %s sent, %s received%s; digest %v\n",
		size(r.Size), took.Seconds(), blocks(r.Source.Changed), r.Source.Patched, r.Source.Holes, size(r.Sent), size(r.Received), keptText(r), r.Digest)
	return err
}

func blocks(n int64) string {
	if n == 1 {
		return "1 block"
	}
	return fmt.Sprintf("%d blocks", n)
}

func size(n int64) string { return units.BytesSize(float64(n)) }
