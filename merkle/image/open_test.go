package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

func TestParseChoice(t *testing.T) {
	for s, want := range map[string]Choice{"": Auto, "auto": Auto, "raw": AsRaw, "spgz": AsSpgz} {
		if c, err := ParseChoice(s); c != want || err != nil {
			t.Errorf("%q is %q, %v", s, c, err)
		}
	}
	_, err := ParseChoice("qcow2")
	wantError(t, err, nil, `"qcow2" is none of`)
}

func writeFile(t *testing.T, content []byte) string {
	t.Helper()
	path := tempPath(t)
	must(t, os.WriteFile(path, content, 0o600))
	return path
}

// header returns an spgz header with any number of units.
func header(units uint32) []byte {
	h := make([]byte, headerSize)
	copy(h, Magic)
	binary.LittleEndian.PutUint32(h[8:], units)
	return h
}

// fake returns an spgz header with slots that each begin with one of flags.
func fake(flags ...string) []byte {
	all := header(3)
	for i, flag := range flags {
		slot := noise(uint64(100+i), 12288)
		copy(slot, flag)
		all = append(all, slot...)
	}
	return all
}

func TestDetect(t *testing.T) {
	gz, raw, bad := "\x01\x1f\x8b\x08", "\x00", "\x77"
	zeros := string(make([]byte, 12288))
	tail := header(32)
	tail[100] = 1
	for _, c := range []struct {
		name string
		file []byte
		want Format
		note bool
	}{
		{"empty", nil, Raw, false},
		{"no header", noise(1, 50000), Raw, false},
		{"magic alone", []byte(Magic), Raw, false},
		{"header alone", header(32), Spgz, false},
		{"header of 12 bytes", header(32)[:12], Spgz, false},
		{"too few units", header(2), Raw, true},
		{"no units", header(0), Raw, true},
		{"too many units", header(maxUnits + 1), Raw, true},
		{"units that overflow", header(1<<20 + 3), Raw, true},
		{"most units", header(maxUnits), Spgz, false},
		{"padding not zero", tail, Raw, true},
		{"raw slots", fake(raw, raw, raw), Spgz, false},
		{"gzip slots", fake(gz, gz), Spgz, false},
		{"a disk with a header", fake(bad, bad, bad), Raw, true},
		{"a disk with much zero", fake(zeros, zeros, zeros, zeros, bad), Raw, true},
		{"one corrupt slot of three", fake(gz, bad, raw), Spgz, false},
		{"half of the slots corrupt", fake(gz, bad), Raw, true},
		{"gzip flag without gzip", fake("\x01\x1f\x8b\x07", "\x01abc"), Raw, true},
	} {
		im, err := Open(place(t, writeFile(t, c.file)), Options{})
		// The members are not real: the last one does not decode.
		var corrupt *CorruptError
		if errors.As(err, &corrupt) {
			if c.want != Spgz {
				t.Errorf("%s: taken for spgz: %v", c.name, err)
			}
			continue
		}
		must(t, err)
		if im.Format() != c.want || (im.Note() != "") != c.note {
			t.Errorf("%s: %s with note %q, want %s", c.name, im.Format(), im.Note(), c.want)
		}
		must(t, im.Close())
	}
}

// A choice of the user is obeyed whatever the file looks like.
func TestChoice(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, text(40000))
	file, err := os.ReadFile(path)
	must(t, err)
	same(t, "as raw", readAll(t, path, AsRaw), file)
	same(t, "as spgz", readAll(t, path, AsSpgz), text(40000))
	disk := writeFile(t, fake("\x77", "\x00", "\x77"))
	if im := source(t, disk, AsSpgz); im.Format() != Spgz {
		t.Errorf("opened as %s", im.Format())
	}
}

// corruptImage returns a gzip-compressed image of three and a half blocks, one
// of which is damaged.
func corruptImage(t *testing.T, block int64) (string, []byte) {
	content := text(3*12287 + 12000)
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, content)
	overwrite(t, path, headerSize+block*12288+20, []byte("damage"))
	return path, content
}

func TestCorruptBlock(t *testing.T) {
	path, content := corruptImage(t, 1)
	im := source(t, path, Auto)
	p := make([]byte, len(content))
	n, err := im.ReadAt(p, 0)
	var corrupt *CorruptError
	if n != 12287 || !errors.As(err, &corrupt) {
		t.Fatalf("ReadAt = %d, %v", n, err)
	}
	if want := (merkle.Extent{Offset: 12287, Length: 12287}); corrupt.Block != 1 || corrupt.Extent != want {
		t.Errorf("%+v", corrupt)
	}
	wantError(t, err, nil, "image "+path+": block 1 at offset 12287: corrupt gzip data: ")
	if _, err := im.ReadAt(p[2*12287:], 2*12287); err != nil {
		t.Errorf("what is behind the corrupt block: %v", err)
	}
	same(t, "behind the corrupt block", p[2*12287:], content[2*12287:])
}

func TestCorruptLastBlock(t *testing.T) {
	path, content := corruptImage(t, 3)
	_, err := Open(place(t, path), Options{})
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) || corrupt.Block != 3 {
		t.Fatalf("Open: %v", err)
	}
	tg := target(t, path, TargetOptions{})
	if tg.Held() != 4*12287 || tg.Note() == "" {
		t.Errorf("holds %d bytes, note %q", tg.Held(), tg.Note())
	}
	must(t, tg.Begin(int64(len(content)), 12287))
	last := content[3*12287:]
	if _, err := tg.ReadAt(make([]byte, len(last)), 3*12287); !errors.As(err, &corrupt) {
		t.Errorf("ReadAt: %v", err)
	}
	must(t, tg.Close())

	// The next sync finds it unreadable, and so in need of repair.
	writeImage(t, path, TargetOptions{}, 12287, content)
	same(t, "repaired", libraryRead(t, path), content)
}

func TestChanged(t *testing.T) {
	path := writeFile(t, make([]byte, 100))
	old := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(path, old, old))
	im := source(t, path, Auto)
	must(t, im.Changed())
	now := time.Now()
	must(t, os.Chtimes(path, now, now))
	wantError(t, im.Changed(), ErrChanged, "was modified at")
	must(t, os.Truncate(path, 50))
	wantError(t, im.Changed(), ErrRefused, "had 100 bytes and has 50")
	_, err := im.ReadAt(make([]byte, 100), 0)
	wantError(t, err, ErrChanged, "had 100 bytes")
}

// An spgz file that shrinks must not read as zeros.
func TestSpgzShrinks(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, noise(1, 40000))
	im := source(t, path, Auto)
	must(t, os.Truncate(path, headerSize+12288+100))
	_, err := im.ReadAt(make([]byte, 12287), 12287)
	wantError(t, err, ErrChanged, "changed while it was read")
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	must(t, os.WriteFile(a, []byte("x"), 0o600))
	must(t, os.Link(a, b))
	must(t, os.WriteFile(c, []byte("x"), 0o600))
	id := source(t, a, Auto).Identity()
	if !id.Same(source(t, b, Auto).Identity()) || !id.Same(target(t, b, TargetOptions{}).Identity()) {
		t.Error("one file, two identities")
	}
	if id.Same(source(t, c, Auto).Identity()) {
		t.Error("two files, one identity")
	}
	if none := target(t, filepath.Join(dir, "new"), TargetOptions{}).Identity(); none.Same(none) {
		t.Error("what does not exist has an identity")
	}
}

func TestAllocated(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, testBlock, append(text(testBlock), make([]byte, 100*testBlock)...))
	im := source(t, path, Auto)
	n, err := im.Allocated()
	must(t, err)
	if n > 64<<10 || n == 0 {
		t.Errorf("one compressed block and a hole take %d bytes", n)
	}
}

// The hole behind each compressed block does not split an extent.
func TestExtentsOfCompressedBlocks(t *testing.T) {
	path := tempPath(t)
	content := append(make([]byte, 3*12287), text(20*12287+5000)...)
	writeImage(t, path, TargetOptions{}, 12287, content)
	e, err := source(t, path, Auto).NextData(100)
	must(t, err)
	if want := (merkle.Extent{Offset: 3 * 12287, Length: 20*12287 + 5000}); e != want {
		t.Errorf("%+v, want %+v", e, want)
	}
}

// FuzzOpenSpgz opens what may be an spgz file: it must read to its end, or fail
// and say where.
func FuzzOpenSpgz(f *testing.F) {
	f.Add(header(3))
	f.Add(header(3)[:12])
	f.Add(header(1 << 20))
	f.Add(append(header(3), "\x00raw"...))
	f.Add(append(append(header(3), flagGzip), gzipped(text(5000))...))
	f.Add(fake("\x00", "\x02"))
	path := filepath.Join(f.TempDir(), "disk") // one for all runs: a folder each is slow
	f.Fuzz(func(t *testing.T, file []byte) {
		if len(file) > 1<<17 {
			return
		}
		must(t, os.WriteFile(path, file, 0o600))
		for _, c := range []Choice{Auto, AsSpgz} {
			im, err := Open(place(t, path), Options{Choice: c})
			if err != nil {
				continue
			}
			checkReadable(t, im, file)
			must(t, im.Close())
		}
	})
}

func checkReadable(t *testing.T, im Image, file []byte) {
	size := im.Size()
	if im.Format() == Raw && size != int64(len(file)) {
		t.Fatalf("raw with %d bytes of %d", size, len(file))
	}
	if size > int64(len(file))/12288*merkle.MaxBlockSize+merkle.MaxBlockSize {
		t.Fatalf("%d bytes from a file of %d", size, len(file))
	}
	var corrupt *CorruptError
	all := make([]byte, size)
	n, err := im.ReadAt(all, 0)
	if err != nil && !errors.As(err, &corrupt) {
		t.Fatal(err)
	}
	if err == nil && im.Format() == Raw && !bytes.Equal(all, file) {
		t.Fatal("raw content differs")
	}
	if err != nil && int64(n) != corrupt.Extent.Offset {
		t.Fatalf("read %d bytes up to a corrupt block at %d", n, corrupt.Extent.Offset)
	}
	if _, err := im.NextData(size); err != io.EOF {
		t.Fatalf("NextData at the end: %v", err)
	}
}
