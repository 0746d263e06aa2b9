//go:build linux

package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Same fails the test unless two files or devices have the same content. A
// device may be longer than the file it is compared with. What is a hole in
// both is not read.
func Same(t testing.TB, got, want string) {
	t.Helper()
	a, b := openSized(t, got), openSized(t, want)
	defer a.Close()
	defer b.Close()
	if a.size != b.size && !(a.device && a.size > b.size) && !(b.device && b.size > a.size) {
		t.Fatalf("%s has %d bytes, %s has %d", got, a.size, want, b.size)
	}
	if off, err := firstDifference(a, b); err != nil {
		t.Fatalf("comparing %s with %s: %v", got, want, err)
	} else if off >= 0 {
		t.Fatalf("%s differs from %s at offset %d", got, want, off)
	}
}

type sized struct {
	*os.File
	size   int64
	device bool
}

func openSized(t testing.TB, path string) sized {
	t.Helper()
	f := Must(os.Open(path))(t)
	info := Must(f.Stat())(t)
	return sized{f, Must(f.Seek(0, io.SeekEnd))(t), info.Mode()&os.ModeDevice != 0}
}

// nextData returns where the next data at or behind off begins, or the end.
// Devices know nothing of holes.
func (f sized) nextData(off int64) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case err == nil:
		return at, nil
	case errors.Is(err, unix.ENXIO) && !f.device:
		return f.size, nil
	case f.device:
		return off, nil
	}
	return 0, err
}

// firstDifference returns the offset of a page that differs, or -1.
func firstDifference(a, b sized) (int64, error) {
	size := min(a.size, b.size)
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < size; {
		nextA, err := a.nextData(off)
		if err != nil {
			return 0, err
		}
		nextB, err := b.nextData(off)
		if err != nil {
			return 0, err
		}
		off = min(nextA, nextB)
		n := min(int64(len(p)), size-off)
		if n <= 0 {
			break
		}
		if err := readBoth(a, b, p[:n], q[:n], off); err != nil {
			return 0, err
		}
		if !bytes.Equal(p[:n], q[:n]) {
			return off + int64(differsAt(p[:n], q[:n])), nil
		}
		off += n
	}
	return -1, nil
}

func readBoth(a, b sized, p, q []byte, off int64) error {
	if _, err := a.ReadAt(p, off); err != nil {
		return fmt.Errorf("reading %s at offset %d: %w", a.Name(), off, err)
	}
	if _, err := b.ReadAt(q, off); err != nil {
		return fmt.Errorf("reading %s at offset %d: %w", b.Name(), off, err)
	}
	return nil
}

func differsAt(p, q []byte) int {
	for i := range p {
		if p[i] != q[i] {
			return i
		}
	}
	return len(p)
}

// A Snapshot is what a folder held at one time: the name, kind, size and
// content of everything in it.
type Snapshot struct{ lines []string }

// Snap takes a snapshot of a folder of small files.
func Snap(t testing.TB, dir string) Snapshot {
	t.Helper()
	var s Snapshot
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		line := fmt.Sprintf("%s %v", path, entry.Type())
		if entry.Type().IsRegular() {
			line += " " + strings.Fields(Do(t, "sha256sum", path))[0]
		}
		s.lines = append(s.lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Unchanged fails the test if the folder holds anything else by now.
func (s Snapshot) Unchanged(t testing.TB, dir string) {
	t.Helper()
	now := Snap(t, dir)
	if !slices.Equal(s.lines, now.lines) {
		t.Errorf("%s was changed.\nbefore:\n%s\nafter:\n%s", dir,
			strings.Join(s.lines, "\n"), strings.Join(now.lines, "\n"))
	}
}

// Sum returns the SHA-256 of what comes out of r, which tells contents apart
// that are not kept.
func Sum(t testing.TB, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatalf("reading: %v", err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// SumFile is Sum for a file.
func SumFile(t testing.TB, path string) string {
	t.Helper()
	f := Must(os.Open(path))(t)
	defer f.Close()
	return Sum(t, f)
}
