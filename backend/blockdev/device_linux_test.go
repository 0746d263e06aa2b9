package blockdev_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/rclone/rclone/fs/operations"
	"github.com/rclone/rclone/fs/sync"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/diskrsync/diskrsync/backend/endpoint"
	"github.com/diskrsync/diskrsync/merkle/image"
)

// loopDevice makes a loop device with the given content.
func loopDevice(t *testing.T, content []byte) string {
	t.Helper()
	need(t, os.Geteuid() == 0, "loop devices need root")
	_, err := exec.LookPath("losetup")
	need(t, err == nil, "losetup is not installed")
	file := filepath.Join(t.TempDir(), "behind")
	write(t, file, content)
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

// emptyLoop returns a loop device that nothing is attached to.
func emptyLoop(t *testing.T) string {
	t.Helper()
	need(t, os.Geteuid() == 0, "loop devices need root")
	out, err := exec.Command("losetup", "--find").CombinedOutput()
	need(t, err == nil, "losetup fails: "+string(out))
	return strings.TrimSpace(string(out))
}

// node makes another node of a device, in a folder of its own, so that a test can
// do to it what it likes.
func node(t *testing.T, dev string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "disk")
	renode(t, p, dev)
	f, err := os.Open(p)
	need(t, err == nil, "the folder for temporary files has no devices")
	require.NoError(t, f.Close())
	return p
}

// renode puts a node of a device at p.
func renode(t *testing.T, p, dev string) {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(dev, &st))
	require.NoError(t, unix.Mknod(p, unix.S_IFBLK|0o600, int(st.Rdev)))
}

// written returns how many sectors of a device were ever written.
func written(t *testing.T, dev string) int64 {
	t.Helper()
	fields := strings.Fields(string(content(t, filepath.Join("/sys/class/block", filepath.Base(dev), "stat"))))
	n, err := strconv.ParseInt(fields[6], 10, 64)
	require.NoError(t, err)
	return n
}

const deviceSize = 300 * 512

func TestDeviceIsObject(t *testing.T) {
	ctx := begin(t)
	all := noise(1, deviceSize)
	dev := loopDevice(t, all)
	for _, c := range []struct{ remote, root string }{
		{dev, "/dev"},
		{strings.TrimPrefix(dev, "/dev/"), ""},
		{dev + "/", "/dev"},
		{"/dev/./" + filepath.Base(dev), "/dev"},
	} {
		f, err := fs.NewFs(ctx, reading+c.remote)
		require.Equal(t, fs.ErrorIsFile, err, c.remote)
		require.Equal(t, c.root, f.Root())
		before := time.Now()
		o, err := f.NewObject(ctx, filepath.Base(dev))
		require.NoError(t, err)
		require.Equal(t, int64(deviceSize), o.Size())
		require.True(t, o.Storable())
		at := o.ModTime(ctx)
		require.False(t, at.Before(before) || at.After(time.Now()))
		require.Equal(t, at, o.ModTime(ctx), "it is fixed")
		same(t, read(t, o), all, "the device")
		same(t, read(t, o, &fs.RangeOption{Start: 511, End: 2000}), all[511:2001], "a range of the device")
		require.Empty(t, read(t, o, &fs.SeekOption{Offset: deviceSize + 1}))
	}
	link := filepath.Join(t.TempDir(), "lv")
	require.NoError(t, os.Symlink(dev, link))
	same(t, read(t, object(t, ctx, reading, link)), all, "the device behind a link")
}

// names returns what is listed, with sizes.
func names(t *testing.T, ctx context.Context, f fs.Fs, dir string) map[string]int64 {
	t.Helper()
	entries, err := f.List(ctx, dir)
	require.NoError(t, err)
	got := map[string]int64{}
	for _, e := range entries {
		got[e.Remote()] = e.Size()
	}
	return got
}

func TestListings(t *testing.T) {
	ctx := begin(t)
	dev, empty := loopDevice(t, noise(1, deviceSize)), filepath.Base(emptyLoop(t))
	base := filepath.Base(dev)

	disks := names(t, ctx, open(t, ctx, reading), "")
	require.Equal(t, int64(deviceSize), disks[base])
	require.NotContains(t, disks, empty)
	for name, size := range disks {
		require.Positive(t, size, name)
		require.FileExists(t, "/sys/class/block/"+strings.ReplaceAll(name, "/", "!"))
	}
	folder := names(t, ctx, open(t, ctx, reading+"/dev"), "")
	require.Equal(t, int64(deviceSize), folder[base])
	for _, no := range []string{empty, "null", "core", "fd", "stdin", "kmsg"} {
		require.NotContains(t, folder, no)
	}

	dir := t.TempDir()
	require.NoError(t, os.Symlink(dev, filepath.Join(dir, "lv")))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	renode(t, filepath.Join(dir, "disk"), dev)
	require.Equal(t, map[string]int64{"lv": deviceSize, "disk": deviceSize}, names(t, ctx, open(t, ctx, reading+dir), ""))
	_, err := fs.NewFs(ctx, reading+dir+"/pipe")
	require.ErrorIs(t, err, fs.ErrorNotAFile)
	_, err = fs.NewFs(ctx, reading+"/dev/null")
	require.ErrorIs(t, err, fs.ErrorNotAFile)
}

// Regular files beneath /dev are no images: they may be all of the memory.
func TestFilesBeneathDev(t *testing.T) {
	ctx := begin(t)
	f, err := os.CreateTemp("/dev/shm", "blockdev-test-")
	need(t, err == nil, "there is no /dev/shm to write to")
	t.Cleanup(func() { require.NoError(t, errors.Join(f.Close(), os.Remove(f.Name()))) })
	base := filepath.Base(f.Name())
	shm := open(t, ctx, writing+"/dev/shm")
	require.NotContains(t, names(t, ctx, shm, ""), base)
	_, err = shm.NewObject(ctx, base)
	require.Equal(t, fs.ErrorObjectNotFound, err)
	_, err = shm.Put(ctx, bytes.NewReader(noise(1, 100)), info(base, 100))
	require.ErrorContains(t, err, "no such device")
	require.Empty(t, content(t, f.Name()))
	require.Zero(t, accounting.Stats(ctx).GetErrors(), "they are nothing to complain of")
}

// A device that cannot be opened is listed with its size all the same, so that the run
// fails when it is to be copied.
func TestDeviceNotReadable(t *testing.T) {
	ctx := begin(t)
	dev, dir := loopDevice(t, noise(1, deviceSize)), t.TempDir()
	err := unix.Mount("none", dir, "tmpfs", unix.MS_NODEV, "")
	need(t, err == nil, "mounting tmpfs fails")
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	renode(t, filepath.Join(dir, "disk"), dev)
	f := open(t, ctx, reading+dir)
	require.Equal(t, map[string]int64{"disk": deviceSize}, names(t, ctx, f, ""))
	require.Error(t, operations.CopyFile(ctx, open(t, ctx, t.TempDir()), f, "disk", "disk"))
	require.Error(t, sync.CopyDir(ctx, open(t, ctx, t.TempDir()), f, false))
}

// Partitions are listed beside their disk.
func TestPartitions(t *testing.T) {
	dev := loopDevice(t, make([]byte, 8<<20))
	out, err := exec.Command("addpart", dev, "1", "2048", "4096").CombinedOutput()
	need(t, err == nil, "addpart fails: "+string(out))
	t.Cleanup(func() { require.NoError(t, exec.Command("delpart", dev, "1").Run()) })
	disks := names(t, t.Context(), open(t, t.Context(), reading), "")
	require.Equal(t, int64(8<<20), disks[filepath.Base(dev)])
	require.Equal(t, int64(4096*512), disks[filepath.Base(dev)+"p1"])
}

// Nothing that is attached to nothing may become an empty backup.
func TestEmptyDevice(t *testing.T) {
	ctx := begin(t)
	dev := emptyLoop(t)
	_, err := fs.NewFs(ctx, reading+dev)
	require.ErrorContains(t, err, "no content")
	_, err = open(t, ctx, writing+"/dev").Put(ctx, bytes.NewReader(nil), info(filepath.Base(dev), 0))
	require.ErrorContains(t, err, "no content")
}

// A device always has the size that it had, and is copied all the same.
func TestNeverSkipped(t *testing.T) {
	for _, to := range []string{"", writing} {
		for _, whole := range []bool{false, true} {
			t.Run(to+strconv.FormatBool(whole), func(t *testing.T) {
				ctx := begin(t)
				all := noise(1, deviceSize)
				dev := loopDevice(t, all)
				from, dir := filepath.Dir(node(t, dev)), t.TempDir()
				fsrc, fdst := open(t, ctx, reading+from), open(t, ctx, to+dir)
				for round := range 3 {
					all[round*1000] ^= 1
					overwrite(t, dev, int64(round*1000), all[round*1000:][:1])
					if whole {
						require.NoError(t, sync.CopyDir(ctx, fdst, fsrc, false))
					} else {
						require.NoError(t, operations.CopyFile(ctx, fdst, fsrc, "disk", "disk"))
					}
					same(t, content(t, filepath.Join(dir, "disk")), all, "the backup")
				}
				require.Zero(t, accounting.Stats(ctx).GetErrors())
			})
		}
	}
}

// Flags by which rclone would skip a device are refused where there is one, and
// only there.
func TestRefusedFlags(t *testing.T) {
	dev := loopDevice(t, noise(1, deviceSize))
	from, to, files := filepath.Dir(node(t, dev)), t.TempDir(), t.TempDir()
	write(t, filepath.Join(to, "disk"), make([]byte, deviceSize))
	write(t, filepath.Join(files, "disk"), noise(1, deviceSize))
	for name, set := range map[string]func(*fs.ConfigInfo){
		"--size-only":       func(ci *fs.ConfigInfo) { ci.SizeOnly = true },
		"--checksum":        func(ci *fs.ConfigInfo) { ci.CheckSum = true },
		"--ignore-existing": func(ci *fs.ConfigInfo) { ci.IgnoreExisting = true },
		"--refresh-times":   func(ci *fs.ConfigInfo) { ci.RefreshTimes = true },
		"--update":          func(ci *fs.ConfigInfo) { ci.UpdateOlder = true },
		"--track-renames":   func(ci *fs.ConfigInfo) { ci.TrackRenames = true },
		"--modify-window":   func(ci *fs.ConfigInfo) { ci.ModifyWindow = fs.Duration(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, ci := fs.AddConfig(begin(t))
			set(ci)
			_, err := fs.NewFs(ctx, reading+dev)
			require.ErrorContains(t, err, name)
			require.NotContains(t, err.Error(), "\n")
			fsrc, fdst := open(t, ctx, reading+from), open(t, ctx, to)
			require.ErrorContains(t, operations.CopyFile(ctx, fdst, fsrc, "disk", "disk"), name)
			require.Error(t, sync.CopyDir(ctx, fdst, fsrc, false))
			_, err = fsrc.List(ctx, "")
			require.ErrorContains(t, err, name)
			_, err = open(t, ctx, reading).List(ctx, "")
			require.ErrorContains(t, err, name)
			require.ErrorContains(t, operations.CopyFile(ctx, open(t, ctx, writing+from), fdst, "disk", "disk"), name)
			same(t, content(t, dev), noise(1, deviceSize), "the device")

			_, err = open(t, ctx, reading+files).List(ctx, "")
			require.NoError(t, err, "of files")
		})
	}
}

// A restore writes the blocks that differ, and nothing behind the content; and it
// is reported as done, whether or not rclone has looked at the device before.
func TestRestore(t *testing.T) {
	for _, blind := range []bool{false, true} {
		t.Run(strconv.FormatBool(blind), func(t *testing.T) {
			ctx, ci := fs.AddConfig(begin(t))
			ci.NoCheckDest = blind
			was := noise(1, 4<<20)
			dev := loopDevice(t, was)
			src := filepath.Join(t.TempDir(), "backup.img")
			want := slices.Clone(was[:3<<20+512])
			copy(want[1<<20:], noise(2, 5000))
			write(t, src, want)
			fsrc, fdst := open(t, ctx, filepath.Dir(src)), open(t, ctx, writing+"/dev")
			base := filepath.Base(dev)
			before := written(t, dev)
			for round := range 2 {
				require.NoError(t, operations.CopyFile(ctx, fdst, fsrc, base, "backup.img"))
				got := content(t, dev)
				same(t, got[:len(want)], want, "what was restored")
				same(t, got[len(want):], was[len(want):], "what lies behind it")
				sectors := written(t, dev) - before
				if round == 0 {
					require.NotZero(t, sectors)
					before += sectors
				} else {
					require.Zero(t, sectors, "sectors written for nothing")
				}
				require.Less(t, sectors, int64(2<<20/512))
			}
			info, err := os.Stat(dev)
			require.NoError(t, err)
			require.Equal(t, os.ModeDevice, info.Mode().Type())
			require.Zero(t, accounting.Stats(ctx).GetErrors())
		})
	}
}

// The size of an object after an update is that of the content: also for Open.
func TestSizeAfterUpdate(t *testing.T) {
	ctx := begin(t)
	dev := loopDevice(t, noise(1, deviceSize))
	o := object(t, ctx, writing, dev)
	at := o.ModTime(ctx)
	require.NoError(t, o.Update(ctx, bytes.NewReader(noise(2, 5000)), info("x", 5000)))
	require.Equal(t, int64(5000), o.Size())
	require.Equal(t, at, o.ModTime(ctx))
	same(t, read(t, o), noise(2, 5000), "what was written")
	require.Empty(t, read(t, o, &fs.SeekOption{Offset: 6000}))
	_, err := o.ImageSource(context.Background())
	require.ErrorIs(t, err, endpoint.ErrNotPlaced)
	require.Equal(t, int64(deviceSize), object(t, ctx, writing, dev).Size())

	require.NoError(t, o.Update(ctx, bytes.NewReader(noise(3, deviceSize)), info("x", deviceSize)))
	require.Equal(t, int64(deviceSize), o.Size())
	same(t, read(t, o), noise(3, deviceSize), "what was written")
	require.NoError(t, o.SetModTime(ctx, time.Unix(1, 0)))
	require.Equal(t, at, o.ModTime(ctx))
}

// Without allow_write no byte reaches a device.
func TestReadOnlyDevice(t *testing.T) {
	ctx := begin(t)
	all := noise(1, deviceSize)
	dev := loopDevice(t, all)
	before := written(t, dev)
	src := t.TempDir()
	write(t, filepath.Join(src, filepath.Base(dev)), noise(2, deviceSize))
	err := operations.CopyFile(ctx, open(t, ctx, reading+"/dev"), open(t, ctx, src), filepath.Base(dev), filepath.Base(dev))
	require.ErrorContains(t, err, "allow_write")
	require.Error(t, sync.CopyDir(ctx, open(t, ctx, reading+"/dev"), open(t, ctx, src), false))
	require.Error(t, object(t, ctx, reading, dev).SetModTime(ctx, time.Now()))
	same(t, content(t, dev), all, "the device")
	require.Equal(t, before, written(t, dev))
}

func TestTooSmall(t *testing.T) {
	ctx := begin(t)
	all := noise(1, deviceSize)
	dev := loopDevice(t, all)
	err := object(t, ctx, writing, dev).Update(ctx, bytes.NewReader(noise(2, deviceSize+1)), info("x", deviceSize+1))
	require.ErrorIs(t, err, image.ErrTooSmall)
	same(t, content(t, dev), all, "the device")
}

func TestMounted(t *testing.T) {
	_, err := exec.LookPath("mkfs.ext4")
	need(t, err == nil, "mkfs.ext4 is not installed")
	ctx := begin(t)
	dev := loopDevice(t, make([]byte, 4<<20))
	out, err := exec.Command("mkfs.ext4", "-q", dev).CombinedOutput()
	require.NoError(t, err, string(out))
	dir := t.TempDir()
	err = unix.Mount(dev, dir, "ext4", unix.MS_RDONLY, "")
	need(t, err == nil, "mounting ext4 fails")
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	was := content(t, dev)
	err = object(t, ctx, writing, dev).Update(ctx, bytes.NewReader(noise(2, 4<<20)), info("x", 4<<20))
	require.ErrorIs(t, err, image.ErrInUse)
	same(t, content(t, dev), was, "the device")
}

// Nothing is made, changed or removed beneath /dev, however one gets there, but
// the content of devices.
func TestNothingMadeBeneathDev(t *testing.T) {
	need(t, os.Geteuid() == 0, "only root could")
	ctx := begin(t)
	dir := t.TempDir()
	require.NoError(t, os.Symlink("/dev", filepath.Join(dir, "through")))
	require.NoError(t, os.Symlink("/dev/diskrsync-none", filepath.Join(dir, "dangling")))
	roots := []string{"", "/dev", "/dev/mapper", dir + "/through", dir + "/through/mapper"}
	bound := t.TempDir()
	var dev, top unix.Stat_t
	require.NoError(t, unix.Stat("/dev", &dev))
	require.NoError(t, unix.Stat("/", &top))
	if dev.Dev != top.Dev && unix.Mount("/dev", bound, "", unix.MS_BIND, "") == nil {
		t.Cleanup(func() { require.NoError(t, unix.Unmount(bound, unix.MNT_DETACH)) })
		roots = append(roots, bound, bound+"/mapper")
	}
	t.Cleanup(func() {
		for _, left := range []string{"diskrsync-none", "mapper/diskrsync-none", ".diskrsync", "mapper/.diskrsync"} {
			require.NoError(t, os.RemoveAll("/dev/"+left)) // should it be there after all
		}
	})
	for _, missing := range []string{"diskrsync-none", "/dev/diskrsync-none", dir + "/through/diskrsync-none/disk"} {
		_, err := fs.NewFs(ctx, writing+missing)
		require.ErrorContains(t, err, "diskrsync-none")
		require.ErrorContains(t, err, "there is no such device")
	}
	for _, root := range roots {
		if _, err := os.Stat(root); root != "" && errors.Is(err, os.ErrNotExist) {
			continue // a machine without logical volumes may have no /dev/mapper
		}
		f := open(t, ctx, writing+root)
		for _, remote := range []string{"diskrsync-none", "diskrsync-none/disk"} {
			_, err := f.Put(ctx, bytes.NewReader(noise(1, 100)), info(remote, 100))
			require.ErrorContains(t, err, "there is no such device", "%s: %s", root, remote)
			require.ErrorContains(t, f.Mkdir(ctx, remote), "beneath /dev nothing is changed")
		}
		require.Error(t, f.Rmdir(ctx, ""))
	}
	f := open(t, ctx, writing+dir)
	_, err := f.Put(ctx, bytes.NewReader(noise(1, 100)), info("dangling", 100))
	require.Error(t, err)
	require.NoFileExists(t, "/dev/diskrsync-none")
	require.NoFileExists(t, "/dev/mapper/diskrsync-none")
	require.NoDirExists(t, "/dev/.diskrsync")
}

// A path at which there was a device may lead elsewhere a moment later.
func TestVanished(t *testing.T) {
	ctx := begin(t)
	dev, other := loopDevice(t, noise(1, deviceSize)), loopDevice(t, noise(2, deviceSize))
	p := node(t, dev)
	o := object(t, ctx, writing, p)
	for what, change := range map[string]func(){
		"is no longer there":             func() {},
		"block device and is none now":   func() { write(t, p, noise(4, deviceSize)) },
		"is now another device than the": func() { renode(t, p, other) },
	} {
		require.NoError(t, os.RemoveAll(p))
		change()
		require.ErrorContains(t, o.Update(ctx, bytes.NewReader(noise(3, deviceSize)), info("x", deviceSize)), what)
		_, err := o.Open(ctx)
		require.ErrorContains(t, err, what)
		_, err = o.ImageSource(context.Background())
		require.ErrorContains(t, err, what)
		require.ErrorContains(t, o.Remove(ctx), "never removed")
		if there, err := os.Stat(p); err == nil && there.Mode().IsRegular() {
			same(t, content(t, p), noise(4, deviceSize), "the file in the place of a device")
		}
		require.NoDirExists(t, filepath.Join(filepath.Dir(p), ".diskrsync"))
	}
	same(t, content(t, dev), noise(1, deviceSize), "the device")
	same(t, content(t, other), noise(2, deviceSize), "the other device")

	file := filepath.Join(t.TempDir(), "disk")
	write(t, file, noise(1, 100))
	o = object(t, ctx, writing, file)
	require.NoError(t, os.Remove(file))
	renode(t, file, dev)
	require.ErrorContains(t, o.Update(ctx, bytes.NewReader(noise(3, 100)), info("x", 100)), "none now")
	require.ErrorContains(t, o.Remove(ctx), "none now")
	same(t, content(t, dev), noise(1, deviceSize), "the device")
}

// Whatever rclone is told to delete, a device and its node stay.
func TestNeverRemoved(t *testing.T) {
	ctx := begin(t)
	all := noise(1, deviceSize)
	dev := loopDevice(t, all)
	dir, empty := t.TempDir(), t.TempDir()
	renode(t, filepath.Join(dir, "disk"), dev)
	require.NoError(t, os.Symlink(dev, filepath.Join(dir, "link")))
	f := open(t, ctx, writing+dir)
	require.Error(t, sync.Sync(ctx, f, open(t, ctx, empty), false))
	require.Error(t, operations.Purge(ctx, f, ""))
	require.Error(t, operations.MoveFile(ctx, open(t, ctx, empty), f, "moved", "disk"))
	same(t, content(t, filepath.Join(empty, "moved")), all, "the copy")
	for _, name := range []string{"disk", "link"} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, os.ModeDevice, info.Mode().Type())
	}
	same(t, content(t, dev), all, "the device")
}

// An interrupted update leaves a device that is known to be incomplete, which is then
// no source, unless one insists, and is made whole by the next one.
func TestInterrupted(t *testing.T) {
	const size = 104 << 20 // a few regions, so that some can be done
	state := t.TempDir()
	t.Setenv("XDG_STATE_HOME", state)
	ctx := begin(t)
	dev := loopDevice(t, noise(1, size))
	want := noise(2, size)
	in := io.MultiReader(bytes.NewReader(want[:size-8<<20]), waiting(func() bool {
		marks, _ := filepath.Glob(filepath.Join(state, "diskrsync", "*"))
		return len(marks) > 0
	}), &failing{})
	require.ErrorContains(t, object(t, ctx, writing, dev).Update(ctx, in, info("x", size)), "the cable was cut")
	o := object(t, ctx, reading, dev)
	require.Equal(t, int64(size), o.Size())
	_, err := o.Open(ctx)
	require.ErrorIs(t, err, image.ErrIncomplete)
	same(t, read(t, object(t, ctx, ":blockdev,force:", dev)), content(t, dev), "the device")
	require.NoError(t, object(t, ctx, writing, dev).Update(ctx, bytes.NewReader(want), info("x", size)))
	same(t, read(t, object(t, ctx, reading, dev)), want, "the device")
}

// With a folder for it, the hashes of what was written are stored, and go with the
// device as a source.
func TestStateDir(t *testing.T) {
	ctx := begin(t)
	state := filepath.Join(t.TempDir(), "state")
	dev := loopDevice(t, noise(1, deviceSize))
	o := object(t, ctx, ":blockdev,allow_write,state_dir="+state+":", dev)
	require.NoError(t, o.Update(ctx, bytes.NewReader(noise(2, deviceSize)), info("x", deviceSize)))
	trees, err := filepath.Glob(filepath.Join(state, "*.tree"))
	require.NoError(t, err)
	require.Len(t, trees, 1)
	src, err := o.ImageSource(context.Background())
	require.NoError(t, err)
	require.Equal(t, endpoint.Source{Place: endpoint.Place{Path: dev}, Format: image.AsRaw, StateDir: state}, src)
}

// waiting reads as nothing as soon as something is the case.
type waiting func() bool

func (until waiting) Read([]byte) (int, error) {
	for range 3000 {
		if until() {
			return 0, io.EOF
		}
		time.Sleep(10 * time.Millisecond)
	}
	return 0, errors.New("waited in vain")
}
