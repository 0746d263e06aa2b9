package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/dop251/spgz"

	"github.com/diskrsync/diskrsync/merkle"
)

// need skips a test that cannot run here, and fails it where everything is said
// to be there.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("DISKRSYNC_TEST_REAL") == "1" {
		t.Fatalf("DISKRSYNC_TEST_REAL=1, but %s", what)
	}
	t.Skip(what)
}

func place(t *testing.T, path string) *Place {
	t.Helper()
	p, err := Locate(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func target(t *testing.T, path string, o TargetOptions) *Target {
	t.Helper()
	tg, err := OpenTarget(place(t, path), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tg.Close() })
	return tg
}

func source(t *testing.T, path string, c Choice) Image {
	t.Helper()
	return openImage(t, path, Options{Choice: c})
}

func openImage(t *testing.T, path string, o Options) Image {
	t.Helper()
	im, err := Open(place(t, path), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

// must fails the test at once if err is not nil.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// update plays a whole sync: it brings a target to content and commits. The block
// size is for images that have none of their own.
func update(t *testing.T, tg *Target, blockSize int, content []byte) {
	t.Helper()
	must(t, newSyncing(blockSize, 3).run(tg, content))
}

// newSyncing returns what plays a sync.
func newSyncing(blockSize int, seed uint64) *syncing {
	return &syncing{blockSize: blockSize, r: newRand(seed), slots: new(sync.Map)}
}

// writeImage syncs content to the image at path.
func writeImage(t *testing.T, path string, o TargetOptions, blockSize int, content []byte) {
	t.Helper()
	tg := target(t, path, o)
	update(t, tg, blockSize, content)
	must(t, tg.Close())
}

// blockOf returns a block of content as it is put.
func blockOf(content []byte, blockSize int, index int64) Block {
	from := int(index) * blockSize
	data := content[from:min(len(content), from+blockSize)]
	return Block{Index: index, Leaf: merkle.Leaf(data), Data: data}
}

// digestOf returns the digest of content.
func digestOf(t *testing.T, content []byte, blockSize int) merkle.Hash {
	t.Helper()
	g, err := merkle.NewGeometry(int64(len(content)), blockSize)
	must(t, err)
	var acc merkle.Accumulator
	for region := range g.Regions() {
		acc.Add(merkle.RegionRoot(leavesOf(g, content, region)))
	}
	return g.Digest(acc.Root())
}

// readAll returns the content of an image, read in pieces of an odd length.
func readAll(t *testing.T, path string, c Choice) []byte {
	t.Helper()
	return readAllWith(t, path, Options{Choice: c})
}

func readAllWith(t *testing.T, path string, o Options) []byte {
	t.Helper()
	im := openImage(t, path, o)
	defer im.Close()
	must(t, im.Changed())
	return contentOf(t, im)
}

// contentOf returns the content of an open image, and checks what is stored of
// its hashes.
func contentOf(t *testing.T, im Image) []byte {
	t.Helper()
	all := noise(8, int(im.Size())) // what is there must be overwritten, holes too
	for off := 0; off < len(all); off += 100_001 {
		part := all[off:min(len(all), off+100_001)]
		if n, err := im.ReadAt(part, int64(off)); n != len(part) || err != nil {
			t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", len(part), off, n, err)
		}
	}
	if n, err := im.ReadAt(make([]byte, 1), im.Size()); n != 0 || err != io.EOF {
		t.Fatalf("ReadAt behind the end = %d, %v; want 0, EOF", n, err)
	}
	checkHoles(t, im, all)
	must(t, checkStored(im, all))
	return all
}

// checkHoles checks that everything between the extents of im is zero in content
// and that the extents are in order.
func checkHoles(t *testing.T, im interface {
	NextData(int64) (merkle.Extent, error)
}, content []byte) {
	t.Helper()
	size := int64(len(content))
	for off := int64(0); ; {
		e, err := im.NextData(off)
		if err == io.EOF {
			e = merkle.Extent{Offset: size}
		} else if err != nil {
			t.Fatalf("NextData(%d): %v", off, err)
		} else if e.Offset < off || e.Length <= 0 || e.End() > size {
			t.Fatalf("NextData(%d) = %+v in %d bytes", off, e, size)
		}
		if !spgz.IsBlockZero(content[off:e.Offset]) {
			t.Fatalf("NextData(%d) = %+v leaves out data", off, e)
		}
		if err == io.EOF {
			return
		}
		off = e.End()
	}
}

// same compares contents and names the first difference.
func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s: has %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d of %d is %#x, want %#x", what, i, len(got), got[i], want[i])
		}
	}
}

// libraryRead returns what the original's library reads from an spgz file.
func libraryRead(t *testing.T, path string) []byte {
	t.Helper()
	f, err := spgz.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		t.Fatalf("the library finds no size: %v", err)
	}
	var out bytes.Buffer
	if _, err := f.WriteTo(&out); err != nil {
		t.Fatalf("the library reads %d bytes, then: %v", out.Len(), err)
	}
	if int64(out.Len()) != size {
		t.Fatalf("the library reads %d bytes of %d", out.Len(), size)
	}
	return out.Bytes()
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x5b62)) }

// fill writes data of a random kind: noise, text, or zeros with something in
// between. Only the first does not compress.
func fill(r *rand.Rand, p []byte) {
	switch r.IntN(4) {
	case 0, 1:
		fillNoise(r, p)
	case 2:
		copy(p, text(len(p)))
		if len(p) > 0 {
			p[r.IntN(len(p))] = byte(r.Uint32())
		}
	case 3:
		clear(p)
		if len(p) > 0 && r.IntN(2) == 0 {
			p[r.IntN(len(p))] = 1
		}
	}
}

func fillNoise(r *rand.Rand, p []byte) {
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, r.Uint64())
		p = p[8:]
	}
	for i := range p {
		p[i] = byte(r.Uint32())
	}
}

// overwrite changes a file as any program might.
func overwrite(t *testing.T, path string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(data, off)
	must(t, errors.Join(err, f.Close()))
}

// resized returns content cut or extended with zeros.
func resized(content []byte, size int64) []byte {
	out := make([]byte, size)
	copy(out, content)
	return out
}

// inFolder returns the names in the folder of path.
func inFolder(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// inStore returns the names in the store beside path.
func inStore(t *testing.T, path string) []string {
	t.Helper()
	return inFolder(t, filepath.Join(filepath.Dir(path), StoreFolder, "x"))
}

func wantError(t *testing.T, err error, kind error, words string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", words)
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("%v does not match %v", err, kind)
	}
	if !bytes.Contains([]byte(err.Error()), []byte(words)) {
		t.Errorf("error %q does not say %q", err, words)
	}
}
