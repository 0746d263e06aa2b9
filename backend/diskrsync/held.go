package diskrsync

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/fserrors"
)

// rclone opens a source before it knows what the target does with it, and reads ahead.
// If the target brings itself up to date by agents, nothing of that is wanted, but it
// has gone over the wire. So the first byte of an image elsewhere is waited for, until
// the target has had the time to say so.

// holdFor is how long that is. Before it asks, a target may have to make a folder.
const holdFor = time.Second

// errUnwanted is what who reads on is told. Nobody should.
var errUnwanted = fserrors.NoLowLevelRetryError(errors.New("is not to be read: the target has the image itself"))

// holding are the readers of an object that have not begun.
type holding struct {
	mu   sync.Mutex
	held map[*held]struct{}
}

// A held reader opens what it reads from at the first Read.
type held struct {
	ctx      context.Context
	open     func() (io.ReadCloser, error)
	from     *holding
	unwanted chan struct{}
	in       io.ReadCloser
}

// isCopy reports whether it is for a copy that rclone opens an object for the first
// time: only then it asks for hashes, and not for a part.
func isCopy(options []fs.OpenOption) bool {
	hashes := false
	for _, option := range options {
		switch option.(type) {
		case *fs.HashesOption:
			hashes = true
		case *fs.RangeOption, *fs.SeekOption:
			return false
		}
	}
	return hashes
}

// hold returns a held reader.
func (h *holding) hold(ctx context.Context, open func() (io.ReadCloser, error)) *held {
	r := &held{ctx: ctx, open: open, from: h, unwanted: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held == nil {
		h.held = map[*held]struct{}{}
	}
	h.held[r] = struct{}{}
	return r
}

// release ends all that have not begun.
func (h *holding) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.held {
		close(r.unwanted)
	}
	clear(h.held)
}

// Read implements io.Reader.
func (r *held) Read(p []byte) (int, error) {
	if r.in == nil {
		if err := r.begin(); err != nil {
			return 0, err
		}
	}
	return r.in.Read(p)
}

// begin opens what is read from, if it is still wanted.
func (r *held) begin() (err error) {
	wait := time.NewTimer(holdFor)
	defer wait.Stop()
	select {
	case <-r.unwanted:
		return errUnwanted
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	case <-wait.C:
	}
	r.drop()
	r.in, err = r.open()
	return err
}

func (r *held) drop() {
	r.from.mu.Lock()
	defer r.from.mu.Unlock()
	delete(r.from.held, r)
}

// Close implements io.Closer.
func (r *held) Close() error {
	r.drop()
	if r.in == nil {
		return nil
	}
	return r.in.Close()
}
