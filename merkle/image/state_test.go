package image

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

func TestStateOfAnImage(t *testing.T) {
	for _, kind := range fileKinds {
		path, bs := tempPath(t), kind.blockSize
		content := noise(1, 5*bs+77)
		begun := time.Now()
		for generation := int64(1); generation <= 3; generation++ {
			content[0]++
			writeImage(t, path, kind.opts, bs, content)
			im := source(t, path, Auto)
			s := im.State()
			if !s.Stored || s.Generation != generation || s.Digest != digestOf(t, content, bs) {
				t.Errorf("generation %d: %+v", generation, s)
			}
			if s.Synced.Before(begun) || s.Synced.After(time.Now()) {
				t.Errorf("synced at %v", s.Synced)
			}
			if s.Bad != 0 || s.Incomplete || s.Kept != 0 || s.Waiting != 0 {
				t.Errorf("a whole image: %+v", s)
			}
			if im.BlockSize() != bs || !im.Modified().Equal(lastModified) {
				t.Errorf("blocks of %d bytes, modified at %v", im.BlockSize(), im.Modified())
			}
			same(t, "the image", contentOf(t, im), content)
			must(t, im.Close())
		}
		// The same content again is no commit.
		before := inodeOf(t, filepath.Join(filepath.Dir(path), StoreFolder, "disk.tree"))
		if n := goOn(t, path, kind.opts, bs, content); n != 0 || stateOf(t, path).Generation != 3 {
			t.Errorf("%d blocks were put, generation %d", n, stateOf(t, path).Generation)
		}
		if now := inodeOf(t, filepath.Join(filepath.Dir(path), StoreFolder, "disk.tree")); now != before {
			t.Error("the outboard was made anew")
		}
	}
}

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	return inode(f)
}

// Without a sync, an image was modified when its file was, and nothing is stored.
func TestStateOfAFile(t *testing.T) {
	path := writeFile(t, noise(1, 1000))
	when := time.Unix(1_500_000_000, 0)
	must(t, os.Chtimes(path, when, when))
	im := source(t, path, Auto)
	if im.State() != (State{}) || !im.Modified().Equal(when) || im.BlockSize() != 0 {
		t.Errorf("%+v, modified at %v, blocks of %d", im.State(), im.Modified(), im.BlockSize())
	}
	if _, ok := im.Hashes(4096).Root(0); ok {
		t.Error("a hash is known")
	}
	must(t, im.RecordBad([]int64{0})) // there is nowhere to
}

// Hashes are not believed that are those of another file, or not what they were.
func TestHashesThatAreNotBelieved(t *testing.T) {
	tree := func(path string) string { return filepath.Join(filepath.Dir(path), StoreFolder, "disk.tree") }
	for name, spoil := range map[string]func(path string){
		"image changed": func(path string) { overwrite(t, path, 5000, []byte("x")) },
		"image touched": func(path string) { must(t, os.Chtimes(path, time.Time{}, time.Unix(1_500_000_000, 0))) },
		"image longer":  func(path string) { must(t, os.Truncate(path, 1<<20)) },
		"image copied": func(path string) {
			content, err := os.ReadFile(path)
			must(t, err)
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.Rename(path, path+".old"))
			must(t, os.WriteFile(path, content, 0o600))
			must(t, os.Chtimes(path, time.Time{}, info.ModTime()))
		},
		"first page": func(path string) { overwrite(t, tree(path), 30, []byte("damage")) },
		"a root":     func(path string) { overwrite(t, tree(path), merkle.RootOffset(0), []byte("damage")) },
		"a leaf":     func(path string) { overwrite(t, tree(path), merkle.LeavesOffset(0), []byte("damage")) },
		"cut off":    func(path string) { must(t, os.Truncate(tree(path), 100)) },
		"another": func(path string) {
			other := tempPath(t)
			writeImage(t, other, TargetOptions{Raw: true}, 8192, noise(7, 50_000))
			page, err := os.ReadFile(tree(other))
			must(t, err)
			must(t, os.WriteFile(tree(path), page, 0o600))
		},
	} {
		path := tempPath(t)
		writeImage(t, path, TargetOptions{Raw: true}, 8192, noise(1, 50_000))
		spoil(path)
		im := openImage(t, path, Options{Choice: AsRaw})
		if _, ok := im.Hashes(8192).Leaves(0); ok {
			t.Errorf("%s: the leaves are believed", name)
		}
		contentOf(t, im)
		must(t, im.Close())
		// It is no trouble for a sync, which stores them anew.
		goOn(t, path, TargetOptions{Raw: true}, 8192, noise(2, 60_000))
		if s := stateOf(t, path); !s.Stored || s.Digest != digestOf(t, noise(2, 60_000), 8192) {
			t.Errorf("%s: after the next sync: %+v", name, s)
		}
	}
}

// Checksum believes nothing, on either side.
func TestChecksum(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	content := noise(1, 50_000)
	writeImage(t, path, raw, 8192, content)
	im := openImage(t, path, Options{Checksum: true})
	if _, ok := im.Hashes(8192).Root(0); ok || im.State().Stored {
		t.Error("a source believes what is stored")
	}
	must(t, im.Close())

	// A bit flips, and the file's time does not tell.
	info, err := os.Stat(path)
	must(t, err)
	overwrite(t, path, 20_000, []byte("bit rot"))
	must(t, os.Chtimes(path, time.Time{}, info.ModTime()))
	writeImage(t, path, raw, 8192, content)
	rotten, err := os.ReadFile(path)
	must(t, err)
	if string(rotten[20_000:20_007]) != "bit rot" {
		t.Error("the sync has looked at the image: this test shows nothing")
	}
	writeImage(t, path, TargetOptions{Raw: true, Checksum: true}, 8192, content)
	same(t, "mended", readAll(t, path, Auto), content)
	if s := stateOf(t, path); !s.Stored || s.Generation != 2 {
		t.Errorf("after it: %+v", s)
	}
}

// Blocks that were found to be bad are known to be until a sync has fetched them.
func TestRecordBad(t *testing.T) {
	for _, kind := range fileKinds {
		path, bs := tempPath(t), kind.blockSize
		content := noise(1, 300*bs)
		writeImage(t, path, kind.opts, bs, content)
		im := source(t, path, Auto)
		must(t, im.RecordBad(nil))
		must(t, im.RecordBad([]int64{2, 299}))
		err := im.RecordBad([]int64{3})
		wantError(t, err, ErrChanged, "was changed since it was opened")
		must(t, im.Close())

		im = openImage(t, path, Options{Examine: true})
		must(t, im.RecordBad([]int64{2, 5}))
		must(t, im.Close())
		_, err = Open(place(t, path), Options{})
		wantError(t, err, ErrIncomplete, "has 3 bad blocks: sync to it again to repair them")
		checkBad(t, path, bs, []int64{2, 5, 299})
		forced := openImage(t, path, Options{Force: true})
		if _, ok := forced.Hashes(bs).Root(0); ok || forced.State().Stored {
			t.Error("who reads it by force is given hashes of what it should have")
		}
		must(t, forced.Close())

		if n := goOn(t, path, kind.opts, bs, content); n != 3 {
			t.Errorf("%d blocks were put to repair 3", n)
		}
		if s := stateOf(t, path); s.Bad != 0 || !s.Stored {
			t.Errorf("repaired: %+v", s)
		}
	}
}

// checkBad checks that exactly these blocks are known to be bad.
func checkBad(t *testing.T, path string, blockSize int, bad []int64) {
	t.Helper()
	im := openImage(t, path, Options{Examine: true})
	defer im.Close()
	if s := im.State(); s.Bad != int64(len(bad)) {
		t.Errorf("%d blocks are bad, want %v", s.Bad, bad)
	}
	var unknown []int64
	for region := int64(0); region < 2; region++ {
		leaves, ok := im.Hashes(blockSize).Leaves(region)
		if !ok {
			t.Fatalf("the leaves of region %d are not known", region)
		}
		for i, leaf := range leaves {
			if leaf == merkle.Unknown {
				unknown = append(unknown, region*merkle.RegionBlocks+int64(i))
			}
		}
	}
	if !slices.Equal(unknown, bad) {
		t.Errorf("unknown are %v, want %v", unknown, bad)
	}
}

func TestRecordBadWhileSomeoneWrites(t *testing.T) {
	path := tempPath(t)
	writeImage(t, path, TargetOptions{}, 12287, text(50_000))
	im := source(t, path, Auto)
	tg := target(t, path, TargetOptions{})
	wantError(t, im.RecordBad([]int64{0}), ErrInUse, "is being written by")
	must(t, tg.Close())
	must(t, im.RecordBad([]int64{0}))
}

func TestClean(t *testing.T) {
	for _, kind := range fileKinds {
		bs, path := kind.blockSize, tempPath(t)
		_, err := Clean(place(t, path), "")
		wantError(t, err, os.ErrNotExist, "no such file")
		cutOff(t, path, kind.opts, bs, noise(1, 10*bs), 4)
		clean(t, path, "dropped what an interrupted run had left: about")
		if names := inFolder(t, path); len(names) > 0 {
			t.Errorf("left: %v", names)
		}
		writeImage(t, path, kind.opts, bs, noise(1, 10*bs))
		clean(t, path, "nothing was left over")
		cutOff(t, path, kind.opts, bs, noise(2, 10*bs), 4)
		clean(t, path, "dropped what an interrupted run had left: about")
		same(t, "cleaned", readAll(t, path, Auto), noise(1, 10*bs))
		if s := stateOf(t, path); s.Kept != 0 || !s.Stored {
			t.Errorf("cleaned: %+v", s)
		}
		if n := goOn(t, path, kind.opts, bs, noise(2, 10*bs)); n != 10 {
			t.Errorf("%d blocks of 10 were put", n)
		}
	}
}

func clean(t *testing.T, path, words string) {
	t.Helper()
	done, err := Clean(place(t, path), "")
	must(t, err)
	wantError(t, errors.New(done), nil, words)
}

// What was committed is not dropped: it waits for readers, and is completed when
// they are gone.
func TestCleanOfACommittedUpdate(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	writeImage(t, path, raw, 8192, noise(1, 50_000))
	im := source(t, path, Auto)
	writeImage(t, path, raw, 8192, noise(2, 50_000))
	_, err := Clean(place(t, path), "")
	wantError(t, err, ErrInUse, "is being read, and a committed update waits for that to end")
	must(t, im.Close())
	clean(t, path, "")
	file, err := os.ReadFile(path)
	must(t, err)
	same(t, "the file", file, noise(2, 50_000))
	if names := inStore(t, path); !slices.Equal(names, []string{"disk.tree"}) {
		t.Errorf("in the store: %v", names)
	}
}

// An image is incomplete from the first byte that an update in place changes, and
// until one has come to its end.
func TestInPlace(t *testing.T) {
	for _, kind := range fileKinds {
		path, bs := tempPath(t), kind.blockSize
		o := kind.opts
		o.InPlace = true
		before, after := noise(1, 5*bs), noise(2, 6*bs)
		writeImage(t, path, o, bs, before) // a new one is made as ever
		tg := target(t, path, o)
		must(t, tg.Begin(int64(len(before)), bs))
		must(t, tg.Close())
		same(t, "nothing has changed", readAll(t, path, Auto), before)

		cutOff(t, path, o, bs, after, 2)
		_, err := Open(place(t, path), Options{})
		wantError(t, err, ErrIncomplete, "is incomplete: an update in place was interrupted")
		if s := stateOf(t, path); !s.Incomplete || s.Stored {
			t.Errorf("its state is %+v", s)
		}
		_, err = Clean(place(t, path), "")
		wantError(t, err, ErrIncomplete, "only a sync mends that")
		// The next sync need not be one in place, but it is.
		if n := goOn(t, path, kind.opts, bs, after); n != 4 {
			t.Errorf("%d blocks were put again, want 4", n)
		}
		if s := stateOf(t, path); s.Incomplete || !s.Stored || s.Generation != 2 {
			t.Errorf("complete again: %+v", s)
		}
	}
}

// Nothing may be left to do for the sync that mends an image, and still it is the
// one that says so.
func TestIncompleteAndYetRight(t *testing.T) {
	path, o := tempPath(t), TargetOptions{Raw: true, InPlace: true}
	content := noise(1, 50_000)
	writeImage(t, path, o, 8192, content)
	tg := target(t, path, o)
	must(t, tg.Begin(50_000, 8192))
	must(t, tg.Put(blockOf(content, 8192, 3)))
	must(t, tg.Close())
	if !stateOf(t, path).Incomplete {
		t.Fatal("it is not incomplete")
	}
	if n := goOn(t, path, TargetOptions{Raw: true}, 8192, content); n != 0 {
		t.Errorf("%d blocks were put", n)
	}
	if s := stateOf(t, path); s.Incomplete || !s.Stored {
		t.Errorf("its state is %+v", s)
	}
}

// An update whose journal is damaged has left no one knows what.
func TestDamagedJournal(t *testing.T) {
	for _, existing := range []bool{false, true} {
		path, raw := tempPath(t), TargetOptions{Raw: true}
		if existing {
			writeImage(t, path, raw, 8192, noise(1, 50_000))
		}
		cutOff(t, path, raw, 8192, noise(2, 50_000), 3)
		overwrite(t, filepath.Join(filepath.Dir(path), StoreFolder, "disk.journal"), 20, []byte("damage"))
		if existing {
			_, err := Open(place(t, path), Options{})
			wantError(t, err, ErrIncomplete, "is incomplete")
		}
		dry := target(t, path, TargetOptions{Raw: true, DryRun: true})
		must(t, dry.Begin(50_000, 8192))
		must(t, dry.Close())
		goOn(t, path, raw, 8192, noise(2, 50_000))
	}
}
