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

	"github.com/diskrsync/diskrsync/merkle"
)

// exampleFile returns a file of a size that FORMAT.md shows under a heading, of
// which the lines that are not shown are zero.
func exampleFile(t *testing.T, heading string, size int64) []byte {
	t.Helper()
	doc, err := os.Open("FORMAT.md")
	must(t, err)
	defer doc.Close()
	file := make([]byte, size)
	row := regexp.MustCompile(`^([0-9a-f]{8})  ((?:[0-9a-f]{2} ?)+)$`)
	here, rows := false, 0
	for lines := bufio.NewScanner(doc); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			here = lines.Text() == heading
		}
		m := row.FindStringSubmatch(lines.Text())
		if m == nil || !here {
			continue
		}
		off, err := strconv.ParseInt(m[1], 16, 64)
		must(t, err)
		data, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		must(t, err)
		if off+int64(len(data)) > size {
			t.Fatalf("%s: a line at %#x lies behind the %d bytes of the file", heading, off, size)
		}
		copy(file[off:], data)
		rows++
	}
	if rows == 0 {
		t.Fatalf("FORMAT.md has no lines of a file under %q", heading)
	}
	return file
}

func spgzExample(t *testing.T) []byte { return exampleFile(t, "### Example", 28683) }

func exampleContent() []byte {
	content := make([]byte, 24584)
	copy(content[12287:], bytes.Repeat([]byte("a"), 12287))
	copy(content[2*12287:], "diskrsync\n")
	return content
}

// The example of FORMAT.md is an image, to us and to the original.
func TestFormatExampleReads(t *testing.T) {
	path := writeFile(t, spgzExample(t))
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
	want := spgzExample(t)
	const member, end = 0x4001, 0x7000
	same(t, "up to the member", got[:member], want[:member])
	same(t, "behind it", got[end:], want[end:])
	block, err := DecodeSlot(nil, got[member-1:end], 12287)
	must(t, err)
	same(t, "the block", block, exampleContent()[12287:2*12287])
}

// The image of the examples of an outboard and of a journal. The times are of the
// image before the update, the source, the journal, the commit, and the image
// after it.
const (
	storedContent = "0123456789"
	storedBlock   = 4
	storedInode   = 12

	storedBefore   = 1767200000_000000000
	storedModified = 1767319440_000000000
	storedStarted  = 1767319443_000000000
	storedSynced   = 1767319445_000000000
	storedAfter    = 1767319446_000000000
)

// storedTree returns the geometry of the example, and its leaves.
func storedTree(t *testing.T) (merkle.Geometry, []merkle.Hash) {
	t.Helper()
	g, err := merkle.NewGeometry(int64(len(storedContent)), storedBlock)
	must(t, err)
	return g, leavesOf(g, []byte(storedContent), 0)
}

// fileOf returns all of a file.
func fileOf(t *testing.T, f file) []byte {
	t.Helper()
	info, err := f.Stat()
	must(t, err)
	all := make([]byte, info.Size())
	_, err = f.ReadAt(all, 0)
	must(t, err)
	return all
}

func TestFormatExampleOfAnOutboard(t *testing.T) {
	g, leaves := storedTree(t)
	f := makeFile(t, newCrashFS(), "tree")
	tr := &tree{f: f, path: "disk", g: g, have: -1}
	must(t, tr.set(0, leaves))
	digest, err := tr.digest()
	must(t, err)
	head := merkle.Outboard{Size: g.Size(), BlockSize: storedBlock, Format: string(Raw), Generation: 2, Digest: digest,
		Synced: storedSynced, Modified: storedModified,
		FileSize: g.Size(), FileTime: storedAfter, Inode: storedInode}
	must(t, tr.finish(head))
	want := exampleFile(t, "### Example of an outboard", 8288)
	same(t, "the example, written", fileOf(t, f), want)

	fs := newCrashFS()
	_, err = makeFile(t, fs, "tree").WriteAt(want, 0)
	must(t, err)
	read, err := openTree(fs, "tree", "disk")
	must(t, err)
	if read == nil || read.head != head {
		t.Fatalf("the example, read, is %+v", read)
	}
	if got, err := read.leaves(0); err != nil || len(merkle.Diff(got, leaves)) > 0 {
		t.Errorf("the leaves of the example are %v, %v", got, err)
	}
}

func TestFormatExampleOfAJournal(t *testing.T) {
	g, leaves := storedTree(t)
	digest := g.Digest(merkle.RegionRoot(leaves))
	fs := newCrashFS()
	head := journalHeader{Way: wayRedo, BlockSize: storedBlock, Format: Raw, ID: 0x1122334455667788, Content: g.Size(),
		Base: fileState{g.Size(), storedBefore, storedInode}, Started: storedStarted}
	must(t, fs.Mkdir(StoreFolder, 0o700))
	s := newStore(newPlace(fs, "disk", "disk"))
	j, err := s.createJournal(head)
	must(t, err)
	r := newRecorder(j, g.Size(), nil)
	must(t, r.add(entry{kind: entryPlain, index: 1, hash: leaves[1]}, []byte(storedContent[4:8])))
	must(t, r.add(entry{kind: entryRegion, hash: merkle.RegionRoot(leaves)}, merkle.EncodeLeaves(leaves)))
	end := seal{Digest: digest, Generation: 2, Synced: storedSynced, Modified: storedModified}
	must(t, r.flush(&end, nil))
	must(t, j.mark(fileState{}))
	want := exampleFile(t, "### Example of a journal", 8932)
	same(t, "the example, written", fileOf(t, j.f), want)

	_, err = makeFile(t, fs, "journal").WriteAt(want, 0)
	must(t, err)
	read, err := openJournal(fs, "journal", "disk", os.O_RDONLY)
	must(t, err)
	if read.head != head || !read.marked || len(read.batches) != 1 || *read.lastSeal() != end {
		t.Errorf("the example, read, is %+v", read)
	}
	content := over(&flat{length: g.Size(), disk: diskWith(t, "0123\x00\x00\x00\x0089")}, g.Size(), read, read.batches)
	got := make([]byte, g.Size())
	_, err = content.ReadAt(got, 0)
	must(t, err)
	same(t, "the image through the example", got, []byte(storedContent))
}

// diskWith returns a disk of a file with some content.
func diskWith(t *testing.T, content string) *disk {
	t.Helper()
	f := makeFile(t, newCrashFS(), "disk")
	_, err := f.WriteAt([]byte(content), 0)
	must(t, err)
	d, err := newDisk(f, "disk")
	must(t, err)
	return d
}
