package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

// What can only be read is an image like any other, of all formats.
func TestView(t *testing.T) {
	when := time.Unix(1_500_000_000, 0)
	for _, kind := range fileKinds {
		for _, size := range []int{0, 1, kind.blockSize, 3*kind.blockSize + 100} {
			path := tempPath(t)
			content := text(size)
			writeImage(t, path, kind.opts, kind.blockSize, content)
			file, err := os.ReadFile(path)
			must(t, err)
			im, err := View(Sight{Path: "s3:disk", File: bytes.NewReader(file), Size: int64(len(file)), Modified: when, Choice: Auto})
			must(t, err)
			same(t, "the content", contentOf(t, im), content)
			if !im.Modified().Equal(when) || im.State() != (State{}) || im.Changed() != nil {
				t.Errorf("modified %v, %+v, changed: %v", im.Modified(), im.State(), im.Changed())
			}
			must(t, im.Close())
			raw, err := View(Sight{Path: "s3:disk", File: bytes.NewReader(file), Size: int64(len(file)), Modified: when, Choice: AsRaw})
			must(t, err)
			same(t, "the file", contentOf(t, raw), file)
		}
	}
}

// What fails to be read is told with the name that the caller knows it by.
func TestViewFails(t *testing.T) {
	torn := errors.New("the bucket is gone")
	_, err := View(Sight{Path: "s3:disk", File: failing{torn}, Size: 100_000, Choice: Auto})
	if !errors.Is(err, torn) {
		t.Errorf("opening: %v", err)
	}
	_, err = View(Sight{Path: "s3:disk", File: bytes.NewReader(noise(1, 100_000)), Size: 100_000, Choice: AsSpgz})
	wantError(t, err, nil, "s3:disk")
	im, err := View(Sight{Path: "s3:disk", File: bytes.NewReader(noise(1, 90_000)), Size: 100_000, Choice: AsRaw})
	must(t, err)
	_, err = im.ReadAt(make([]byte, 10_000), 89_000)
	wantError(t, err, ErrChanged, "s3:disk: changed while it was read")
}

// Of what is stored, that is known from afar which judges what is read, and images with
// bad blocks are refused.
func TestViewWithOutboard(t *testing.T) {
	for _, kind := range fileKinds {
		path, bs := tempPath(t), kind.blockSize
		writeImage(t, path, kind.opts, bs, noise(1, 5*bs))
		see := func() Sight {
			file, err := os.ReadFile(path)
			must(t, err)
			stored, err := os.ReadFile(filepath.Join(filepath.Dir(path), KindTree.Of("disk")))
			must(t, err)
			head, err := merkle.DecodeOutboard(stored[:merkle.OutboardPage])
			must(t, err)
			return Sight{Path: "s3:disk", File: bytes.NewReader(file), Size: int64(len(file)), Choice: Choice(head.Format), Outboard: bytes.NewReader(stored), Head: *head}
		}
		near := source(t, path, Auto)
		want, ok := near.Hashes(bs).Leaves(0)
		far, err := View(see())
		must(t, err)
		if got, known := far.Hashes(bs).Leaves(0); !ok || !known || !slices.Equal(got, want) || far.State() != near.State() {
			t.Errorf("from afar %d leaves, %v, %+v", len(got), known, far.State())
		}
		must(t, errors.Join(near.RecordBad([]int64{2}), near.Close()))
		_, err = View(see())
		wantError(t, err, ErrIncomplete, "s3:disk: has 1 bad blocks")
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

var _ io.ReaderAt = failing{}
