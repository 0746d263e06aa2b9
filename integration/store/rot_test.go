//go:build linux

package store_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// Where the content of a block lies in an spgz image.
const (
	spgzHeader = 4096
	spgzSlot   = 131072 // with its flag byte
)

// A rotten image has blocks that a bad disk has changed.
type rotten struct {
	image
	disk      string // the source
	blocks    []int64
	blockSize int64
}

// newRotten makes an image of text and noise, and lets a block of either rot.
func newRotten(t *testing.T, kind string) rotten {
	t.Helper()
	r := rotten{image: newImage(t, kind), blocks: []int64{3, 20}}
	content := append(lab.Prose(1, 2*mib), lab.Noise(1, 2*mib)...)
	r.disk = lab.Write(t, filepath.Join(t.TempDir(), "source"), content, 0o644)
	r.blockSize = r.sync(t, r.disk).BlockSize
	r.rot(t)
	return r
}

func (r rotten) rot(t *testing.T) {
	t.Helper()
	for _, block := range r.blocks {
		at := block * r.blockSize
		if r.kind == "spgz" {
			at = spgzHeader + block*spgzSlot
		}
		lab.Rot(t, r.path, at+1000)
	}
}

// verify checks that the command finds and names the blocks.
func (r rotten) verify(t *testing.T) {
	t.Helper()
	result := here(t, "verify", r.path)
	if result.Code != failed {
		t.Errorf("%s: exit status %d, want %d\n%s%s", result.Line, result.Code, failed, result.Stdout, result.Stderr)
	}
	for _, block := range r.blocks {
		if want := fmt.Sprintf("block %d at offset %d", block, block*r.blockSize); !strings.Contains(result.Stdout, want) {
			t.Errorf("%s does not name %s:\n%s", result.Line, want, result.Stdout)
		}
	}
	if bad := strings.Count(result.Stdout, "bad: "); bad != len(r.blocks) {
		t.Errorf("%s names %d blocks, want %d:\n%s", result.Line, bad, len(r.blocks), result.Stdout)
	}
}

// sound checks that nothing is wrong with the image any more.
func (r rotten) sound(t *testing.T) {
	t.Helper()
	here(t, "verify", r.path).OK(t)
	if got := info(t, r.path); got.State != "complete" {
		t.Errorf("info says %+v of an image that was repaired", got)
	}
	r.holds(t, r.disk)
}

// TestRot finds what has rotted, and lets the next sync repair it.
func TestRot(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		r := newRotten(t, kind)
		r.verify(t)
		if got := info(t, r.path); got.State != "damaged" {
			t.Errorf("info says %+v of an image that was found rotten", got)
		}
		here(t, "cat", "--source-format", kind, r.path).Fails(t, refused, r.path, "2 bad blocks")
		s := r.run(t, r.disk, "--json").Summary(t)
		if s.Changed+s.Patched != int64(len(r.blocks)) {
			t.Errorf("the sync brought %d blocks, want %d", s.Changed+s.Patched, len(r.blocks))
		}
		r.sound(t)
	})
}

// TestRepairFrom repairs at once, from the source, and from a remote copy of it.
func TestRepairFrom(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		b := lab.NewBench(t, tools, lab.HostOptions{})
		r := newRotten(t, kind)
		copied := lab.Copy(t, r.disk, b.Far("copy"))
		for _, from := range []string{r.disk, "alpha:" + copied} {
			if out := b.Run(t, "verify", "--repair-from", from, r.path).OK(t).Stdout; !strings.Contains(out, "state       complete") {
				t.Errorf("it does not say that the image is complete now:\n%s", out)
			}
			r.sound(t)
			r.rot(t)
		}
		b.Run(t, "verify", "--repair-from", r.disk, "alpha:"+r.path).OK(t)
		r.sound(t)
	})
}

// killInPlace kills a sync that changes what it finds.
func killInPlace(t *testing.T, args ...string) {
	t.Helper()
	r := lab.Start(t, tools.Diskrsync, append(slowly, args...)...)
	awaitPayload(t, r, 2*mib)
	kill(t, r)
	r.Wait(t)
}

// TestInPlace kills a sync that had leave to spoil the image meanwhile.
func TestInPlace(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := noiseDisk(t, 8*mib)
		img.sync(t, disk)
		lab.WriteAt(t, disk, lab.Noise(2, 8*mib), 0)
		killInPlace(t, "--inplace", disk, img.path)
		incomplete(t, img.path, here)
		img.sync(t, disk)
		if got := info(t, img.path); got.State != "complete" {
			t.Errorf("info says %+v after the next sync", got)
		}
	})
}

// incomplete checks that an image is not given out for what it is not.
func incomplete(t *testing.T, place string, run func(t *testing.T, args ...string) lab.Result) {
	t.Helper()
	told := run(t, "info", "--json", place)
	if got := inspect(t, told); told.Code != failed || got.State != "incomplete" || got.Digest != "" {
		t.Errorf("info says %+v of an image that is half written, and its exit status is %d", got, told.Code)
	}
	path := strings.TrimPrefix(place, "there:")
	run(t, "cat", place).Fails(t, refused, path, "incomplete")
	run(t, "cat", "--force", place).OK(t)
	restore := filepath.Join(t.TempDir(), "restored")
	run(t, place, restore).Fails(t, refused, path, "incomplete")
	run(t, "--force", place, restore).OK(t)
}

// TestDeviceLeftIncomplete interrupts a sync to a device, which can only be
// changed in place, once by killing the command and once by cutting its link.
func TestDeviceLeftIncomplete(t *testing.T) {
	for _, chosen := range []bool{false, true} {
		state := t.TempDir()
		var flags []string
		if chosen {
			flags = []string{"--state-dir", state}
		} else {
			t.Setenv("XDG_STATE_HOME", state)
		}
		device := lab.BlankDevice(t, 8*mib)
		t.Run(fmt.Sprintf("here, --state-dir %v", chosen), func(t *testing.T) {
			run := func(t *testing.T, args ...string) lab.Result { return here(t, append(args, flags...)...) }
			deviceLeftIncomplete(t, device, device, run, func(args ...string) {
				killInPlace(t, append(args, flags...)...)
			})
		})
		t.Run(fmt.Sprintf("there, --state-dir %v", chosen), func(t *testing.T) {
			run := func(t *testing.T, args ...string) lab.Result {
				r, _, _ := over(t, 0, append(args, flags...)...)
				return r
			}
			deviceLeftIncomplete(t, device, "there:"+device, run, func(args ...string) {
				r, _, _ := over(t, 4*mib, append(args, flags...)...)
				r.Fails(t, failed, "there")
			})
		})
	}
}

func deviceLeftIncomplete(t *testing.T, device, place string, run func(t *testing.T, args ...string) lab.Result, interrupt func(args ...string)) {
	t.Helper()
	disk := noiseDisk(t, 8*mib)
	sync := func() {
		t.Helper()
		run(t, disk, place).OK(t)
		lab.Same(t, device, disk)
		want := "unknown" // without --state-dir nothing is stored of a device
		got := inspect(t, run(t, "info", "--json", place))
		if got.Stored {
			want = "complete"
		}
		if got.State != want {
			t.Errorf("info says %+v after a sync", got)
		}
	}
	sync()
	lab.WriteAt(t, disk, lab.Noise(2, 8*mib), 0)
	interrupt(disk, place)
	incomplete(t, place, run)
	sync()
}
