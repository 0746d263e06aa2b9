package session

import (
	"bufio"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/diskrsync/diskrsync/merkle/wire"
)

// A Carrier takes bytes to the peer and back. Close must make Read and Write
// return, must let the peer read what was written before, and may be called
// more than once, at any time.
type Carrier = io.ReadWriteCloser

// A Conn is a conversation with a peer over a carrier. It ends with the session
// or the exchange that it is used for, which closes the carrier.
type Conn struct {
	carrier Carrier
	timeout time.Duration
	in      *bufio.Reader
	r       *wire.Reader
	buf     *bufio.Writer
	w       *wire.Writer

	sent, received atomic.Int64 // bytes
	heard          atomic.Int64 // when bytes came last, in ns
	reading        atomic.Int64 // since when Read has been waiting, in ns; 0 if it is not
	writing        atomic.Int64 // the same for Write
}

// NewConn exchanges preambles over carrier. A peer that is silent for timeout (0
// means DefaultTimeout), now or later, is an error. The carrier is closed when
// the conversation ends, or if NewConn fails.
func NewConn(ctx context.Context, carrier Carrier, timeout time.Duration) (*Conn, error) {
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	timeout = max(timeout, minTimeout)
	c := &Conn{carrier: carrier, timeout: timeout}
	c.buf = bufio.NewWriterSize(meteredWriter{c}, 64<<10)
	c.w = wire.NewWriter(c.buf)
	c.in = bufio.NewReaderSize(meteredReader{c}, 64<<10)
	c.r = wire.NewReader(c.in)
	err := c.interruptible(ctx, func() error {
		// Both sides write first: 12 bytes fit into the pipe of any carrier.
		if err := wire.WritePreamble(c.buf); err != nil {
			return err
		}
		// If the peer is gone already, what it left to read says more than that
		// writing failed; and the writer keeps its error.
		_ = c.buf.Flush()
		return wire.ReadPreamble(c.in)
	})
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil:
		return nil, err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, lost("the far side ended before it said anything%w", errEnded)
	}
	return nil, lost("%w", err)
}

// Close ends the conversation.
func (c *Conn) Close() error { return c.carrier.Close() }

// idle reports whether nothing that arrived waits to be read.
func (c *Conn) idle() bool { return c.in.Buffered() == 0 }

type meteredReader struct{ c *Conn }

func (m meteredReader) Read(p []byte) (int, error) {
	m.c.reading.Store(time.Now().UnixNano())
	n, err := m.c.carrier.Read(p)
	m.c.reading.Store(0)
	m.c.heard.Store(time.Now().UnixNano())
	m.c.received.Add(int64(n))
	return n, err
}

type meteredWriter struct{ c *Conn }

func (m meteredWriter) Write(p []byte) (int, error) {
	m.c.writing.Store(time.Now().UnixNano())
	n, err := m.c.carrier.Write(p)
	m.c.writing.Store(0)
	m.c.sent.Add(int64(n))
	return n, err
}

// watch returns an error once the peer has been silent for the timeout, nil
// when ctx ends.
func (c *Conn) watch(ctx context.Context) error {
	tick := time.NewTicker(min(time.Second, c.timeout/4))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			overdue := func(since *atomic.Int64) bool {
				at := since.Load()
				return at != 0 && now.Sub(time.Unix(0, at)) > c.timeout
			}
			if overdue(&c.reading) {
				return lost("nothing heard from the far side for %v", c.timeout)
			}
			// A target may well be slow to take what is sent, but then it
			// says once a second that it is alive.
			if overdue(&c.writing) && overdue(&c.heard) {
				return lost("the far side has taken nothing for %v", c.timeout)
			}
		}
	}
}

// interruptible runs do, which uses the connection, and closes the connection
// if ctx ends or the peer stays silent meanwhile, and if do fails.
func (c *Conn) interruptible(ctx context.Context, do func() error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var group errgroup.Group
	group.Go(func() error {
		if err := c.watch(ctx); err != nil {
			cancel(err)
		}
		return nil
	})
	stop := context.AfterFunc(ctx, func() { c.Close() })
	err := do()
	var banner *wire.BannerError
	if interrupted := !stop(); interrupted && !errors.As(err, &banner) {
		err = context.Cause(ctx)
	}
	cancel(nil)
	group.Wait()
	if err != nil {
		c.Close() // what went wrong is in err
	}
	return err
}

// write sends a message outside of a session.
func (c *Conn) write(m wire.Message) error {
	if err := c.w.Write(m); err != nil {
		return err
	}
	return c.buf.Flush()
}

// read returns the next message outside of a session. An Error comes back as
// *PeerError.
func (c *Conn) read() (wire.Message, error) {
	m, err := c.r.Read()
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, lost("the far side ended without an answer%w", errEnded)
	case err != nil:
		return nil, lost("reading what the far side says: %w", err)
	}
	if e, ok := m.(*wire.Error); ok {
		return nil, &PeerError{Code: e.Code, Text: e.Text}
	}
	return m, err
}

// minTimeout keeps the intervals that are derived from a timeout sane.
const minTimeout = 10 * time.Millisecond

// errFinished ends a session that came to its end.
var errFinished = errors.New("finished")

// grace is how long a side that fails tries to tell the other, and how long it
// listens for the reason when it finds that it cannot write.
const grace = 2 * time.Second

// A link is a Conn in a session: messages go out from many goroutines, and
// those that come in are handed to one function.
type link struct {
	*Conn
	own  *counters // what Progress tells
	peer *counters // what Progress told

	urgent chan wire.Message // small, and awaited by the peer: overtakes bulk
	bulk   chan wire.Message
	ended  chan struct{} // closed when reading ended
	endErr error         // why it did

	ending atomic.Bool // the last message was sent, or came: the peer may go

	mu   sync.Mutex // held while a message is handled
	over bool       // no more messages are to be handled
}

// newLink returns the link of a session in blocks of blockSize bytes, of which
// what waits to be written must not hold too many.
func newLink(c *Conn, own, peer *counters, blockSize int) *link {
	const held = 2 << 20
	return &link{Conn: c, own: own, peer: peer,
		urgent: make(chan wire.Message, 16),
		bulk:   make(chan wire.Message, max(2, min(16, held/blockSize))),
		ended:  make(chan struct{}),
	}
}

// send puts m on its way, in order with all that was sent before.
func (l *link) send(ctx context.Context, m wire.Message) error {
	return put(ctx, l.bulk, m)
}

// sendUrgent puts m on its way, ahead of what send was given.
func (l *link) sendUrgent(ctx context.Context, m wire.Message) error {
	return put(ctx, l.urgent, m)
}

func put[T any](ctx context.Context, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finish sends the last message of the conversation, and ends it.
func (l *link) finish(ctx context.Context, m wire.Message) error {
	l.ending.Store(true)
	if err := l.send(ctx, m); err != nil {
		return err
	}
	return errFinished
}

// run runs a session: work side by side with reading, where handle gets every
// message, and writing. The session ends well when one of them returns
// errFinished. Whatever ends it, the connection is closed, and nothing that
// run started touches anything any more once it has returned.
func (l *link) run(ctx context.Context, handle func(context.Context, wire.Message) error, work ...func(context.Context) error) error {
	group, gctx := errgroup.WithContext(ctx)
	go func() {
		defer close(l.ended)
		l.endErr = l.readAll(gctx, handle)
	}()
	group.Go(func() error {
		select {
		case <-l.ended:
			if l.ending.Load() && !errors.Is(l.endErr, errFinished) {
				return nil // the peer heard the last message, and went
			}
			return l.endErr
		case <-gctx.Done():
			return nil
		}
	})
	group.Go(func() error { return l.writeAll(gctx) })
	group.Go(func() error { return l.watch(gctx) })
	for _, w := range work {
		group.Go(func() error { return w(gctx) })
	}
	// A peer that does not read any more must not hold up the end.
	stop := context.AfterFunc(gctx, func() { time.AfterFunc(grace, func() { l.Close() }) })
	err := group.Wait()
	stop()
	// How the carrier ends says nothing any more: only Done is success, and
	// what failed is known.
	_ = l.Close()
	l.mu.Lock() // waits for a message that is being handled
	l.over = true
	l.mu.Unlock()
	switch {
	case errors.Is(err, errFinished):
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

func (l *link) readAll(ctx context.Context, handle func(context.Context, wire.Message) error) error {
	for {
		m, err := l.r.Read()
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF):
			return lost("the far side ended in the middle of the session%w", errEnded)
		case err != nil:
			return lost("reading what the far side says: %w", err)
		}
		switch m := m.(type) {
		case *wire.Error:
			return &PeerError{Code: m.Code, Text: m.Text}
		case *wire.Progress:
			l.peer.store(m.Stats)
		default:
			if err := l.handle(ctx, m, handle); err != nil {
				return err
			}
		}
	}
}

func (l *link) handle(ctx context.Context, m wire.Message, handle func(context.Context, wire.Message) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return errFinished
	}
	return handle(ctx, m)
}

// writeAll writes what is sent, and Progress once in a while.
func (l *link) writeAll(ctx context.Context) error {
	tick := time.NewTicker(min(time.Second, l.timeout/4))
	defer tick.Stop()
	for {
		var m wire.Message
		select { // the urgent ones first
		case m = <-l.urgent:
		default:
			select {
			case m = <-l.urgent:
			case m = <-l.bulk:
			case <-tick.C:
				m = &wire.Progress{Stats: l.own.load()}
			case <-ctx.Done():
				return l.writeLast(context.Cause(ctx))
			}
		}
		if err := l.writeOne(m); err != nil {
			return l.unwritable(err)
		}
	}
}

func (l *link) writeOne(m wire.Message) error {
	if err := l.w.Write(m); err != nil {
		return err
	}
	if len(l.urgent)+len(l.bulk) > 0 {
		return nil
	}
	return l.buf.Flush()
}

// unwritable waits for the reason why the connection cannot be written: most
// likely the peer said something and went.
func (l *link) unwritable(err error) error {
	var said *PeerError
	select {
	case <-l.ended:
		if errors.As(l.endErr, &said) {
			return said
		}
	case <-time.After(grace):
	}
	return lost("writing to the far side: %w", err)
}

// writeLast ends the writing: what is left of a session that went well, the
// reason of one that did not.
func (l *link) writeLast(cause error) error {
	var fromPeer *PeerError
	switch {
	case errors.Is(cause, errFinished):
		for len(l.urgent)+len(l.bulk) > 0 {
			select {
			case m := <-l.urgent:
				cause = l.w.Write(m)
			case m := <-l.bulk:
				cause = l.w.Write(m)
			}
			if cause != nil && !errors.Is(cause, errFinished) {
				return cause
			}
		}
		return l.buf.Flush()
	case errors.As(cause, &fromPeer):
		return nil // it knows
	case errors.Is(cause, context.Canceled):
		cause = errors.New("interrupted")
	}
	// The peer may be gone, which is why an error here says nothing new.
	if l.w.Write(&wire.Error{Code: code(cause), Text: cause.Error()}) == nil {
		_ = l.buf.Flush()
	}
	return nil
}
