package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Nothing of an image is left, whatever state it is in.
func TestRemove(t *testing.T) {
	for _, kind := range fileKinds {
		bs := kind.blockSize
		for name, prepare := range map[string]func(path string){
			"whole":   func(path string) { writeImage(t, path, kind.opts, bs, noise(1, 10*bs)) },
			"unknown": func(path string) { must(t, os.WriteFile(path, noise(1, 1000), 0o600)) },
			"interrupted": func(path string) {
				writeImage(t, path, kind.opts, bs, noise(1, 10*bs))
				cutOff(t, path, kind.opts, bs, noise(2, 10*bs), 4)
			},
			"damaged journal": func(path string) {
				writeImage(t, path, kind.opts, bs, noise(1, 10*bs))
				must(t, os.WriteFile(filepath.Join(filepath.Dir(path), KindJournal.Of("disk")), noise(3, 9000), 0o600))
			},
		} {
			t.Run(fmt.Sprint(name, bs), func(t *testing.T) {
				path := tempPath(t)
				prepare(path)
				must(t, Remove(place(t, path)))
				nothingAt(t, path)
				wantError(t, Remove(place(t, path)), os.ErrNotExist, "no such file")
			})
		}
	}
}

func nothingAt(t *testing.T, path string) {
	t.Helper()
	left, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	for _, e := range left {
		t.Errorf("left: %s", e.Name())
	}
}

// What there is of a first copy goes as well, though there is no image.
func TestRemoveOfAFirstCopy(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	cutOff(t, path, raw, 8192, noise(1, 10*8192), 4)
	wantError(t, Remove(place(t, path)), os.ErrNotExist, "no such file")
	nothingAt(t, path)
}

// A committed update that waits for readers goes with the image, and they read on.
func TestRemoveWhileRead(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	writeImage(t, path, raw, 8192, noise(1, 50_000))
	im := source(t, path, Auto)
	writeImage(t, path, raw, 8192, noise(2, 50_000))
	must(t, Remove(place(t, path)))
	nothingAt(t, path)
	same(t, "who has it open", contentOf(t, im), noise(1, 50_000))
	must(t, im.Close())
}

func TestRemoveRefuses(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	wantError(t, Remove(place(t, filepath.Dir(path))), nil, "is a folder, not an image")
	writeImage(t, path, raw, 8192, noise(1, 50_000))
	tg := target(t, path, raw)
	wantError(t, Remove(place(t, path)), ErrInUse, "is being written by")
	must(t, tg.Close())
	same(t, "the image", readAll(t, path, Auto), noise(1, 50_000))
}

// What completes an image that was moved away is kept for it.
func TestRemoveOfWhatAnotherNeeds(t *testing.T) {
	sc := strayScene()
	c := sc.leftAt(t, halfWay)
	must(t, c.Rename("disk", "monday"))
	f := makeFile(t, c, "disk")
	_, err := f.WriteAt(sc.content(sc.other), 0)
	must(t, errors.Join(err, f.Close()))
	wantError(t, Remove(crashPlace(c)), ErrInUse, "half way into what is now called monday")
	must(t, errors.Join(c.Remove("disk"), c.Rename("monday", "disk")))
	got, err := look(t, c, Options{})
	must(t, err)
	same(t, "moved back", got, sc.content(sc.after))
}
