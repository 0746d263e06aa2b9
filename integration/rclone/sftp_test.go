//go:build linux

package rclone_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// TestBackupAndRestore goes the way of a user: a device to a machine that is reached
// by an sftp remote, a look at what is there, and back.
func TestBackupAndRestore(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		b, _ := newFarBench(t, "format="+format)
		const size = 24 * mib
		file := lab.Image(t, b.near("disk"), 1, size)
		device := lab.LoopDevice(t, file)
		b.ok(t, "copyto", "blockdev:"+device, "disks:vms/root.img")
		b.lookedAt(t, format, size, device)

		t.Run("restore", func(t *testing.T) {
			other := lab.BlankDevice(t, size+mib)
			lab.WriteAt(t, other, lab.Must(os.ReadFile(file))(t), 0)
			lab.WriteAt(t, other, lab.Noise(2, 3*mib), 5*mib)
			fails(t, b.run(t, "copyto", "disks:vms/root.img", "blockdev:"+other), other, "allow_write")
			r := b.run(t, "-v", "copyto", "disks:vms/root.img", "blockdev,allow_write:"+other).OK(t)
			says(t, r, "went over the wire")
			lab.Same(t, other, device)
		})
		t.Run("rename", func(t *testing.T) {
			digest := b.command(t, "info", "disks:vms", "root.img").Digest
			b.ok(t, "moveto", "disks:vms/root.img", "disks:old.img")
			if after := b.command(t, "tree", "disks:", "old.img"); after.Digest != digest {
				t.Errorf("the digest was %s and is %s", digest, after.Digest)
			}
			b.holds(t, "disks:old.img", device)
			b.ok(t, "rmdir", "disks:vms")
			b.ok(t, "purge", "disks:")
			if _, err := os.Lstat(b.there); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", b.there, err)
			}
		})
	})
}

// lookedAt checks what is told of disks:vms/root.img, a copy of a device.
func (b bench) lookedAt(t *testing.T, format string, size int64, device string) {
	t.Helper()
	lines := b.list(t, "disks:")
	if len(lines) != 1 || !strings.HasPrefix(lines[0], fmt.Sprint(size, " ")) || !strings.HasSuffix(lines[0], " vms/root.img") {
		t.Errorf("lsl tells %q", lines)
	}
	b.holds(t, "disks:vms/root.img", device)
	info := b.command(t, "info", "disks:", "vms/root.img")
	if info.Format != format || info.Size != size || info.State != "complete" {
		t.Errorf("info tells %+v", info)
	}
	if verified := b.command(t, "verify", "disks:vms", "root.img"); verified.Digest != info.Digest || verified.BadBlocks != 0 {
		t.Errorf("verify tells %+v, info %+v", verified, info)
	}
	tree := b.command(t, "tree", "disks:vms", "root.img")
	if tree.Digest != info.Digest || len(tree.Roots) == 0 || int64(len(tree.Roots)) > tree.Regions {
		t.Errorf("tree tells %+v", tree)
	}
	if b.command(t, "clean", "disks:vms", "root.img").Done == "" {
		t.Error("clean does not say what it did")
	}
}

// TestCheck compares a folder of images with its copy, and finds the one that
// differs.
func TestCheck(t *testing.T) {
	b, _ := newFarBench(t)
	for i, name := range []string{"one.img", "two.img", "notes.txt"} {
		lab.Image(t, b.near(name), uint64(i), 5*mib+int64(i))
	}
	b.ok(t, "sync", "blockdev:"+b.here, "disks:vms", "--include", "*.img")
	if lines := b.list(t, "disks:vms"); len(lines) != 2 {
		t.Errorf("lsl tells %q", lines)
	}
	r := b.run(t, "check", "blockdev:"+b.here, "disks:vms", "--include", "*.img", "--download").OK(t)
	says(t, r, "2 matching files")
	lab.Rot(t, b.near("two.img"), 4*mib)
	r = b.run(t, "check", "blockdev:"+b.here, "disks:vms", "--include", "*.img", "--download")
	fails(t, r, "1 differences found")
	says(t, r, "two.img", "differ")
	// Size and time are those of before, so it takes the command that never skips.
	b.ok(t, "diskrsync", b.near("two.img"), "disks:vms/two.img")
	b.ok(t, "check", "blockdev:"+b.here, "disks:vms", "--include", "*.img", "--download")
}

// TestDelta holds how little a second copy sends: of an image of 4 GiB with a file
// system, of whose pages one in a hundred has changed.
func TestDelta(t *testing.T) {
	const size, files = 4 << 30, 2
	b, meter := newFarBench(t)
	disk := lab.Mkfs(t, "ext4", b.near("disk"), size)
	lab.Mounted(t, disk, func(dir string) {
		for i := range files {
			unit := append(lab.Prose(uint64(i), 2*mib), lab.Noise(uint64(i), 2*mib)...)
			lab.Write(t, filepath.Join(dir, fmt.Sprint("file-", i)), bytes.Repeat(unit, 24), 0o644)
		}
	})
	b.ok(t, "copyto", "blockdev:"+disk, "disks:root.img")
	old := lab.Copy(t, disk, b.near("old"))
	lab.Mounted(t, disk, func(dir string) {
		for i := range files {
			// Some are hit twice.
			lab.Scatter(t, filepath.Join(dir, fmt.Sprint("file-", i)), uint64(i), size/4096/100*12/10/files)
		}
	})
	pages, compressed := changedPages(t, old, disk)
	t.Logf("%d pages have changed, which take %d bytes compressed", pages, compressed)
	if pages < size/4096/100 {
		t.Fatalf("only %d pages have changed", pages)
	}
	meter.Take()
	r := b.run(t, "-v", "copyto", "blockdev:"+disk, "disks:root.img").OK(t)
	says(t, r, "root.img", "4Gi went over the wire")
	if passed := meter.Take(); passed*10 > compressed*12 {
		t.Errorf("%d bytes went over the wire, more than 1.2 times %d", passed, compressed)
	} else {
		t.Logf("%d bytes went over the wire, encrypted, in both directions", passed)
	}
	b.ok(t, "copyto", "disks:root.img", "blockdev,allow_write:"+b.near("back"))
	lab.Same(t, b.near("back"), disk)
}

// changedPages returns how many pages of 4 KiB of two files of one size differ, and
// how many bytes those of the second take, compressed together as fast as zstd can.
func changedPages(t *testing.T, before, after string) (pages, compressed int64) {
	t.Helper()
	var out bytes.Buffer
	w := lab.Must(zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest)))(t)
	a, b := lab.Must(os.Open(before))(t), lab.Must(os.Open(after))(t)
	defer a.Close()
	defer b.Close()
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < lab.Size(t, after); off += int64(len(p)) {
		lab.Must(a.ReadAt(p, off))(t)
		lab.Must(b.ReadAt(q, off))(t)
		for at := 0; at < len(p); at += 4096 {
			if !bytes.Equal(p[at:at+4096], q[at:at+4096]) {
				pages++
				lab.Must(w.Write(q[at : at+4096]))(t)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return pages, int64(out.Len())
}
