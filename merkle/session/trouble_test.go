package session_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// A source whose blocks change behind the scan is caught, whichever way the
// block was to be sent.
func TestSourceChanges(t *testing.T) {
	const size, at = 4 << 20, 1 << 20
	for name, old := range map[string][]byte{
		"patched":    func() []byte { p := noise(size); p[at]++; return p }(),
		"sent whole": make([]byte, size),
	} {
		t.Run(name, func(t *testing.T) {
			src := &disk{content: noise(size), blockSize: 64 << 10}
			reads := 0
			src.onRead = func(off int64) {
				if off != at {
					return
				}
				if reads++; reads == 2 { // scanned, and about to be sent
					src.content[at] ^= 0xff
				}
			}
			dst := rawDisk(old)
			o := runSession(t, src, dst, session.Options{}, nil)
			for who, err := range map[string]error{"source": o.sourceErr, "target": o.targetErr} {
				if !errors.Is(err, session.ErrChanged) || !strings.Contains(err.Error(), "offset 1048576") {
					t.Errorf("the %s returned %v", who, err)
				}
			}
			if dst.committed {
				t.Error("committed")
			}
		})
	}
}

func TestSourceSaysItChanged(t *testing.T) {
	for _, old := range [][]byte{nil, noise(100_000)} {
		src := &disk{content: noise(100_000), changed: errors.New("modified at noon")}
		dst := rawDisk(old)
		o := runSession(t, src, dst, session.Options{}, nil)
		if !errors.Is(o.sourceErr, session.ErrChanged) || !errors.Is(o.targetErr, session.ErrChanged) || dst.committed {
			t.Errorf("source %v, target %v, committed %v", o.sourceErr, o.targetErr, dst.committed)
		}
		if !strings.Contains(o.targetErr.Error(), "noon") {
			t.Errorf("the target returned %v", o.targetErr)
		}
	}
}

func TestSourceCannotBeRead(t *testing.T) {
	for _, old := range [][]byte{nil, noise(300_000)} {
		src := &disk{content: noise(300_000), blockSize: 4096, corrupt: map[int64]bool{33: true}}
		dst := rawDisk(old)
		o := runSession(t, src, dst, session.Options{}, nil)
		for who, err := range map[string]error{"source": o.sourceErr, "target": o.targetErr} {
			if err == nil || !strings.Contains(err.Error(), "reading the source") || !strings.Contains(err.Error(), "135168") {
				t.Errorf("the %s returned %v", who, err)
			}
		}
		if dst.committed {
			t.Error("committed")
		}
	}
}

// What a target returns that fails, at which step.
type failingTarget struct {
	*disk
	begin, commit error
}

func (f failingTarget) Begin(size int64, blockSize int) error {
	return errors.Join(f.begin, f.disk.Begin(size, blockSize))
}

func (f failingTarget) Commit(merkle.Hash, time.Time) error { return f.commit }

func TestTargetFails(t *testing.T) {
	small := &imageError{image.ErrTooSmall}
	for name, c := range map[string]struct {
		target  failingTarget
		refused bool
		want    string
	}{
		"too small":      {failingTarget{disk: rawDisk(nil), begin: small}, true, "device too small"},
		"disk full":      {failingTarget{disk: &disk{format: image.Raw, broken: errors.New("no space left")}}, false, "no space left"},
		"cannot commit":  {failingTarget{disk: rawDisk(nil), commit: errors.New("fsync: input/output error")}, false, "fsync"},
		"commit refused": {failingTarget{disk: rawDisk(nil), commit: small}, true, "device too small"},
	} {
		t.Run(name, func(t *testing.T) {
			content := noise(300_000)
			p := opposeTarget(t, 0, c.target)
			x := treeOf(t, content, 1<<17)
			p.send(&wire.Hello{Size: x.Size(), BlockSize: x.BlockSize()})
			for i := range x.Blocks() {
				p.send(x.block(i))
			}
			p.send(&wire.Advance{Through: 1}, &wire.Finish{Digest: x.digest()})
			p.fails(c.want)
			if err := p.wait(); errors.Is(err, image.ErrRefused) != c.refused {
				t.Errorf("%v is refused: %v", err, !c.refused)
			}
			o := opposeTargetWith(t, c.target, content)
			if o == nil || !strings.Contains(o.Error(), c.want) || errors.Is(o, image.ErrRefused) != c.refused {
				t.Errorf("the source returned %v", o)
			}
		})
	}
}

type imageError struct{ kind error }

func (e *imageError) Error() string { return e.kind.Error() }
func (e *imageError) Unwrap() error { return e.kind }

// opposeTargetWith returns what an honest source says about a target.
func opposeTargetWith(t *testing.T, dst session.Target, content []byte) error {
	t.Helper()
	a, b := transport.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := session.NewConn(t.Context(), b, 0)
		if err == nil {
			_, err = session.Receive(t.Context(), c, dst, session.Options{})
		}
		if err == nil {
			t.Error("the target returned no error")
		}
	})
	c, err := session.NewConn(t.Context(), a, 0)
	must(t, err)
	_, err = session.Send(t.Context(), c, &disk{content: content}, session.Options{})
	wg.Wait()
	return err
}

// Whoever is interrupted, both ends stop, at any moment.
func TestCancel(t *testing.T) {
	left := noGoroutinesLeft(t)
	old := noise(2 << 20)
	now := bytes.Clone(old)
	for i := 0; i < len(now); i += 50_000 {
		now[i]++
	}
	for _, sourceStops := range []bool{true, false} {
		for after := range 12 {
			ctx, cancel := context.WithCancel(t.Context())
			src, dst := &disk{content: now, blockSize: 32 << 10}, rawDisk(old)
			stopper, reads := src, 0
			if !sourceStops {
				stopper = dst
			}
			stopper.onRead = func(int64) {
				if reads++; reads == 1+after {
					cancel()
				}
			}
			sourceCtx, targetCtx := ctx, t.Context()
			if !sourceStops {
				sourceCtx, targetCtx = targetCtx, sourceCtx
			}
			var sourceErr, targetErr error
			a, b := transport.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() {
				c, err := session.NewConn(targetCtx, b, 0)
				if err == nil {
					_, err = session.Receive(targetCtx, c, dst, session.Options{})
				}
				targetErr = err
			})
			c, err := session.NewConn(sourceCtx, a, 0)
			if err == nil {
				_, err = session.Send(sourceCtx, c, src, session.Options{})
			}
			sourceErr = err
			wg.Wait()
			cancel()
			own, far := sourceErr, targetErr
			if !sourceStops {
				own, far = far, own
			}
			if !errors.Is(own, context.Canceled) || far == nil || !strings.Contains(far.Error(), "interrupted") || dst.committed {
				t.Errorf("source stops %v, after %d reads: its end %v, the other %v, committed %v", sourceStops, after, own, far, dst.committed)
			}
		}
	}
	left()
}
