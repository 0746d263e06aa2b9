package transport

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/time/rate"
)

const (
	// burstsPerSecond is into how many portions the bytes of a second are cut.
	// With much longer portions a slow link would be busy and idle by turns;
	// with much shorter ones a fast limit would not be reached, because a sleep
	// is rarely exact to less than a millisecond.
	burstsPerSecond = 20

	// maxBurst keeps the portion of a very fast limit within an int of 32 bits.
	maxBurst = 64 << 20
)

// Limit returns c slowed down to so many bytes per second in each direction. A
// limit that is not positive is none: c itself is returned. Close interrupts a
// Read or Write that waits for its turn, which then fails.
func Limit(c io.ReadWriteCloser, bytesPerSecond int64) io.ReadWriteCloser {
	if bytesPerSecond <= 0 {
		return c
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &limited{
		conn:   c,
		in:     newLimiter(bytesPerSecond),
		out:    newLimiter(bytesPerSecond),
		ctx:    ctx,
		cancel: cancel,
	}
}

func newLimiter(bytesPerSecond int64) *rate.Limiter {
	burst := min(max(bytesPerSecond/burstsPerSecond, 1), maxBurst)
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(burst))
}

type limited struct {
	conn    io.ReadWriteCloser
	in, out *rate.Limiter
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
}

// Read takes in one portion at most and waits before it hands it on, so that the
// next one is read, and its sender let go on, no earlier than it should be.
func (l *limited) Read(p []byte) (int, error) {
	n, err := l.conn.Read(p[:min(len(p), l.in.Burst())])
	if err == nil {
		err = l.wait(l.in, n)
	}
	return n, err
}

func (l *limited) Write(p []byte) (int, error) {
	written := 0
	for {
		part := p[written:min(len(p), written+l.out.Burst())]
		if err := l.wait(l.out, len(part)); err != nil {
			return written, err
		}
		n, err := l.conn.Write(part)
		written += n
		if err != nil || written == len(p) {
			return written, err
		}
	}
}

func (l *limited) wait(limiter *rate.Limiter, n int) error {
	if err := limiter.WaitN(l.ctx, n); err != nil {
		return fmt.Errorf("waiting for the rate limit: %w", os.ErrClosed)
	}
	return nil
}

func (l *limited) Close() error {
	l.cancel()
	return l.conn.Close()
}
