package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/rclone/rclone/fs/fserrors"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// Upload makes dst equal to src: by its place if it is Placed, else by what in gives.
// The accounting of in is kept right. o is what log lines are about.
func Upload(ctx context.Context, o any, in io.Reader, src fs.ObjectInfo, dst Target) (result session.Result, err error) {
	defer func() { err = Classify(err) }()
	stream, account := release(in)
	s := &transfer{o: o, dst: dst, size: src.Size(), modified: src.ModTime(ctx)}
	ok := false
	// A reader that rclone does not count by itself may be one of several that somebody
	// fills at once, as union does, who waits for each to be read.
	if account.Account != nil {
		if s.from, ok, err = placed(ctx, src); err != nil {
			return result, err
		}
	}
	ctx, stop := Interruptible(ctx)
	defer stop()
	if ok {
		account.Abandon()
	} else {
		var remove func() error
		if remove, err = s.takeStream(ctx, stream, src.Size()); err != nil {
			return result, err
		}
		defer func() { err = errors.Join(err, remove()) }()
		if dst.Device && s.stream.Size() == 0 {
			return result, fserrors.NoRetryError(fmt.Errorf("%s: nothing came to be written: what made the stream has failed, or ended at once", dst.Path))
		}
	}
	expected := s.size
	if s.stream != nil {
		expected = s.stream.Size()
	}
	if err := dst.Budget.take(ctx, expected); err != nil {
		return result, err
	}
	f := account.follow(ctx, &s.mon, dst.Budget, expected)
	result, err = s.run(f.ctx)
	if err = f.end(result, err); err != nil {
		return result, err
	}
	if err = s.checkSize(result.Size); err != nil {
		return result, err
	}
	s.tell(ctx, result)
	report(ctx, src.Remote(), result)
	return result, nil
}

// Claim tells a source that its stream will not be read, as soon as that is known. Upload
// does so as well.
func Claim(ctx context.Context, in io.Reader, src fs.ObjectInfo) {
	if _, account := release(in); account.Account != nil {
		_, _, _ = placed(ctx, src) // Upload is told what is wrong with it
	}
}

// A transfer is a sync on its way.
type transfer struct {
	o        any
	dst      Target
	from     Source
	stream   *session.Stream // if the source is not placed
	size     int64           // of the source, as rclone has it, and below 0 if it does not know
	modified time.Time       // the same
	mon      session.Monitor
}

func (s *transfer) run(ctx context.Context) (result session.Result, err error) {
	if !s.dst.here() {
		return s.toAgent(ctx)
	}
	place, err := s.dst.Locate()
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, place.Close()) }()
	target, err := image.OpenTarget(place, image.TargetOptions{Raw: s.dst.Raw, InPlace: s.dst.InPlace, Checksum: s.dst.Checksum, StateDir: s.dst.StateDir})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	if err := s.checkKind(target.Format()); err != nil {
		return result, err
	}
	s.note(target.Note())
	if s.stream == nil && !s.from.here() {
		return s.fromAgent(ctx, target)
	}
	err = s.withSource(func(src session.Source) error {
		near, far := transport.Pipe()
		result, err = session.Pair(ctx, limited{near}, far, src, target, timeout(ctx), s.options())
		return err
	})
	return result, err
}

// checkKind refuses a device where a file should be, and the reverse.
func (s *transfer) checkKind(f image.Format) error {
	switch {
	case s.dst.Device && f != image.Device:
		return fserrors.NoRetryError(fmt.Errorf("%s: is no longer a device", s.dst.Path))
	case !s.dst.Device && f == image.Device:
		return fserrors.NoRetryError(fmt.Errorf("%s: is a device, and images here are files: write to devices by a blockdev remote", s.dst.Path))
	}
	return nil
}

// when returns when the source was modified, as rclone knows it, in nanoseconds since
// 1970; 0 if nobody does. An agent may know it better, but rclone compares what it knows.
func (s *transfer) when() int64 {
	if s.modified.IsZero() {
		return 0
	}
	return s.modified.UnixNano()
}

func (s *transfer) options() session.Options { return session.Options{Monitor: &s.mon} }

func (s *transfer) note(text string) {
	if text != "" {
		fs.Logf(s.o, "%s", text)
	}
}

// toAgent has an agent receive the image.
func (s *transfer) toAgent(ctx context.Context) (result session.Result, err error) {
	target, err := s.dst.open(ctx, wire.Request{Verb: wire.VerbTarget, Raw: s.dst.Raw, InPlace: s.dst.InPlace,
		Checksum: s.dst.Checksum, StateDir: s.dst.StateDir})
	if err != nil {
		return result, err
	}
	defer target.carrier.Close() // what matters of it is in err
	s.note(target.opened.Note)
	if err := s.checkKind(image.Format(target.opened.Format)); err != nil {
		return result, err
	}
	if s.stream == nil && !s.from.here() {
		return s.between(ctx, target)
	}
	err = s.withSource(func(src session.Source) error {
		result, err = session.Send(ctx, target.Conn, src, s.options())
		return target.explain(err)
	})
	return result, err
}

// openSource has an agent send the image.
func (s *transfer) openSource(ctx context.Context) (*agent, error) {
	source, err := s.from.open(ctx, wire.Request{Verb: wire.VerbSource, Format: string(cmp.Or(s.from.Format, image.Auto)),
		Checksum: s.from.Checksum, Force: s.from.Force, StateDir: s.from.StateDir, Modified: s.when()})
	if err == nil {
		s.note(source.opened.Note)
	}
	return source, err
}

func (s *transfer) fromAgent(ctx context.Context, target *image.Target) (session.Result, error) {
	source, err := s.openSource(ctx)
	if err != nil {
		return session.Result{}, err
	}
	defer source.carrier.Close() // what matters of it is in err
	result, err := session.Receive(ctx, source.Conn, target, s.options())
	return result, source.explain(err)
}

// between has two agents talk to each other.
func (s *transfer) between(ctx context.Context, target *agent) (session.Result, error) {
	source, err := s.openSource(ctx)
	if err != nil {
		return session.Result{}, err
	}
	defer source.carrier.Close() // what matters of it is in err
	result, err := session.Relay(ctx, source.Conn, target.Conn, s.options())
	var lost *session.LostError
	var peer *session.PeerError
	switch {
	case errors.As(err, &lost): // either may be the one that went
		err = source.explain(target.explain(err))
	case errors.As(err, &peer) && peer.From == "source":
		err = source.explain(err)
	default:
		err = target.explain(err)
	}
	return result, err
}

// withSource calls do with the source, if that is not an agent's.
func (s *transfer) withSource(do func(session.Source) error) (err error) {
	if s.stream != nil {
		return do(s.stream)
	}
	place, err := s.from.Locate()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, place.Close()) }()
	img, err := image.Open(place, s.from.options())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	if err := s.checkSize(img.Size()); err != nil {
		return err
	}
	s.note(img.Note())
	return do(session.At(img, s.when()))
}

// checkSize compares the size of the source with what rclone has found before. If it
// took the copy for one of another size, it would remove it.
func (s *transfer) checkSize(now int64) error {
	if s.size < 0 || now == s.size {
		return nil
	}
	return fmt.Errorf("the source had %d bytes when it was listed, and has %d now: try again", s.size, now)
}

// limited is the pipe between two images of this machine, at the rate of --bwlimit.
type limited struct{ session.Carrier }

func (l limited) Write(p []byte) (int, error) {
	accounting.TokenBucket.LimitBandwidth(accounting.TokenBucketSlotTransportTx, len(p))
	return l.Carrier.Write(p)
}

// tell says what went over the wire: with --progress always, as that shows only what
// was compared.
func (s *transfer) tell(ctx context.Context, r session.Result) {
	s.note(r.Note)
	say := fs.Infof
	if fs.GetConfig(ctx).Progress {
		say = fs.Logf
	}
	text := fmt.Sprintf("%v of %v went over the wire, %v came back: %d blocks whole, %d patched, %d holes",
		fs.SizeSuffix(r.Sent), fs.SizeSuffix(r.Size), fs.SizeSuffix(r.Received), r.Source.Changed, r.Source.Patched, r.Source.Holes)
	if n := r.Target.Kept; n > 0 {
		text += fmt.Sprintf("; %v were there from an interrupted run", fs.SizeSuffix(n))
	}
	if n := r.Target.Repaired; n > 0 {
		text += fmt.Sprintf("; %d unreadable blocks of the target were rewritten", n)
	}
	say(s.o, "%s", text)
}
