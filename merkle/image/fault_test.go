package image

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// aLine checks that an error can be shown as it is.
func aLine(t *testing.T, err error) {
	t.Helper()
	// A line for each, where several things went wrong.
	for _, line := range strings.Split(err.Error(), "\n") {
		if !strings.Contains(line, "image disk: ") {
			t.Errorf("an error that does not name the image: %q", err)
		}
	}
}

// faultScenes are those in which every kind of sync has faults.
func faultScenes() []*scene {
	pick := []string{"new spgz", "new raw", "update of spgz", "update of raw", "growth of spgz", "shrinking of raw",
		"new raw, resumed", "update of spgz, resumed", "update of raw, resumed", "in place", "several regions"}
	return slices.DeleteFunc(scenes(), func(sc *scene) bool { return !slices.Contains(pick, sc.name) })
}

// Whatever fails, and whenever: the sync says so unless it has come right all the
// same, and the next one makes it good.
func TestEveryOperationFails(t *testing.T) {
	for _, sc := range faultScenes() {
		for what, f := range map[string]diskFault{
			"read":            {kinds: opRead, err: syscall.EIO},
			"write":           {kinds: opWrite, err: syscall.EIO},
			"name":            {kinds: opName | opRemove, err: syscall.EIO},
			"sync":            {kinds: opSync, err: syscall.EIO},
			"all from then":   {kinds: opAny, err: syscall.EIO, lasts: true},
			"space from then": {kinds: opWrite | opName, err: syscall.ENOSPC, lasts: true},
		} {
			t.Run(sc.name+", "+what, func(t *testing.T) {
				t.Parallel()
				sc.failEverywhere(t, f)
			})
		}
	}
}

func (sc *scene) failEverywhere(t *testing.T, f diskFault) {
	start := sc.prepare(t)
	failed := 0
	step := 1
	if testing.Short() {
		step = 3
	}
	for f.n = 1; ; f.n += step {
		c := start.reboot()
		c.inject(f)
		s := sc.syncing(1)
		err := s.to(c, sc.content(sc.after))
		fired := c.fired
		c.inject(diskFault{})
		if err != nil {
			failed++
			aLine(t, err)
		}
		sc.afterFault(t, c, s, err)
		if t.Failed() {
			t.Fatalf("when operation %d failed, and the sync ended with: %v\n%s", f.n, err, story(c, len(c.log)))
		}
		if !fired {
			break
		}
	}
	if failed == 0 {
		t.Error("no fault made the sync fail")
	}
}

// afterFault checks what a sync has left, which ended with err.
func (sc *scene) afterFault(t *testing.T, c *crashFS, s *syncing, err error) {
	t.Helper()
	if err == nil && s.committed == 0 {
		t.Error("success without a commit")
	}
	k := len(c.log)
	if err != nil && s.committed == 0 {
		k = 0 // old or new
	}
	rule := sc.rule(&syncing{committed: max(1, s.committed)}, k)
	rule.check(t, c.reboot(), sc.options())
	lost := c.crash(len(c.log), keepNone)
	rule.when = "when the power fails as well"
	rule.check(t, lost.reboot(), sc.options())
	if t.Failed() {
		return
	}
	for _, next := range []*crashFS{c, lost} {
		sc.settleAfter(t, next, sc.content(sc.after), sc.syncing(2))
	}
}

// On a disk that is too small a sync fails, says so, and leaves what was there;
// once there is room, it goes on.
func TestDiskFull(t *testing.T) {
	for _, sc := range faultScenes() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			start := sc.prepare(t)
			fits := false
			for more := int64(1); !fits; more++ {
				c := start.reboot()
				c.space = c.used() + (more-1)*crashPage + 1
				s := sc.syncing(1)
				err := s.to(c, sc.content(sc.after))
				c.space = 0
				if fits = err == nil; !fits && !strings.Contains(err.Error(), "no space left") {
					t.Errorf("%v does not say that the disk is full", err)
				}
				sc.afterFault(t, c, s, err)
				if t.Failed() {
					t.Fatalf("with room for %d pages\n%s", more, story(c, len(c.log)))
				}
			}
		})
	}
}

// flipped calls do with copies of a file system, in each of which one bit of a
// file is wrong: one in each sector.
func flipped(c *crashFS, name string, seed uint64, do func(c *crashFS, off int64)) {
	r := newRand(seed)
	size := c.now.nodes[c.now.names[name]].size
	step := int64(crashSector)
	if testing.Short() {
		step *= 5
	}
	for at := int64(0); at < size; at += step {
		off := at + r.Int64N(min(crashSector, size-at))
		wrong := c.reboot()
		wrong.flip(name, off, r.IntN(8))
		do(wrong, off)
	}
}

// A bit that flips in the image is found by its stored leaves.
func TestBitFlipsInImage(t *testing.T) {
	for _, sc := range faultScenes() {
		if len(sc.before) == 0 || sc.cut != never {
			continue
		}
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			found := 0
			flipped(sc.prepare(t), "disk", 1, func(c *crashFS, off int64) {
				im, err := Open(crashPlace(c), sc.options())
				if err != nil {
					found++
					aLine(t, err)
					return
				}
				defer im.Close()
				content := make([]byte, im.Size())
				if _, err := im.ReadAt(content, 0); err != nil && im.Size() > 0 {
					found++
					aLine(t, err)
					return
				}
				if bytes.Equal(content, sc.old()) {
					return // the bit means nothing, such as those behind a gzip member
				}
				if found++; checkStored(im, content) == nil {
					t.Errorf("offset %d: content that is wrong agrees with the stored hashes", off)
				}
			})
			if found == 0 {
				t.Error("no flip did any harm")
			}
		})
	}
}

// A bit that flips in the outboard or in a journal never makes wrong content pass
// for right.
func TestBitFlipsInStore(t *testing.T) {
	for _, sc := range faultScenes() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			r := newRand(9)
			for i, c := range sc.moments(t) {
				for _, name := range c.names() {
					if !strings.HasSuffix(name, ".tree") && !strings.HasSuffix(name, ".journal") {
						continue // what lies there is as good as the disk
					}
					flipped(c, name, uint64(i), func(wrong *crashFS, off int64) {
						sc.judgeFlip(t, wrong, r)
						if t.Failed() {
							t.Fatalf("moment %d, byte %d of %s", i, off, name)
						}
					})
				}
			}
		})
	}
}

func (sc *scene) judgeFlip(t *testing.T, c *crashFS, r *rand.Rand) {
	t.Helper()
	content, err := look(t, c.reboot(), sc.options())
	if err != nil {
		if sc.old() != nil {
			aLine(t, err)
		}
	} else if !bytes.Equal(content, sc.old()) && !bytes.Equal(content, sc.content(sc.after)) {
		t.Error("a reader finds what was never synced")
	}
	// Stored hashes are believed here. What was believed and turns out to be lost
	// may make a sync fail, once.
	next := sc.content([]string{sc.after, sc.other}[r.IntN(2)])
	run := c.reboot()
	if err := sc.syncing(3).to(run, next); err != nil {
		aLine(t, err)
		run = run.reboot()
	} else {
		(&ruling{when: "after a sync", contents: [][]byte{next}}).check(t, run.reboot(), sc.options())
	}
	sc.settleAfter(t, run, next, sc.syncing(4))
}

// moments returns the states of a store before, during and after a sync: those
// just before something becomes durable.
func (sc *scene) moments(t *testing.T) []*crashFS {
	t.Helper()
	c := sc.prepare(t)
	must(t, sc.syncing(1).to(c, sc.content(sc.after)))
	states := []*crashFS{c.crash(0, keepAll), c.reboot()}
	for k := range c.log {
		if c.log[k].kind == didSync && !testing.Short() {
			states = append(states, c.crash(k, keepAll))
		}
	}
	return states
}
