package session_test

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
)

// relaySession runs a session between two roles elsewhere.
func relaySession(t testing.TB, src *disk, dst *disk) (outcome, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sa, sb := transport.Pipe()
	ta, tb := transport.Pipe()
	var o outcome
	var relayErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := session.NewConn(ctx, sb, 0)
		if err == nil {
			o.source, err = session.Send(ctx, c, src, session.Options{Plain: true})
		}
		o.sourceErr = err
	})
	wg.Go(func() {
		c, err := session.NewConn(ctx, tb, 0)
		if err == nil {
			o.target, err = session.Receive(ctx, c, dst, session.Options{})
		}
		o.targetErr = err
	})
	wg.Go(func() {
		source, err := session.NewConn(ctx, sa, 0)
		if err != nil {
			t.Error(err)
			return
		}
		target, err := session.NewConn(ctx, ta, 0)
		if err != nil {
			t.Error(err)
			return
		}
		_, relayErr = session.Relay(ctx, source, target, session.Options{})
	})
	wg.Wait()
	if ctx.Err() != nil {
		t.Fatal("the relayed session hung")
	}
	return o, relayErr
}

// relayByHand runs Relay between two peers by hand.
func relayByHand(t testing.TB) (source, target *peer, ended <-chan error) {
	t.Helper()
	conns := make(chan *session.Conn, 1)
	forward := func(ctx context.Context, c *session.Conn) error {
		conns <- c
		<-ctx.Done()
		return nil
	}
	source = oppose(t, 0, forward)
	from := <-conns
	target = oppose(t, 0, forward)
	to := <-conns
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		_, err := session.Relay(ctx, from, to, session.Options{})
		done <- err
	}()
	return source, target, done
}

func TestRelay(t *testing.T) {
	old := noise(3 << 20)
	now := bytes.Clone(old)
	copy(now[1<<20:], make([]byte, 300_000))
	copy(now[2<<20:], "changed")
	dst := rawDisk(old)
	check := noGoroutinesLeft(t)
	o, err := relaySession(t, &disk{content: now}, dst)
	if err != nil || o.err() != nil {
		t.Fatalf("relay %v, ends %v", err, o.err())
	}
	if !dst.committed || !bytes.Equal(dst.content, now) {
		t.Error("the target is not what the source is")
	}
	check()
}
