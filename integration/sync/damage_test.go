//go:build linux

package sync_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// What the format of spgz images says about places in the file.
const (
	spgzHeader = 4096
	spgzSlot   = 131072 // with its flag byte
)

// TestLooksLikeSpgz syncs disks whose owner wrote the signature of an spgz
// image into the first sector.
func TestLooksLikeSpgz(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 5*mib)
	header := make([]byte, spgzHeader)
	copy(header, "SPGZ0001\x20\x00\x00\x00")
	lab.WriteAt(t, disk, header, 0)
	lab.WriteAt(t, disk, lab.Noise(2, 4*mib), spgzHeader)
	for _, kind := range []string{"spgz", "raw"} {
		t.Run(kind, func(t *testing.T) {
			into := target{b, kind, b.farPath(kind)}
			into.update(t, disk)
			lab.Scatter(t, disk, 3, 4)
			lab.WriteAt(t, disk, header, 0)
			into.update(t, disk)
		})
	}
	if r := b.run(t, disk, b.alpha("noted")).OK(t); !strings.Contains(r.Stderr, disk) {
		t.Errorf("nothing was said about a source that looks like spgz: %q", r.Stderr)
	}
	fails(t, b.run(t, "--source-format", "spgz", disk, b.alpha("forced")), failed, disk)
	nothingLeft(t, b.there)
}

// corrupt damages the compressed data of one block of an spgz image and returns
// the offset of the block in the content.
func corrupt(t *testing.T, image string, block int64) int64 {
	t.Helper()
	at := spgzHeader + block*spgzSlot
	content := lab.Must(os.ReadFile(image))(t)
	if !bytes.Equal(content[at:at+3], []byte{1, 0x1f, 0x8b}) {
		t.Fatalf("block %d of %s is not compressed: %x", block, image, content[at:at+3])
	}
	lab.WriteAt(t, image, lab.Noise(7, 500), at+100)
	return block * (spgzSlot - 1)
}

// proseImage makes an image that is compressed in every block.
func (b bench) proseImage(t *testing.T) string {
	t.Helper()
	return lab.Write(t, b.nearPath("prose"), lab.Prose(1, 4*mib+100), 0o644)
}

func TestCorruptSource(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	b.sync(t, b.proseImage(t), b.alpha("image"))
	offset := corrupt(t, b.farPath("image"), 9)
	if offset != 1179639 {
		t.Fatalf("block 9 lies at %d", offset)
	}
	for _, target := range []string{b.nearPath("new"), "beta:" + b.farPath("new")} {
		untouched(t, b.there, func() {
			fails(t, b.run(t, "--source-format", "spgz", b.alpha("image"), target), failed, b.farPath("image"), "1179639")
		})
	}
	nothingLeft(t, b.here)
	fails(t, b.run(t, "cat", b.alpha("image")), failed, b.farPath("image"), "1179639")
	corrupt(t, b.farPath("image"), 20)
	r := b.run(t, "verify", b.alpha("image"))
	said := r.Stdout + r.Stderr
	if r.Code != failed || !strings.Contains(said, "1179639") || !strings.Contains(said, "2621420") {
		t.Errorf("verify does not name both blocks: exit status %d\n%s", r.Code, said)
	}
}

func TestCorruptTarget(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.proseImage(t)
	into := newTarget(t, b, "spgz")
	into.update(t, disk)
	corrupt(t, into.path, 9)
	r := b.run(t, disk, b.alpha("disk")).OK(t)
	if !strings.Contains(r.Stderr, "1 block") || !strings.Contains(r.Stderr, "rewritten") {
		t.Errorf("nothing was said about the block that was rewritten: %q", r.Stderr)
	}
	into.compare(t, disk)
	b.run(t, "verify", b.alpha("disk")).OK(t)
}

// TestDiskFull fills a small file system with a new image and with one that
// grows. What has arrived is kept, until someone wants the room.
func TestDiskFull(t *testing.T) {
	lab.NeedRoot(t)
	b := newBench(t, lab.HostOptions{})
	dir := lab.MountUntilEnd(t, lab.Mkfs(t, "ext4", b.nearPath("system"), 24*mib), "loop")
	disk := lab.Write(t, b.nearPath("disk"), lab.Noise(1, 40*mib), 0o644)
	for _, kind := range []string{"--no-compress=true", "--no-compress=false"} {
		untouched(t, dir, func() {
			fails(t, b.run(t, kind, disk, "alpha:"+dir+"/new"), failed, dir+"/new", "no space left", "next run")
			halfLeft(t, dir, "new")
			b.run(t, "clean", "alpha:"+dir+"/new").OK(t)
		})
	}
	small := lab.Write(t, b.nearPath("small"), lab.Noise(1, 3*mib), 0o644)
	b.sync(t, small, "alpha:"+dir+"/image")
	fails(t, b.run(t, disk, "alpha:"+dir+"/image"), failed, dir+"/image", "no space left")
	lab.Same(t, tools.Extract(t, dir+"/image"), small)
	b.run(t, "clean", "alpha:"+dir+"/image").OK(t)
	nothingLeft(t, dir)
	b.sync(t, small, "alpha:"+dir+"/image")
	lab.Same(t, tools.Extract(t, dir+"/image"), small)
}

// TestSourceChanges writes to the end of a source while its beginning is being
// sent, slowly enough for the order to be certain.
func TestSourceChanges(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.slowImage(t)
	sync := b.startSlowly(t, disk)
	lab.WriteAt(t, disk, []byte("changed"), slowSize-100)
	fails(t, sync.Wait(t), refused, disk, "changed")
	halfLeft(t, b.there, "disk")
	b.laterSync(t)
}
