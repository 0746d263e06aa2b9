package image

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// exampleFile returns the file that FORMAT.md shows.
func exampleFile(t *testing.T) []byte {
	t.Helper()
	doc, err := os.Open("FORMAT.md")
	must(t, err)
	defer doc.Close()
	file := make([]byte, 28683)
	row := regexp.MustCompile(`^([0-9a-f]{8})  ((?:[0-9a-f]{2} ?)+)$`)
	rows := 0
	for lines := bufio.NewScanner(doc); lines.Scan(); {
		m := row.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		off, err := strconv.ParseInt(m[1], 16, 64)
		must(t, err)
		data, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		must(t, err)
		copy(file[off:], data)
		rows++
	}
	if rows != 5 {
		t.Fatalf("found %d rows of the example, want 5", rows)
	}
	return file
}

func exampleContent() []byte {
	content := make([]byte, 24584)
	copy(content[12287:], bytes.Repeat([]byte("a"), 12287))
	copy(content[2*12287:], "diskrsync\n")
	return content
}

// The example of FORMAT.md is an image, to us and to the original.
func TestFormatExampleReads(t *testing.T) {
	path := writeFile(t, exampleFile(t))
	same(t, "ours", readAll(t, path, AsSpgz), exampleContent())
	same(t, "the library's", libraryRead(t, path), exampleContent())
}

// What we write is the example. Only the member may differ, when the compressor
// changes; what it unfolds to may not.
func TestFormatExampleWrites(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, exampleContent())
	got, err := os.ReadFile(path)
	must(t, err)
	want := exampleFile(t)
	const member, end = 0x4001, 0x7000
	same(t, "up to the member", got[:member], want[:member])
	same(t, "behind it", got[end:], want[end:])
	block, err := DecodeSlot(nil, got[member-1:end], 12287)
	must(t, err)
	same(t, "the block", block, exampleContent()[12287:2*12287])
}
