package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"
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
			im, err := View("s3:disk", bytes.NewReader(file), int64(len(file)), when, Auto)
			must(t, err)
			same(t, "the content", contentOf(t, im), content)
			if !im.Modified().Equal(when) || im.State() != (State{}) || im.Changed() != nil {
				t.Errorf("modified %v, %+v, changed: %v", im.Modified(), im.State(), im.Changed())
			}
			must(t, im.Close())
			raw, err := View("s3:disk", bytes.NewReader(file), int64(len(file)), when, AsRaw)
			must(t, err)
			same(t, "the file", contentOf(t, raw), file)
		}
	}
}

// What fails to be read is told with the name that the caller knows it by.
func TestViewFails(t *testing.T) {
	torn := errors.New("the bucket is gone")
	_, err := View("s3:disk", failing{torn}, 100_000, time.Time{}, Auto)
	if !errors.Is(err, torn) {
		t.Errorf("opening: %v", err)
	}
	_, err = View("s3:disk", bytes.NewReader(noise(1, 100_000)), 100_000, time.Time{}, AsSpgz)
	wantError(t, err, nil, "s3:disk")
	im, err := View("s3:disk", bytes.NewReader(noise(1, 90_000)), 100_000, time.Time{}, AsRaw)
	must(t, err)
	_, err = im.ReadAt(make([]byte, 10_000), 89_000)
	wantError(t, err, ErrChanged, "s3:disk: changed while it was read")
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

var _ io.ReaderAt = failing{}
