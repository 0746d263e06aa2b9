package session_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// rot changes a byte of a file as a bad disk does, which leaves its time alone.
func rot(t *testing.T, path string, off int64) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	must(t, err)
	b[0] ^= 4
	_, err = f.WriteAt(b[:], off)
	must(t, err)
	must(t, f.Close())
	must(t, os.Chtimes(path, time.Time{}, info.ModTime()))
}

// inspected reads all of an image, as verify does, and returns which blocks are
// bad as well.
func inspected(t *testing.T, path string) (*wire.Info, []int64) {
	t.Helper()
	img := opened(t, path, image.Options{Examine: true})
	defer img.Close()
	var bad []int64
	info, err := session.Inspect(t.Context(), img, session.InspectOptions{Read: true, Record: true,
		Bad: func(b wire.Bad) error { bad = append(bad, b.Index); return nil }})
	must(t, err)
	slices.Sort(bad)
	return info, bad
}

func opened(t *testing.T, path string, o image.Options) image.Image {
	t.Helper()
	place, err := image.Locate(path)
	must(t, err)
	t.Cleanup(func() { place.Close() })
	img, err := image.Open(place, o)
	must(t, err)
	t.Cleanup(func() { img.Close() })
	return img
}

// A sealed image must not be read.
type sealed struct {
	image.Image
	t *testing.T
}

func (s sealed) ReadAt(p []byte, off int64) (int, error) {
	s.t.Errorf("%d bytes at offset %d were read", len(p), off)
	return s.Image.ReadAt(p, off)
}

// Without Read an image is described from what is stored; the digest is not known
// if that is nothing, or is about another content.
func TestInspectionWithoutReading(t *testing.T) {
	for _, raw := range []bool{true, false} {
		dir := t.TempDir()
		source, path := filepath.Join(dir, "source"), filepath.Join(dir, "target")
		must(t, os.WriteFile(source, noise(500_000), 0o600))
		must(t, syncFiles(t, source, path, raw, session.Options{}).err())
		describe := func(path string) *wire.Info {
			t.Helper()
			img := opened(t, path, image.Options{Examine: true})
			defer img.Close()
			info, err := session.Inspect(t.Context(), sealed{img, t}, session.InspectOptions{})
			must(t, err)
			if info.Bad != 0 || info.Size != 500_000 {
				t.Errorf("%+v", info)
			}
			return info
		}
		want, _ := inspected(t, path)
		if info := describe(path); info.State() != "complete" || info.Digest != want.Digest || info.Digest == (merkle.Hash{}) {
			t.Errorf("complete: %+v, want digest %v", info, want.Digest)
		}
		then := time.Now().Add(-time.Hour)
		must(t, os.Chtimes(path, then, then))
		if info := describe(path); info.State() != "changed" || info.Digest != (merkle.Hash{}) {
			t.Errorf("changed: %+v", info)
		}
		if read, _ := inspected(t, path); read.State() != "changed" || read.Digest != want.Digest {
			t.Errorf("changed, and read: %+v, want digest %v", read, want.Digest)
		}
		must(t, os.RemoveAll(filepath.Join(dir, ".diskrsync")))
		if info := describe(path); info.State() != "unknown" || info.Digest != (merkle.Hash{}) {
			t.Errorf("unknown: %+v", info)
		}
	}
}

// What rots below an update that waits is found, but not recorded: the hashes that
// are stored are half those of the old image. When no one reads the image any more
// it is.
func TestInspectionBelowAnUpdateThatWaits(t *testing.T) {
	const bs = merkle.DefaultBlockSize
	for _, compressed := range []bool{false, true} {
		dir := t.TempDir()
		source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
		content := noise(7*bs + 100)
		must(t, os.WriteFile(source, content, 0o600))
		must(t, syncFiles(t, source, target, !compressed, session.Options{}).err())
		reader := opened(t, target, image.Options{})
		content[3*bs]++
		must(t, os.WriteFile(source, content, 0o600))
		must(t, syncFiles(t, source, target, !compressed, session.Options{}).err())
		if info, bad := inspected(t, target); info.Waiting == 0 || info.Bad != 0 || len(bad) > 0 || info.Note != "" {
			t.Fatalf("an update that waits: %+v, bad are %d", info, bad)
		}

		rot(t, target, 6*bs+5000) // in either format
		for range 2 {             // the second time nothing is known of the first
			info, bad := inspected(t, target)
			if info.Bad != 1 || !slices.Equal(bad, []int64{6}) || info.Digest != (merkle.Hash{}) {
				t.Errorf("blocks %d are bad, want 6: %+v", bad, info)
			}
			if !strings.Contains(info.Note, "could not be recorded") || !strings.Contains(info.Note, image.HintChecksum) {
				t.Errorf("the note is %q", info.Note)
			}
		}
		must(t, reader.Close())

		if info, bad := inspected(t, target); info.Waiting != 0 || len(bad) != 1 || info.Note != "" {
			t.Errorf("without readers: %+v, bad are %d", info, bad)
		}
		o := syncFiles(t, source, target, !compressed, session.Options{})
		must(t, o.err())
		if o.target.Target.Repaired != 1 {
			t.Errorf("repaired: %+v", o.target.Target)
		}
		format := map[bool]image.Format{false: image.Raw, true: image.Spgz}[compressed]
		if !bytes.Equal(readImage(t, target, format), content) {
			t.Error("the target is not what the source is")
		}
		if info, bad := inspected(t, target); info.Bad != 0 || len(bad) > 0 || !info.Stored {
			t.Errorf("repaired: %+v", info)
		}
	}
}

// An image that an update in place has left half way is said to be that, and not
// compared with hashes that are no longer its own.
func TestInspectionOfAnIncompleteImage(t *testing.T) {
	dir := t.TempDir()
	source, path := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	content := noise(500_000)
	must(t, os.WriteFile(source, content, 0o600))
	must(t, syncFiles(t, source, path, true, session.Options{}).err())
	place, err := image.Locate(path)
	must(t, err)
	defer place.Close()
	target, err := image.OpenTarget(place, image.TargetOptions{InPlace: true})
	must(t, err)
	must(t, target.Begin(500_000, 131072))
	block := noise(131072 + 1)[1:]
	must(t, target.Put(image.Block{Index: 1, Leaf: merkle.Leaf(block), Data: block}))
	must(t, target.Close())
	for range 2 {
		img := opened(t, path, image.Options{Examine: true})
		described, err := session.Inspect(t.Context(), sealed{img, t}, session.InspectOptions{})
		must(t, errors.Join(err, img.Close()))
		if !described.Incomplete || described.Digest != (merkle.Hash{}) {
			t.Errorf("%+v", described)
		}
		info, bad := inspected(t, path)
		if info.Digest == (merkle.Hash{}) {
			t.Error("what was read has no digest")
		}
		if !info.Incomplete || info.Stored || info.Changed || info.Bad != 0 || len(bad) > 0 || !strings.Contains(info.Note, "sync to it again") {
			t.Errorf("%+v, bad are %d", info, bad)
		}
	}
	must(t, syncFiles(t, source, path, true, session.Options{}).err())
	if info, bad := inspected(t, path); info.Incomplete || !info.Stored || info.Bad != 0 || len(bad) > 0 {
		t.Errorf("complete: %+v", info)
	}
	if !bytes.Equal(readImage(t, path, image.Raw), content) {
		t.Error("the target is not what the source is")
	}
}
