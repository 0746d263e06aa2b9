//go:build linux

package sync_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// A slow sync has so much to send and so little bandwidth that whatever a test
// does after it began is done long before it ends.
const (
	slowSize  = 8 * mib
	slowLimit = "1M"
)

func (b bench) slowImage(t *testing.T) string {
	t.Helper()
	return lab.Write(t, b.nearPath("disk"), lab.Noise(1, slowSize), 0o644)
}

// startSlowly starts a slow sync to a new image at the other machine and
// returns once the first of its data have arrived there.
func (b bench) startSlowly(t *testing.T, disk string, flags ...string) *lab.Run {
	t.Helper()
	r := b.start(t, append(flags, "--bwlimit", slowLimit, disk, b.alpha("disk"))...)
	awaitGrowth(t, r, filepath.Join(b.there, ".diskrsync", "disk.partial"))
	return r
}

// awaitGrowth waits until some data of a sync has arrived in a file, enough for
// some blocks to be whole.
func awaitGrowth(t *testing.T, r *lab.Run, path string) {
	t.Helper()
	const sectors = mib / 512
	for r.Running() {
		if info, err := os.Stat(path); err == nil && info.Sys().(*syscall.Stat_t).Blocks > sectors {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the sync ended before it was slow: %+v", r.Wait(t))
}

// TestEndings ends a sync in the middle by killing one of the processes that
// take part in it. All others must end by themselves, the command must not
// report success, and what has arrived must be kept for the next sync.
func TestEndings(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(t *testing.T, b bench, r *lab.Run)
	}{
		{"Ctrl-C", func(t *testing.T, b bench, r *lab.Run) { r.Interrupt(t) }},
		{"SIGINT to the command", func(t *testing.T, b bench, r *lab.Run) { r.Signal(t, syscall.SIGINT) }},
		{"SIGTERM to the command", func(t *testing.T, b bench, r *lab.Run) { r.Signal(t, syscall.SIGTERM) }},
		{"SIGKILL to the command", func(t *testing.T, b bench, r *lab.Run) { r.Signal(t, syscall.SIGKILL) }},
		{"SIGKILL to ssh", func(t *testing.T, b bench, r *lab.Run) { kill(t, b.Carriers(t)) }},
		{"SIGKILL to the server's session", func(t *testing.T, b bench, r *lab.Run) { kill(t, b.Sessions(t)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t, lab.HostOptions{})
			r := b.startSlowly(t, b.slowImage(t))
			test.end(t, b, r)
			if result := r.WaitFor(t, 15*time.Second); result.Code == 0 {
				t.Errorf("reported success: %+v", result)
			}
			b.AwaitQuiet(t)
			halfLeft(t, b.there, "disk")
			if later := b.laterSync(t); later.Kept == 0 || later.Target.BytesRead > 0 {
				t.Errorf("the next sync kept %d bytes and read %d of them", later.Kept, later.Target.BytesRead)
			}
		})
	}
}

// TestAgentKilled kills the only process that could make durable what it has got.
// Whatever is there then must not hinder the next sync.
func TestAgentKilled(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	r := b.startSlowly(t, b.slowImage(t))
	kill(t, b.Agents(t))
	fails(t, r.WaitFor(t, 15*time.Second), failed)
	b.AwaitQuiet(t)
	if _, err := os.Stat(b.farPath("disk")); err == nil {
		t.Error("half an image was put in place")
	}
	b.laterSync(t)
}

// TestUpdateKilled ends the update of an image that exists, which must be as it
// was until the next sync.
func TestUpdateKilled(t *testing.T) {
	for _, kind := range []string{"spgz", "raw"} {
		t.Run(kind, func(t *testing.T) {
			b := newBench(t, lab.HostOptions{})
			disk := b.slowImage(t)
			into := newTarget(t, b, kind)
			into.update(t, disk)
			before := lab.SumFile(t, into.path)
			lab.WriteAt(t, disk, lab.Noise(2, slowSize), 0)
			r := b.start(t, "--bwlimit", slowLimit, disk, b.alpha("disk"))
			awaitGrowth(t, r, filepath.Join(b.there, ".diskrsync", "disk.journal"))
			kill(t, b.Agents(t))
			fails(t, r.WaitFor(t, 15*time.Second), failed)
			b.AwaitQuiet(t)
			if lab.SumFile(t, into.path) != before {
				t.Error("the image was changed by a sync that did not come to its end")
			}
			into.update(t, disk)
		})
	}
}

func kill(t *testing.T, processes []lab.Process) {
	t.Helper()
	if len(processes) == 0 {
		t.Fatal("there is no such process to kill")
	}
	for _, p := range processes {
		if err := syscall.Kill(p.ID, syscall.SIGKILL); err != nil {
			t.Fatalf("killing %v: %v", p, err)
		}
	}
}

// laterSync checks that nothing of an interrupted sync stands in the way of the
// next one.
func (b bench) laterSync(t *testing.T) lab.Summary {
	t.Helper()
	return newTarget(t, b, "spgz").update(t, b.nearPath("disk"))
}
