//go:build linux

package sync_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// memoryLimit is what either side may use for an image of any size.
const memoryLimit = 128 * mib

// TestHuge syncs an image of 8 TiB that is nearly all hole, and looks at the
// memory of both ends.
func TestHuge(t *testing.T) {
	for _, kind := range []string{"spgz", "raw"} {
		t.Run(kind, func(t *testing.T) {
			near, far := newMeasured(t), newMeasured(t)
			b := newBench(t, lab.HostOptions{Agent: far.program})
			const size = 8<<40 - 12345
			disk := lab.SparseFile(t, b.nearPath("disk"), size)
			for i := range int64(40) {
				lab.WriteAt(t, disk, lab.Noise(uint64(i), mib), i*(size/40)+777)
			}
			into := target{b, kind, b.farPath("disk")}
			into.updateHuge(t, disk, near)
			lab.WriteAt(t, disk, lab.Noise(99, 5000), size-5000)
			into.updateHuge(t, disk, near)
			near.check(t, "local")
			far.check(t, "agent")
		})
	}
}

// updateHuge compares by way of a raw copy: unpacking with a program that
// reads every hole would take hours.
func (target target) updateHuge(t *testing.T, disk string, near measured) {
	t.Helper()
	args := target.Args("--json", disk, "alpha:"+target.path)
	if target.kind == "raw" {
		args = append(args, "--no-compress")
	}
	s := lab.Start(t, near.program, args...).Wait(t).Summary(t)
	t.Logf("read %d, sent %d, received %d bytes", s.BytesRead, s.BytesSent, s.BytesReceived)
	content := target.path
	if target.kind == "spgz" {
		content = target.nearPath("unpacked")
		target.sync(t, "--no-compress", target.alpha("disk"), content)
	}
	lab.Same(t, content, disk)
}

// A measured program is diskrsync noting the peak of its memory, in KiB and
// one line a run, in a file. It has a small parent of its own for that: the
// kernel counts the memory of the process that a program was started from as
// the program's.
type measured struct{ program, peaks string }

func newMeasured(t *testing.T) measured {
	t.Helper()
	lab.NeedPrograms(t, "time")
	dir := t.TempDir()
	m := measured{filepath.Join(dir, "measured"), filepath.Join(dir, "peaks")}
	script := "#!/bin/sh\nexec time --quiet -f %M -a -o " + m.peaks + " " + tools.Diskrsync + " \"$@\"\n"
	lab.Write(t, m.program, []byte(script), 0o755)
	return m
}

func (m measured) check(t *testing.T, side string) {
	t.Helper()
	for i, kib := range strings.Fields(string(lab.Must(os.ReadFile(m.peaks))(t))) {
		peak := lab.Must(strconv.ParseInt(kib, 10, 64))(t) << 10
		t.Logf("%s, run %d: %d MiB of memory at most", side, i+1, peak/mib)
		if peak > memoryLimit {
			t.Errorf("%s, run %d: used %d MiB, more than %d", side, i+1, peak/mib, memoryLimit/mib)
		}
	}
}
