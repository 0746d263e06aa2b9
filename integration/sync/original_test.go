//go:build linux

package sync_test

import (
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// TestImagesOfTheOriginal updates images that the original diskrsync wrote, and
// lets the original go on with them afterwards.
func TestImagesOfTheOriginal(t *testing.T) {
	tools.NeedPeers(t)
	for _, kind := range []string{"spgz", "raw"} {
		t.Run(kind, func(t *testing.T) {
			b := newBench(t, lab.HostOptions{})
			disk := b.image(t, "disk", 1, 30*mib+3)
			image := target{b, kind, b.farPath("disk")}
			image.originalUpdate(t, disk)
			inode := lab.Inode(t, image.path)

			same := image.update(t, disk)
			if same.BytesSent > 30*mib/1000 {
				t.Errorf("nothing changed: sent %d bytes", same.BytesSent)
			}
			lab.Scatter(t, disk, 2, 20)
			image.update(t, disk)
			resize(t, disk, 33*mib+9)
			lab.Scatter(t, disk, 3, 20)
			image.update(t, disk)
			resize(t, disk, 29*mib+1)
			image.update(t, disk)
			if now := lab.Inode(t, image.path); now != inode {
				t.Errorf("the image was replaced: inode %s, before %s", now, inode)
			}

			lab.Scatter(t, disk, 4, 20)
			image.originalUpdate(t, disk)
			lab.Scatter(t, disk, 5, 20)
			image.update(t, disk)
		})
	}
}

// originalUpdate is update by the original program, on this machine.
func (target target) originalUpdate(t *testing.T, source string) {
	t.Helper()
	args := []string{source, target.path}
	if target.kind == "raw" {
		args = append([]string{"--no-compress"}, args...)
	}
	lab.Do(t, tools.Original, args...)
	target.compare(t, source)
}
