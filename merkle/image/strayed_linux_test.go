package image

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A file that is given the inode number of one that was removed is another file.
func TestInodeNumberUsedAgain(t *testing.T) {
	dir := t.TempDir()
	number := func(path string) uint64 {
		info, err := os.Stat(path)
		must(t, err)
		return info.Sys().(*syscall.Stat_t).Ino
	}
	seen := map[uint64]uint64{}
	for range 50 {
		path := filepath.Join(dir, "disk")
		must(t, os.WriteFile(path, []byte("x"), 0o600))
		n, id := number(path), inodeOf(t, path)
		if before, ok := seen[n]; ok {
			if before == id {
				t.Fatalf("two files of inode number %d have the same identity", n)
			}
			return
		}
		seen[n] = id
		must(t, os.Remove(path))
		time.Sleep(10 * time.Millisecond) // the kernel's clock stands still for a while
	}
	t.Skip("this file system does not use inode numbers again soon")
}

// What someone has put into the store that is no file is an error, and not waited for
// or followed.
func TestStoreOfOtherThingsThanFiles(t *testing.T) {
	for _, kind := range []Kind{KindJournal, KindTree, KindLock} {
		path := tempPath(t)
		dir := filepath.Dir(path)
		writeImage(t, path, TargetOptions{Raw: true}, 8192, noise(1, 50_000))
		victim := filepath.Join(dir, "victim")
		must(t, os.WriteFile(victim, []byte("of someone else"), 0o600))
		name := filepath.Join(dir, kind.Of("disk"))
		for what, put := range map[string]func() error{
			"a pipe": func() error { return syscall.Mkfifo(name, 0o600) },
			"a link": func() error { return os.Symlink("../victim", name) },
		} {
			if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			must(t, put())
			if im, err := Open(place(t, path), Options{}); err == nil {
				must(t, im.Close())
			}
			tg, err := OpenTarget(place(t, path), TargetOptions{Raw: true})
			if err == nil {
				err = newSyncing(8192, 1).run(tg, noise(2, 50_000))
				tg.Close() // what it says is not of interest
			}
			if err == nil {
				t.Errorf("%s in the place of the %s: nothing is said", what, kind)
			}
			text, err := os.ReadFile(victim)
			must(t, err)
			if string(text) != "of someone else" {
				t.Fatalf("%s in the place of the %s: what it leads to has changed", what, kind)
			}
		}
	}
}

// A device that is being read is not written, nor the other way round: nobody would
// notice that what is read is a mixture.
func TestDeviceIsReadOrWritten(t *testing.T) {
	path := loopDevice(t, noise(1, 1<<20))
	im := source(t, path, Auto)
	_, err := OpenTarget(place(t, path), TargetOptions{})
	wantError(t, err, ErrInUse, "is being read")
	dry, err := OpenTarget(place(t, path), TargetOptions{DryRun: true})
	must(t, err)
	must(t, dry.Close())
	must(t, im.Close())

	tg := target(t, path, TargetOptions{})
	_, err = Open(place(t, path), Options{})
	wantError(t, err, ErrInUse, "is locked by another program")
	must(t, openImage(t, path, Options{Force: true}).Close())
	update(t, tg, 8192, noise(2, 1<<20))
	must(t, tg.Close())
	same(t, "the device", readAll(t, path, Auto), noise(2, 1<<20))
}
