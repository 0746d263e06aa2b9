//go:build linux

package lab

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
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
	NeedRoot(t)
	dir := t.TempDir()
	Do(t, "mount", "-o", "loop", image, dir)
	defer Do(t, "umount", dir)
	do(dir)
}

// MountUntilEnd mounts a file system in an image or on a device until the end
// of the test and returns the folder.
func MountUntilEnd(t testing.TB, image, options string) string {
	t.Helper()
	NeedRoot(t)
	dir := t.TempDir()
	Do(t, "mount", "-o", options, image, dir)
	t.Cleanup(func() { Do(t, "umount", dir) })
	return dir
}

// Copy copies a file, holes as holes.
func Copy(t testing.TB, from, to string) string {
	t.Helper()
	Do(t, "cp", "--sparse=always", "--preserve=timestamps", from, to)
	return to
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
