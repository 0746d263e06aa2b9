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

// reaches waits until a file has so many bytes, as long as a command runs.
func reaches(t *testing.T, r *lab.Run, file string, size int64) {
	t.Helper()
	for r.Running() {
		if info, err := os.Stat(file); err == nil && info.Size() >= size {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("it ended before %s had %d bytes: %+v", file, size, r.Wait(t))
}

// halfWay starts a sync and interrupts it when the journal of the target has some.
func (b bench) halfWay(t *testing.T, source, target, journal string) {
	t.Helper()
	r := b.start(t, "--bwlimit", "2M", "copyto", source, target)
	reaches(t, r, journal, mib)
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
	for _, test := range []struct {
		signal syscall.Signal
		format string
		update bool
	}{
		{syscall.SIGINT, "spgz", false},
		{syscall.SIGTERM, "spgz", true},
		{syscall.SIGTERM, "raw", false},
		{syscall.SIGINT, "raw", true},
	} {
		name := fmt.Sprintf("%v of a first copy, %s", test.signal, test.format)
		if test.update {
			name = fmt.Sprintf("%v of an update, %s", test.signal, test.format)
		}
		t.Run(name, func(t *testing.T) {
			const size = 8 * mib
			h := lab.StartHost(t, tools, lab.HostOptions{})
			b, meter := newBenchAt(t, h, "format="+test.format)
			disk, old := b.near("disk"), ""
			if test.update {
				old = lab.Write(t, b.near("old"), lab.Noise(1, size), 0o644)
				b.ok(t, "copyto", "blockdev:"+old, "disks:root.img")
			}
			lab.Write(t, disk, lab.Noise(2, size), 0o644)
			r := b.start(t, "--bwlimit", "2M", "copyto", "blockdev:"+disk, "disks:root.img")
			reaches(t, r, b.far(".diskrsync/root.img.journal"), 2*mib)
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
			again := b.run(t, "-v", "copyto", "blockdev:"+disk, "disks:root.img").OK(t)
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

// breaking returns the path of a program that is the agent, but the first time it is
// killed when it has been given so many bytes.
func breaking(t *testing.T, h *lab.Host, after int) string {
	t.Helper()
	// It holds the pipe open for writing until the agent is dead, so that this never
	// sees an end of it.
	return lab.Write(t, filepath.Join(h.Dir, "breaking"), fmt.Appendf(nil, `#!/bin/sh
mkdir %[1]s/broken 2>/dev/null || exec %[2]s "$@"
mkfifo %[1]s/broken/pipe
%[2]s "$@" < %[1]s/broken/pipe &
exec 3> %[1]s/broken/pipe
head -c %[3]d >&3
kill -KILL $!
wait $!
`, h.Dir, h.Agent, after), 0o755)
}

// TestBrokenAgent lets the agent be killed in the middle of its work. Whether it is
// tried again is what --retries and --low-level-retries say.
func TestBrokenAgent(t *testing.T) {
	const size, after = 12 * mib, 6 * mib
	for _, test := range []struct {
		name               string
		retries, low       int
		update, ok, stream bool
	}{
		{"not again", 1, 1, false, false, false},
		{"not again to an old one", 1, 1, true, false, false},
		{"again", 3, 1, false, true, false},
		{"again to an old one", 3, 1, true, true, false},
		{"at once", 1, 3, false, true, false},
		{"at once to an old one", 1, 3, true, true, false},
		{"at once as a stream", 1, 3, true, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := lab.StartHost(t, tools, lab.HostOptions{})
			b, meter := newBenchAt(t, h)
			old, disk := "", lab.Write(t, b.near("disk"), lab.Noise(2, size), 0o644)
			if test.update {
				old = lab.Write(t, b.near("old"), lab.Noise(1, size), 0o644)
				b.ok(t, "copyto", "blockdev:"+old, "disks:root.img")
			}
			b.ok(t, "config", "update", "disks", "agent_path="+breaking(t, h, after))
			source := "blockdev:" + disk
			if test.stream {
				source = disk
			}
			copyTo := []string{"-v", "copyto", source, "disks:root.img"}
			meter.Take()
			r := b.run(t, append(copyTo, "--retries", fmt.Sprint(test.retries), "--low-level-retries", fmt.Sprint(test.low))...)
			passed := meter.Take()
			if !test.ok {
				fails(t, r, "Failed to copyto", "nas", "lost")
				h.AwaitQuiet(t)
				b.oldOrAbsent(t, "root.img", old)
				meter.Take()
				r, passed = b.run(t, copyTo...), meter.Take()+passed
			}
			r.OK(t)
			says(t, r, "were there from an interrupted run")
			if attempted := strings.Contains(r.Stderr, "Attempt 2/3 succeeded"); attempted != (test.retries > 1) {
				t.Errorf("that it took another attempt is told: %v\n%s", attempted, r.Stderr)
			}
			t.Logf("%d bytes went over the wire for %d", passed, size)
			if passed > size+after-mib {
				t.Errorf("%d bytes went over the wire, as if none of the first %d were there", passed, after)
			}
			b.holds(t, "disks:root.img", disk)
		})
	}
}
