package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
)

func begun(t *testing.T, w io.Writer, size int64) *stream {
	t.Helper()
	s := &stream{w: w}
	if err := s.Begin(size, 16); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStreamFillsHoles(t *testing.T) {
	far := int64(3*len(zeros) + 5)
	for _, tt := range []struct {
		name   string
		size   int64
		writes map[int64]string
		order  []int64
	}{
		{"nothing", 0, nil, nil},
		{"only a hole", far, nil, nil},
		{"all data", 6, map[int64]string{0: "abc", 3: "def"}, []int64{0, 3}},
		{"hole in front", far + 3, map[int64]string{far: "abc"}, []int64{far}},
		{"hole behind", far, map[int64]string{0: "abc"}, []int64{0}},
		{"hole between", far + 20, map[int64]string{1: "abc", far: "def"}, []int64{1, far}},
		{"empty write", 5, map[int64]string{0: "ab", 2: "", 4: "c"}, []int64{0, 2, 4}},
	} {
		var out bytes.Buffer
		s := begun(t, &out, tt.size)
		want := make([]byte, tt.size)
		for _, off := range tt.order {
			data := tt.writes[off]
			copy(want[off:], data)
			if err := s.write([]byte(data), off); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
		}
		if err := errors.Join(s.Punch(0, 1), s.Settle(0, nil), s.Commit(merkle.Hash{}, time.Time{})); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%s: %d bytes that are not the %d written", tt.name, out.Len(), len(want))
		}
	}
}

func TestStreamPutsBlocksInTheirPlaces(t *testing.T) {
	var out bytes.Buffer
	s := begun(t, &out, 70)
	blocks := map[int64]string{1: "0123456789abcdef", 4: "the end"[:6]}
	want := make([]byte, 70)
	for _, i := range []int64{1, 4} {
		copy(want[i*16:], blocks[i])
		if err := s.Put(image.Block{Index: i, Data: []byte(blocks[i])}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(merkle.Hash{}, time.Time{}); err != nil || !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%q came out, %v", out.Bytes(), err)
	}
}

func TestStreamGoesNotBack(t *testing.T) {
	var out bytes.Buffer
	s := begun(t, &out, 100)
	if err := s.write([]byte("abc"), 10); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 9, 10, 12} {
		if err := s.write([]byte("x"), off); err == nil || !strings.Contains(err.Error(), "out of order") {
			t.Errorf("writing at %d after 13: %v", off, err)
		}
	}
	if out.Len() != 13 {
		t.Errorf("%d bytes came out", out.Len())
	}
}

// TestStreamIsTargetOfNothing checks what makes a session send all of an image,
// whole and uncompressed: the stream can be nothing else's target.
func TestStreamIsTargetOfNothing(t *testing.T) {
	s := begun(t, io.Discard, 100)
	if s.Held() != 0 || s.Kept() != 0 || s.BlockSize() != 0 || s.Preferred() != 0 || s.Format() != image.Raw || s.Identity().Same(s.Identity()) {
		t.Error("the stream claims to have something")
	}
	if _, err := s.ReadAt(make([]byte, 1), 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("ReadAt: %v", err)
	}
	if _, ok := s.Root(0); ok {
		t.Error("the stream claims to know a root")
	}
	if _, ok := s.Leaves(0); ok {
		t.Error("the stream claims to know leaves")
	}
	if _, err := s.NextData(0); err != io.EOF {
		t.Errorf("NextData: %v", err)
	}
}

func TestStreamThatBreaks(t *testing.T) {
	s := begun(t, &brokenWriter{5}, 100)
	if err := s.write([]byte("abc"), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.write([]byte("defg"), 3); s.at != 5 || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("written up to %d, %v", s.at, err)
	}
	if err := s.Commit(merkle.Hash{}, time.Time{}); !errors.Is(err, io.ErrShortWrite) || !strings.Contains(err.Error(), "standard output") {
		t.Errorf("Commit: %v", err)
	}
	s = begun(t, &brokenWriter{}, 100)
	if err := s.write([]byte("a"), 50); s.at != 0 || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("written up to %d behind a hole, %v", s.at, err)
	}
}

// A fakeImage is an image in memory, of which all that is not zero is data.
type fakeImage struct {
	image.Image
	content []byte
	changed error
	hashes  fakeHashes
}

// fakeHashes are the leaves of an image of one region, nil if they are not
// stored.
type fakeHashes []merkle.Hash

func (h fakeHashes) Root(int64) (merkle.Hash, bool)     { return merkle.RegionRoot(h), h != nil }
func (h fakeHashes) Leaves(int64) ([]merkle.Hash, bool) { return h, h != nil }

func (f *fakeImage) Size() int64    { return int64(len(f.content)) }
func (f *fakeImage) BlockSize() int { return 0 }
func (f *fakeImage) Changed() error { return f.changed }

func (f *fakeImage) Hashes(int) image.Hashes { return f.hashes }

func (f *fakeImage) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.content).ReadAt(p, off)
}

func (f *fakeImage) NextData(off int64) (merkle.Extent, error) {
	if off >= f.Size() || len(bytes.Trim(f.content[off:], "\x00")) == 0 {
		return merkle.Extent{}, io.EOF
	}
	return merkle.Extent{Offset: off, Length: f.Size() - off}, nil
}

func TestCatImage(t *testing.T) {
	content := make([]byte, 5*merkle.DefaultBlockSize/2)
	copy(content[merkle.DefaultBlockSize*3/2:], "in the second block")
	var out bytes.Buffer
	if err := catImage(t.Context(), &fakeImage{content: content}, &stream{w: &out}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), content) {
		t.Errorf("%d bytes came out that are not the %d of the image", out.Len(), len(content))
	}
}

// TestCatImageThatIsDamaged shows that no block passes for content that is not
// what is stored of it, be it read or a hole.
func TestCatImageThatIsDamaged(t *testing.T) {
	const bs = merkle.DefaultBlockSize
	sound := make([]byte, 3*bs)
	leaves := make(fakeHashes, 3)
	for i := range leaves {
		copy(sound[i*bs:], "a block")
		leaves[i] = merkle.Leaf(sound[i*bs:][:bs])
	}
	if err := catImage(t.Context(), &fakeImage{content: sound, hashes: leaves}, &stream{w: io.Discard}); err != nil {
		t.Fatal(err)
	}
	flipped, hole := bytes.Clone(sound), bytes.Clone(sound)
	flipped[bs+100] = 1
	clear(hole[2*bs:])
	for _, tt := range []struct {
		name    string
		content []byte
		want    string
	}{
		{"a bit", flipped, "block 1 at offset 131072"},
		{"a hole", hole, "block 2 at offset 262144"},
		{"all a hole", make([]byte, 3*bs), "block 0 at offset 0"},
	} {
		img := &fakeImage{content: tt.content, hashes: leaves}
		err := catImage(t.Context(), img, &stream{w: io.Discard})
		if err == nil || !strings.Contains(err.Error(), tt.want) || status(err) != exitFailed {
			t.Errorf("%s: %v", tt.name, err)
		}
		img.changed = image.ErrChanged
		if err := catImage(t.Context(), img, &stream{w: io.Discard}); !errors.Is(err, image.ErrChanged) {
			t.Errorf("%s, of an image that was written to: %v", tt.name, err)
		}
	}
}

func TestCatImageThatChanged(t *testing.T) {
	changed := &fakeImage{content: []byte("content"), changed: image.ErrChanged}
	err := catImage(t.Context(), changed, &stream{w: io.Discard})
	if !errors.Is(err, image.ErrChanged) || status(err) != exitRefused {
		t.Errorf("got %v, with exit status %d", err, status(err))
	}
}

func TestCatImageThatCannotBeWritten(t *testing.T) {
	err := catImage(t.Context(), &fakeImage{content: []byte("content")}, &stream{w: &brokenWriter{3}})
	if !errors.Is(err, io.ErrShortWrite) || !strings.Contains(err.Error(), "standard output") {
		t.Errorf("got %v", err)
	}
}
