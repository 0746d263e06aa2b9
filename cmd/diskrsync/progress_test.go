package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

func TestProgressLine(t *testing.T) {
	const size = 8 << 30
	for _, tt := range []struct {
		name string
		r    session.Result
		took time.Duration
		want string
	}{
		{"size unknown", session.Result{}, time.Second,
			"scanned 0B of 0B; sent 0 blocks whole, 0 patched, 0B"},
		{"nothing yet", session.Result{Size: size}, time.Second,
			"scanned 0B of 8GiB (0 %); sent 0 blocks whole, 0 patched, 0B"},
		{"a quarter", session.Result{Size: size, Source: wire.Stats{Scanned: size / 4, Changed: 3, Patched: 7, Payload: 5 << 20}}, 10 * time.Second,
			"scanned 2GiB of 8GiB (25 %), about 30s left; sent 3 blocks whole, 7 patched, 5MiB"},
		{"nearly all", session.Result{Size: size, Source: wire.Stats{Scanned: size - 1}}, time.Hour,
			"scanned 8GiB of 8GiB (99 %), about 0s left; sent 0 blocks whole, 0 patched, 0B"},
		{"after an interrupted run", session.Result{Size: size, Source: wire.Stats{Scanned: size}, Target: wire.Stats{Kept: 3 << 30}}, time.Hour,
			"scanned 8GiB of 8GiB (100 %); sent 0 blocks whole, 0 patched, 0B; kept 3GiB of an interrupted run"},
		{"all", session.Result{Size: size, Source: wire.Stats{Scanned: size}}, time.Hour,
			"scanned 8GiB of 8GiB (100 %); sent 0 blocks whole, 0 patched, 0B"},
		{"days", session.Result{Size: size, Source: wire.Stats{Scanned: size / 2}}, 50 * time.Hour,
			"scanned 4GiB of 8GiB (50 %), about 50h0m0s left; sent 0 blocks whole, 0 patched, 0B"},
		{"largest there is", session.Result{Size: 1 << 53, Source: wire.Stats{Scanned: 1 << 52}}, time.Minute,
			"scanned 4PiB of 8PiB (50 %), about 1m0s left; sent 0 blocks whole, 0 patched, 0B"},
	} {
		if got := progressLine(tt.r, tt.took); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func TestSummaryMessage(t *testing.T) {
	line, err := json.Marshal(summaryMessage(session.Result{
		Size: 1 << 40, BlockSize: 131071, Sent: 11, Received: 12,
		Source: wire.Stats{Read: 1, Hashed: 2, Changed: 3, Patched: 4, Holes: 5, Payload: 6},
		Target: wire.Stats{Read: 10, Hashed: 20, Repaired: 7, Changed: 99, Kept: 8},
	}, 1500*time.Millisecond, true))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"message_type": "summary", "dry_run": true, "image_size": float64(1 << 40), "block_size": 131071.,
		"bytes_read": 11., "bytes_hashed": 22., "bytes_sent": 11., "bytes_received": 12., "bytes_payload": 6.,
		"blocks_changed": 3., "blocks_patched": 4., "blocks_holes": 5., "blocks_repaired": 7., "kept": 8., "seconds": 1.5,
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
}

// TestDisplayStops shows that no interval, however short, lets a display print
// once it has been stopped, and that it tells what went wrong.
func TestDisplayStops(t *testing.T) {
	broken := errors.New("broken")
	d := &display{stopping: make(chan struct{}), end: func() error { return broken }}
	shown := make(chan struct{})
	count := 0
	d.every(time.Microsecond, func() {
		if count++; count == 3 {
			close(shown)
		}
	})
	<-shown
	if err := d.stop(); err != broken {
		t.Errorf("stop: %v", err)
	}
	after := count // a race, unless nothing is shown any more
	if after < 3 {
		t.Errorf("shown %d times", after)
	}
}

func TestOnlyTerminalsAreTerminals(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, out := range []io.Writer{&bytes.Buffer{}, r, w} {
		if isTerminal(out) {
			t.Errorf("%T is taken for a terminal", out)
		}
	}
}
