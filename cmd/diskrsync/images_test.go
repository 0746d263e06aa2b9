package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

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
			if n, err := s.WriteAt([]byte(data), off); n != len(data) || err != nil {
				t.Fatalf("%s: WriteAt = %d, %v", tt.name, n, err)
			}
		}
		if err := errors.Join(s.Punch(tt.size, 0), s.Commit()); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%s: %d bytes that are not the %d written", tt.name, out.Len(), len(want))
		}
	}
}

func TestStreamGoesNotBack(t *testing.T) {
	var out bytes.Buffer
	s := begun(t, &out, 100)
	if _, err := s.WriteAt([]byte("abc"), 10); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 9, 10, 12} {
		if _, err := s.WriteAt([]byte("x"), off); err == nil || !strings.Contains(err.Error(), "out of order") {
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
	if s.Held() != 0 || s.BlockSize() != 0 || s.Format() != image.Raw || s.Identity().Same(s.Identity()) {
		t.Error("the stream claims to have something")
	}
	if _, err := s.ReadAt(make([]byte, 1), 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("ReadAt: %v", err)
	}
	if err := s.WriteSlot(0, []byte("\x00abc")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("WriteSlot: %v", err)
	}
	if _, err := s.NextData(0); err != io.EOF {
		t.Errorf("NextData: %v", err)
	}
}

func TestStreamThatBreaks(t *testing.T) {
	s := begun(t, &brokenWriter{5}, 100)
	if _, err := s.WriteAt([]byte("abc"), 0); err != nil {
		t.Fatal(err)
	}
	if n, err := s.WriteAt([]byte("defg"), 3); n != 2 || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
	if err := s.Commit(); !errors.Is(err, io.ErrShortWrite) || !strings.Contains(err.Error(), "standard output") {
		t.Errorf("Commit: %v", err)
	}
	s = begun(t, &brokenWriter{}, 100)
	if n, err := s.WriteAt([]byte("a"), 50); n != 0 || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("WriteAt behind a hole = %d, %v", n, err)
	}
}

// A fakeImage is an image in memory, all of it data.
type fakeImage struct {
	image.Image
	content []byte
	changed error
}

func (f *fakeImage) Size() int64    { return int64(len(f.content)) }
func (f *fakeImage) BlockSize() int { return 0 }
func (f *fakeImage) Changed() error { return f.changed }

func (f *fakeImage) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.content).ReadAt(p, off)
}

func (f *fakeImage) NextData(off int64) (merkle.Extent, error) {
	if off >= f.Size() {
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
