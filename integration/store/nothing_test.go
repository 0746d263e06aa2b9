//go:build linux

package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// idle checks that one side of a sync did nothing.
func idle(t *testing.T, what string, w lab.Work) {
	t.Helper()
	if w.BytesRead > 0 || w.BytesHashed > 0 {
		t.Errorf("%s: read %d and hashed %d bytes where nothing had changed", what, w.BytesRead, w.BytesHashed)
	}
}

// TestNothingChanged syncs twice, in all directions.
func TestNothingChanged(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		b := lab.NewBench(t, tools, lab.HostOptions{})
		disk := lab.Image(t, b.Near("source"), 1, 20*mib)
		img := image{kind, b.Far("disk")}
		for _, way := range [][2]string{{disk, img.path}, {disk, b.Alpha("disk")}, {"alpha:" + disk, img.path}, {"alpha:" + disk, "beta:" + img.path}} {
			b.Sync(t, img.args(way[0], way[1])...)
			again := b.Sync(t, img.args(way[0], way[1])...)
			idle(t, fmt.Sprint(way), again.Target)
			img.holds(t, disk)
			lab.Scatter(t, disk, 2, 5)
			change := b.Sync(t, img.args(way[0], way[1])...)
			if most := 5*again.BlockSize + mib; change.Target.BytesRead > most {
				t.Errorf("%v: the target read %d bytes for five pages, want at most %d", way, change.Target.BytesRead, most)
			}
		}
		checked := b.Sync(t, img.args(disk, img.path, "--checksum")...)
		if checked.Target.BytesRead < 4*mib {
			t.Errorf("--checksum: the target read only %d bytes", checked.Target.BytesRead)
		}
	})
}

// TestNothingIsRead looks at what the agent asks of the kernel: its own
// account of what it reads might be wrong.
func TestNothingIsRead(t *testing.T) {
	lab.NeedPrograms(t, "strace")
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := lab.Image(t, filepath.Join(t.TempDir(), "source"), 1, 40*mib)
		img.sync(t, disk)
		trace := filepath.Join(t.TempDir(), "trace")
		agent := lab.Write(t, filepath.Join(t.TempDir(), "agent"), []byte(
			"#!/bin/sh\nexec strace --follow-forks --seccomp-bpf -qq -e signal=none -e trace=read,pread64,preadv -y -o "+
				trace+" "+tools.Diskrsync+" \"$@\"\n"), 0o755)
		carrier := lab.NewCarrier(t)
		lab.Start(t, tools.Diskrsync, carrier.Args(t, agent, 0, img.args(disk, "there:"+img.path)...)...).Wait(t).OK(t)
		carrier.Sent(t)
		text := string(lab.Must(os.ReadFile(trace))(t))
		if read := bytesRead(t, text, img.path); read > 64<<10 {
			t.Errorf("the agent read %d bytes of the image", read)
		}
		if !strings.Contains(text, "<"+filepath.Dir(img.path)+"/.diskrsync/disk.tree>") {
			t.Errorf("the trace does not show the stored hashes being read: it would not show the image either\n%.2000s", text)
		}
	})
}

// bytesRead sums up the calls of a trace that read a file.
func bytesRead(t *testing.T, trace, path string) int64 {
	t.Helper()
	result := regexp.MustCompile(`= (\d+)$`)
	var sum int64
	for line := range strings.Lines(trace) {
		if !strings.Contains(line, "<"+path+">") {
			continue
		}
		if m := result.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			sum += lab.Must(strconv.ParseInt(m[1], 10, 64))(t)
		}
	}
	return sum
}

// TestNothingToRestore restores an image to what equals it: the image is not
// read for that.
func TestNothingToRestore(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := lab.Image(t, filepath.Join(t.TempDir(), "source"), 1, 40*mib)
		img.sync(t, disk)
		back := image{"raw", filepath.Join(t.TempDir(), "back")}
		back.run(t, img.path).OK(t)
		lab.Same(t, back.path, disk)
		idle(t, "restore of the same", back.run(t, img.path, "--json").Summary(t).Source)
		lab.WriteAt(t, back.path, lab.Noise(3, 4096), 8*mib)
		mended := back.run(t, img.path, "--json").Summary(t)
		lab.Same(t, back.path, disk)
		if most := 4 * mended.BlockSize; mended.Source.BytesRead > most {
			t.Errorf("the source read %d bytes to restore a page, want at most %d", mended.Source.BytesRead, most)
		}
	})
}

// TestTouched changes the modification time of an image, after which nothing that
// is stored about it counts any more.
func TestTouched(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := noiseDisk(t, 8*mib)
		img.sync(t, disk)
		later := time.Now().Add(time.Second)
		if err := os.Chtimes(img.path, later, later); err != nil {
			t.Fatal(err)
		}
		touched := img.sync(t, disk)
		if touched.Target.BytesRead < 8*mib || touched.Changed+touched.Patched > 0 {
			t.Errorf("after a touch: %+v", touched)
		}
		idle(t, "the sync after that", img.sync(t, disk).Target)
	})
}

// TestChangedByOthers writes to an image behind the command's back.
func TestChangedByOthers(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := noiseDisk(t, 8*mib)
		img.sync(t, disk)
		lab.WriteAt(t, img.path, lab.Noise(9, 20000), 3*mib)
		mended := img.sync(t, disk)
		if mended.Changed+mended.Patched == 0 {
			t.Errorf("the change was not noticed: %+v", mended)
		}
		idle(t, "the sync after that", img.sync(t, disk).Target)
	})
}

// TestDeviceState syncs to a device, which anybody may have written to: only where
// the user has named a folder for it is what is stored there believed, and not
// once the kernel has counted a write.
func TestDeviceState(t *testing.T) {
	device := lab.BlankDevice(t, 12*mib)
	disk := noiseDisk(t, 8*mib)
	run := func(flags ...string) lab.Work {
		t.Helper()
		s := here(t, append([]string{"--json", disk, device}, flags...)...).Summary(t)
		lab.Same(t, device, disk)
		return s.Target
	}
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	run()
	if again := run(); again.BytesRead < 8*mib {
		t.Errorf("the device was not read: %+v", again)
	}
	state := []string{"--state-dir", t.TempDir()}
	run(state...)
	idle(t, "the second sync", run(state...))
	lab.Scatter(t, disk, 2, 3)
	run(state...)
	idle(t, "the sync after an update", run(state...))
	lab.WriteAt(t, device, lab.Noise(3, 5000), 3*mib)
	lab.Do(t, "sync", device)
	if again := run(state...); again.BytesRead < 8*mib {
		t.Errorf("a write by another program was not noticed: %+v", again)
	}
}

const (
	// vastCPU and vastMemory are what the agent may use of the processor and
	// of memory for an image of 1 TiB that has not changed.
	vastCPU    = time.Second
	vastMemory = 64 * mib
)

// TestVast measures the agent at the target when nothing has changed.
func TestVast(t *testing.T) {
	lab.NeedPrograms(t, "time")
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := lab.SparseFile(t, filepath.Join(t.TempDir(), "source"), 1<<40-777)
		for i := range int64(48) {
			lab.WriteAt(t, disk, lab.Noise(uint64(i), mib), i*(1<<40)/48+4321)
		}
		r, _ := img.push(t, disk, 0)
		r.OK(t)
		costs := filepath.Join(t.TempDir(), "costs")
		agent := lab.Write(t, filepath.Join(t.TempDir(), "agent"), []byte(
			"#!/bin/sh\nexec time --quiet -f '%U %S %M' -o "+costs+" "+tools.Diskrsync+" \"$@\"\n"), 0o755)
		carrier := lab.NewCarrier(t)
		args := carrier.Args(t, agent, 0, img.args(disk, "there:"+img.path, "--json")...)
		idle(t, "the second run", lab.Start(t, tools.Diskrsync, args...).Wait(t).Summary(t).Target)
		carrier.Sent(t)
		checkCosts(t, string(lab.Must(os.ReadFile(costs))(t)))
	})
}

// checkCosts reads seconds of the processor, in user and system mode, and KiB of
// memory.
func checkCosts(t *testing.T, text string) {
	t.Helper()
	var user, system float64
	var kib int64
	if _, err := fmt.Sscan(text, &user, &system, &kib); err != nil {
		t.Fatalf("reading the costs %q: %v", text, err)
	}
	cpu := time.Duration((user + system) * float64(time.Second))
	t.Logf("the agent used %v of the processor and %d MiB of memory", cpu, kib>>10)
	if cpu >= vastCPU {
		t.Errorf("the agent used %v of the processor, want less than %v", cpu, vastCPU)
	}
	if kib<<10 >= vastMemory {
		t.Errorf("the agent used %d KiB of memory, want less than %d MiB", kib, vastMemory/mib)
	}
}
