package image

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSecondWriter(t *testing.T) {
	for _, existing := range []bool{false, true} {
		path := tempPath(t)
		if existing {
			must(t, os.WriteFile(path, noise(1, 9000), 0o600))
		}
		first := target(t, path, TargetOptions{})
		_, err := OpenTarget(place(t, path), TargetOptions{})
		wantError(t, err, ErrInUse, fmt.Sprintf("is being written by process %d on host ", os.Getpid()))
		wantError(t, err, ErrRefused, "wait for it to end")
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("more than one line: %q", err)
		}
		_, err = Clean(place(t, path), "")
		wantError(t, err, ErrInUse, "is being written by process")
		dry := target(t, path, TargetOptions{DryRun: true})
		must(t, dry.Close())
		must(t, first.Close())
		must(t, target(t, path, TargetOptions{}).Close())
	}
}

// A lock file that a crash has left means nothing, whatever it says.
func TestStaleLock(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, text(30000))
	stale := filepath.Join(filepath.Dir(path), StoreFolder, "disk.lock")
	must(t, os.WriteFile(stale, fmt.Appendf(nil, "%d nas 2026-01-02T03:04:05Z\n", os.Getppid()), 0o600))
	same(t, "read beside a stale lock", readAll(t, path, Auto), text(30000))
	writeImage(t, path, TargetOptions{}, 12287, text(40000))
	same(t, "written over a stale lock", readAll(t, path, Auto), text(40000))
	if _, err := os.Lstat(stale); err == nil {
		t.Error("the stale lock is still there")
	}
}

func TestLockHolderIsNotBelieved(t *testing.T) {
	for text, want := range map[string]string{
		"12 nas 2026-01-02T03:04:05Z\n":      "process 12 on host nas, since 2026-01-02 03:04:05",
		"":                                   "another process",
		"12 nas":                             "another process",
		"x nas 2026-01-02T03:04:05Z":         "another process",
		"12 \x1b[2Jnas 2026-01-02T03:04:05Z": "another process",
		"12 nas yesterday":                   "another process",
		"1 " + strings.Repeat("n", 5000) + " 2026-0": "another process",
	} {
		f, err := os.Open(writeFile(t, []byte(text)))
		must(t, err)
		if got := (&lock{f: osFile{f}}).holder(); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		must(t, f.Close())
	}
}

// A lock on a file that is no longer there under its name excludes nobody.
func TestLockMoved(t *testing.T) {
	for _, again := range []bool{false, true} {
		p := place(t, tempPath(t))
		name := newStore(p).file(KindLock)
		must(t, p.root.Mkdir(StoreFolder, 0o700))
		l := &lock{root: p.root, name: name, f: makeFile(t, p.root, name)}
		must(t, p.root.Remove(name))
		if again {
			makeFile(t, p.root, name)
		}
		if err := l.take("disk"); err != errLockMoved {
			t.Errorf("file made again: %v: %v, want %v", again, err, errLockMoved)
		}
	}
}

func makeFile(t *testing.T, root folder, name string) file {
	t.Helper()
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// Many writers at once: each gets the lock or is refused, no two have it, and
// nothing stays behind.
func TestManyWriters(t *testing.T) {
	path := tempPath(t)
	holders := make(chan struct{}, 1)
	done := make(chan error)
	for range 8 {
		go func() { done <- lockOften(path, holders) }()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if names := inFolder(t, path); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

func lockOften(path string, holders chan struct{}) error {
	p, err := Locate(path)
	if err != nil {
		return err
	}
	defer p.Close()
	for got := 0; got < 50; {
		l, err := takeLock(newStore(p))
		if err != nil {
			if strings.Contains(err.Error(), "is being written by") {
				continue
			}
			return err
		}
		select {
		case holders <- struct{}{}:
		default:
			return fmt.Errorf("two hold the lock")
		}
		got++
		<-holders
		if err := l.release(); err != nil {
			return err
		}
	}
	return nil
}

// Readers do not keep each other out, nor a writer that has a journal; one that
// changes the image in place they do, and it them.
func TestReadersAndWriters(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{Raw: true}, 8192, noise(1, 30000))
	one, two := source(t, path, Auto), source(t, path, Auto)
	must(t, target(t, path, TargetOptions{}).Close())
	_, err := OpenTarget(place(t, path), TargetOptions{InPlace: true})
	wantError(t, err, ErrInUse, "is being read, and cannot be changed in place")
	must(t, one.Close())
	must(t, two.Close())

	tg := target(t, path, TargetOptions{InPlace: true})
	must(t, tg.Begin(30000, 8192))
	same(t, "before anything is written", readAllWith(t, path, Options{Examine: true}), noise(1, 30000))
	must(t, tg.Put(blockOf(noise(2, 30000), 8192, 0)))
	_, err = Open(place(t, path), Options{})
	wantError(t, err, ErrInUse, "is being changed in place")
	must(t, tg.Close())
	if names := inStore(t, path); !slices.Equal(names, []string{"disk.journal", "disk.tree"}) {
		t.Errorf("in the store: %v", names)
	}
}
