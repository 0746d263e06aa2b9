package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWriteText checks that what stands in for data is the same on every run,
// and compresses as data does: neither to nothing nor not at all.
func TestWriteText(t *testing.T) {
	const n = 100_000
	var a, b, packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	if err := errors.Join(writeText(&a, n), writeText(&b, n), writeText(zw, n), zw.Close()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) || a.Len() < n || a.Len() > n+1000 {
		t.Errorf("wrote %d and %d bytes, want the same %d", a.Len(), b.Len(), n)
	}
	if percent := packed.Len() * 100 / n; percent < 15 || percent > 60 {
		t.Errorf("compresses to %d %%", percent)
	}
	if err := writeText(&brokenWriter{10}, n); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("into a full disk: %v", err)
	}
}

func TestSameContent(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	disk, same := write("disk", "content"), write("same", "content")
	if err := sameContent(disk, same); err != nil {
		t.Error(err)
	}
	for _, other := range []string{write("shorter", "conten"), write("other", "Content"), write("empty", ""), filepath.Join(dir, "missing")} {
		for _, err := range []error{sameContent(disk, other), sameContent(other, disk)} {
			if err == nil || !strings.Contains(err.Error(), other) {
				t.Errorf("%s: %v", other, err)
			}
		}
	}
}

func TestLookAlsoInSbin(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if path, err := lookAlsoInSbin("no-such-program"); err == nil {
		t.Errorf("found %s", path)
	}
	program := filepath.Join(dir, "diskrsync-tool.exe")
	if err := os.WriteFile(program, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if path, err := lookAlsoInSbin("diskrsync-tool.exe"); path != program || err != nil {
		t.Errorf("found %q, %v, want %s", path, err, program)
	}
}
