//go:build linux

package sync_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// The smallest file system that all three kinds can make, and what it grows
// and shrinks to: sizes that are no multiple of anything.
const (
	systemSize = 320 * mib
	grownSize  = systemSize + 31*mib + 4567
	shrunkSize = systemSize - 20*mib - 4567
	deviceSize = 384 * mib
)

// TestMatrix keeps images of real file systems up to date over ssh, in every
// kind of target.
func TestMatrix(t *testing.T) {
	lab.NeedRoot(t)
	for _, system := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(system, func(t *testing.T) {
			lab.NeedPrograms(t, "mkfs."+system)
			original := fileSystem(t, system)
			for _, kind := range []string{"spgz", "raw", "device"} {
				t.Run(kind, func(t *testing.T) { keepUpToDate(t, original, kind) })
			}
		})
	}
}

// fileSystem makes an image of a file system with files in it.
func fileSystem(t *testing.T, system string) string {
	t.Helper()
	image := lab.Mkfs(t, system, filepath.Join(t.TempDir(), system+".img"), systemSize)
	lab.Mounted(t, image, func(dir string) { lab.FillTree(t, dir, 1, 40*mib) })
	return image
}

// keepUpToDate goes through the life of one target.
func keepUpToDate(t *testing.T, original, kind string) {
	b := newBench(t, lab.HostOptions{})
	source := lab.Copy(t, original, b.nearPath("disk"))
	target := newTarget(t, b, kind)

	first := target.update(t, source)
	if first.ImageSize != systemSize {
		t.Errorf("first copy: image_size is %d, want %d", first.ImageSize, systemSize)
	}
	inode := lab.Inode(t, target.path)

	same := target.update(t, source)
	if same.BytesSent > systemSize/1000 {
		t.Errorf("nothing changed: sent %d bytes", same.BytesSent)
	}
	if kind != "device" && same.Target.BytesRead > 0 {
		t.Errorf("nothing changed: read %d bytes of the target", same.Target.BytesRead)
	}

	lab.Mounted(t, source, func(dir string) { lab.ChangeTree(t, dir, 2) })
	change := target.update(t, source)
	if change.BytesSent == 0 || change.BytesSent > first.BytesSent/2 {
		t.Errorf("change: sent %d bytes, the first copy sent %d", change.BytesSent, first.BytesSent)
	}

	resize(t, source, grownSize)
	lab.WriteAt(t, source, lab.Noise(3, 100_000), grownSize-200_000)
	target.update(t, source)

	resize(t, source, shrunkSize)
	shrunk := target.update(t, source)
	if shrunk.BytesSent > systemSize/1000 {
		t.Errorf("shrinking: sent %d bytes", shrunk.BytesSent)
	}
	if now := lab.Inode(t, target.path); now != inode {
		t.Errorf("the target was replaced: inode %s, before %s", now, inode)
	}
	t.Logf("sent: first %d, nothing changed %d, files changed %d, shrunk %d",
		first.BytesSent, same.BytesSent, change.BytesSent, shrunk.BytesSent)
}

func resize(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// A target is an image at the other machine.
type target struct {
	bench
	kind string // spgz, raw or device
	path string
}

func newTarget(t *testing.T, b bench, kind string) target {
	t.Helper()
	path := b.farPath("disk")
	if kind == "device" {
		path = lab.BlankDevice(t, deviceSize)
	}
	return target{b, kind, path}
}

// update syncs and compares every byte.
func (target target) update(t *testing.T, source string) lab.Summary {
	t.Helper()
	args := []string{source, "alpha:" + target.path}
	if target.kind == "raw" {
		args = append([]string{"--no-compress"}, args...)
	}
	s := target.sync(t, args...)
	target.compare(t, source)
	return s
}

// compare checks the target against the source, spgz by way of the original's
// own tool. An image may not take much more room than the file it is made of.
func (target target) compare(t *testing.T, source string) {
	t.Helper()
	content := target.path
	if target.kind == "spgz" {
		content = tools.Extract(t, target.path)
	}
	lab.Same(t, content, source)
	if target.kind == "device" {
		return
	}
	nothingLeft(t, target.there)
	room := lab.Allocated(t, source)
	if got := lab.Allocated(t, target.path); room > 0 && got > room+room/10+mib {
		t.Errorf("%s takes %d bytes on the disk, its source %d", target.path, got, room)
	}
}
