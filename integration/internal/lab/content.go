//go:build linux

package lab

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const pageSize = 4096

// random returns a source of numbers and bytes that depends on the seed alone.
func random(seed uint64) (*rand.Rand, *rand.ChaCha8) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	bytes := rand.NewChaCha8(key)
	return rand.New(bytes), bytes
}

// Noise returns n bytes that cannot be compressed.
func Noise(seed uint64, n int) []byte {
	_, bytes := random(seed)
	p := make([]byte, n)
	bytes.Read(p) // never fails
	return p
}

// Prose returns n bytes that compress about as well as text does.
func Prose(seed uint64, n int) []byte {
	numbers, _ := random(seed)
	words := strings.Fields(`the a block of an image is read and compared with what the target
		holds already so that only pages which differ travel over the wire once more each night`)
	p := make([]byte, 0, n+16)
	for len(p) < n {
		p = append(p, words[numbers.IntN(len(words))]...)
		p = fmt.Appendf(p, " %x\n", numbers.IntN(1<<12))
	}
	return p[:n]
}

// FillTree puts files of many sizes into a folder, about size bytes of text
// and noise in all.
func FillTree(t testing.TB, dir string, seed uint64, size int) {
	t.Helper()
	numbers, _ := random(seed)
	for i := 0; size > 0; i++ {
		n := min(size, 1<<(8+numbers.IntN(14))+numbers.IntN(1000))
		content := Prose
		if i%3 == 0 {
			content = Noise
		}
		sub := filepath.Join(dir, fmt.Sprintf("folder-%d", i%7))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		Write(t, filepath.Join(sub, fmt.Sprintf("file-%d-%d", seed, i)), content(numbers.Uint64(), n), 0o644)
		size -= n
	}
}

// ChangeTree changes a tree made by FillTree the way a day of work does: pages
// in the middle of files, files removed, files added.
func ChangeTree(t testing.TB, dir string, seed uint64) {
	t.Helper()
	numbers, _ := random(seed)
	files := Must(filepath.Glob(filepath.Join(dir, "folder-*", "file-*")))(t)
	for i, path := range files {
		switch i % 10 {
		case 0:
			Scatter(t, path, numbers.Uint64(), 2)
		case 5:
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	FillTree(t, dir, seed, 2<<20)
}

// Scatter overwrites pages of a file at random places with noise. It does not
// change the file's size, and does nothing to an empty one.
func Scatter(t testing.TB, path string, seed uint64, pages int) {
	t.Helper()
	numbers, bytes := random(seed)
	size := Size(t, path)
	f := Must(os.OpenFile(path, os.O_WRONLY, 0))(t)
	page := make([]byte, pageSize)
	for range pages {
		bytes.Read(page) // never fails
		off := numbers.Int64N(size/pageSize+1) * pageSize
		if _, err := f.WriteAt(page[:min(pageSize, size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// WriteAt writes into a file or device that exists.
func WriteAt(t testing.TB, path string, content []byte, off int64) {
	t.Helper()
	f := Must(os.OpenFile(path, os.O_WRONLY, 0))(t)
	if _, err := f.WriteAt(content, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// Image makes a raw image of its own kind: runs of text and noise between
// holes, zeros that are written and not holes, and an odd size.
func Image(t testing.TB, path string, seed uint64, size int64) string {
	t.Helper()
	SparseFile(t, path, size)
	numbers, _ := random(seed)
	for off := int64(0); off < size; {
		n := min(size-off, int64(numbers.IntN(1<<20)))
		switch numbers.IntN(4) {
		case 0:
			WriteAt(t, path, Noise(numbers.Uint64(), int(n)), off)
		case 1:
			WriteAt(t, path, Prose(numbers.Uint64(), int(n)), off)
		case 2:
			WriteAt(t, path, make([]byte, n), off)
		}
		off += n + 1
	}
	return path
}
