package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"testing"
)

// A stage at which an update was cut off, as far as its journal tells.
const (
	withoutJournal = "without a journal"
	notSealed      = "not sealed"
	sealedOnly     = "sealed"
	halfWay        = "half way into the image"
	stopped        = "half way, left in order"
	allApplied     = "all in the image"
)

// A leftover is what an update that was cut off has left.
type leftover struct {
	c     *crashFS
	stage string
	way   way
	has   func(block int64) bool // whether the journal has something of a block
}

// examine looks at a file system without changing it.
func examine(t *testing.T, c *crashFS) *leftover {
	t.Helper()
	l := &leftover{c: c, stage: withoutJournal, has: func(int64) bool { return false }}
	j, err := openJournal(c.reboot(), ".diskrsync/disk.journal", "disk", os.O_RDONLY)
	must(t, err)
	if j == nil {
		return l
	}
	l.way = j.head.Way
	l.has = func(block int64) bool {
		e, err := j.find(j.batches, false, block)
		must(t, err)
		return e.kind != 0
	}
	switch {
	case j.lastSeal() == nil:
		l.stage = notSealed
	case j.applied() != nil:
		l.stage = allApplied
	case j.paused != fileState{}:
		l.stage = stopped
	case j.marked:
		l.stage = halfWay
	default:
		l.stage = sealedOnly
	}
	return l
}

// touch changes the first byte of a block of the image's file, as any program
// might. The block must lie in there as it is.
func (sc *scene) touch(t *testing.T, c *crashFS, block int64) {
	t.Helper()
	f, err := c.OpenFile("disk", os.O_RDWR, 0)
	must(t, err)
	off := block * int64(sc.blockSize)
	if !sc.opts.Raw {
		off = headerSize + block*int64(sc.blockSize+1) + 1
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	must(t, err)
	_, err = f.WriteAt(touched(b[:]), off)
	must(t, errors.Join(err, f.Close()))
}

// touched returns content with its first byte changed.
func touched(content []byte) []byte {
	content = bytes.Clone(content)
	content[0] ^= 0x55
	return content
}

// touchedAt returns content with the first byte of a block changed.
func (sc *scene) touchedAt(content []byte, block int64) []byte {
	at := int(block) * sc.blockSize
	return append(bytes.Clone(content[:at]), touched(content[at:])...)
}

// afterTouch returns what may be found in an image, of which someone else has
// changed a block since the update was cut off.
func (sc *scene) afterTouch(l *leftover, block int64) *ruling {
	was, is := sc.touchedAt(sc.old(), block), sc.touchedAt(sc.content(sc.after), block)
	r := &ruling{when: "with a block changed by someone else,"}
	switch {
	case l.stage == notSealed && l.way == wayInPlace:
		r.incomplete = true
	case l.stage == notSealed || l.stage == sealedOnly:
		r.contents = [][]byte{was} // the journal is about another image
	case l.stage == withoutJournal:
		r.contents = [][]byte{was, is}
	case l.stage != allApplied && l.has(block):
		r.contents = [][]byte{is, sc.content(sc.after)}
	default:
		r.contents = [][]byte{is}
	}
	return r
}

// foreignScenes are updates of images whose blocks all lie there as they are, so
// that a byte can be changed without further ado. "a" and "d" stay what they are.
func foreignScenes() []*scene {
	raw, inPlace := TargetOptions{Raw: true}, TargetOptions{Raw: true, InPlace: true}
	return []*scene{
		{name: "raw", opts: raw, blockSize: 4096, before: []string{"abcd"}, after: "axcy", other: "zbcd"},
		{name: "pages of raw", opts: raw, blockSize: 4096, before: []string{"aaad"}, after: "a5ad", other: "aazd"},
		{name: "longer raw", opts: raw, blockSize: 4096, before: []string{"abcd"}, after: "axcdef+g", other: "a"},
		{name: "shorter raw", opts: raw, blockSize: 4096, before: []string{"abcdef+g"}, after: "axcd", other: "abcdef"},
		{name: "spgz", blockSize: 12287, before: []string{"abcd"}, after: "axcy", other: "zbcd"},
		{name: "longer spgz", blockSize: 12287, before: []string{"abcd"}, after: "axcdef+g", other: "a"},
		{name: "in place", opts: inPlace, blockSize: 4096, before: []string{"abcd"}, after: "axcy", other: "zbcd"},
	}
}

// What someone else does to an image between a kill and whoever comes next stays
// there, but where the rest of an update has to go; and the next sync finds it.
func TestChangedSinceAKill(t *testing.T) {
	for _, sc := range foreignScenes() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			c := sc.prepare(t)
			must(t, sc.syncing(1).to(c, sc.content(sc.after)))
			seen := map[string]bool{}
			for k := range c.log {
				l := examine(t, c.killed(k))
				seen[l.stage] = true
				sc.touchAndGoOn(t, l, fmt.Sprintf("killed behind %d of %d changes", k, len(c.log)))
			}
			want := []string{withoutJournal, notSealed, sealedOnly, halfWay, allApplied}
			if sc.opts.InPlace {
				want = []string{withoutJournal, notSealed, allApplied}
			}
			for _, stage := range want {
				if !seen[stage] {
					t.Errorf("no kill has left it %s", stage)
				}
			}
		})
	}
}

// The same for an update that an error has stopped, which leaves the image in
// order if it can.
func TestChangedSinceAnError(t *testing.T) {
	for _, sc := range foreignScenes() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			start := sc.prepare(t)
			left := 0
			for n, fired := 1, true; fired; n++ {
				c := start.reboot()
				c.inject(diskFault{kinds: opWrite, n: n, err: syscall.ENOSPC})
				_ = sc.syncing(1).to(c, sc.content(sc.after)) // what it says is for other tests
				fired = c.fired
				c.inject(diskFault{})
				l := examine(t, c)
				if l.stage == stopped {
					left++
					sc.resumeInOrder(t, c)
				}
				sc.touchAndGoOn(t, l, fmt.Sprintf("write %d failed", n))
			}
			if left == 0 && !sc.opts.InPlace {
				t.Error("no error has left the image half way and in order")
			}
		})
	}
}

// resumeInOrder checks that an image that nobody has changed since it was left in
// order keeps its hashes.
func (sc *scene) resumeInOrder(t *testing.T, c *crashFS) {
	t.Helper()
	im, err := Open(crashPlace(c.reboot()), sc.options())
	must(t, err)
	defer im.Close()
	if s := im.State(); !s.Stored || s.Waiting != 0 {
		t.Errorf("an image that was left in order: %+v", s)
	}
}

// touchAndGoOn changes one block after another of what is left, and looks what
// becomes of each.
func (sc *scene) touchAndGoOn(t *testing.T, l *leftover, when string) {
	t.Helper()
	if _, err := l.c.Lstat("disk"); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	blocks := int64(4)
	if testing.Short() {
		blocks = 2 // of which the update changes one
	}
	for block := range blocks {
		c := l.c.reboot()
		sc.touch(t, c, block)
		sc.comesRight(t, c, sc.afterTouch(l, block))
		if slices.Contains([]string{halfWay, stopped, allApplied}, l.stage) {
			sc.forgetsHashes(t, c)
		}
		if t.Failed() {
			t.Fatalf("%s, which left the journal %s; then block %d was changed", when, l.stage, block)
		}
	}
}

// comesRight checks what readers and writers find in an image that someone else
// has changed, and that the next sync brings it to what it should be.
func (sc *scene) comesRight(t *testing.T, c *crashFS, rule *ruling) {
	t.Helper()
	read := c.reboot()
	rule.check(t, read, sc.options())
	sc.distrusted(t, read)
	opened := c.reboot()
	tg, err := OpenTarget(crashPlace(opened), sc.opts)
	must(t, err)
	must(t, tg.Close())
	rule.check(t, opened, sc.options())
	sc.distrusted(t, opened)
	for i, start := range []*crashFS{c, read, opened} {
		next := sc.content([]string{sc.after, sc.other, sc.after}[i])
		sc.settleAfter(t, start.reboot(), next, sc.syncing(uint64(i)))
	}
}

// distrusted checks that no hashes are believed of the image.
func (sc *scene) distrusted(t *testing.T, c *crashFS) {
	t.Helper()
	o := sc.options()
	o.Examine = true
	im, err := Open(crashPlace(c), o)
	must(t, err)
	defer im.Close()
	if s := im.State(); s.Stored || s.Waiting != 0 || s.Kept != 0 {
		t.Errorf("the state of an image that someone else has changed is %+v", s)
	}
	if _, ok := im.Hashes(sc.blockSize).Root(0); ok {
		t.Error("hashes of an image that someone else has changed are believed")
	}
}

// forgetsHashes checks that the outboard is gone once the update is complete: it may
// be half that of the old image, and half that of the new one.
func (sc *scene) forgetsHashes(t *testing.T, c *crashFS) {
	t.Helper()
	_, err := look(t, c, sc.options())
	must(t, err)
	if names := c.names(); !slices.Equal(names, []string{"disk"}) {
		t.Errorf("what is left of an image that someone else has changed: %v", names)
	}
}

// What is left of an update is not about another file that has taken the image's
// name, even if that has the same size and time.
func TestReplacedSinceAKill(t *testing.T) {
	scenes := append(foreignScenes(), &scene{name: "new", opts: TargetOptions{Raw: true}, blockSize: 4096, after: "ab.d", other: "x"})
	for _, sc := range scenes {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			c := sc.prepare(t)
			must(t, sc.syncing(1).to(c, sc.content(sc.after)))
			another := newCrashFS()
			content := sc.content("pqrs")
			must(t, sc.syncing(1).to(another, content))
			for k := range c.log {
				left := c.killed(k)
				if l := examine(t, left); l.stage == halfWay || l.way == wayInPlace && l.stage == notSealed {
					continue // it might be a copy of a mixture, and counts as one
				}
				sc.replace(t, left, another)
				sc.leftAlone(t, left.reboot(), content)
				if t.Failed() {
					t.Fatalf("killed behind %d of %d changes, which left the journal %s", k, len(c.log), examine(t, left).stage)
				}
			}
		})
	}
}

// replace puts the image of another file system in the place of the one that is
// there, or is to be.
func (sc *scene) replace(t *testing.T, c, another *crashFS) {
	t.Helper()
	info, err := c.Lstat("disk")
	if err == nil {
		must(t, c.Remove("disk"))
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	from, err := another.OpenFile("disk", os.O_RDONLY, 0)
	must(t, err)
	to := makeFile(t, c, "disk")
	_, err = to.WriteAt(fileOf(t, from), 0)
	must(t, err)
	if info != nil {
		must(t, to.SetModified(info.ModTime()))
	}
	must(t, errors.Join(from.Close(), to.Close()))
}

// leftAlone checks that an image has content, for readers and writers, whatever
// lies beside it.
func (sc *scene) leftAlone(t *testing.T, c *crashFS, content []byte) {
	t.Helper()
	rule := &ruling{when: "with another file in its place", contents: [][]byte{content}}
	rule.check(t, c.reboot(), sc.options())
	committed := !slices.Contains([]string{withoutJournal, notSealed}, examine(t, c).stage)
	if !committed || !slices.Contains(c.names(), ".diskrsync/disk.partial") {
		sc.comesRight(t, c, rule)
		return
	}
	// A new image was committed, and has no place to go. It is for the user to
	// say which of the two it shall be.
	err := sc.syncing(2).to(c, sc.content(sc.other))
	wantError(t, err, ErrChanged, "was made by someone else in the meantime, and is left alone")
	rule.check(t, c, sc.options())
	_, err = Clean(crashPlace(c), "")
	must(t, err)
	sc.comesRight(t, c, rule)
}
