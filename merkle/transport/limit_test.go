package transport

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// endless is a connection that is never full and never empty, and notes the
// length and the time of every call.
type endless struct {
	mu      sync.Mutex
	lengths []int
	times   []time.Time
	closed  bool
}

func (e *endless) Read(p []byte) (int, error)  { return e.note(p) }
func (e *endless) Write(p []byte) (int, error) { return e.note(p) }
func (e *endless) Close() error                { e.closed = true; return nil }

func (e *endless) note(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lengths = append(e.lengths, len(p))
	e.times = append(e.times, time.Now())
	return len(p), nil
}

// The clock of these tests is the one of a synctest bubble, which moves only
// while everybody sleeps.
func TestLimitKeepsRate(t *testing.T) {
	const second = 100 << 10
	move := map[string]func(io.ReadWriter) (int64, error){
		"write": func(c io.ReadWriter) (int64, error) {
			n, err := c.Write(make([]byte, 10*second))
			return int64(n), err
		},
		"read": func(c io.ReadWriter) (int64, error) { return io.CopyN(io.Discard, c, 10*second) },
	}
	for name, move := range move {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := new(endless)
				start := time.Now()
				if n, err := move(Limit(conn, second)); n != 10*second || err != nil {
					t.Fatalf("moved %d bytes, %v", n, err)
				}
				checkSmooth(t, conn, second)
				// The first portion is free, so ten seconds' worth takes a little less.
				if took := time.Since(start); took < 9900*time.Millisecond || took > 10*time.Second {
					t.Errorf("ten seconds' worth of bytes took %v", took)
				}
			})
		})
	}
}

// checkSmooth holds that no portion was more than a twentieth of a second's worth,
// and no pause longer than it takes to earn one.
func checkSmooth(t *testing.T, conn *endless, second int) {
	t.Helper()
	for i, n := range conn.lengths {
		if n > second/burstsPerSecond {
			t.Fatalf("portion %d is of %d bytes", i, n)
		}
		if i > 0 && conn.times[i].Sub(conn.times[i-1]) > time.Second/burstsPerSecond+time.Microsecond {
			t.Fatalf("pause %d is of %v", i, conn.times[i].Sub(conn.times[i-1]))
		}
	}
}

// TestLimitDirectionsAreIndependent moves ten seconds' worth each way at once,
// which takes ten seconds.
func TestLimitDirectionsAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Limit(new(endless), 1000)
		start := time.Now()
		var calls sync.WaitGroup
		calls.Go(func() {
			if _, err := io.CopyN(io.Discard, c, 10_000); err != nil {
				t.Error(err)
			}
		})
		calls.Go(func() {
			if _, err := c.Write(make([]byte, 10_000)); err != nil {
				t.Error(err)
			}
		})
		calls.Wait()
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("reading and writing waited for each other (%v)", took)
		}
	})
}

func TestLimitBursts(t *testing.T) {
	tests := []struct {
		limit int64
		burst int
	}{
		{1, 1},
		{19, 1},
		{40, 2},
		{100 << 10, 5 << 10},
		{1 << 30, (1 << 30) / 20},
		{1 << 62, maxBurst},
	}
	for _, tt := range tests {
		limiter := newLimiter(tt.limit)
		if limiter.Burst() != tt.burst || float64(limiter.Limit()) != float64(tt.limit) {
			t.Errorf("a limit of %d gives portions of %d at %v", tt.limit, limiter.Burst(), limiter.Limit())
		}
	}
}

func TestLimitCloseInterrupts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := new(endless)
		c := Limit(conn, 1)
		failed := make(chan error, 2)
		go func() {
			_, err := c.Write(make([]byte, 1000))
			failed <- err
		}()
		go func() {
			_, err := io.CopyN(io.Discard, c, 1000)
			failed <- err
		}()
		start := time.Now()
		synctest.Wait()
		if err := c.Close(); err != nil || !conn.closed {
			t.Errorf("closed: %v, %v", conn.closed, err)
		}
		for range cap(failed) {
			if err := <-failed; !errors.Is(err, os.ErrClosed) {
				t.Errorf("a waiting call ended with %v", err)
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("Close waited %v for the limit", took)
		}
	})
}

func TestLimitPassesBytesAndErrors(t *testing.T) {
	a, b := Pipe()
	c := Limit(a, 1<<40)
	sent := bytes.Repeat([]byte("0123456789"), 5000)
	if n, err := c.Write(sent); n != len(sent) || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if _, err := b.Write([]byte("back")); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "back")
	expect(t, b, string(sent))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v at the end", n, err)
	}
	if n, err := c.Write([]byte("x")); n != 0 || err != io.ErrClosedPipe {
		t.Errorf("wrote %d, %v behind the end", n, err)
	}
}

func TestLimitOfNothingIsNone(t *testing.T) {
	a, _ := Pipe()
	if Limit(a, 0) != a || Limit(a, -1) != a {
		t.Error("no limit is not the connection itself")
	}
}
