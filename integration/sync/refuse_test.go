//go:build linux

package sync_test

import (
	"os"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// Exit statuses.
const (
	failed  = 1
	usage   = 2
	refused = 3
)

// TestWrongPaths tries sources and targets that cannot be right, on this
// machine and on the other one.
func TestWrongPaths(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 3*mib)
	b.sync(t, disk, b.alpha("image"))
	makeFolder(t, b.farPath("folder"))
	makeFolder(t, b.nearPath("folder"))
	for _, test := range []struct {
		name, source, target string
		code                 int
		words                []string
	}{
		{"no source here", b.nearPath("none"), b.alpha("new"), failed, []string{b.nearPath("none")}},
		{"no source there", b.alpha("none"), b.nearPath("new"), failed, []string{b.farPath("none")}},
		{"source here is a folder", b.nearPath("folder"), b.alpha("new"), failed, []string{b.nearPath("folder"), "folder"}},
		{"source there is a folder", b.alpha("folder"), b.nearPath("new"), failed, []string{b.farPath("folder"), "folder"}},
		{"source is no file", "/dev/null", b.alpha("new"), failed, []string{"/dev/null"}},
		{"no target folder there", disk, b.alpha("none/new"), failed, []string{b.farPath("none")}},
		{"no target folder here", b.alpha("image"), b.nearPath("none/new"), failed, []string{b.nearPath("none")}},
		{"target there is a folder", disk, b.alpha("folder"), failed, []string{b.farPath("folder"), `"/"`}},
		{"target here is a folder", b.alpha("image"), b.nearPath("folder"), failed, []string{b.nearPath("folder"), `"/"`}},
		{"target is no file", disk, "alpha:/dev/null", failed, []string{"/dev/null"}},
		{"host looks like an option", disk, "-oProxyCommand=x:" + b.farPath("new"), usage, nil},
		{"user and host look like an option", disk, "me@-oProxyCommand=x:" + b.farPath("new"), usage, []string{"-oProxyCommand=x"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			check := func() { fails(t, b.run(t, test.source, test.target), test.code, test.words...) }
			untouched(t, b.there, func() { untouched(t, b.here, check) })
		})
	}
}

func makeFolder(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestSameFile must notice a target that is its own source, by whatever way
// it is named.
func TestSameFile(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 3*mib)
	if err := os.Symlink(disk, b.nearPath("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(disk, b.nearPath("name")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, source, target string }{
		{"same path", disk, disk},
		{"symbolic link", disk, b.nearPath("link")},
		{"second name", b.nearPath("name"), disk},
		{"over ssh", disk, "alpha:" + disk},
		{"both over ssh", "alpha:" + disk, "beta:" + b.nearPath("name")},
	} {
		t.Run(test.name, func(t *testing.T) {
			untouched(t, b.here, func() {
				fails(t, b.run(t, test.source, test.target), refused, "same")
			})
		})
	}
}

// TestReadOnlyFolder needs a file system that not even root can write to.
func TestReadOnlyFolder(t *testing.T) {
	lab.NeedRoot(t)
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 3*mib)
	system := lab.Mkfs(t, "ext4", b.farPath("system"), 20*mib)
	lab.Mounted(t, system, func(dir string) { lab.Copy(t, disk, dir+"/image") })
	dir := lab.MountUntilEnd(t, system, "loop,ro")
	for _, name := range []string{"new", "image"} {
		untouched(t, dir, func() {
			fails(t, b.run(t, disk, "alpha:"+dir+"/"+name), failed, dir, "read-only file system")
		})
	}
}

func TestDeviceTooSmall(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 9*mib)
	device := lab.BlankDevice(t, 8*mib)
	lab.WriteAt(t, device, lab.Noise(2, 8*mib), 0)
	before := lab.Do(t, "sha256sum", device)
	for _, target := range []string{device, "alpha:" + device} {
		fails(t, b.run(t, disk, target), refused, device, "9437184", "8388608")
	}
	if lab.Do(t, "sha256sum", device) != before {
		t.Error("the device was written to")
	}
}

func TestDeviceInUse(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 9*mib)
	device := lab.LoopDevice(t, lab.Mkfs(t, "ext4", b.farPath("backing"), 16*mib))
	dir := lab.MountUntilEnd(t, device, "rw")
	lab.Write(t, dir+"/file", []byte("precious"), 0o644)
	for _, target := range []string{device, "alpha:" + device} {
		fails(t, b.run(t, disk, target), refused, device, "in use")
	}
	if lab.Do(t, "cat", dir+"/file") != "precious" {
		t.Error("the mounted file system was written to")
	}
}

// TestLocked starts a second sync to a target while the first is at work.
func TestLocked(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.slowImage(t)
	first := b.startSlowly(t, disk)
	fails(t, b.run(t, disk, b.alpha("disk")), refused, b.farPath("disk"), "being written")
	first.Interrupt(t)
	first.Wait(t)
}
