package image

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

func TestNewImageIsNotSeenBeforeCommit(t *testing.T) {
	for _, o := range []TargetOptions{{}, {Raw: true}} {
		path := tempPath(t)
		tg := target(t, path, o)
		must(t, tg.Begin(100_000, 12287))
		must(t, tg.Put(blockOf(noise(1, 100_000), 12287, 0)))
		partial := filepath.Join(filepath.Dir(path), StoreFolder, "disk.partial")
		info, err := os.Stat(partial)
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("the partial file has mode %v", info.Mode())
		}
		if _, err := os.Stat(path); err == nil {
			t.Error("the image exists before Commit")
		}
		must(t, tg.Close())
		must(t, tg.Close())
	}
}

func TestNothingAfterCommit(t *testing.T) {
	path := tempPath(t)
	tg := target(t, path, TargetOptions{})
	update(t, tg, 12287, make([]byte, 20000))
	wantError(t, tg.Commit(merkle.Hash{}, time.Time{}), nil, "committed or closed")
	wantError(t, tg.Punch(0, 1), nil, "committed or closed")
	wantError(t, tg.Settle(0, nil), nil, "committed or closed")
	must(t, tg.Close())
	wantError(t, tg.Punch(0, 1), nil, "committed or closed")
	same(t, "the image", libraryRead(t, path), make([]byte, 20000))
}

// All that a sync leaves beside the image are its hashes.
func TestCommitLeavesHashes(t *testing.T) {
	for _, o := range []TargetOptions{{}, {Raw: true}} {
		path := tempPath(t)
		writeImage(t, path, o, 12287, text(50000))
		if names := inFolder(t, path); !slices.Equal(names, []string{".diskrsync", "disk"}) {
			t.Errorf("beside the image: %v", names)
		}
		if names := inStore(t, path); !slices.Equal(names, []string{"disk.tree"}) {
			t.Errorf("in the store: %v", names)
		}
	}
}

// What lies there without a journal is nothing that a run has left to go on with.
func TestStalePartial(t *testing.T) {
	path := tempPath(t)
	store := filepath.Join(filepath.Dir(path), StoreFolder)
	must(t, os.Mkdir(store, 0o700))
	for _, name := range []string{"disk.partial", "disk.fresh"} {
		must(t, os.WriteFile(filepath.Join(store, name), noise(1, 99999), 0o600))
	}
	must(t, os.WriteFile(filepath.Join(store, "other.lock"), nil, 0o600))
	writeImage(t, path, TargetOptions{}, 12287, text(50000))
	same(t, "the image", libraryRead(t, path), text(50000))
	if names := inStore(t, path); !slices.Equal(names, []string{"disk.tree", "other.lock"}) {
		t.Errorf("in the store: %v", names)
	}
}

func TestCommitDoesNotReplace(t *testing.T) {
	for _, empty := range []bool{false, true} {
		path := tempPath(t)
		if empty {
			must(t, os.WriteFile(path, nil, 0o600))
		}
		tg := target(t, path, TargetOptions{})
		must(t, tg.Begin(5, 12287))
		must(t, os.WriteFile(path, []byte("someone else's"), 0o600))
		wantError(t, tg.Commit(digestOf(t, make([]byte, 5), 12287), time.Time{}), ErrChanged, "made by someone else")
		must(t, tg.Close())
		got, err := os.ReadFile(path)
		must(t, err)
		same(t, "the other file", got, []byte("someone else's"))

		// From now on that is the image.
		writeImage(t, path, TargetOptions{}, 8192, text(30000))
		if im := source(t, path, Auto); im.Format() != Raw {
			t.Errorf("updated as %s", im.Format())
		}
		same(t, "the other file, updated", readAll(t, path, Auto), text(30000))
	}
}

func TestEmptyFileBecomesImage(t *testing.T) {
	for _, o := range []TargetOptions{{}, {Raw: true}} {
		path := writeFile(t, nil)
		if tg := target(t, path, o); tg.Held() != 0 || (tg.Format() == Raw) != o.Raw {
			t.Errorf("holds %d bytes as %s", tg.Held(), tg.Format())
		} else {
			must(t, tg.Close())
		}
		writeImage(t, path, o, 12287, text(30000))
		same(t, "the image", readAll(t, path, Auto), text(30000))
	}
}

func TestFormatOfTarget(t *testing.T) {
	spgzPath, rawPath := tempPath(t), tempPath(t)
	writeImage(t, spgzPath, TargetOptions{}, 12287, text(30000))
	writeImage(t, rawPath, TargetOptions{Raw: true}, 12287, text(30000))
	_, err := OpenTarget(place(t, spgzPath), TargetOptions{Raw: true})
	wantError(t, err, ErrRefused, "ask for none to update it as one")
	if tg := target(t, rawPath, TargetOptions{}); tg.Format() != Raw || tg.BlockSize() != 0 || tg.Preferred() != 12287 {
		t.Errorf("a raw image is updated as %s", tg.Format())
	}
	disk := writeFile(t, fake("\x77", "\x77"))
	if tg := target(t, disk, TargetOptions{}); tg.Format() != Raw || tg.Note() == "" {
		t.Errorf("what only looks like spgz is updated as %s, note %q", tg.Format(), tg.Note())
	}
}

// A guest may give its disk the header of an spgz image, with slots and all. An
// image that was synced as raw stays raw.
func TestRawThatLooksLikeSpgz(t *testing.T) {
	path, file := tempPath(t), tempPath(t)
	writeImage(t, file, TargetOptions{}, 12287, text(50000))
	disguised, err := os.ReadFile(file)
	must(t, err)
	writeImage(t, path, TargetOptions{Raw: true}, 8192, disguised)
	same(t, "the content", readAll(t, path, Auto), disguised)
	disguised[20000] ^= 1
	for _, o := range []TargetOptions{{Raw: true}, {}} {
		tg := target(t, path, o)
		if tg.Format() != Raw || tg.Note() != "" {
			t.Errorf("updated as %s, note %q", tg.Format(), tg.Note())
		}
		update(t, tg, 8192, disguised)
		must(t, tg.Close())
		same(t, "updated", readAll(t, path, Auto), disguised)
	}
	// Without its store it is what it looks like, and no raw update is made of it.
	must(t, os.RemoveAll(filepath.Join(filepath.Dir(path), StoreFolder)))
	_, err = OpenTarget(place(t, path), TargetOptions{Raw: true})
	wantError(t, err, ErrRefused, "is or looks like an spgz image")
}

func TestBeginRefuses(t *testing.T) {
	path := tempPath(t)
	for _, c := range []struct {
		size      int64
		blockSize int
		words     string
	}{
		{-1, 12287, "image size -1"},
		{1, 0, "block size 0"},
		{1, 131072, "blocks of n*4096-1 bytes"},
		{1, 8191, "blocks of n*4096-1 bytes"},
	} {
		tg := target(t, path, TargetOptions{})
		wantError(t, tg.Begin(c.size, c.blockSize), nil, c.words)
		must(t, tg.Close())
	}
	writeImage(t, path, TargetOptions{}, 12287, text(30000))
	tg := target(t, path, TargetOptions{})
	wantError(t, tg.Begin(1, testBlock), nil, "has blocks of 12287 bytes, not of 131071")
	wantError(t, tg.Put(blockOf(text(30000), 12287, 0)), nil, "before Begin")
	wantError(t, tg.Settle(0, nil), nil, "before Begin")
	must(t, tg.Begin(30000, 12287))
	wantError(t, tg.Begin(30000, 12287), nil, "begun twice")
}

func TestPutRefuses(t *testing.T) {
	slot := func(index int64, slot string) Block {
		return Block{Index: index, Data: make([]byte, 12287), Slot: []byte(slot)}
	}
	raw := &TargetOptions{Raw: true}
	for _, c := range []struct {
		opts  *TargetOptions
		block Block
		words string
	}{
		{nil, slot(-1, "\x00x"), "no blocks -1 to -1 in 2"},
		{nil, slot(2, "\x00x"), "no blocks 2 to 2 in 2"},
		{nil, slot(0, "\x00x"), "block 0: a slot with 1 bytes for a block of 12287"},
		{nil, slot(1, string(make([]byte, 12288))), "block 1: a slot with 12287 bytes for a block of 7713"},
		{nil, slot(0, "\x05x"), "block 0: unknown slot flag 5"},
		{nil, slot(0, "\x01"+string(make([]byte, 12288))), "12288 are the most"},
		{raw, slot(0, "\x00x"), "block 0: a raw image has no slots"},
		{raw, Block{Data: make([]byte, 12286)}, "block 0: 12286 bytes for a block of 12287"},
		{nil, Block{Index: 1, Data: make([]byte, 12287)}, "block 1: 12287 bytes for a block of 7713"},
	} {
		o := TargetOptions{}
		if c.opts != nil {
			o = *c.opts
		}
		path := tempPath(t)
		tg := target(t, path, o)
		must(t, tg.Begin(20000, 12287))
		wantError(t, tg.Put(c.block), nil, c.words)
		must(t, tg.Close())
		if names := inFolder(t, path); len(names) > 0 {
			t.Errorf("%s: left behind: %v", c.words, names)
		}
	}
	tg := target(t, tempPath(t), TargetOptions{})
	must(t, tg.Begin(20000, 12287))
	for _, c := range [][2]int64{{-1, 1}, {0, -1}, {0, 3}, {1, 2}, {3, 0}, {1, 1<<63 - 1}} {
		wantError(t, tg.Punch(c[0], c[1]), nil, "there are no blocks")
	}
	must(t, tg.Punch(2, 0))
}

// After an error of writing nothing can be committed: some of it may be missing.
func TestNoCommitAfterAnError(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{Raw: true}, 8192, noise(1, 20000))
	tg := target(t, path, TargetOptions{})
	must(t, tg.Begin(20000, 8192))
	must(t, tg.Put(blockOf(noise(2, 20000), 8192, 0)))
	short := Block{Index: 1, Data: []byte("too short")}
	wantError(t, tg.Put(short), nil, "9 bytes for a block")
	wantError(t, tg.Commit(digestOf(t, noise(1, 20000), 8192), time.Time{}), nil, "9 bytes for a block")
	must(t, tg.Close())
	same(t, "the image", readAll(t, path, Auto), noise(1, 20000))
}

// The content of a wrong digest is not one that its leaves make up. Whoever says
// it, the image gets what was put, and its stored hashes are not believed.
func TestCommitOfAWrongDigest(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{Raw: true}, 8192, noise(1, 20000))
	tg := target(t, path, TargetOptions{})
	must(t, tg.Begin(20000, 8192))
	must(t, tg.Put(blockOf(noise(2, 20000), 8192, 0)))
	must(t, tg.Commit(merkle.Hash{1}, time.Time{}))
	must(t, tg.Close())
	im := source(t, path, Auto)
	if im.State().Stored {
		t.Error("hashes are stored whose digest is another")
	}
	want := noise(1, 20000)
	copy(want, noise(2, 20000)[:8192])
	same(t, "the image", contentOf(t, im), want)
}

// fullSlot returns a slot of 12288 bytes that a gzip member fills.
func fullSlot(t *testing.T, data []byte) []byte {
	t.Helper()
	var member bytes.Buffer
	zw := gzip.NewWriter(&member)
	zw.Extra = make([]byte, 12287-len(gzipped(data))-2)
	zw.Write(data)
	must(t, zw.Close())
	slot := append([]byte{flagGzip}, member.Bytes()...)
	if len(slot) != 12288 {
		t.Fatalf("the slot has %d bytes, this test wants 12288", len(slot))
	}
	return slot
}

// A member may be as long as its slot. As the last one that does not fill a
// block it would make the file one full block longer, so it is stored anew.
func TestMemberFillsSlot(t *testing.T) {
	data := noise(1, 100)
	slot := fullSlot(t, data)
	path := tempPath(t)
	tg := target(t, path, TargetOptions{})
	must(t, tg.Begin(12287+100, 12287))
	want := append(make([]byte, 12287), data...)
	b := blockOf(want, 12287, 1)
	b.Slot = slot
	must(t, tg.Put(b))
	must(t, tg.Settle(0, []merkle.Hash{{}, b.Leaf}))
	must(t, tg.Commit(digestOf(t, want, 12287), time.Time{}))
	same(t, "the library", libraryRead(t, path), want)
	same(t, "ours", readAll(t, path, Auto), want)
}

// dirtyBuffers leaves noise in the buffers that are handed out next.
func dirtyBuffers(s *slots) {
	for range 4 {
		b, done := s.buffer(int(s.slotSize()))
		copy(b, noise(2, len(b)))
		defer done()
	}
}

// Nothing that was in memory gets into the file behind a member, nor into a last
// block that has grown.
func TestBuffersDoNotLeak(t *testing.T) {
	path := tempPath(t)
	content := append(noise(1, 3*12287), text(9000)...)
	writeImage(t, path, TargetOptions{}, 12287, content)
	size := int64(len(content) + 3000)
	body := body(t, path, Spgz, 12287)
	body.resize(size)
	dirtyBuffers(body.(*slots))
	if _, err := body.WriteAt(text(12287), 0); err != nil {
		t.Fatal(err)
	}
	must(t, body.settle())
	content = resized(content, size)
	copy(content, text(12287))
	same(t, "grown", libraryRead(t, path), content)
	file, err := os.ReadFile(path)
	must(t, err)
	_, used, err := decodeSlot(nil, file[headerSize:headerSize+12288], 12287)
	must(t, err)
	same(t, "behind the member", file[headerSize+used:headerSize+12288], make([]byte, 12288-used))
}

func TestDryRun(t *testing.T) {
	path := tempPath(t)
	tg := target(t, path, TargetOptions{DryRun: true})
	must(t, tg.Begin(50000, 12287))
	got := noise(1, 50000)
	if _, err := tg.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	same(t, "a new image", got, make([]byte, 50000))
	checkHoles(t, tg, got)
	wantError(t, tg.Commit(merkle.Hash{}, time.Time{}), nil, "dry run")
	must(t, tg.Settle(0, nil)) // is not even asked for
	must(t, tg.Close())
	if names := inFolder(t, path); len(names) > 0 {
		t.Errorf("made: %v", names)
	}

	writeImage(t, path, TargetOptions{}, 12287, text(30000))
	must(t, os.Chmod(path, 0o400))
	before, err := os.Stat(path)
	must(t, err)
	tg = target(t, path, TargetOptions{DryRun: true})
	must(t, tg.Begin(50000, 12287))
	if _, err := tg.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	same(t, "an existing image", got, resized(text(30000), 50000))
	for _, err := range []error{tg.Punch(0, 1), tg.Put(Block{}), tg.Commit(merkle.Hash{}, time.Time{})} {
		wantError(t, err, nil, "dry run")
	}
	after, err := os.Stat(path)
	must(t, err)
	if !after.ModTime().Equal(before.ModTime()) {
		t.Error("a dry run has changed the image")
	}
}

// A zeroed image gives its space back.
func TestPunchFreesSpace(t *testing.T) {
	for _, o := range []TargetOptions{{}, {Raw: true}} {
		path, size := tempPath(t), 10*testBlock
		writeImage(t, path, o, testBlock, noise(1, size))
		tg := target(t, path, o)
		must(t, tg.Begin(int64(size), testBlock))
		must(t, tg.Punch(0, 10))
		must(t, tg.Settle(0, nil))
		must(t, tg.Commit(digestOf(t, make([]byte, size), testBlock), time.Time{}))
		need(t, !tg.disk.noPunch.Load(), "the temporary folder is on a file system that cannot punch holes")
		n, err := source(t, path, Auto).Allocated()
		must(t, err)
		if n > 16<<10 {
			t.Errorf("%s: %d bytes are still allocated", tg.Format(), n)
		}
	}
}
