package image

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"testing"

	"github.com/diskrsync/diskrsync/merkle"
)

// cutOff begins a sync to content and gives up after so many blocks, as if the
// link were cut.
func cutOff(t *testing.T, path string, o TargetOptions, blockSize int, content []byte, blocks int) {
	t.Helper()
	tg := target(t, path, o)
	s := newSyncing(blockSize, 4)
	s.stop = blocks + 1
	if err := s.run(tg, content); !errors.Is(err, errCut) {
		t.Fatalf("a sync that was to be cut after %d blocks: %v", blocks, err)
	}
	must(t, tg.Close())
}

// goOn syncs to content, and returns how many blocks that took.
func goOn(t *testing.T, path string, o TargetOptions, blockSize int, content []byte) int {
	t.Helper()
	tg := target(t, path, o)
	s := newSyncing(blockSize, 5)
	must(t, s.run(tg, content))
	must(t, tg.Close())
	same(t, "gone on with", readAll(t, path, Auto), content)
	if names := inStore(t, path); !slices.Equal(names, []string{"disk.tree"}) {
		t.Errorf("in the store: %v", names)
	}
	return s.put
}

// stateOf returns what is stored about an image.
func stateOf(t *testing.T, path string) State {
	t.Helper()
	im := openImage(t, path, Options{Examine: true})
	defer im.Close()
	return im.State()
}

// fileKinds are the kinds of images that differ in how they are resumed.
var fileKinds = []struct {
	opts      TargetOptions
	blockSize int
}{{TargetOptions{}, 12287}, {TargetOptions{Raw: true}, 8192}}

// A sync that was abandoned is not seen by anyone, and is gone on with.
func TestAbandonedUpdate(t *testing.T) {
	for _, kind := range fileKinds {
		bs, path := kind.blockSize, tempPath(t)
		before, after := noise(1, 10*bs+500), noise(2, 10*bs+500)
		writeImage(t, path, kind.opts, bs, before)
		cutOff(t, path, kind.opts, bs, after, 6)
		if names := inStore(t, path); !slices.Equal(names, []string{"disk.journal", "disk.tree"}) {
			t.Errorf("in the store: %v", names)
		}
		same(t, "abandoned", readAll(t, path, Auto), before)
		state := stateOf(t, path)
		if state.Kept != int64(6*bs) || state.Waiting != 0 || state.Incomplete || !state.Stored || state.Generation != 1 {
			t.Errorf("the state is %+v", state)
		}
		tg := target(t, path, kind.opts)
		if tg.Kept() != int64(6*bs) || tg.Preferred() != bs {
			t.Errorf("kept %d bytes in blocks of %d", tg.Kept(), tg.Preferred())
		}
		wantError(t, errors.New(tg.Note()), nil, "goes on where an interrupted run has stopped")
		must(t, tg.Close()) // without having done anything
		if n := goOn(t, path, kind.opts, bs, after); n != 11-6 {
			t.Errorf("%d blocks were put again, want 5", n)
		}
	}
}

func TestAbandonedNewImage(t *testing.T) {
	for _, kind := range fileKinds {
		bs, path := kind.blockSize, tempPath(t)
		content := noise(1, 10*bs+500)
		cutOff(t, path, kind.opts, bs, content, 3)
		cutOff(t, path, kind.opts, bs, content, 4)
		if names := inStore(t, path); !slices.Equal(names, []string{"disk.journal", "disk.partial"}) {
			t.Errorf("in the store: %v", names)
		}
		_, err := Open(place(t, path), Options{})
		wantError(t, err, fs.ErrNotExist, "no such file")
		if tg := target(t, path, TargetOptions{Raw: kind.opts.Raw, DryRun: true}); tg.Kept() != int64(7*bs) {
			t.Errorf("kept %d bytes", tg.Kept())
		}
		if n := goOn(t, path, kind.opts, bs, content); n != 11-7 {
			t.Errorf("%d blocks were put again, want 4", n)
		}
	}
}

// A run may be cut off when all is put, and even settled. The next one has nothing
// to put, and still it has to commit.
func TestAbandonedBeforeTheCommit(t *testing.T) {
	for _, kind := range fileKinds {
		for _, stop := range []int{beforeSettle, beforeCommit} {
			for _, before := range [][]byte{nil, noise(1, 60*kind.blockSize)} {
				bs, path := kind.blockSize, tempPath(t)
				content := append(noise(2, 30*bs), make([]byte, 30*bs)...)
				if before != nil {
					writeImage(t, path, kind.opts, bs, before)
				}
				tg := target(t, path, kind.opts)
				s := newSyncing(bs, 1)
				s.stop = stop
				if err := s.run(tg, content); !errors.Is(err, errCut) {
					t.Fatalf("a sync that was to be cut: %v", err)
				}
				must(t, tg.Close())
				if n := goOn(t, path, kind.opts, bs, content); n != 0 {
					t.Errorf("%d blocks were put again", n)
				}
				if s := stateOf(t, path); !s.Stored {
					t.Errorf("cut at %d: the hashes are lost: %+v", stop, s)
				}
			}
		}
	}
}

// Where nothing was put there is nothing to go on with.
func TestAbandonedBeforeAnything(t *testing.T) {
	for _, kind := range fileKinds {
		path := tempPath(t)
		for _, want := range [][]string{nil, {".diskrsync", "disk"}} {
			tg := target(t, path, kind.opts)
			must(t, tg.Begin(100_000, kind.blockSize))
			must(t, tg.Close())
			if names := inFolder(t, path); !slices.Equal(names, want) {
				t.Errorf("left behind: %v, want %v", names, want)
			}
			writeImage(t, path, kind.opts, kind.blockSize, text(50_000))
		}
		if names := inStore(t, path); !slices.Equal(names, []string{"disk.tree"}) {
			t.Errorf("in the store: %v", names)
		}
	}
}

// Between the runs the source may have become longer, shorter, or another one.
func TestResumeOfAnotherSource(t *testing.T) {
	for _, kind := range fileKinds {
		bs := kind.blockSize
		first := noise(2, 10*bs+500)
		changed := slices.Clone(first)
		copy(changed[4*bs:], text(2*bs))
		for name, second := range map[string][]byte{
			"longer":            append(slices.Clone(first), noise(3, 3*bs)...),
			"longer by zeros":   resized(first, int64(14*bs)),
			"shorter":           first[:5*bs],
			"within a block":    first[:5*bs+100],
			"empty":             nil,
			"changed":           changed,
			"changed to zeros":  make([]byte, 10*bs),
			"as before":         noise(1, 9*bs),
			"changed and short": changed[:5*bs+1],
		} {
			for _, existing := range []bool{false, true} {
				path := tempPath(t)
				if existing {
					writeImage(t, path, kind.opts, bs, noise(1, 9*bs))
				}
				cutOff(t, path, kind.opts, bs, first, 6)
				goOn(t, path, kind.opts, bs, second)
				if t.Failed() {
					t.Fatalf("%s, an image before: %v", name, existing)
				}
			}
		}
	}
}

// What has changed in a block may lie behind the end that the source has by now.
func TestResumeOfChangesBehindTheEnd(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	before := noise(1, 20_000)
	writeImage(t, path, raw, 8192, before)
	b := blockOf(slices.Clone(before), 8192, 1)
	for i := 4000; i < 4100; i++ {
		b.Data[i]++
	}
	b.Leaf, b.Changed = merkle.Leaf(b.Data), []merkle.Extent{{Offset: 4000, Length: 100}}
	tg := target(t, path, raw)
	must(t, tg.Begin(20_000, 8192))
	must(t, tg.Put(b))
	must(t, tg.Close())
	goOn(t, path, raw, 8192, before[:8192+1000])
}

// What was left in other blocks is of no use.
func TestResumeInOtherBlocks(t *testing.T) {
	for _, existing := range []bool{false, true} {
		path, raw, content := tempPath(t), TargetOptions{Raw: true}, noise(2, 100_000)
		if existing {
			writeImage(t, path, raw, 4096, noise(1, 100_000))
		}
		cutOff(t, path, raw, 4096, content, 5)
		if n := goOn(t, path, raw, 8192, content); n != 13 {
			t.Errorf("%d blocks of 13 were put", n)
		}
	}
}

// What was left is of no use either if the image is another one by now.
func TestResumeAfterAChange(t *testing.T) {
	path, raw := tempPath(t), TargetOptions{Raw: true}
	writeImage(t, path, raw, 8192, noise(1, 50_000))
	cutOff(t, path, raw, 8192, noise(2, 50_000), 3)
	overwrite(t, path, 9000, []byte("by someone else"))
	want := noise(1, 50_000)
	copy(want[9000:], "by someone else")
	im := source(t, path, Auto)
	same(t, "the image", contentOf(t, im), want)
	if s := im.State(); s.Kept != 0 || s.Stored {
		t.Errorf("the state is %+v", s)
	}
	must(t, im.Close())
	if tg := target(t, path, raw); tg.Kept() != 0 {
		t.Errorf("kept %d bytes", tg.Kept())
	} else {
		must(t, tg.Begin(50_000, 8192))
		same(t, "seen by a target", seenBy(t, tg), want)
		must(t, tg.Close())
	}
	goOn(t, path, raw, 8192, noise(2, 50_000))
}

// seenBy returns what a target holds.
func seenBy(t *testing.T, tg *Target) []byte {
	t.Helper()
	all := noise(8, int(tg.g.Size()))
	n, err := tg.ReadAt(all, 0)
	if n != len(all) {
		t.Fatalf("ReadAt: %d of %d bytes, %v", n, len(all), err)
	}
	return all
}

// A dry run over what an interrupted run has left sees that, and leaves it alone.
func TestDryRunOverAnInterruptedRun(t *testing.T) {
	for _, existing := range []bool{false, true} {
		path, raw, content := tempPath(t), TargetOptions{Raw: true}, noise(2, 60_000)
		if existing {
			writeImage(t, path, raw, 8192, noise(1, 60_000))
		}
		cutOff(t, path, raw, 8192, content, 5)
		before := inStore(t, path)
		tg := target(t, path, TargetOptions{Raw: true, DryRun: true})
		must(t, tg.Begin(60_000, 8192))
		diff := 0
		for i, leaf := range leavesOf(tg.g, content, 0) {
			e := tg.g.Block(int64(i))
			if merkle.Leaf(seenBy(t, tg)[e.Offset:e.End()]) != leaf {
				diff++
			}
		}
		if diff != 3 {
			t.Errorf("%d blocks of 8 differ, want 3", diff)
		}
		must(t, tg.Close())
		if after := inStore(t, path); !slices.Equal(before, after) {
			t.Errorf("in the store: %v before, %v after it", before, after)
		}
		if n := goOn(t, path, raw, 8192, content); n != 3 {
			t.Errorf("%d blocks were put after it, want 3", n)
		}
	}
}

// The last block of a new image may have to be stored anew when the file gets
// its length: because it was longer in an interrupted run, or because its slot
// leaves no room to tell where it ends. No crash must tear it.
func TestCrashWhileTheEndIsCut(t *testing.T) {
	longer := newCrashFS()
	tg, err := OpenTarget(crashPlace(longer), TargetOptions{})
	must(t, err)
	must(t, tg.Begin(12287, 12287))
	must(t, tg.Put(blockOf(text(12287), 12287, 0)))
	must(t, tg.Close())
	must(t, newSyncing(12287, 1).to(longer, text(6000)))
	wholeAtEveryCrash(t, longer, text(6000))

	filled := newCrashFS()
	content := append(make([]byte, 12287), noise(1, 100)...)
	b := blockOf(content, 12287, 1)
	b.Slot = fullSlot(t, b.Data)
	tg, err = OpenTarget(crashPlace(filled), TargetOptions{})
	must(t, err)
	must(t, tg.Begin(int64(len(content)), 12287))
	must(t, tg.Put(b))
	must(t, tg.Settle(0, []merkle.Hash{{}, b.Leaf}))
	must(t, tg.Commit(digestOf(t, content, 12287), lastModified))
	must(t, tg.Close())
	wholeAtEveryCrash(t, filled, content)
}

// wholeAtEveryCrash checks that no crash leaves anything but content, or no image.
func wholeAtEveryCrash(t *testing.T, c *crashFS, content []byte) {
	t.Helper()
	for k := range c.log {
		for i := range uint64(20) {
			left := c.crash(k, keepAtRandom(newRand(uint64(k)*20+i)))
			got, err := look(t, left, Options{Choice: AsSpgz})
			if !errors.Is(err, fs.ErrNotExist) && (err != nil || !bytes.Equal(got, content)) {
				t.Fatalf("after %d changes, case %d: %d bytes that are not the content, %v\n%s", k, i, len(got), err, story(c, k))
			}
		}
	}
}
