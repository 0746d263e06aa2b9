package image

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSecondWriter(t *testing.T) {
	for _, existing := range []bool{false, true} {
		path := tempPath(t)
		if existing {
			must(t, os.WriteFile(path, noise(1, 9000), 0o600))
		}
		first := target(t, path, TargetOptions{})
		_, err := OpenTarget(place(t, path), TargetOptions{})
		wantError(t, err, ErrInUse, fmt.Sprintf("is being written by process %d on host ", os.Getpid()))
		wantError(t, err, ErrRefused, "wait for it to end")
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("more than one line: %q", err)
		}
		dry := target(t, path, TargetOptions{DryRun: true})
		must(t, dry.Close())
		must(t, first.Close())
		must(t, target(t, path, TargetOptions{}).Close())
	}
}

// The image's own lock counts too: another writer may not have been able to make
// a lock file.
func TestSecondWriterWithoutLockFile(t *testing.T) {
	path := writeFile(t, noise(1, 9000))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	if got, err := lockFile(f); !got || err != nil {
		t.Fatal(got, err)
	}
	_, err = OpenTarget(place(t, path), TargetOptions{})
	wantError(t, err, ErrInUse, "another process")
	if names := inFolder(t, path); !slices.Equal(names, []string{"disk"}) {
		t.Errorf("left behind: %v", names)
	}
}

func TestLockHolderIsNotBelieved(t *testing.T) {
	for text, want := range map[string]string{
		"12 nas 2026-01-02T03:04:05Z\n":      "process 12 on host nas, since 2026-01-02 03:04:05",
		"":                                   "another process",
		"12 nas":                             "another process",
		"x nas 2026-01-02T03:04:05Z":         "another process",
		"12 \x1b[2Jnas 2026-01-02T03:04:05Z": "another process",
		"12 nas yesterday":                   "another process",
		"1 " + strings.Repeat("n", 5000) + " 2026-0": "another process",
	} {
		f, err := os.Open(writeFile(t, []byte(text)))
		must(t, err)
		if got := (&lock{f: f}).holder(); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		must(t, f.Close())
	}
}

// A lock on a file that is no longer there under its name excludes nobody.
func TestLockMoved(t *testing.T) {
	for _, again := range []bool{false, true} {
		p := place(t, tempPath(t))
		must(t, p.root.Mkdir(storeFolder, 0o700))
		name := lockName(p.name)
		f, err := p.root.Create(name)
		must(t, err)
		defer f.Close()
		must(t, p.root.Remove(name))
		if again {
			must(t, p.root.WriteFile(name, nil, 0o600))
		}
		l := &lock{root: p.root, name: name, f: f}
		if err := l.take("disk"); err != errLockMoved {
			t.Errorf("file made again: %v: %v, want %v", again, err, errLockMoved)
		}
	}
}

// Many writers at once: each gets the lock or is refused, no two have it, and
// nothing stays behind.
func TestManyWriters(t *testing.T) {
	path := tempPath(t)
	holders := make(chan struct{}, 1)
	done := make(chan error)
	for range 8 {
		go func() { done <- lockOften(path, holders) }()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if names := inFolder(t, path); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

func lockOften(path string, holders chan struct{}) error {
	p, err := Locate(path)
	if err != nil {
		return err
	}
	defer p.Close()
	for got := 0; got < 50; {
		l, err := takeLock(p)
		if err != nil {
			if strings.Contains(err.Error(), "is being written by") {
				continue
			}
			return err
		}
		select {
		case holders <- struct{}{}:
		default:
			return fmt.Errorf("two hold the lock")
		}
		got++
		<-holders
		if err := l.release(); err != nil {
			return err
		}
	}
	return nil
}

func TestNewImageLeavesNoTrace(t *testing.T) {
	for _, o := range []TargetOptions{{}, {Raw: true}} {
		path := tempPath(t)
		tg := target(t, path, o)
		must(t, tg.Begin(100_000, 12287))
		if _, err := tg.WriteAt(noise(1, 12287), 0); err != nil {
			t.Fatal(err)
		}
		partial := filepath.Join(filepath.Dir(path), storeFolder, "disk.partial")
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
		if names := inFolder(t, path); len(names) > 0 {
			t.Errorf("left behind: %v", names)
		}
	}
}

func TestNothingAfterCommit(t *testing.T) {
	path := tempPath(t)
	tg := target(t, path, TargetOptions{})
	must(t, tg.Begin(20000, 12287))
	must(t, tg.Commit())
	wantError(t, tg.Commit(), nil, "committed or closed")
	wantError(t, tg.Punch(0, 1), nil, "committed or closed")
	must(t, tg.Close())
	wantError(t, tg.Punch(0, 1), nil, "committed or closed")
	same(t, "the image", libraryRead(t, path), make([]byte, 20000))
}

func TestCommitLeavesTheImageAlone(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, text(50000))
	if names := inFolder(t, path); !slices.Equal(names, []string{"disk"}) {
		t.Errorf("beside the image: %v", names)
	}
}

func TestStalePartial(t *testing.T) {
	path := tempPath(t)
	store := filepath.Join(filepath.Dir(path), storeFolder)
	must(t, os.Mkdir(store, 0o700))
	must(t, os.WriteFile(filepath.Join(store, "disk.partial"), noise(1, 99999), 0o600))
	must(t, os.WriteFile(filepath.Join(store, "disk.lock"), []byte("1 nas 2026-01-02T03:04:05Z"), 0o600))
	must(t, os.WriteFile(filepath.Join(store, "other.lock"), nil, 0o600))
	writeImage(t, path, TargetOptions{}, 12287, text(50000))
	same(t, "the image", libraryRead(t, path), text(50000))
	if names := inFolder(t, filepath.Join(store, "x")); !slices.Equal(names, []string{"other.lock"}) {
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
		wantError(t, tg.Commit(), ErrChanged, "made by someone else")
		must(t, tg.Close())
		got, err := os.ReadFile(path)
		must(t, err)
		same(t, "the other file", got, []byte("someone else's"))
		if names := inFolder(t, path); !slices.Equal(names, []string{"disk"}) {
			t.Errorf("left behind: %v", names)
		}
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
	wantError(t, err, ErrRefused, "leave out --no-compress")
	if tg := target(t, rawPath, TargetOptions{}); tg.Format() != Raw || tg.BlockSize() != 0 {
		t.Errorf("a raw image is updated as %s", tg.Format())
	}
	disk := writeFile(t, fake("\x77", "\x77"))
	if tg := target(t, disk, TargetOptions{}); tg.Format() != Raw || tg.Note() == "" {
		t.Errorf("what only looks like spgz is updated as %s, note %q", tg.Format(), tg.Note())
	}
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
	_, err := tg.WriteAt([]byte("x"), 0)
	wantError(t, err, nil, "before Begin")
	must(t, tg.Begin(30000, 12287))
	wantError(t, tg.Begin(30000, 12287), nil, "begun twice")
	_, err = tg.WriteAt([]byte("xx"), 29999)
	wantError(t, err, nil, "do not lie within")
	wantError(t, tg.Punch(1, 1<<62), nil, "do not lie within")
}

func TestWriteSlotRefuses(t *testing.T) {
	tg := target(t, tempPath(t), TargetOptions{})
	must(t, tg.Begin(20000, 12287))
	for _, c := range []struct {
		block int64
		slot  []byte
		words string
	}{
		{-1, []byte("\x00x"), "no block -1"},
		{2, []byte("\x00x"), "no block 2"},
		{0, []byte("\x00x"), "a slot with 1 bytes for a block of 12287"},
		{1, make([]byte, 12288), "a slot with 12287 bytes for a block of 7713"},
		{0, []byte("\x05x"), "unknown slot flag 5"},
		{0, append([]byte{flagGzip}, make([]byte, 12288)...), "12288 are the most"},
	} {
		wantError(t, tg.WriteSlot(c.block, c.slot), nil, c.words)
	}
	raw := target(t, tempPath(t), TargetOptions{Raw: true})
	must(t, raw.Begin(20000, 12287))
	wantError(t, raw.WriteSlot(0, []byte("\x00x")), nil, "a raw image has no slots")
}

// A member may be as long as its slot. As the last one that does not fill a
// block it would make the file one full block longer, so it is stored anew.
func TestMemberFillsSlot(t *testing.T) {
	data := noise(1, 100)
	var member bytes.Buffer
	zw := gzip.NewWriter(&member)
	zw.Extra = make([]byte, 12287-len(gzipped(data))-2)
	zw.Write(data)
	must(t, zw.Close())
	slot := append([]byte{flagGzip}, member.Bytes()...)
	if len(slot) != 12288 {
		t.Fatalf("the slot has %d bytes, this test wants 12288", len(slot))
	}
	path := tempPath(t)
	tg := target(t, path, TargetOptions{})
	must(t, tg.Begin(12287+100, 12287))
	must(t, tg.WriteSlot(1, slot))
	must(t, tg.Commit())
	want := append(make([]byte, 12287), data...)
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
	tg := target(t, path, TargetOptions{})
	size := int64(len(content) + 3000)
	must(t, tg.Begin(size, 12287))
	dirtyBuffers(tg.body.(*slots))
	if _, err := tg.WriteAt(text(12287), 0); err != nil {
		t.Fatal(err)
	}
	must(t, tg.Commit())
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
	wantError(t, tg.Commit(), nil, "dry run")
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
	for _, err := range []error{tg.Punch(0, 1), tg.WriteSlot(0, nil), tg.Commit()} {
		wantError(t, err, nil, "dry run")
	}
	after, err := os.Stat(path)
	must(t, err)
	if !after.ModTime().Equal(before.ModTime()) {
		t.Error("a dry run has changed the image")
	}
}

// An existing image keeps what was written when a sync is abandoned, and can be
// read and updated again.
func TestAbandonedUpdate(t *testing.T) {
	for _, o := range []TargetOptions{{}, {Raw: true}} {
		path, before := tempPath(t), noise(1, 40000)
		writeImage(t, path, o, 12287, before)
		tg := target(t, path, o)
		must(t, tg.Begin(90000, 12287))
		block := text(12287)
		if _, err := tg.WriteAt(block, 12287); err != nil {
			t.Fatal(err)
		}
		must(t, tg.Close())
		want := slices.Clone(before)
		copy(want[12287:], block)
		same(t, "abandoned", readAll(t, path, Auto), want)
	}
}

// A zeroed image gives its space back.
func TestPunchFreesSpace(t *testing.T) {
	for _, o := range []TargetOptions{{}, {Raw: true}} {
		path, size := tempPath(t), 10*testBlock
		writeImage(t, path, o, testBlock, noise(1, size))
		tg := target(t, path, o)
		must(t, tg.Begin(int64(size), testBlock))
		must(t, tg.Punch(0, int64(size)))
		must(t, tg.Commit())
		need(t, !tg.disk.noPunch.Load(), "the temporary folder is on a file system that cannot punch holes")
		n, err := source(t, path, Auto).Allocated()
		must(t, err)
		if n > 16<<10 {
			t.Errorf("%s: %d bytes are still allocated", tg.Format(), n)
		}
	}
}
