//go:build linux

package store_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// A tightSystem is a small file system of its own for an image, with a file on it
// that takes the rest of the room.
type tightSystem struct {
	image
	filler string
}

// smallSize is what the file system has; an image on it takes less than half.
const smallSize = 96 * mib

func newTightSystem(t *testing.T, kind string) tightSystem {
	t.Helper()
	file := lab.Mkfs(t, "ext4", filepath.Join(t.TempDir(), "system"), smallSize)
	dir := lab.MountUntilEnd(t, file, "loop")
	return tightSystem{image{kind, filepath.Join(dir, "disk")}, filepath.Join(dir, "filler")}
}

// fill leaves so many bytes free.
func (s tightSystem) fill(t *testing.T, leave int64) {
	t.Helper()
	lab.Fill(t, s.filler, leave)
}

func (s tightSystem) makeRoom(t *testing.T) {
	t.Helper()
	if err := os.Remove(s.filler); err != nil {
		t.Fatal(err)
	}
}

// amount is how a message tells a number of bytes.
var amount = regexp.MustCompile(`[0-9.]+ ?([KMG]i?B|bytes)`)

// lacks checks that a sync failed for want of space, and has said how much it
// would take.
func (s tightSystem) lacks(t *testing.T, r lab.Result) {
	t.Helper()
	message := r.Fails(t, failed, s.path, "no space left")
	if !amount.MatchString(message) {
		t.Errorf("%s: the message does not say how much space: %s", r.Line, message)
	}
	t.Log(message)
}

// is checks that the image has one of the contents with these sums.
func (s tightSystem) is(t *testing.T, sums ...string) {
	t.Helper()
	now := s.sum(t)
	for _, sum := range sums {
		if now == sum {
			return
		}
	}
	t.Fatalf("%s: its content is %s, want one of %q", s.path, describe(now), sums)
}

// TestNoSpace has too little room for the data of a first copy, of an update, and
// of what is left to send after an interruption.
func TestNoSpace(t *testing.T) {
	lab.NeedRoot(t)
	eachKind(t, func(t *testing.T, kind string) {
		s := newTightSystem(t, kind)
		disk := lab.Write(t, filepath.Join(t.TempDir(), "disk"), lab.Noise(1, 30*mib), 0o644)
		s.fill(t, 12*mib)
		s.lacks(t, s.run(t, disk))
		s.is(t, absent)
		s.makeRoom(t)
		s.sync(t, disk)

		old := lab.SumFile(t, disk)
		lab.WriteAt(t, disk, lab.Noise(2, 20*mib), 5*mib)
		s.fill(t, 8*mib)
		s.lacks(t, s.run(t, disk))
		s.is(t, old)

		s.makeRoom(t)
		cutAfter(t, s.image, disk, 8*mib)
		s.fill(t, 2*mib)
		s.lacks(t, s.run(t, disk))
		s.is(t, old)
		s.makeRoom(t)
		if rest := s.sync(t, disk); rest.Kept == 0 {
			t.Error("nothing was kept of the run that was cut")
		}
	})
}

// TestSpaceTaken has somebody else take the room while a sync runs.
func TestSpaceTaken(t *testing.T) {
	lab.NeedRoot(t)
	eachKind(t, func(t *testing.T, kind string) {
		s := newTightSystem(t, kind)
		disk := lab.Write(t, filepath.Join(t.TempDir(), "disk"), lab.Noise(1, 8*mib), 0o644)
		for _, old := range []string{absent, lab.SumFile(t, disk)} {
			r := s.start(t, disk, slowly...)
			awaitPayload(t, r, 1)
			s.fill(t, 0)
			if result := r.Wait(t); result.Code == 0 {
				s.is(t, lab.SumFile(t, disk)) // the room was its own already
			} else {
				t.Log(result.Fails(t, failed, s.path, "no space left"))
				s.is(t, old)
			}
			s.makeRoom(t)
			s.sync(t, disk)
			lab.WriteAt(t, disk, lab.Noise(2, 6*mib), mib)
		}
	})
}

// TestNoSpaceToApply commits an update while somebody reads the image, so that it
// has to wait, and leaves no room for it to be put into the image's holes, or so
// little that it fails half way.
func TestNoSpaceToApply(t *testing.T) {
	lab.NeedRoot(t)
	eachKind(t, func(t *testing.T, kind string) {
		for _, leave := range []int64{0, 2 * mib} {
			s := newTightSystem(t, kind)
			disk := lab.SparseFile(t, filepath.Join(t.TempDir(), "disk"), 40*mib)
			lab.WriteAt(t, disk, lab.Noise(1, 20*mib), 20*mib)
			s.sync(t, disk)
			reader := s.read(t, s.path)
			lab.WriteAt(t, disk, lab.Noise(2, 18*mib), 0)
			s.run(t, disk).OK(t)
			s.fill(t, leave)
			reader.abandon(t)

			if r := s.run(t, disk); r.Code != 0 {
				t.Log(r.Fails(t, failed, s.path, "no space left"))
			}
			here(t, "verify", s.path).OK(t)
			s.makeRoom(t)
			s.holds(t, disk)
		}
	})
}
