package image

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// loopDevice makes a loop device of size bytes over a file with the given
// content.
func loopDevice(t *testing.T, content []byte) string {
	t.Helper()
	return loopOver(t, writeFile(t, content))
}

func loopOver(t *testing.T, file string) string {
	t.Helper()
	need(t, os.Geteuid() == 0, "loop devices need root")
	_, err := exec.LookPath("losetup")
	need(t, err == nil, "losetup is not installed")
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	need(t, err == nil, "losetup fails: "+string(out))
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// mounted mounts a file system for the time of the test.
func mounted(t *testing.T, source, kind, data string) string {
	t.Helper()
	need(t, os.Geteuid() == 0, "mounting needs root")
	dir := t.TempDir()
	err := unix.Mount(source, dir, kind, 0, data)
	need(t, err == nil, "mounting "+kind+" fails")
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return dir
}

const deviceSectors = 131

func deviceRigs(t *testing.T) []rig {
	var rigs []rig
	for _, rg := range []rig{
		{name: "8192", blockSize: 8192},
		{name: "12287", blockSize: 12287},
		{name: "12287 without zeroing", blockSize: 12287, tune: noPunching},
	} {
		dev := loopDevice(t, noise(1, deviceSectors*512))
		rg.format, rg.fixed = Device, deviceSectors*512
		rg.path = func(*testing.T) string { return dev }
		rigs = append(rigs, rg)
	}
	return rigs
}

func TestDeviceConformance(t *testing.T) {
	for _, rg := range deviceRigs(t) {
		t.Run(rg.name, func(t *testing.T) { conform(t, rg, 20) })
	}
}

// ramfs is a file system that really has no holes to punch.
func TestConformanceOnRamfs(t *testing.T) {
	dir := mounted(t, "none", "ramfs", "")
	for _, rg := range fileRigs() {
		if rg.tune != nil {
			continue
		}
		rg.path = func(t *testing.T) string {
			sub, err := os.MkdirTemp(dir, "")
			must(t, err)
			return filepath.Join(sub, "disk")
		}
		t.Run(rg.name, func(t *testing.T) { conform(t, rg, 15) })
	}
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, noise(1, 50000), 0o600))
	tg := target(t, path, TargetOptions{})
	must(t, tg.Begin(50000, 8192))
	must(t, tg.Punch(0, 20000))
	if !tg.disk.noPunch.Load() {
		t.Error("ramfs punches holes: this test shows nothing")
	}
	must(t, tg.Close())
}

func TestDeviceAsSource(t *testing.T) {
	content := fake("\x00", "\x00") // a guest may write what it likes
	dev := loopDevice(t, content)
	content = content[:len(content)/512*512]
	im := source(t, dev, Auto)
	if im.Format() != Device || im.BlockSize() != 0 || im.Size() != int64(len(content)) {
		t.Errorf("opened as %s of %d bytes, want a device of %d", im.Format(), im.Size(), len(content))
	}
	same(t, "the device", readAll(t, dev, Auto), content)
	must(t, im.Changed())
	if n, err := im.Allocated(); n != im.Size() || err != nil {
		t.Errorf("allocated %d, %v", n, err)
	}
	link := filepath.Join(t.TempDir(), "lv")
	must(t, os.Symlink(dev, link))
	if !im.Identity().Same(target(t, link, TargetOptions{DryRun: true}).Identity()) {
		t.Error("a device has two identities")
	}
	_, err := Open(place(t, dev), AsSpgz)
	wantError(t, err, nil, "no spgz image")
}

func TestDeviceTooSmall(t *testing.T) {
	content := noise(1, 64<<10)
	dev := loopDevice(t, content)
	tg := target(t, dev, TargetOptions{})
	wantError(t, tg.Begin(64<<10+1, 8192), ErrTooSmall, "the device has 65536 bytes, the source 65537")
	_, err := tg.WriteAt([]byte("x"), 0)
	wantError(t, err, nil, "before Begin")
	must(t, tg.Close())
	same(t, "the device", readAll(t, dev, Auto), content)
}

func TestDeviceInUse(t *testing.T) {
	_, err := exec.LookPath("mkfs.ext4")
	need(t, err == nil, "mkfs.ext4 is not installed")
	dev := loopDevice(t, make([]byte, 16<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", dev).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	t.Run("mounted", func(t *testing.T) {
		mounted(t, dev, "ext4", "")
		_, err := OpenTarget(place(t, dev), TargetOptions{})
		wantError(t, err, ErrInUse, "mounted or in use")
		must(t, target(t, dev, TargetOptions{DryRun: true}).Close())
		must(t, source(t, dev, Auto).Close())
	})
	first := target(t, dev, TargetOptions{})
	_, err = OpenTarget(place(t, dev), TargetOptions{})
	wantError(t, err, ErrInUse, "mounted or in use")
	must(t, first.Close())
	if _, err := os.Stat(filepath.Join(filepath.Dir(dev), storeFolder)); err == nil {
		t.Error("a store was made beside the device")
	}
}

// What another reader of the device finds is zero, and nothing else is.
func TestDeviceZeroing(t *testing.T) {
	content := noise(1, 1<<20)
	dev := loopDevice(t, content)
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, zeroDevice(f, 8192, 20480))
	clear(content[8192:20480])
	for _, e := range [][2]int64{{100, 200}, {511, 513}, {40000, 300001}, {512 * 700, 512 * 701}, {1<<20 - 777, 1 << 20}} {
		tg := target(t, dev, TargetOptions{})
		must(t, tg.Begin(1<<20, 8192))
		must(t, tg.Punch(e[0], e[1]-e[0]))
		must(t, tg.Commit())
		if tg.disk.noPunch.Load() {
			t.Error("the kernel did not zero the loop device itself: this test shows nothing")
		}
		must(t, tg.Close())
		clear(content[e[0]:e[1]])
	}
	got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	must(t, err)
	same(t, "the device", got, content)
}

// Zeroing is done in steps; nothing between them is left out.
func TestDeviceZeroingInSteps(t *testing.T) {
	const size = 2*zeroStep + 64<<10
	file := writeFile(t, nil)
	must(t, os.Truncate(file, size))
	dev := loopOver(t, file)
	tg := target(t, dev, TargetOptions{})
	must(t, tg.Begin(size, 8192))
	marks := []int64{0, zeroStep - 8192, zeroStep, 2*zeroStep - 8192, 2 * zeroStep, size - 8192}
	for _, off := range marks {
		if _, err := tg.WriteAt(noise(1, 8192), off); err != nil {
			t.Fatal(err)
		}
	}
	must(t, tg.Punch(0, size))
	block := make([]byte, 8192)
	for _, off := range marks {
		if _, err := tg.ReadAt(block, off); err != nil {
			t.Fatal(err)
		}
		same(t, "a mark", block, make([]byte, 8192))
	}
	must(t, tg.Close())
}

func TestDiskFull(t *testing.T) {
	dir := mounted(t, "none", "tmpfs", "size=1m")
	for _, o := range []TargetOptions{{}, {Raw: true}} {
		tg := target(t, filepath.Join(dir, "disk"), o)
		must(t, tg.Begin(4<<20, testBlock))
		_, err := tg.WriteAt(noise(1, 4<<20), 0)
		wantError(t, err, syscall.ENOSPC, "no space left on its file system")
		must(t, tg.Close())
		if names := inFolder(t, filepath.Join(dir, "x")); len(names) > 0 {
			t.Errorf("left behind: %v", names)
		}
	}
}

// An image in a folder where nothing can be made can still be updated.
func TestFolderNotWritable(t *testing.T) {
	need(t, os.Geteuid() == 0, "making a folder immutable needs root")
	_, err := exec.LookPath("chattr")
	need(t, err == nil, "chattr is not installed")
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, text(30000))
	dir := filepath.Dir(path)
	out, err := exec.Command("chattr", "+i", dir).CombinedOutput()
	need(t, err == nil, "the temporary folder cannot be made immutable: "+string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("chattr", "-i", dir).CombinedOutput(); err != nil {
			t.Errorf("chattr -i: %v: %s", err, out)
		}
	})
	tg := target(t, path, TargetOptions{})
	_, err = OpenTarget(place(t, path), TargetOptions{})
	wantError(t, err, ErrInUse, "another process")
	must(t, tg.Begin(20000, 12287))
	must(t, tg.Commit())
	must(t, tg.Close())
	same(t, "updated", libraryRead(t, path), text(20000))
	_, err = OpenTarget(place(t, filepath.Join(dir, "new")), TargetOptions{})
	wantError(t, err, os.ErrPermission, "making the folder .diskrsync beside it")
}

// A bad sector is reported with its place.
func TestReadErrorNamesOffset(t *testing.T) {
	d := &disk{path: "/b/disk"}
	err := d.fail("reading", 4711, &os.PathError{Op: "read", Path: "disk", Err: syscall.EIO})
	wantError(t, err, syscall.EIO, "image /b/disk: reading at offset 4711: input/output error")
	if errors.Is(err, ErrRefused) {
		t.Error("a read error is no refusal")
	}
}
