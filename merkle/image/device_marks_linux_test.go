package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/merkle"
)

// ownState makes a folder that the system's state of this test goes to, and one
// that a user may name.
func ownState(t *testing.T) (named string) {
	t.Helper()
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	return t.TempDir()
}

// marksOf returns how many marks there are that a device is incomplete.
func marksOf(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(os.Getenv("XDG_STATE_HOME"), "diskrsync"))
	must(t, err)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "."+string(KindJournal)) {
			n++
		}
	}
	return n
}

// ignorant checks that nothing is believed of a device, by readers and writers,
// whatever folders they name.
func ignorant(t *testing.T, dev string, states []string, size int64) {
	t.Helper()
	for _, state := range states {
		im := deviceImage(t, dev, state)
		if _, ok := im.Hashes(8192).Root(0); ok || im.State().Stored {
			t.Errorf("a reader with state in %q believes what is stored", state)
		}
		must(t, im.Close())
		tg := target(t, dev, TargetOptions{StateDir: state})
		must(t, tg.Begin(size, 8192))
		if _, ok := tg.Root(0); ok {
			t.Errorf("a target with state in %q believes what is stored", state)
		}
		must(t, tg.Close())
	}
}

// refusedAsIncomplete checks that a device is known to be incomplete, whatever
// folder is named.
func refusedAsIncomplete(t *testing.T, dev string, states []string) {
	t.Helper()
	for _, state := range states {
		_, err := Open(place(t, dev), Options{StateDir: state})
		wantError(t, err, ErrIncomplete, "is incomplete: an update in place was interrupted")
		_, err = Clean(place(t, dev), state)
		wantError(t, err, ErrIncomplete, "only a sync mends that")
	}
	if n := marksOf(t); n != 1 {
		t.Errorf("%d marks", n)
	}
}

// Syncs of one device may name a folder for its state or not, in any order: that
// it is incomplete is known to all of them, and none believes what was stored
// before another wrote.
func TestDeviceWithAndWithoutState(t *testing.T) {
	const size = 1 << 20
	for first := range 3 {
		for then := range 3 {
			for last := range 3 {
				named := ownState(t)
				states := []string{named, "", t.TempDir()}
				dev := loopDevice(t, make([]byte, size))
				writeImage(t, dev, TargetOptions{StateDir: states[first]}, 8192, noise(1, size))
				cutOff(t, dev, TargetOptions{StateDir: states[then]}, 8192, noise(2, size), 5)
				refusedAsIncomplete(t, dev, states)
				ignorant(t, dev, states, size)
				writeImage(t, dev, TargetOptions{StateDir: states[last]}, 8192, noise(3, size))
				if n := marksOf(t); n != 0 {
					t.Errorf("%d marks of a device that is complete", n)
				}
				for i, state := range states {
					o := Options{StateDir: state}
					same(t, "complete", readAllWith(t, dev, o), noise(3, size))
					if s := deviceState(t, dev, state); s.Incomplete || s.Stored != (i == last && state != "") {
						t.Errorf("complete, with state in %q: %+v", state, s)
					}
				}
				writeImage(t, dev, TargetOptions{StateDir: states[first]}, 8192, noise(4, size))
				same(t, "the next sync", readAllWith(t, dev, Options{StateDir: states[then]}), noise(4, size))
				if t.Failed() {
					t.Fatalf("synced with folder %d, interrupted with %d, completed with %d", first, then, last)
				}
			}
		}
	}
}

// sealOnly plays a sync that is cut off right after its seal.
func sealOnly(t *testing.T, path string, o TargetOptions, blockSize int, content []byte) {
	t.Helper()
	tg := target(t, path, o)
	s := newSyncing(blockSize, 1)
	s.stop = beforeCommit
	wantError(t, s.run(tg, content), errCut, "cut")
	tg.stopFlushing()
	must(t, tg.settleInPlace(lastModified))
	mark, err := tg.seal(digestOf(t, content, blockSize), lastModified)
	must(t, err)
	must(t, tg.rec.flush(mark, nil))
	must(t, tg.Close())
}

// A device whose update was sealed is whole. Whoever comes next brings its outboard
// up to date if that can be done, and no one is kept from using other blocks.
func TestDeviceSealedAndCutOff(t *testing.T) {
	const size = 1 << 20
	for name, then := range map[string]func(t *testing.T, dev, state string){
		"synced in other blocks": func(t *testing.T, dev, state string) {
			writeImage(t, dev, TargetOptions{StateDir: state}, 16384, noise(3, size))
			s := deviceState(t, dev, state)
			if want := digestOf(t, noise(3, size), 16384); state != "" && (!s.Stored || s.Digest != want) {
				t.Errorf("in other blocks: %+v", s)
			}
		},
		"synced in the same blocks": func(t *testing.T, dev, state string) {
			writeImage(t, dev, TargetOptions{StateDir: state}, 8192, noise(3, size))
		},
		"opened as a target": func(t *testing.T, dev, state string) {
			must(t, target(t, dev, TargetOptions{StateDir: state}).Close())
			same(t, "the device", readAllWith(t, dev, Options{StateDir: state}), noise(2, size))
		},
		"cleaned": func(t *testing.T, dev, state string) {
			_, err := Clean(place(t, dev), state)
			must(t, err)
			same(t, "the device", readAllWith(t, dev, Options{StateDir: state}), noise(2, size))
		},
		"read": func(t *testing.T, dev, state string) {
			same(t, "the device", readAllWith(t, dev, Options{StateDir: state}), noise(2, size))
		},
	} {
		t.Run(name, func(t *testing.T) {
			named := ownState(t)
			for i, states := range [][2]string{{named, named}, {named, ""}, {"", named}, {named, t.TempDir()}} {
				dev := loopDevice(t, make([]byte, size))
				writeImage(t, dev, TargetOptions{StateDir: named}, 8192, noise(1, size))
				sealOnly(t, dev, TargetOptions{StateDir: states[0]}, 8192, noise(2, size))
				if n := marksOf(t); n != 1 {
					t.Fatalf("%d journals are left: this test shows nothing", n)
				}
				then(t, dev, states[1])
				if n := marksOf(t); n != 0 {
					t.Errorf("%d journals are left", n)
				}
				for _, state := range []string{named, "", states[1]} {
					im := deviceImage(t, dev, state)
					contentOf(t, im) // what is stored must be true
					must(t, im.Close())
				}
				if t.Failed() {
					t.Fatalf("folders %d", i)
				}
			}
		})
	}
}

// What was sealed is known without reading the device, once its outboard is up to
// date; unless someone has written to it meanwhile.
func TestDeviceSealedAndChanged(t *testing.T) {
	const size = 1 << 20
	for _, changed := range []bool{false, true} {
		named := ownState(t)
		dev := loopDevice(t, make([]byte, size))
		o := TargetOptions{StateDir: named}
		writeImage(t, dev, o, 8192, noise(1, size))
		sealOnly(t, dev, o, 8192, noise(2, size))
		want := noise(2, size)
		if changed {
			overwrite(t, dev, 100_000, []byte("by someone else"))
			copy(want[100_000:], "by someone else")
		}
		tg := target(t, dev, o)
		must(t, tg.Begin(size, 8192))
		checkHashes(t, tg, want)
		root, ok := tg.Root(0)
		if ok == changed || ok && root == (merkle.Hash{}) {
			t.Errorf("changed %v: the root is known: %v", changed, ok)
		}
		must(t, tg.Close())
		if s := deviceState(t, dev, named); s.Stored == changed || s.Incomplete {
			t.Errorf("changed %v: %+v", changed, s)
		}
		writeImage(t, dev, o, 8192, noise(2, size))
		same(t, "synced", readAllWith(t, dev, Options{StateDir: named}), noise(2, size))
	}
}
