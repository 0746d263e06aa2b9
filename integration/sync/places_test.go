//go:build linux

package sync_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// TestRestore writes an image back onto a device that is almost right.
func TestRestore(t *testing.T) {
	for _, kind := range []string{"spgz", "raw"} {
		t.Run(kind, func(t *testing.T) {
			b := newBench(t, lab.HostOptions{})
			disk := b.image(t, "disk", 1, 40*mib)
			newTarget(t, b, kind).update(t, disk)

			device := lab.BlankDevice(t, 48*mib)
			lab.WriteAt(t, device, lab.Noise(2, 48*mib), 0)
			b.sync(t, b.alpha("disk"), device)
			lab.Same(t, device, disk)

			lab.Scatter(t, device, 3, 5)
			again := b.sync(t, b.alpha("disk"), device)
			lab.Same(t, device, disk)
			if again.BytesSent > mib {
				t.Errorf("restoring five pages took %d bytes", again.BytesSent)
			}
		})
	}
}

func TestDeviceAsSource(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	device := lab.LoopDevice(t, b.image(t, "backing", 1, 24*mib+512))
	for _, kind := range []string{"spgz", "raw"} {
		t.Run(kind, func(t *testing.T) {
			into := target{b, kind, b.farPath(kind)}
			into.update(t, device)
			lab.Scatter(t, device, 2, 9)
			into.update(t, device)
		})
	}
}

// TestPlaces syncs between all combinations of machines, and with paths that
// leave something out.
func TestPlaces(t *testing.T) {
	b := newBench(t, lab.HostOptions{Login: `cd "$(dirname "$0")" && exec $SSH_ORIGINAL_COMMAND`})
	disk := b.image(t, "disk", 1, 9*mib+77)
	for _, test := range []struct{ name, source, target, lands string }{
		{"both here", disk, b.nearPath("copy"), b.nearPath("copy")},
		{"to there", disk, b.alpha("one"), b.farPath("one")},
		{"both elsewhere", b.alpha("one"), "beta:" + b.farPath("two"), b.farPath("two")},
		{"from there", "beta:" + b.farPath("two"), b.nearPath("back"), b.nearPath("back")},
		{"slash at the end", disk, b.alpha("") + "/", b.farPath("disk")},
		{"name in the home folder", disk, "alpha:homely", filepath.Join(b.Dir, "homely")},
		{"home folder", disk, "alpha:", filepath.Join(b.Dir, "disk")},
	} {
		t.Run(test.name, func(t *testing.T) {
			for range 2 {
				b.sync(t, "--no-compress", test.source, test.target)
				lab.Same(t, test.lands, disk)
			}
		})
	}
}

// TestFormatsAcross reads spgz images as sources of all kinds of targets.
func TestFormatsAcross(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 20*mib+1)
	b.sync(t, disk, b.alpha("spgz"))
	b.sync(t, b.alpha("spgz"), b.nearPath("spgz"))
	lab.Same(t, tools.Extract(t, b.nearPath("spgz")), disk)
	b.sync(t, "--no-compress", b.nearPath("spgz"), b.alpha("raw"))
	lab.Same(t, b.farPath("raw"), disk)
	b.sync(t, "--no-compress", "--source-format", "raw", b.nearPath("spgz"), b.alpha("packed"))
	lab.Same(t, b.farPath("packed"), b.nearPath("spgz"))
}

func TestDryRun(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 8*mib)
	untouched(t, b.there, func() { b.sync(t, "--dry-run", disk, b.alpha("disk")) })
	b.sync(t, disk, b.alpha("disk"))
	lab.Scatter(t, disk, 2, 3)
	untouched(t, b.there, func() {
		s := b.sync(t, "--dry-run", disk, b.alpha("disk"))
		if s.Changed+s.Patched == 0 {
			t.Error("a dry run after a change says that nothing would be sent")
		}
	})
}

// TestLookingAtImages tries the commands that only read, here and over ssh. What is
// stored about an image is what is found when all of it is read.
func TestLookingAtImages(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 10*mib+5)
	want := lab.Must(os.ReadFile(disk))(t)
	for _, kind := range []string{"spgz", "raw"} {
		image := target{b, kind, b.farPath(kind)}
		digest := image.update(t, disk).Digest
		for _, place := range []string{image.path, "alpha:" + image.path} {
			t.Run(kind+" at "+place[:strings.IndexByte(place, '/')+1], func(t *testing.T) {
				if out := b.run(t, "cat", place).OK(t).Stdout; !bytes.Equal([]byte(out), want) {
					t.Errorf("cat wrote %d bytes that are not the image's content", len(out))
				}
				for _, command := range []string{"verify", "info"} {
					checkInfo(t, b.run(t, command, "--json", place).OK(t).Stdout, kind, len(want), digest)
				}
			})
		}
	}
}

func checkInfo(t *testing.T, out, kind string, size int, digest string) {
	t.Helper()
	type description struct {
		Format string
		Size   int
		Digest string
	}
	var info description
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("info: %v\n%s", err, out)
	}
	if want := (description{kind, size, digest}); info != want {
		t.Errorf("info says %+v, the sync said %+v", info, want)
	}
}
