//go:build linux

package lab

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// LoopDevice makes a block device of a file until the end of the test.
func LoopDevice(t testing.TB, file string) string {
	t.Helper()
	NeedRoot(t)
	NeedPrograms(t, "losetup")
	device := Do(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { Do(t, "losetup", "--detach", device) })
	return device
}

// BlankDevice makes a block device of the given size.
func BlankDevice(t testing.TB, size int64) string {
	t.Helper()
	return LoopDevice(t, SparseFile(t, filepath.Join(t.TempDir(), "backing"), size))
}

// SparseFile makes a file that is one hole.
func SparseFile(t testing.TB, path string, size int64) string {
	t.Helper()
	f := Must(os.Create(path))(t)
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// Mkfs makes an empty file system of a kind (ext4, xfs, btrfs) in a new file.
func Mkfs(t testing.TB, kind, path string, size int64) string {
	t.Helper()
	NeedPrograms(t, "mkfs."+kind)
	SparseFile(t, path, size)
	Do(t, "mkfs."+kind, "-q", path)
	return path
}

// Mounted calls do with a folder on which the file system in an image is
// mounted.
func Mounted(t testing.TB, image string, do func(dir string)) {
	t.Helper()
	MountedWith(t, image, "loop", do)
}

// MountedWith is Mounted with options for mount, of which "loop" must be one.
func MountedWith(t testing.TB, image, options string, do func(dir string)) {
	t.Helper()
	NeedRoot(t)
	dir := t.TempDir()
	Do(t, "mount", "-o", options, image, dir)
	defer unmount(t, dir)
	do(dir)
}

// unmount may have to wait: the kernel lets go of a loop device some time after
// it was detached, and of the file behind it only then.
func unmount(t testing.TB, dir string) {
	t.Helper()
	err := unix.Unmount(dir, 0)
	for deadline := time.Now().Add(endWithin); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
		err = unix.Unmount(dir, 0)
	}
	if err != nil {
		t.Errorf("unmounting %s: %v", dir, err)
	}
}

// MountUntilEnd mounts a file system in an image or on a device until the end
// of the test and returns the folder.
func MountUntilEnd(t testing.TB, image, options string) string {
	t.Helper()
	NeedRoot(t)
	dir := t.TempDir()
	Do(t, "mount", "-o", options, image, dir)
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// Copy copies a file, holes as holes.
func Copy(t testing.TB, from, to string) string {
	t.Helper()
	Do(t, "cp", "--sparse=always", "--preserve=timestamps", from, to)
	return to
}

// Clone makes a new file that holds what another holds at this moment, whoever is
// writing to that. The file system must know how.
func Clone(t testing.TB, from, to string) {
	t.Helper()
	src := Must(os.Open(from))(t)
	defer src.Close()
	dst := Must(os.Create(to))(t)
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		t.Fatalf("cloning %s: %v", from, err)
	}
}

// Inode returns what tells a file from one that took its place.
func Inode(t testing.TB, path string) string {
	t.Helper()
	return Do(t, "stat", "--format=%i", path)
}

// Allocated returns how many bytes a file takes on the disk.
func Allocated(t testing.TB, path string) int64 {
	t.Helper()
	blocks := Do(t, "stat", "--format=%b", path)
	n := Must(strconv.ParseInt(blocks, 10, 64))(t)
	return n * 512
}

// Size returns the apparent size of a file.
func Size(t testing.TB, path string) int64 {
	t.Helper()
	return Must(os.Stat(path))(t).Size()
}

// Fill makes a file that takes what is free on its file system but for about so
// many bytes. The superuser may use what is reserved, and so it is taken, too.
func Fill(t testing.TB, path string, leave int64) {
	t.Helper()
	f := Must(os.Create(path))(t)
	defer f.Close()
	var fs unix.Statfs_t
	step := int64(1 << 20)
	for size := int64(0); step >= pageSize; {
		if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
			t.Fatalf("finding the free space beside %s: %v", path, err)
		}
		if int64(fs.Bfree)*fs.Bsize < leave+step {
			step /= 2
			continue
		}
		switch err := unix.Fallocate(int(f.Fd()), 0, size, step); {
		case err == nil:
			size += step
		case errors.Is(err, unix.ENOSPC): // the rest is in pieces, or promised
			step /= 2
		default:
			t.Fatalf("filling %s: %v", path, err)
		}
	}
}

// Rot changes bytes of a file the way a bad disk does: nothing else about the
// file tells of it.
func Rot(t testing.TB, path string, off int64) {
	t.Helper()
	before := Must(os.Stat(path))(t)
	content := make([]byte, 3)
	f := Must(os.Open(path))(t)
	defer f.Close()
	if _, err := f.ReadAt(content, off); err != nil {
		t.Fatal(err)
	}
	for i := range content {
		content[i] ^= 0xff
	}
	WriteAt(t, path, content, off)
	if err := os.Chtimes(path, time.Time{}, before.ModTime()); err != nil {
		t.Fatal(err)
	}
}
