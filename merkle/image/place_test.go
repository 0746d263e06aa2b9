package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestLocateFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "real"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "real", "disk"), []byte("content"), 0o600))
	must(t, os.Symlink("real/disk", filepath.Join(dir, "link")))
	must(t, os.Symlink(filepath.Join(dir, "real"), filepath.Join(dir, "folder")))
	for _, path := range []string{"real/disk", "link", "folder/disk", "real/../link", "folder/../link"} {
		got := readAll(t, filepath.Join(dir, path), Auto)
		same(t, path, got, []byte("content"))
	}
	tg := target(t, filepath.Join(dir, "folder", "new"), TargetOptions{})
	update(t, tg, testBlock, nil)
	if _, err := os.Stat(filepath.Join(dir, "real", "new")); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	must(t, os.WriteFile(filepath.Join(dir, "short"), []byte("SPGZ"), 0o600))
	for _, c := range []struct {
		path, words string
		choice      Choice
		kind        error
	}{
		{filepath.Join(dir, "none"), "no such file", Auto, fs.ErrNotExist},
		{dir, "is a folder, not an image", Auto, nil},
		{dir + "/", "is a folder, not an image", Auto, nil},
		{"", "image .: is a folder", Auto, nil},
		{".", "is a folder", Auto, nil},
		{"..", "is a folder", Auto, nil},
		{filepath.Join(dir, "dangling"), "symbolic link that leads nowhere", Auto, nil},
		{"/dev/null", "is a character device", Auto, nil},
		{filepath.Join(dir, "short"), "does not begin like an spgz image", AsSpgz, errNotSpgz},
	} {
		_, err := Open(place(t, c.path), Options{Choice: c.choice})
		wantError(t, err, c.kind, c.words)
	}
	_, err := Locate(filepath.Join(dir, "none", "disk"))
	wantError(t, err, nil, "does not exist")
	_, err = OpenTarget(place(t, dir), TargetOptions{})
	wantError(t, err, nil, `is a folder: add "/"`)
}

func TestLocateIn(t *testing.T) {
	dir := t.TempDir()
	inside := filepath.Join(dir, "inside")
	must(t, os.MkdirAll(filepath.Join(inside, "sub"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600))
	must(t, os.WriteFile(filepath.Join(inside, "sub", "disk"), []byte("content"), 0o600))
	for name, to := range map[string]string{
		"good": "sub/disk", "out": "../secret", "absolute": filepath.Join(dir, "secret"),
		"loop": "loop", "sub/up": "../good", "outside": "..", "sub/wrong": "/disk",
	} {
		must(t, os.Symlink(to, filepath.Join(inside, name)))
	}
	root, err := os.OpenRoot(inside)
	must(t, err)
	defer root.Close()
	for _, path := range []string{"sub/disk", "/sub/disk", "//sub//disk", "good", "sub/up", "/sub/../good"} {
		p, err := LocateIn(root, path)
		must(t, err)
		im, err := Open(p, Options{})
		must(t, err)
		if im.Size() != int64(len("content")) {
			t.Errorf("%s: %d bytes", path, im.Size())
		}
		must(t, errors.Join(im.Close(), p.Close()))
	}
	for _, path := range []string{"../secret", "/../secret", "out", "absolute", "sub/wrong", "loop", "outside/secret", "sub/../../secret", "", "/", ".", "..", "/sub"} {
		p, err := LocateIn(root, path)
		if err != nil {
			continue
		}
		if _, err := Open(p, Options{}); err == nil {
			t.Errorf("%q was opened", path)
		}
		if _, err := OpenTarget(p, TargetOptions{}); err == nil {
			t.Errorf("%q was opened as a target", path)
		}
		must(t, p.Close())
	}
}

// Nothing that happens to the path after the place was made matters.
func TestPlaceStays(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	must(t, os.Mkdir(sub, 0o700))
	must(t, os.Mkdir(filepath.Join(dir, "trap"), 0o700))
	p := place(t, filepath.Join(sub, "disk"))
	must(t, os.Rename(sub, filepath.Join(dir, "moved")))
	must(t, os.Symlink("trap", sub))
	tg, err := OpenTarget(p, TargetOptions{Raw: true})
	must(t, err)
	defer tg.Close()
	update(t, tg, testBlock, make([]byte, 3))
	if _, err := os.Stat(filepath.Join(dir, "moved", "disk")); err != nil {
		t.Error(err)
	}
	if names := inFolder(t, filepath.Join(dir, "trap", "x")); len(names) > 0 {
		t.Errorf("in the trap: %v", names)
	}
}
