package session

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/diskrsync/diskrsync/merkle/wire"
)

// Relay carries a session between two agents that were opened as source and as
// target, neither of which is here. It watches what passes, and returns nil only
// if the target said that it is done.
func Relay(ctx context.Context, source, target *Conn, opt Options) (Result, error) {
	if opt.Monitor == nil {
		opt.Monitor = new(Monitor)
	}
	r := relay{mon: opt.Monitor}
	group, gctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(gctx, func() {
		// Whichever side does not know yet learns that it is over.
		source.Close()
		target.Close()
	})
	group.Go(func() error { return source.watch(gctx) })
	group.Go(func() error { return target.watch(gctx) })
	group.Go(func() error { return r.pass(source, target, "source", r.watchSource) })
	group.Go(func() error { return r.pass(target, source, "target", r.watchTarget) })
	err := group.Wait()
	stop()
	source.Close()
	target.Close()
	result := r.mon.Snapshot()
	result.Digest, result.BlockSize = r.digest, r.blockSize
	result.Sent, result.Received = target.sent.Load(), target.received.Load()
	switch {
	case errors.Is(err, errFinished):
		return result, nil
	case ctx.Err() != nil:
		return result, context.Cause(ctx)
	}
	return result, err
}

type relay struct {
	mon       *Monitor
	digest    [32]byte
	blockSize int
}

// pass carries what from says to to, until it has said its last.
func (r *relay) pass(from, to *Conn, who string, watch func(wire.Message) error) error {
	for {
		m, err := from.r.Read()
		if err != nil {
			err = lost("the %s ended in the middle of the session: %w", who, err)
			// The other side gets the reason; if it is gone as well, so be it.
			_ = to.write(&wire.Error{Code: wire.CodeFailed, Text: err.Error()})
			return err
		}
		if err := to.w.Write(m); err != nil {
			return lost("passing on what the %s says: %w", who, err)
		}
		// What is small is likely awaited; the rest goes out when it fills
		// the buffer.
		if from.idle() {
			if err := to.buf.Flush(); err != nil {
				return lost("passing on what the %s says: %w", who, err)
			}
		}
		if e, ok := m.(*wire.Error); ok {
			_ = to.buf.Flush()
			return &PeerError{e.Code, fmt.Sprintf("(%s) %s", who, e.Text)}
		}
		if err := watch(m); err != nil {
			return errors.Join(err, to.buf.Flush())
		}
	}
}

func (r *relay) watchSource(m wire.Message) error {
	switch m := m.(type) {
	case *wire.Hello:
		r.mon.size.Store(m.Size)
	case *wire.Progress:
		r.mon.source.store(m.Stats)
	case *wire.Finish:
		r.mon.source.store(m.Stats)
	}
	return nil
}

func (r *relay) watchTarget(m wire.Message) error {
	switch m := m.(type) {
	case *wire.Accept:
		r.blockSize = m.BlockSize
	case *wire.Progress:
		r.mon.target.store(m.Stats)
	case *wire.Done:
		r.digest = m.Digest
		r.mon.target.store(m.Stats)
		return errFinished
	}
	return nil
}
