package image

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A new image that is complete, but whose name was taken meanwhile, is told of as
// long as it is there: it can still be put into place, or dropped.
func TestNameIsTakenMeanwhile(t *testing.T) {
	for _, end := range []string{"sync", "read", "clean"} {
		path, raw := tempPath(t), TargetOptions{Raw: true}
		sealedNewImage(t, path, noise(1, 50_000))
		must(t, os.WriteFile(path, []byte("someone else's"), 0o600))

		_, err := OpenTarget(place(t, path), raw)
		wantError(t, err, ErrChanged, "was made by someone else in the meantime")
		if want := "the new one is kept as .diskrsync/disk.partial"; !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not say that %q", err, want)
		}
		file, err := os.ReadFile(path)
		must(t, err)
		same(t, "what is in the way", file, []byte("someone else's"))

		switch end {
		case "sync":
			must(t, os.Remove(path))
			writeImage(t, path, raw, 8192, noise(1, 50_000))
			same(t, "the image", readAll(t, path, Auto), noise(1, 50_000))
		case "read":
			must(t, os.Remove(path))
			same(t, "the image", readAll(t, path, Auto), noise(1, 50_000))
		case "clean":
			done, err := Clean(place(t, path), "")
			must(t, err)
			if !strings.Contains(done, "dropped") {
				t.Errorf("clean says %q", done)
			}
			writeImage(t, path, raw, 8192, noise(2, 50_000))
			same(t, "the image", readAll(t, path, Auto), noise(2, 50_000))
		}
	}
}

// sealedNewImage leaves a new image that is complete but for its name.
func sealedNewImage(t *testing.T, path string, content []byte) {
	t.Helper()
	tg := target(t, path, TargetOptions{Raw: true})
	s := newSyncing(8192, 3)
	s.stop = beforeCommit
	if err := s.run(tg, content); err != errCut {
		t.Fatal(err)
	}
	sl, err := tg.seal(digestOf(t, content, 8192), time.Time{})
	must(t, err)
	must(t, tg.rec.flush(sl, nil))
	must(t, tg.Close())
}

// Who cannot put a complete new image into place is told why.
func TestPuttingIntoPlaceFails(t *testing.T) {
	path := tempPath(t)
	sealedNewImage(t, path, noise(1, 50_000))
	l, err := takeLock(newStore(place(t, path)))
	must(t, err)
	_, err = Open(place(t, path), Options{})
	if err == nil || !strings.Contains(err.Error(), "putting it into place failed") || !strings.Contains(err.Error(), "is being written by process") {
		t.Errorf("reading while another has the lock: %v", err)
	}
	must(t, l.release())
	same(t, "the image", readAll(t, path, Auto), noise(1, 50_000))
}

// What is known of an interrupted first copy is told to who wants to read it.
func TestFirstCopyIsUnderWay(t *testing.T) {
	path := tempPath(t)
	tg := target(t, path, TargetOptions{Raw: true})
	must(t, tg.Begin(10*8192, 8192))
	content := noise(1, 10*8192)
	for i := range int64(4) {
		must(t, tg.Put(blockOf(content, 8192, i)))
	}
	must(t, tg.Close())
	_, err := Open(place(t, path), Options{})
	if err == nil || !strings.Contains(err.Error(), "about 32KiB are here") {
		t.Errorf("an interrupted first copy: %v", err)
	}
}

// A writer that is about to change an image in place has it for itself, even
// before the first change.
func TestReadingWhatIsOpenedInPlace(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{Raw: true}, 8192, noise(1, 50_000))
	tg := target(t, path, TargetOptions{InPlace: true})
	_, err := Open(place(t, path), Options{})
	wantError(t, err, ErrInUse, "is being changed in place")
	must(t, openImage(t, path, Options{Force: true}).Close())
	must(t, tg.Close())

	// A lock of a program that is not ours keeps nobody from reading.
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	same(t, "the image", readAll(t, path, Auto), noise(1, 50_000))
}

// Someone else who changes an image that is being read is noticed, also if an
// update of it waits.
func TestChangedWhileAnUpdateWaits(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	writeImage(t, path, raw, 8192, noise(1, 50_000))
	first := source(t, path, Auto)
	writeImage(t, path, raw, 8192, noise(2, 50_000))
	second := source(t, path, Auto)
	must(t, second.Changed())
	overwrite(t, path, 100, []byte("by someone else"))
	wantError(t, first.Changed(), ErrChanged, "changed while it was read")
	wantError(t, second.Changed(), ErrChanged, "changed while it was read")
}

// A folder that anyone could have put beside an image is not believed.
func TestStoreOfSomeoneElse(t *testing.T) {
	need(t, os.Geteuid() == 0, "only root can give a folder to someone else")
	path := tempPath(t)
	dir := filepath.Dir(path)
	must(t, os.Chmod(dir, 0o777|os.ModeSticky))
	writeImage(t, path, TargetOptions{Raw: true}, 8192, noise(1, 50_000))
	same(t, "with a folder of our own", readAll(t, path, Auto), noise(1, 50_000))

	foreign := filepath.Join(dir, StoreFolder)
	refused := func(text string) {
		t.Helper()
		_, err := Open(place(t, path), Options{})
		wantError(t, err, ErrRefused, text)
		_, err = OpenTarget(place(t, path), TargetOptions{})
		wantError(t, err, ErrRefused, text)
	}
	must(t, os.Chmod(foreign, 0o777))
	refused("is under the control of user 0")
	must(t, os.Chmod(foreign, 0o700))
	must(t, os.Chown(foreign, 65534, 65534))
	refused("is under the control of user 65534")

	// Who owns the folder of the images could replace them as well.
	must(t, os.Chown(dir, 65534, 65534))
	same(t, "with a folder of its owner", readAll(t, path, Auto), noise(1, 50_000))

	must(t, os.RemoveAll(foreign))
	must(t, os.Symlink("elsewhere", foreign))
	refused("is not a folder")
}
