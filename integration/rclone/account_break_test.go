//go:build linux

package rclone_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// arrived returns how much a sync has brought of an image that is not yet shown.
func (b bench) arrived(image string) (n int64) {
	for _, kind := range []string{".journal", ".partial"} {
		if info, err := os.Stat(b.far(".diskrsync/" + image + kind)); err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512 // one of them is a new raw image
		}
	}
	return n
}

// awaitPart waits until a sync has brought so much of an image, as long as it runs.
func (b bench) awaitPart(t *testing.T, r *lab.Run, image string, size int64) {
	t.Helper()
	for b.arrived(image) < size {
		if !r.Running() {
			t.Fatalf("it has ended before %d bytes of %s had arrived: %+v", size, image, r.Wait(t))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// halfWay starts a copy to an image of disks and interrupts it.
func (b bench) halfWay(t *testing.T, source, image string) {
	t.Helper()
	r := b.start(t, "--bwlimit", "2M", "copyto", "--ignore-times", source, "disks:"+image)
	b.awaitPart(t, r, image, mib)
	r.Interrupt(t)
	if r := r.Wait(t); r.Code == 0 {
		t.Fatalf("it was not interrupted: %+v", r)
	}
}

// oldOrAbsent checks that an image is as it was before, or is not there if there was
// none, and that nobody sees anything else in its folder.
func (b bench) oldOrAbsent(t *testing.T, name, old string) {
	t.Helper()
	want := 0
	if old != "" {
		want = 1
		b.holds(t, "disks:"+name, old)
	}
	if lines := b.list(t, "disks:"); len(lines) != want {
		t.Errorf("lsl tells %q", lines)
	}
	for _, entry := range lab.Must(os.ReadDir(b.there))(t) {
		if n := entry.Name(); n != ".diskrsync" && (old == "" || n != name) {
			t.Errorf("%s is to be seen", n)
		}
	}
}

// TestSignals ends rclone in the middle of a sync, as a user does, or a service
// manager.
func TestSignals(t *testing.T) {
	const size = 5 * mib
	h := lab.StartHost(t, tools, lab.HostOptions{})
	for _, test := range []struct {
		signal syscall.Signal
		format string
		update bool
	}{
		{syscall.SIGINT, "spgz", true},
		{syscall.SIGTERM, "raw", false},
	} {
		name := fmt.Sprintf("%v of a first copy, %s", test.signal, test.format)
		if test.update {
			name = fmt.Sprintf("%v of an update, %s", test.signal, test.format)
		}
		t.Run(name, func(t *testing.T) {
			b, meter := newBenchAt(t, h, "format="+test.format)
			disk, old := b.near("disk"), ""
			if test.update {
				old = lab.Write(t, b.near("old"), lab.Noise(1, size), 0o644)
				b.ok(t, "copyto", "blockdev:"+old, "disks:root.img")
			}
			lab.Write(t, disk, lab.Noise(2, size), 0o644)
			r := b.start(t, "--bwlimit", "2M", "copyto", "--ignore-times", "blockdev:"+disk, "disks:root.img")
			b.awaitPart(t, r, "root.img", 3*mib/2)
			if len(h.Agents(t)) == 0 {
				t.Error("the agent is not found among the processes")
			}
			r.Signal(t, test.signal)
			if r := r.WaitFor(t, time.Minute); r.Code != 128+int(test.signal) {
				t.Errorf("exit status %d\n%s", r.Code, r.Stderr)
			}
			h.AwaitQuiet(t)
			b.oldOrAbsent(t, "root.img", old)
			meter.Take()
			again := b.run(t, "-v", "copyto", "--ignore-times", "blockdev:"+disk, "disks:root.img").OK(t)
			says(t, again, "were there from an interrupted run")
			if passed := meter.Take(); passed > size-mib {
				t.Errorf("%d bytes went over the wire, though some were there", passed)
			} else {
				t.Logf("the second copy of %d bytes took %d on the wire", size, passed)
			}
			b.holds(t, "disks:root.img", disk)
		})
	}
}

// mortal returns the path of a program that is the agent, but the first one that is
// given so many bytes, or some less, is killed then.
func mortal(t *testing.T, h *lab.Host, after int) string {
	t.Helper()
	dir := filepath.Join(h.Dir, strings.ReplaceAll(t.Name(), "/", "-"))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// It holds the pipe open for writing until the agent is dead, which never sees an
	// end of it. What comes in is passed on as it comes, but not more than 64 KiB of it,
	// and counts as that.
	return lab.Write(t, filepath.Join(dir, "mortal"), fmt.Appendf(nil, `#!/bin/sh
[ -e %[1]s/killed ] && exec %[2]s "$@"
pipe=%[1]s/pipe-$$
mkfifo $pipe
%[2]s "$@" < $pipe &
exec 3> $pipe
passed=$(dd bs=64K count=%[3]d 2>&1 >&3 | sed -n 's/ records in//p')
[ $(($passed)) -eq %[3]d ] && : > %[1]s/killed && kill -KILL $!
exec 3>&-
wait $!
`, dir, h.Agent, after/(64<<10)), 0o755)
}

// TestBroken breaks a sync in the middle of its work: the connection, or the agent.
// Whether it is tried again is what --retries and --low-level-retries say. An agent
// that has lost its client keeps what it has; one that is killed keeps what it had
// made durable, which is nothing of so little.
func TestBroken(t *testing.T) {
	const size, after = 8 * mib, 4 * mib
	h := lab.StartHost(t, tools, lab.HostOptions{})
	for _, test := range []struct {
		name         string
		retries, low int
		update, kill bool
	}{
		{"connection, first copy, not again", 1, 1, false, false},
		{"agent, update, not again", 1, 1, true, true},
		{"connection, update, again", 3, 1, true, false},
		{"agent, first copy, at once", 1, 3, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, meter := newBenchAt(t, h)
			old, disk := "", lab.Write(t, b.near("disk"), lab.Noise(2, size), 0o644)
			if test.update {
				old = lab.Write(t, b.near("old"), lab.Noise(1, size), 0o644)
				b.ok(t, "copyto", "blockdev:"+old, "disks:root.img")
			}
			if meter.Take(); test.kill {
				b.ok(t, "config", "update", "disks", "agent_path="+mortal(t, h, after))
			} else {
				meter.Break(after)
			}
			copyTo := []string{"copyto", "--ignore-times", "--retries", fmt.Sprint(test.retries),
				"--low-level-retries", fmt.Sprint(test.low), "blockdev:" + disk, "disks:root.img"}
			passed := int64(0)
			if test.retries == 1 && test.low == 1 {
				fails(t, b.run(t, copyTo...), "Failed to copyto", "nas: ")
				passed = meter.Take()
				h.AwaitQuiet(t)
				b.oldOrAbsent(t, "root.img", old)
				meter.Take()
			}
			r := b.run(t, append(copyTo, "-v")...).OK(t)
			passed += meter.Take()
			t.Logf("%d bytes went over the wire for %d", passed, size)
			if attempted := strings.Contains(r.Stderr, "Attempt 2/3 succeeded"); attempted != (test.retries > 1) {
				t.Errorf("that it took another attempt is told: %v\n%s", attempted, r.Stderr)
			}
			if !test.kill {
				says(t, r, "were there from an interrupted run")
			} else if passed < size+mib {
				t.Errorf("only %d bytes went over the wire: the agent has not been killed", passed)
			}
			b.holds(t, "disks:root.img", disk)
		})
	}
}

// TestBrokenRestore breaks the way back to a device.
func TestBrokenRestore(t *testing.T) {
	const size = 12 * mib
	b, meter := newFarBench(t)
	disk := lab.Write(t, b.near("disk"), lab.Noise(1, size), 0o644)
	b.ok(t, "copyto", "blockdev:"+disk, "disks:root.img")
	device := lab.BlankDevice(t, size)
	// Without a buffer rclone does not begin to read the image by itself.
	restore := []string{"copyto", "--buffer-size", "0", "--retries", "1", "disks:root.img", "blockdev,allow_write:" + device, "--low-level-retries"}
	meter.Break(size / 2)
	fails(t, b.run(t, append(restore, "1")...), "Failed to copyto", "nas: ")
	meter.Break(size / 3)
	b.ok(t, append(restore, "2")...)
	lab.Same(t, device, disk)
}
