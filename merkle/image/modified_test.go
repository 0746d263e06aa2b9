package image

import (
	"errors"
	"os"
	"testing"
	"time"
)

// fileTime returns the modification time of a file.
func fileTime(t *testing.T, path string) time.Time {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.ModTime()
}

// syncAt brings an image to content that was modified at a time.
func syncAt(t *testing.T, path string, o TargetOptions, content []byte, when time.Time) {
	t.Helper()
	tg := target(t, path, o)
	s := newSyncing(8192, 3)
	s.stop = beforeCommit
	if err := s.run(tg, content); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	must(t, tg.Commit(digestOf(t, content, s.blockSize), when))
	must(t, tg.Close())
}

// An image's file has the time of its source, to the nanosecond, however it came to
// its content, and its hashes stay believed.
func TestFileHasTheTimeOfTheSource(t *testing.T) {
	first, second := time.Unix(1_500_000_000, 123_456_789), time.Unix(1_400_000_000, 987_654_321)
	for name, step := range map[string]struct {
		opts    TargetOptions
		content []byte
	}{
		"nothing else changes":       {TargetOptions{Raw: true}, noise(1, 50_000)},
		"the content changes":        {TargetOptions{Raw: true}, noise(2, 50_000)},
		"it is cut":                  {TargetOptions{Raw: true}, noise(1, 30_000)},
		"in place":                   {TargetOptions{Raw: true, InPlace: true}, noise(2, 50_000)},
		"in place, nothing changes":  {TargetOptions{Raw: true, InPlace: true}, noise(1, 50_000)},
		"all is read, and unchanged": {TargetOptions{Raw: true, Checksum: true}, noise(1, 50_000)},
	} {
		path := tempPath(t)
		syncAt(t, path, TargetOptions{Raw: true}, noise(1, 50_000), first)
		if got := fileTime(t, path); !got.Equal(first) {
			t.Fatalf("a new image: %v, want %v", got, first)
		}
		syncAt(t, path, step.opts, step.content, second)
		if got := fileTime(t, path); !got.Equal(second) {
			t.Errorf("%s: %v, want %v", name, got, second)
		}
		im := source(t, path, Auto)
		if s := im.State(); !s.Stored || s.Changed || !im.Modified().Equal(second) {
			t.Errorf("%s: %+v, modified %v", name, s, im.Modified())
		}
		must(t, im.Close())
		syncAt(t, path, step.opts, step.content, time.Time{})
		if got := fileTime(t, path); !got.Equal(second) {
			t.Errorf("%s, and then nothing is known of the source: %v", name, got)
		}
	}
}

// SetModified keeps what is stored.
func TestSetModified(t *testing.T) {
	when := time.Unix(1_500_000_000, 123_456_789)
	for _, size := range []int{50_000, 0} {
		path := tempPath(t)
		writeImage(t, path, TargetOptions{Raw: true}, 8192, noise(1, size))
		must(t, SetModified(place(t, path), when))
		im := source(t, path, Auto)
		if s := im.State(); !fileTime(t, path).Equal(when) || !im.Modified().Equal(when) || s.Changed || !s.Stored {
			t.Errorf("%d bytes: %v, modified %v, %+v", size, fileTime(t, path), im.Modified(), s)
		}
		must(t, im.Close())
	}
	wantError(t, SetModified(place(t, tempPath(t)), when), os.ErrNotExist, "no such file")
}

// What someone reads does not change, not even its time, which would tell them that
// it did. A sync without other changes succeeds, and the next sets the time.
func TestTimeOfWhatIsBeingRead(t *testing.T) {
	path, when := tempPath(t), time.Unix(1_500_000_000, 0)
	content := noise(1, 50_000)
	writeImage(t, path, TargetOptions{Raw: true}, 8192, content)
	im := source(t, path, Auto)
	wantError(t, SetModified(place(t, path), when), ErrInUse, "is being read")
	syncAt(t, path, TargetOptions{}, content, when)
	must(t, im.Changed())
	must(t, im.Close())
	syncAt(t, path, TargetOptions{}, content, when)
	if got := fileTime(t, path); !got.Equal(when) {
		t.Errorf("after the next sync: %v", got)
	}
}

// Wherever setting the time is cut off, the image is what it was, and what is stored
// is that of the image or not believed.
func TestSetModifiedIsCutOff(t *testing.T) {
	sc := &scene{opts: TargetOptions{Raw: true}, blockSize: 4096, before: []string{"abcd"}}
	c := sc.prepare(t)
	must(t, SetModified(crashPlace(c), time.Unix(1_500_000_000, 0)))
	rule := &ruling{when: "its time set", contents: [][]byte{sc.old()}}
	for k := range c.log {
		for _, left := range []*crashFS{c.killed(k), c.crash(k, keepNone)} {
			rule.check(t, left.reboot(), sc.options())
			sc.settleAfter(t, left.reboot(), sc.content("axcd"), sc.syncing(1))
		}
	}
}
