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
		rg.format, rg.fixed, rg.opts.StateDir = Device, deviceSectors*512, t.TempDir()
		rg.path = func(*testing.T) string { return dev }
		rigs = append(rigs, rg)
	}
	return rigs
}

func TestDeviceConformance(t *testing.T) {
	for _, rg := range deviceRigs(t) {
		t.Run(rg.name, func(t *testing.T) { rg.conform(t, 20) })
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
		t.Run(rg.name, func(t *testing.T) { rg.conform(t, 15) })
	}
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, noise(1, 50000), 0o600))
	tg := target(t, path, TargetOptions{})
	update(t, tg, 8192, make([]byte, 50000))
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
	_, err := Open(place(t, dev), Options{Choice: AsSpgz})
	wantError(t, err, nil, "no spgz image")
}

// deviceState returns what is stored about a device.
func deviceState(t *testing.T, dev, state string) State {
	t.Helper()
	im := deviceImage(t, dev, state)
	must(t, im.Close())
	return im.State()
}

// deviceImage opens a device for reading, with what is stored about it.
func deviceImage(t *testing.T, dev, state string) Image {
	t.Helper()
	return openImage(t, dev, Options{Examine: true, StateDir: state})
}

// What is stored about a device is believed as long as nothing else has written
// to it, be it through the cache of the kernel.
func TestDeviceState(t *testing.T) {
	dev, content := loopDevice(t, make([]byte, 1<<20)), noise(1, 1<<20)
	o := TargetOptions{StateDir: filepath.Join(t.TempDir(), "not", "there", "yet")}
	writeImage(t, dev, o, 8192, content)
	im := deviceImage(t, dev, o.StateDir)
	if s := im.State(); !s.Stored || s.Generation != 1 || s.Digest != digestOf(t, content, 8192) || im.BlockSize() != 8192 {
		t.Errorf("the state is %+v, blocks of %d", s, im.BlockSize())
	}
	same(t, "the device", contentOf(t, im), content)
	if !im.Modified().Equal(lastModified) {
		t.Errorf("modified at %v", im.Modified())
	}
	must(t, im.Close())
	tg := target(t, dev, o)
	must(t, tg.Begin(1<<20, 8192))
	checkHashes(t, tg, content)
	if _, ok := tg.Root(0); !ok {
		t.Error("what is stored about the device is not believed")
	}
	must(t, tg.Close())
	for name, write := range map[string]func(f *os.File) error{
		"written":    func(f *os.File) error { _, err := f.WriteAt([]byte("x"), 5000); return err },
		"zeroed":     func(f *os.File) error { return zeroDevice(f, 8192, 16384) },
		"not closed": func(f *os.File) error { _, err := f.WriteAt([]byte("y"), 5001); return err },
	} {
		f, err := os.OpenFile(dev, os.O_RDWR, 0)
		must(t, err)
		must(t, write(f))
		if name != "not closed" {
			must(t, f.Close())
		}
		im := deviceImage(t, dev, o.StateDir)
		if _, ok := im.Hashes(8192).Root(0); ok || im.State().Stored {
			t.Errorf("%s: what was stored is believed", name)
		}
		must(t, im.Close())
		if name == "not closed" {
			must(t, f.Close())
		}
		writeImage(t, dev, o, 8192, content)
		same(t, name+", and synced again", readAllWith(t, dev, Options{StateDir: o.StateDir}), content)
	}
}

// Where no folder is named, a device is read, whatever is known about it.
func TestDeviceWithoutState(t *testing.T) {
	dev := loopDevice(t, make([]byte, 1<<20))
	state := t.TempDir()
	writeImage(t, dev, TargetOptions{StateDir: state}, 8192, noise(1, 1<<20))
	marker := systemMarker(t, dev)
	im := source(t, dev, Auto)
	if _, ok := im.Hashes(8192).Root(0); ok {
		t.Error("a reader believes what is stored")
	}
	must(t, im.Close())
	tg := target(t, dev, TargetOptions{})
	must(t, tg.Begin(1<<20, 8192))
	if _, ok := tg.Root(0); ok {
		t.Error("a target believes what is stored")
	}
	// It is marked as incomplete all the same.
	must(t, tg.Put(blockOf(noise(2, 1<<20), 8192, 0)))
	must(t, tg.Close())
	_, err := os.Stat(marker)
	must(t, err)
	_, err = Open(place(t, dev), Options{})
	wantError(t, err, ErrIncomplete, "is incomplete: an update in place was interrupted")
	writeImage(t, dev, TargetOptions{}, 8192, noise(2, 1<<20))
	same(t, "complete again", readAll(t, dev, Auto), noise(2, 1<<20))
	if _, err := os.Stat(marker); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the marker of a complete device: %v", err)
	}
}

// systemMarker returns what marks a device as incomplete where no folder is
// named. It is removed after the test, and the folder if nothing else is in it.
func systemMarker(t *testing.T, dev string) string {
	t.Helper()
	need(t, os.Geteuid() == 0, "the folder of the system's state belongs to root")
	f, err := os.Open(dev)
	must(t, err)
	defer f.Close()
	name, err := deviceName(f)
	must(t, err)
	marker := filepath.Join(systemState, name+"."+string(KindJournal))
	t.Cleanup(func() {
		if err := os.Remove(marker); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		_ = os.Remove(systemState) // if it is not empty it was not ours alone
	})
	return marker
}

// A device that was left half way says so, wherever it turns up.
func TestDeviceIncomplete(t *testing.T) {
	before, after := noise(1, 1<<20), noise(2, 1<<20)
	file := writeFile(t, before)
	dev, o := loopOver(t, file), TargetOptions{StateDir: t.TempDir()}
	tg := target(t, dev, o)
	must(t, tg.Begin(1<<20, 8192))
	must(t, tg.Close())
	if deviceState(t, dev, o.StateDir).Incomplete {
		t.Error("incomplete before anything is written")
	}
	cutOff(t, dev, o, 8192, after, 5)
	_, err := Open(place(t, dev), Options{StateDir: o.StateDir})
	wantError(t, err, ErrIncomplete, "sync to it again, or force that it is read as it is")
	must(t, openImage(t, dev, Options{StateDir: o.StateDir, Force: true}).Close())
	_, err = Clean(place(t, dev), o.StateDir)
	wantError(t, err, ErrIncomplete, "only a sync mends that")

	again := loopOver(t, file) // under another number
	if !deviceState(t, again, o.StateDir).Incomplete {
		t.Error("it is not known under another number")
	}
	s := newSyncing(8192, 1)
	tg = target(t, dev, o)
	if root, ok := tg.Root(0); ok {
		t.Errorf("the root %v of an incomplete device is believed", root)
	}
	must(t, s.run(tg, after))
	must(t, tg.Close())
	if s.put != 128-5 {
		t.Errorf("%d blocks were put again, want %d", s.put, 128-5)
	}
	same(t, "complete", readAllWith(t, dev, Options{StateDir: o.StateDir}), after)
}

// What is synced to a device may be shorter than the device, of which then only
// that part is known.
func TestDeviceThatIsLonger(t *testing.T) {
	dev, o := loopDevice(t, noise(1, 4<<20)), TargetOptions{StateDir: t.TempDir()}
	content := noise(2, 3<<20)
	writeImage(t, dev, o, 8192, content)
	im := deviceImage(t, dev, o.StateDir)
	if s := im.State(); s.Stored || s.Incomplete || im.Size() != 4<<20 {
		t.Errorf("%d bytes, %+v", im.Size(), s)
	}
	want := append(content, noise(1, 4<<20)[3<<20:]...)
	same(t, "the device", contentOf(t, im), want)
	_, first := im.Hashes(8192).Root(0)
	_, second := im.Hashes(8192).Root(1)
	if !first || second {
		t.Errorf("of 512 blocks 384 were synced: the first region is known: %v, the second: %v", first, second)
	}
}

func TestDeviceTooSmall(t *testing.T) {
	content := noise(1, 64<<10)
	dev := loopDevice(t, content)
	tg := target(t, dev, TargetOptions{StateDir: t.TempDir()})
	wantError(t, tg.Begin(64<<10+1, 8192), ErrTooSmall, "the device has 65536 bytes, the source 65537")
	wantError(t, tg.Punch(0, 1), nil, "before Begin")
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
	first := target(t, dev, TargetOptions{StateDir: t.TempDir()})
	_, err = OpenTarget(place(t, dev), TargetOptions{})
	wantError(t, err, ErrInUse, "mounted or in use")
	must(t, first.Close())
	if _, err := os.Stat(filepath.Join(filepath.Dir(dev), StoreFolder)); err == nil {
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
	d, err := newDisk(osFile{f}, dev)
	must(t, err)
	body := &flat{disk: d, length: d.held}
	for _, e := range [][2]int64{{100, 200}, {511, 513}, {40000, 300001}, {512 * 700, 512 * 701}, {1<<20 - 777, 1 << 20}} {
		must(t, body.Punch(e[0], e[1]-e[0]))
		clear(content[e[0]:e[1]])
	}
	if d.noPunch.Load() {
		t.Error("the kernel did not zero the loop device itself: this test shows nothing")
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
	f, err := os.OpenFile(loopOver(t, file), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	d, err := newDisk(osFile{f}, "disk")
	must(t, err)
	body := &flat{disk: d, length: size}
	marks := []int64{0, zeroStep - 8192, zeroStep, 2*zeroStep - 8192, 2 * zeroStep, size - 8192}
	for _, off := range marks {
		_, err := body.WriteAt(noise(1, 8192), off)
		must(t, err)
	}
	must(t, body.Punch(0, size))
	block := make([]byte, 8192)
	for _, off := range marks {
		_, err := body.ReadAt(block, off)
		must(t, err)
		same(t, "a mark", block, make([]byte, 8192))
	}
}

// A file system that is full.
func TestNoSpace(t *testing.T) {
	dir := mounted(t, "none", "tmpfs", "size=1m")
	for _, o := range []TargetOptions{{}, {Raw: true}} {
		path := filepath.Join(dir, "disk")
		tg := target(t, path, o)
		err := newSyncing(testBlock, 1).run(tg, noise(1, 4<<20))
		wantError(t, err, syscall.ENOSPC, "no space left on its file system")
		must(t, tg.Close())
		done, err := Clean(place(t, path), "")
		must(t, err)
		if names := inFolder(t, path); len(names) > 0 {
			t.Errorf("Clean says %q and leaves %v", done, names)
		}
	}
}

// An update needs a journal, and so a folder where it can be made. What is there
// can be read.
func TestFolderNotWritable(t *testing.T) {
	need(t, os.Geteuid() == 0, "making a folder immutable needs root")
	_, err := exec.LookPath("chattr")
	need(t, err == nil, "chattr is not installed")
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, text(30000))
	dir := filepath.Dir(path)
	immutable(t, filepath.Join(dir, StoreFolder))
	_, err = OpenTarget(place(t, path), TargetOptions{})
	wantError(t, err, os.ErrPermission, "opening its lock file")
	same(t, "read all the same", readAll(t, path, Auto), text(30000))
	if !source(t, path, Auto).State().Stored {
		t.Error("its hashes are not believed")
	}
	must(t, target(t, path, TargetOptions{DryRun: true}).Close())

	bare := writeFile(t, noise(1, 30000))
	immutable(t, filepath.Dir(bare))
	_, err = OpenTarget(place(t, bare), TargetOptions{})
	wantError(t, err, os.ErrPermission, "making the folder .diskrsync beside it")
	same(t, "read all the same", readAll(t, bare, Auto), noise(1, 30000))
}

// immutable keeps everyone from changing what is in a folder.
func immutable(t *testing.T, dir string) {
	t.Helper()
	out, err := exec.Command("chattr", "+i", dir).CombinedOutput()
	need(t, err == nil, "the temporary folder cannot be made immutable: "+string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("chattr", "-i", dir).CombinedOutput(); err != nil {
			t.Errorf("chattr -i: %v: %s", err, out)
		}
	})
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
