package session_test

import (
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
)

// late is a carrier on which what is written arrives after a delay, however much
// is under way, even if it is closed meanwhile.
type late struct {
	session.Carrier
	delay time.Duration

	mu     sync.Mutex
	closed bool
	queue  chan parcel
}

type parcel struct {
	due  time.Time
	data []byte
}

func newLate(c session.Carrier, delay time.Duration) *late {
	l := &late{Carrier: c, delay: delay, queue: make(chan parcel, 1<<16)}
	go func() {
		defer l.Carrier.Close()
		for p := range l.queue {
			time.Sleep(time.Until(p.due))
			if _, err := l.Carrier.Write(p.data); err != nil {
				return // the reader is gone, which shows elsewhere
			}
		}
	}()
	return l
}

func (l *late) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, io.ErrClosedPipe
	}
	l.queue <- parcel{time.Now().Add(l.delay), append([]byte(nil), p...)}
	return len(p), nil
}

func (l *late) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		close(l.queue)
	}
	return nil
}

// BenchmarkRoundTrip shows what latency costs: a sync of 600 scattered changes
// in 128 MiB, over links of different delay. Each round trip that the protocol
// needs shows as so much more.
func BenchmarkRoundTrip(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 9))
	old := randomContent(r, 128<<20)
	changed := append([]byte(nil), old...)
	for range 600 {
		changed[r.IntN(len(changed))]++
	}
	for _, trip := range []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond} {
		b.Run(trip.String(), func(b *testing.B) {
			for b.Loop() {
				src := &disk{content: changed}
				dst := &disk{content: append([]byte(nil), old...), held: int64(len(old)), format: image.Raw}
				o := runSession(b, src, dst, session.Options{}, func(x, y session.Carrier) (session.Carrier, session.Carrier) {
					return newLate(x, trip/2), newLate(y, trip/2)
				})
				if err := o.err(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
