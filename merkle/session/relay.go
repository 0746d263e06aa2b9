package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// Relay carries a session between two agents that were opened as source and as
// target, neither of which is here. It watches what passes, and returns nil only
// if the target said that it is done, with the digest that the source had named.
func Relay(ctx context.Context, source, target *Conn, opt Options) (Result, error) {
	if opt.Monitor == nil {
		opt.Monitor = new(Monitor)
	}
	r := relay{mon: opt.Monitor}
	there := &passage{from: source, to: target, who: "source", watch: r.watchSource, ended: make(chan struct{})}
	back := &passage{from: target, to: source, who: "target", watch: r.watchTarget, ended: make(chan struct{})}
	group, gctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(gctx, func() {
		// Whichever side does not know yet learns that it is over.
		source.Close()
		target.Close()
	})
	group.Go(func() error { return source.watch(gctx) })
	group.Go(func() error { return target.watch(gctx) })
	group.Go(func() error { return there.run(back) })
	group.Go(func() error { return back.run(there) })
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

// A passage carries messages one way.
type passage struct {
	from, to *Conn
	who      string // from
	watch    func(wire.Message) error
	ended    chan struct{} // closed when what follows is set
	said     error         // what from said last, if that was an error
	done     bool          // or whether it was Done
}

// run carries messages until from has said its last. The other passage is asked
// for the reason if to takes no more.
func (p *passage) run(other *passage) error {
	err := p.carry()
	var peer *PeerError
	if errors.As(err, &peer) {
		p.said = err
	}
	p.done = errors.Is(err, errFinished)
	close(p.ended)
	var lost *LostError
	if errors.As(err, &lost) {
		select {
		case <-other.ended:
			switch {
			case other.said != nil:
				return other.said
			case other.done:
				return errFinished // who has heard Done may go, even before we see that it was passed on
			}
		case <-time.After(grace):
		}
	}
	return err
}

func (p *passage) carry() error {
	for {
		m, err := p.from.r.Read()
		if err != nil {
			err = lost("the %s ended in the middle of the session: %w", p.who, err)
		} else {
			err = p.watch(m)
		}
		if err != nil {
			// The other side gets the reason; if it is gone as well, so be it.
			_ = p.to.write(&wire.Error{Code: wire.CodeFailed, Text: err.Error()})
			return err
		}
		if err := p.hand(m); err != nil {
			return lost("passing on what the %s says: %w", p.who, err)
		}
		switch m := m.(type) {
		case *wire.Done:
			return errFinished
		case *wire.Error:
			return &PeerError{Code: m.Code, Text: m.Text, From: p.who}
		}
	}
}

// hand passes a message on. It leaves with the ones behind it if there are any,
// so that what is awaited is not held up and what comes in masses fills buffers.
func (p *passage) hand(m wire.Message) error {
	if err := p.to.w.Write(m); err != nil {
		return err
	}
	switch m.(type) {
	case *wire.Error, *wire.Done: // the last
	default:
		if !p.from.idle() {
			return nil
		}
	}
	return p.to.buf.Flush()
}

// A relay is what is known of a session that passes.
type relay struct {
	mon       *Monitor
	blockSize int

	mu       sync.Mutex
	finished bool        // the source is done
	digest   merkle.Hash // that it named
}

func (r *relay) watchSource(m wire.Message) error {
	switch m := m.(type) {
	case *wire.Hello:
		r.mon.size.Store(m.Size)
	case *wire.Progress:
		r.mon.source.store(m.Stats)
	case *wire.Finish:
		r.mon.source.store(m.Stats)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.finished, r.digest = true, m.Digest
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
		r.mon.target.store(m.Stats)
		r.mon.note.Store(&m.Note)
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.finished || m.Digest != r.digest {
			return fmt.Errorf("the target says it is done with digest %v, which is not what the source has", m.Digest)
		}
	}
	return nil
}
