package image

import (
	"bytes"
	"os"
	"slices"
	"testing"
)

// An image does not change for those who read it. Those who come later see every
// update that was committed, and when no one reads it any more all of them are
// put into the image.
func TestUpdatesWhileTheImageIsRead(t *testing.T) {
	for _, kind := range fileKinds {
		path, bs := tempPath(t), kind.blockSize
		contents := [][]byte{noise(1, 10*bs+100), noise(2, 12*bs), text(5*bs + 1), append(make([]byte, 20*bs), 1)}
		copy(contents[1][3*bs:], contents[0][3*bs:6*bs])
		writeImage(t, path, kind.opts, bs, contents[0])
		file, err := os.ReadFile(path)
		must(t, err)
		readers := []Image{source(t, path, Auto)}
		for i, content := range contents[1:] {
			writeImage(t, path, kind.opts, bs, content)
			if names := inStore(t, path); !slices.Equal(names, []string{"disk.journal", "disk.tree"}) {
				t.Errorf("in the store: %v", names)
			}
			readers = append(readers, source(t, path, Auto))
			for k, im := range readers {
				same(t, "what was opened", contentOf(t, im), contents[k])
				must(t, im.Changed())
			}
			s := readers[i+1].State()
			if s.Waiting == 0 || s.Generation != int64(i+2) || s.Digest != digestOf(t, content, bs) {
				t.Errorf("after update %d: %+v", i, s)
			}
			now, err := os.ReadFile(path)
			must(t, err)
			if !bytes.Equal(now, file) {
				t.Fatal("the file has changed while it was read")
			}
		}
		for _, im := range readers {
			must(t, im.Close())
		}
		last := contents[len(contents)-1]
		same(t, "at last", readAll(t, path, Auto), last)
		if s := stateOf(t, path); s.Waiting != 0 || s.Generation != 4 || s.Digest != digestOf(t, last, bs) {
			t.Errorf("at last: %+v", s)
		}
		if names := inStore(t, path); !slices.Equal(names, []string{"disk.tree"}) {
			t.Errorf("in the store, at last: %v", names)
		}
	}
}

// Who may not change anything reads the image through its journal.
func TestReadOnlyLeavesTheUpdateThere(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	writeImage(t, path, raw, 8192, noise(1, 50_000))
	im := source(t, path, Auto)
	writeImage(t, path, raw, 8192, noise(2, 50_000))
	must(t, im.Close())
	o := Options{ReadOnly: true}
	same(t, "read only", readAllWith(t, path, o), noise(2, 50_000))
	same(t, "read only, and nothing believed", readAllWith(t, path, Options{ReadOnly: true, Checksum: true}), noise(2, 50_000))
	file, err := os.ReadFile(path)
	must(t, err)
	same(t, "the file", file, noise(1, 50_000))
	same(t, "at last", readAll(t, path, Auto), noise(2, 50_000))
}

// What waits has blocks of one size, and a format.
func TestWhatWaitsIsNotTakenForSomethingElse(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	writeImage(t, path, raw, 8192, noise(1, 50_000))
	im := source(t, path, Auto)
	writeImage(t, path, raw, 8192, noise(2, 50_000))

	tg := target(t, path, raw)
	wantError(t, tg.Begin(50_000, 4096), ErrInUse, "an update of it waits until it is no longer being read")
	must(t, tg.Close())
	_, err := OpenTarget(place(t, path), TargetOptions{InPlace: true})
	wantError(t, err, ErrInUse, "is being read, and an update waits for that to end")
	_, err = Open(place(t, path), Options{Choice: AsSpgz})
	wantError(t, err, ErrInUse, "cannot be read as spgz until then")
	if _, ok := source(t, path, AsRaw).Hashes(4096).Root(0); ok {
		t.Error("hashes of other blocks are known")
	}
	must(t, im.Close())
}

// An image of a format that is stored is another content when it is read as
// another format, with other hashes.
func TestHashesAreThoseOfAFormat(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, make([]byte, 500*12287))
	im := source(t, path, AsRaw)
	if _, ok := im.Hashes(12287).Root(0); ok || im.State().Stored {
		t.Error("the file has the hashes of its content")
	}
	contentOf(t, im)
}

// An update that waits for an image that someone else has changed is dropped.
func TestWaitingForAnImageThatChanges(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	writeImage(t, path, raw, 8192, noise(1, 50_000))
	im := source(t, path, Auto)
	writeImage(t, path, raw, 8192, noise(2, 50_000))
	overwrite(t, path, 100, []byte("by someone else"))
	must(t, im.Close())
	want := noise(1, 50_000)
	copy(want[100:], "by someone else")
	same(t, "the image", readAll(t, path, Auto), want)
	tg := target(t, path, raw)
	if tg.Note() == "" {
		t.Error("nobody is told that a committed update is gone")
	}
	update(t, tg, 8192, noise(3, 50_000))
	must(t, tg.Close())
	same(t, "the next update", readAll(t, path, Auto), noise(3, 50_000))
}
