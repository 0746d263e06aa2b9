package image

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/dop251/spgz"
)

// The library of the original is the referee: what it has written must read the
// same through us, whatever it did, and what we make of it the same through it.

func TestRefereeWrites(t *testing.T) {
	for blockSize, seeds := range map[int]uint64{12287: 60, 131071: 10} {
		if testing.Short() {
			seeds = 5
		}
		for seed := range seeds {
			t.Run(fmt.Sprintf("%d/seed %d", blockSize, seed), func(t *testing.T) {
				t.Parallel()
				r, path := newRand(seed), tempPath(t)
				for range 3 {
					libraryChanges(t, r, path, blockSize)
					content := libraryRead(t, path)
					same(t, "what the library wrote", readAll(t, path, Auto), content)
					content = ourChanges(t, r, path, blockSize, content)
					same(t, "what we made of it", libraryRead(t, path), content)
				}
			})
		}
	}
}

// libraryChanges has the library change the image at random.
func libraryChanges(t *testing.T, r *rand.Rand, path string, blockSize int) {
	f, err := spgz.OpenFileSize(path, os.O_RDWR|os.O_CREATE, 0o600, int64(blockSize))
	must(t, err)
	if f.BlockSize() != int64(blockSize) {
		t.Fatalf("the library has blocks of %d bytes, want %d", f.BlockSize(), blockSize)
	}
	span := int64(5 * blockSize)
	for range 1 + r.IntN(8) {
		off, n := r.Int64N(span), 1+r.Int64N(span/2)
		if r.IntN(3) == 0 {
			off -= off % int64(blockSize)
		}
		switch r.IntN(5) {
		case 0, 1:
			p := make([]byte, n)
			fill(r, p)
			_, err = f.WriteAt(p, off)
		case 2:
			// The library panics at some ranges within one block.
			if off/int64(blockSize) != (off+n)/int64(blockSize) {
				err = f.PunchHole(off, n)
			}
		case 3:
			err = f.Truncate(off)
		case 4:
			err = f.Sync()
		}
		// The library reports the end of the file from some operations behind
		// it; what it has then is as good as anything.
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("the library: %v", err)
		}
	}
	must(t, f.Close())
}

// ourChanges changes some blocks and the size and returns the content.
func ourChanges(t *testing.T, r *rand.Rand, path string, blockSize int, content []byte) []byte {
	tg := target(t, path, TargetOptions{})
	if tg.Format() != Spgz || tg.BlockSize() != blockSize || tg.Held() != int64(len(content)) {
		t.Fatalf("opened as %s with blocks of %d and %d bytes, want spgz, %d, %d",
			tg.Format(), tg.BlockSize(), tg.Held(), blockSize, len(content))
	}
	content = resized(content, randomSize(r, blockSize))
	mutate(r, content, blockSize)
	update(t, tg, blockSize, content)
	must(t, tg.Close())
	return content
}

// mutate changes some blocks of content, and parts of others.
func mutate(r *rand.Rand, content []byte, blockSize int) {
	for off := 0; off < len(content); off += blockSize {
		block := content[off:min(len(content), off+blockSize)]
		switch r.IntN(4) {
		case 0:
			fill(r, block)
		case 1:
			fill(r, block[r.IntN(len(block)):])
		case 2:
			clear(block)
		}
	}
}

// Every length of a last block in which something might go wrong, written by
// either side.
func TestRefereeTails(t *testing.T) {
	for _, blockSize := range []int{12287, 131071} {
		for _, whole := range []int{0, 1, 2} {
			for _, tail := range []int{0, 1, 2, 4095, 4096, 4097, 8193, blockSize - 1} {
				n := whole*blockSize + tail
				for name, content := range map[string][]byte{"text": text(n), "noise": noise(6, n), "zeros": make([]byte, n)} {
					what := fmt.Sprintf("%s of %d bytes in blocks of %d", name, n, blockSize)
					theirs, ours := tempPath(t), tempPath(t)
					f, err := spgz.OpenFileSize(theirs, os.O_RDWR|os.O_CREATE, 0o600, int64(blockSize))
					must(t, err)
					_, err = f.WriteAt(content, 0)
					must(t, err)
					must(t, f.Close())
					same(t, what+", theirs", readAll(t, theirs, Auto), content)
					writeImage(t, ours, TargetOptions{}, blockSize, content)
					same(t, what+", ours", libraryRead(t, ours), content)
				}
			}
		}
	}
}

// A new image of the library has a header that is not padded yet.
func TestRefereeEmptyImage(t *testing.T) {
	path := tempPath(t)
	f, err := spgz.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	must(t, f.Close())
	info, err := os.Stat(path)
	must(t, err)
	if info.Size() != 12 {
		t.Fatalf("the library made a file of %d bytes, this test expects 12", info.Size())
	}
	im := source(t, path, Auto)
	if im.Format() != Spgz || im.Size() != 0 || im.BlockSize() != 131071 {
		t.Errorf("read as %s, %d bytes, blocks of %d", im.Format(), im.Size(), im.BlockSize())
	}
	must(t, im.Close())
	content := text(300_000)
	tg := target(t, path, TargetOptions{})
	update(t, tg, 131071, content)
	must(t, tg.Close())
	same(t, "filled by us", libraryRead(t, path), content)
}

// A file may end right behind the flag of a slot.
func TestRefereeEndsInFlag(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, noise(7, 12287))
	must(t, os.Truncate(path, headerSize+12288+1))
	want := noise(7, 12287)
	same(t, "the library", libraryRead(t, path), want)
	same(t, "ours", readAll(t, path, Auto), want)
}
