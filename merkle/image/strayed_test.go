package image

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
)

// strayScene is an update of which a part may be in the image when it is moved.
func strayScene() *scene {
	return &scene{name: "raw", opts: TargetOptions{Raw: true}, blockSize: 4096, before: []string{"abcd"}, after: "axcy", other: "zbcd"}
}

// leftAt returns what a kill leaves of the scene's update that leaves it at a stage.
func (sc *scene) leftAt(t *testing.T, stage string) *crashFS {
	t.Helper()
	c := sc.prepare(t)
	must(t, sc.syncing(1).to(c, sc.content(sc.after)))
	return sc.firstLeft(t, c, stage)
}

// placeOf is crashPlace for an image of another name.
func placeOf(c *crashFS, name string) *Place { return newPlace(c, name, name) }

// An image that is moved with half of an update in it is known by its new name to be a
// mixture, and nobody drops what completes it, until it has its old name again.
func TestMovedWithHalfAnUpdate(t *testing.T) {
	sc := strayScene()
	c := sc.leftAt(t, halfWay)
	must(t, c.Rename("disk", "monday"))

	_, err := Open(placeOf(c, "monday"), Options{})
	wantError(t, err, ErrIncomplete, "give it its name disk back")
	im, err := Open(placeOf(c, "monday"), Options{Examine: true})
	must(t, err)
	if s := im.State(); !s.Incomplete || s.Stored {
		t.Errorf("the state of a mixture is %+v", s)
	}
	must(t, im.Close())
	wantError(t, sc.syncing(1).to(c, sc.content(sc.other)), ErrInUse, "half way into what is now called monday")
	_, err = OpenTarget(placeOf(c, "monday"), sc.opts)
	wantError(t, err, ErrInUse, "give it its name disk back")

	back := c.reboot()
	must(t, back.Rename("monday", "disk"))
	got, err := look(t, back, Options{})
	must(t, err)
	same(t, "moved back", got, sc.content(sc.after))

	// Or the user says that it is to be dropped.
	_, err = Clean(crashPlace(c), "")
	must(t, err)
	must(t, sc.syncing(1).to(c, sc.content(sc.other)))
	got, err = look(t, c, Options{})
	must(t, err)
	same(t, "a new image of the old name", got, sc.content(sc.other))
	tg, err := OpenTarget(placeOf(c, "monday"), sc.opts)
	must(t, err)
	must(t, errors.Join(sc.syncing(1).run(tg, sc.content(sc.after)), tg.Close()))
	im, err = Open(placeOf(c, "monday"), Options{})
	must(t, err)
	same(t, "the moved one, synced to", contentOf(t, im), sc.content(sc.after))
	must(t, im.Close())
}

// A copy of an image and of its store, made with half of an update in the image, is a
// mixture too. A sync to it mends that.
func TestCopiedWithHalfAnUpdate(t *testing.T) {
	sc := strayScene()
	c := sc.leftAt(t, halfWay)
	sc.recreate(t, c, nil)
	_, err := Open(crashPlace(c), Options{})
	wantError(t, err, ErrIncomplete, "may be a copy of that")
	for _, next := range []string{sc.after, sc.other} {
		sc.settleAfter(t, c.reboot(), sc.content(next), sc.syncing(1))
	}
	done, err := Clean(crashPlace(c), "")
	must(t, err)
	if !strings.Contains(done, "dropped") {
		t.Errorf("clean says %q", done)
	}
	_, err = look(t, c, Options{})
	must(t, err)
}

// recreate makes the image's file anew, with content or what it had.
func (sc *scene) recreate(t *testing.T, c *crashFS, content []byte) {
	t.Helper()
	f, err := c.OpenFile("disk", os.O_RDONLY, 0)
	must(t, err)
	if content == nil {
		content = bytes.Clone(fileOf(t, f))
	}
	must(t, errors.Join(f.Close(), c.Remove("disk")))
	to := makeFile(t, c, "disk")
	_, err = to.WriteAt(content, 0)
	must(t, errors.Join(err, to.Close()))
}

// A committed update that waits beside an image that was moved is not dropped without a
// word: who reads the image is told, and so is who syncs to the old name.
func TestMovedWhileAnUpdateWaits(t *testing.T) {
	sc := strayScene()
	c := sc.leftAt(t, sealedOnly)
	must(t, c.Rename("disk", "monday"))
	im, err := Open(placeOf(c, "monday"), Options{})
	must(t, err)
	same(t, "the moved image", contentOf(t, im), sc.old())
	if !strings.Contains(im.Note(), "give it its name disk back") {
		t.Errorf("who reads it is told %q", im.Note())
	}
	must(t, im.Close())
	wantError(t, sc.syncing(1).to(c, sc.content(sc.other)), ErrInUse, "a committed update waits for what is now called monday")
	changed := c.reboot()
	sc.touchFile(t, changed, "monday")
	must(t, sc.syncing(1).to(changed, sc.content(sc.other)))

	must(t, c.Rename("monday", "disk"))
	got, err := look(t, c, Options{})
	must(t, err)
	same(t, "moved back", got, sc.content(sc.after))
}

// touchFile changes a byte of a file.
func (sc *scene) touchFile(t *testing.T, c *crashFS, name string) {
	t.Helper()
	f, err := c.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{9}, 0)
	must(t, errors.Join(err, f.Close()))
}

// The mark of an update in place is about the file that it was in.
func TestMovedWithHalfAnUpdateInPlace(t *testing.T) {
	sc := strayScene()
	sc.opts.InPlace = true
	c := sc.leftAt(t, notSealed)
	moved := c.reboot()
	must(t, moved.Rename("disk", "monday"))
	_, err := Open(placeOf(moved, "monday"), Options{})
	wantError(t, err, ErrIncomplete, "give it its name disk back")
	sc.recreate(t, c, nil)
	_, err = Open(crashPlace(c), Options{})
	wantError(t, err, ErrIncomplete, "may be a copy of that")
	sc.settleAfter(t, c.reboot(), sc.content(sc.other), sc.syncing(1))
}

// What arrived behind a committed update that waits is gone on with, even if everyone
// has ended who kept that from being put into the image.
func TestResumeBehindAnUpdateThatWaits(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	first, second, third := noise(1, 40*8192), noise(2, 40*8192), noise(3, 40*8192)
	writeImage(t, path, raw, 8192, first)
	im := source(t, path, Auto)
	writeImage(t, path, raw, 8192, second)
	tg := target(t, path, raw)
	s := newSyncing(8192, 3)
	s.stop = 30
	if err := s.run(tg, third); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	must(t, tg.Close())
	must(t, im.Close())

	// A reader sees what is committed, and leaves the rest where it is.
	same(t, "between", readAll(t, path, Auto), second)
	if s := stateOf(t, path); s.Waiting == 0 || s.Kept == 0 {
		t.Errorf("between: %+v", s)
	}
	tg = target(t, path, raw)
	if tg.Kept() < 20*8192 {
		t.Errorf("%d bytes are kept of 29 blocks of 8192", tg.Kept())
	}
	update(t, tg, 8192, third)
	must(t, tg.Close())
	same(t, "at last", readAll(t, path, Auto), third)
	if s := stateOf(t, path); s.Waiting != 0 || s.Kept != 0 || !s.Stored {
		t.Errorf("at last: %+v", s)
	}
}

// Clean completes what is committed, and drops what came behind.
func TestCleanBehindAnUpdateThatWaits(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	writeImage(t, path, raw, 8192, noise(1, 40*8192))
	im := source(t, path, Auto)
	writeImage(t, path, raw, 8192, noise(2, 40*8192))
	tg := target(t, path, raw)
	s := newSyncing(8192, 3)
	s.stop = 30
	if err := s.run(tg, noise(3, 40*8192)); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	must(t, tg.Close())
	must(t, im.Close())
	_, err := Clean(place(t, path), "")
	must(t, err)
	if s := stateOf(t, path); s.Waiting != 0 || s.Kept != 0 {
		t.Errorf("after clean: %+v", s)
	}
	same(t, "after clean", readAll(t, path, Auto), noise(2, 40*8192))
}

// Who commits an update that has to wait is told so.
func TestUpdateThatWaitsIsTold(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	writeImage(t, path, raw, 8192, noise(1, 50_000))
	im := source(t, path, Auto)
	tg := target(t, path, raw)
	update(t, tg, 8192, noise(2, 50_000))
	if !strings.Contains(tg.Remark(), "waits in the journal") {
		t.Errorf("after the commit: %q", tg.Remark())
	}
	must(t, errors.Join(tg.Close(), im.Close()))
	tg = target(t, path, raw)
	update(t, tg, 8192, noise(3, 50_000))
	if tg.Remark() != "" {
		t.Errorf("after a commit without readers: %q", tg.Remark())
	}
}
