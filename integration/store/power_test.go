//go:build linux

package store_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// The power fails so often in one sync while it brings the new content, and so
// often once the image itself changes, and then when the sync has reported success.
const (
	earlyCuts = 3
	lateCuts  = 2
)

// TestPowerCut takes what lies on a disk at random moments of a sync, without
// what the system had not written to it yet, and goes on with that.
func TestPowerCut(t *testing.T) {
	lab.NeedRoot(t)
	for _, system := range []string{"ext4", "xfs"} {
		for _, kind := range kinds {
			t.Run(system+" "+kind, func(t *testing.T) {
				lab.NeedPrograms(t, "mkfs."+system)
				m := newMachine(t, system, kind)
				for range 2 {
					m.startOver(t)
					m.syncThroughCuts(t, "first copy")
					m.change(t)
					m.syncThroughCuts(t, "update")
				}
				logTally(t, m.tally)
			})
		}
	}
}

// A machine is one whose power fails. Its image lies on a disk of its own, which
// is a file on a file system that can clone files: a clone is what the disk held
// at one moment, while more is being written to it.
type machine struct {
	image
	system  string
	backing string           // the disk, as a file
	device  string           // its name without the folder
	disk    string           // the source, which lies elsewhere
	usual   map[string]int64 // how much a sync of some kind writes to the disk
	taken   int              // how many copies of the disk were taken
	tally   map[string]int   // what was found how often
	numbers *rand.Rand
}

func newMachine(t *testing.T, system, kind string) *machine {
	t.Helper()
	m := &machine{system: system, usual: map[string]int64{}, tally: map[string]int{}, numbers: rand.New(rand.NewPCG(2, 2))}
	clones := lab.Mkfs(t, "xfs", filepath.Join(t.TempDir(), "clones"), 2048*mib)
	m.backing = lab.Mkfs(t, system, filepath.Join(lab.MountUntilEnd(t, clones, "loop"), "backing"), 320*mib)
	device := lab.LoopDevice(t, m.backing)
	m.device = filepath.Base(device)
	m.image = image{kind, filepath.Join(lab.MountUntilEnd(t, device, "rw"), "disk")}
	m.disk = lab.Image(t, filepath.Join(t.TempDir(), "disk"), 1, 16*mib)
	return m
}

func (m *machine) change(t *testing.T) {
	t.Helper()
	lab.Scatter(t, m.disk, m.numbers.Uint64(), 40)
	for range 8 {
		lab.WriteAt(t, m.disk, lab.Noise(m.numbers.Uint64(), mib), m.numbers.Int64N(lab.Size(t, m.disk)-mib))
	}
}

// startOver removes the image for good.
func (m *machine) startOver(t *testing.T) {
	t.Helper()
	m.forget(t)
	lab.Do(t, "sync", "--file-system", filepath.Dir(m.path))
}

// syncThroughCuts runs a sync to its end and, in as many other worlds, not.
func (m *machine) syncThroughCuts(t *testing.T, what string) {
	t.Helper()
	was, becomes := m.sum(t), lab.SumFile(t, m.disk)
	image, began := stamp(t, m.path), m.written(t)
	r := m.start(t, m.disk)
	var disks []string
	for _, moment := range m.moments(what) {
		for r.Running() && m.written(t)-began < moment {
			time.Sleep(50 * time.Microsecond)
		}
		disks = append(disks, m.cut(t))
	}
	for range lateCuts {
		awaitChange(t, r, m.path, image)
		time.Sleep(time.Duration(m.numbers.IntN(5000)) * time.Microsecond)
		disks = append(disks, m.cut(t))
	}
	r.Wait(t).OK(t)
	m.usual[what] = m.written(t) - began
	last := m.cut(t)
	for _, disk := range disks {
		m.boot(t, disk, what, was, becomes)
	}
	m.boot(t, last, "done, "+what, becomes)
}

// moments returns when to cut the power early: at random amounts of what a sync
// writes, for what the disk holds does not change with the time but with that. How
// much it will be is known from the last sync of its kind; the first of each has
// none. The first half is that of the journal, or the partial file.
func (m *machine) moments(what string) []int64 {
	if m.usual[what] == 0 {
		return nil
	}
	var moments []int64
	for range earlyCuts {
		moments = append(moments, m.numbers.Int64N(m.usual[what]/2+1))
	}
	slices.Sort(moments)
	return moments
}

// cut returns a copy of the disk as it is now.
func (m *machine) cut(t *testing.T) string {
	t.Helper()
	m.taken++
	to := fmt.Sprintf("%s-%d", m.backing, m.taken)
	lab.Clone(t, m.backing, to)
	return to
}

// written returns how much was written to the disk, as the kernel has counted it:
// the sectors, and each write as a hundred more, for the small writes are those
// that decide what the large ones mean.
func (m *machine) written(t *testing.T) int64 {
	t.Helper()
	stat := lab.Must(os.ReadFile("/sys/block/" + m.device + "/stat"))(t)
	fields := strings.Fields(string(stat))
	if len(fields) < 7 {
		t.Fatalf("what the kernel tells of %s is not understood: %s", m.device, stat)
	}
	writes := lab.Must(strconv.ParseInt(fields[4], 10, 64))(t)
	sectors := lab.Must(strconv.ParseInt(fields[6], 10, 64))(t)
	return 100*writes + sectors
}

// boot mounts a disk after a power cut, where the image must have one of the
// contents with these sums, of which the new one is the last, and goes on from
// there.
func (m *machine) boot(t *testing.T, disk, what string, sums ...string) {
	t.Helper()
	options := "loop"
	if m.system == "xfs" {
		options += ",nouuid" // the original is mounted, too
	}
	lab.MountedWith(t, disk, options, func(dir string) {
		img := image{m.kind, filepath.Join(dir, "disk")}
		left := img.store(t)
		now := img.sum(t)
		outcome := "old"
		switch {
		case now == sums[len(sums)-1]:
			outcome = "new"
		case !slices.Contains(sums, now):
			t.Fatalf("with %v beside it, the image is %s, want one of %q", left, describe(now), sums)
		}
		m.tally[fmt.Sprintf("%s: %s with %v left", what, outcome, left)]++
		if now != absent {
			here(t, "verify", img.path).OK(t)
		}
		img.sync(t, m.disk)
	})
	if err := os.Remove(disk); err != nil {
		t.Fatal(err)
	}
}
