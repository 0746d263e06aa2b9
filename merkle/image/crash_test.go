package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A scene is a sync of an image, and what went before it.
type scene struct {
	name      string
	opts      TargetOptions
	blockSize int
	before    []string // contents that were synced before, as picture has them
	cut       int      // then a sync of "after" was cut before this many blocks, or elsewhere
	after     string
	other     string // a third content, to go on with after a crash
	bare      bool   // there is no store beside the image yet
	flat      bool   // the file system knows nothing of holes
	frozen    bool   // its clock stands still
	slots     sync.Map
}

// picture makes content of blocks: "." is a hole, a small letter noise, a capital
// text, a digit the noise of "a" with something small changed. What follows a "+"
// is a last block of a third of the size.
func picture(s string, blockSize int) []byte {
	if s == "" {
		return nil
	}
	full, last, _ := strings.Cut(s, "+")
	content := make([]byte, 0, len(s)*blockSize)
	for _, c := range full {
		content = append(content, pictureBlock(c, blockSize)...)
	}
	for _, c := range last {
		content = append(content, pictureBlock(c, blockSize)[:blockSize/3]...)
	}
	return content
}

func pictureBlock(c rune, blockSize int) []byte {
	switch {
	case c == '.':
		return make([]byte, blockSize)
	case c >= 'A' && c <= 'Z':
		return bytes.Repeat([]byte{byte(c), 'x', 'y', '\n'}, blockSize/4+1)[:blockSize]
	case c >= '0' && c <= '9':
		block := noise('a', blockSize)
		block[int(c-'0')*blockSize/10] ^= 0xff
		return block
	}
	return noise(uint64(c), blockSize)
}

func (sc *scene) content(s string) []byte { return picture(s, sc.blockSize) }

func (sc *scene) old() []byte {
	if len(sc.before) == 0 {
		return nil
	}
	return sc.content(sc.before[len(sc.before)-1])
}

func (sc *scene) syncing(seed uint64) *syncing {
	return &syncing{opts: sc.opts, blockSize: sc.blockSize, r: newRand(seed), slots: &sc.slots}
}

// prepare returns the file system as it was before the sync, all of it durable.
func (sc *scene) prepare(t *testing.T) *crashFS {
	t.Helper()
	c := newCrashFS()
	c.flat = sc.flat
	if sc.frozen {
		c.tick = 0
	}
	for i, s := range sc.before {
		must(t, sc.syncing(uint64(i)).to(c, sc.content(s)))
	}
	if sc.cut != never {
		s := sc.syncing(99)
		s.stop = sc.cut
		if err := s.to(c, sc.content(sc.after)); !errors.Is(err, errCut) {
			t.Fatalf("a sync that was to be cut ended with %v", err)
		}
	}
	if sc.bare {
		must(t, errors.Join(c.Remove(".diskrsync/disk.tree"), c.Remove(".diskrsync")))
	}
	return c.reboot()
}

// A ruling is what a reader may find.
type ruling struct {
	when       string
	contents   [][]byte
	missing    bool // there may be no image
	incomplete bool // it may be refused as incomplete
}

// check reads the image and returns its content, nil if there is none.
func (r *ruling) check(t *testing.T, c *crashFS, o Options) (content []byte, whole bool) {
	t.Helper()
	content, err := look(t, c, o)
	switch {
	case r.missing && errors.Is(err, fs.ErrNotExist):
		return nil, true
	case r.incomplete && errors.Is(err, ErrIncomplete):
		return nil, false
	case err != nil:
		t.Errorf("%s a reader finds: %v", r.when, err)
		return nil, false
	}
	for _, want := range r.contents {
		if bytes.Equal(content, want) {
			return content, true
		}
	}
	t.Errorf("%s a reader finds %d bytes that are none of what was synced", r.when, len(content))
	return nil, false
}

// rule returns what may be found after the first k changes of a run.
func (sc *scene) rule(s *syncing, k int) *ruling {
	r := &ruling{when: "at once", contents: [][]byte{sc.content(sc.after)}}
	if k >= s.committed {
		return r
	}
	r.incomplete = sc.opts.InPlace && len(sc.before) > 0
	if len(sc.before) == 0 {
		r.missing = true
	} else {
		r.contents = append(r.contents, sc.old())
	}
	return r
}

// names that may stay when all is done.
var stays = []string{".diskrsync/disk.tree", "disk"}

// settleAfter syncs what a crash has left to content, which must come right.
func (sc *scene) settleAfter(t *testing.T, c *crashFS, content []byte, s *syncing) {
	t.Helper()
	if err := s.to(c, content); err != nil {
		t.Errorf("the next sync: %v", err)
		return
	}
	lost := keepNone
	if sc.opts.InPlace && slices.ContainsFunc(c.log, func(ch diskChange) bool { return ch.kind == failedSync }) {
		// The disk has lost what it was to write, and the kernel shows it all the
		// same: nobody can find that out before the power fails. A journal would
		// be put into the image once more.
		lost = keepAll
	}
	(&ruling{when: "after the next sync", contents: [][]byte{content}}).check(t, c.crash(len(c.log), lost), sc.options())
	names := c.names()
	slices.Sort(names)
	if !slices.Equal(names, stays) {
		t.Errorf("the next sync leaves %v", names)
	}
}

// options returns how a scene's image is read.
func (sc *scene) options() Options {
	if sc.opts.Raw {
		return Options{Choice: AsRaw}
	}
	return Options{Choice: AsSpgz}
}

func scenes() []*scene {
	raw := TargetOptions{Raw: true}
	return []*scene{
		{name: "new spgz", blockSize: 12287, after: "aB.c+d", other: "xB"},
		{name: "new raw", opts: raw, blockSize: 4096, after: "a..bC+d", other: "xb"},
		{name: "new and empty", opts: raw, blockSize: 4096, after: "", other: "a"},
		{name: "update of spgz", blockSize: 12287, before: []string{"aBc.e+f"}, after: "xBCd.+g", other: "3yc.e"},
		{name: "update of raw", opts: raw, blockSize: 8192, before: []string{"aab.c+d"}, after: "2ax.y+e", other: "4bb.c+d"},
		{name: "third update", opts: raw, blockSize: 4096, before: []string{"abc", "axc", "axy"}, after: "bxy", other: "abc"},
		{name: "nothing changed", opts: raw, blockSize: 4096, before: []string{"ab.c"}, after: "ab.c", other: "x"},
		{name: "growth of spgz", blockSize: 12287, before: []string{"aB+c"}, after: "aBcd.+E", other: "x"},
		{name: "growth of raw", opts: raw, blockSize: 4096, before: []string{"ab+c"}, after: "abcd.+e", other: "x"},
		{name: "growth by zeros", opts: raw, blockSize: 4096, before: []string{"ab+c"}, after: "ab....+.", other: "abc"},
		{name: "shrinking of spgz", blockSize: 12287, before: []string{"aBcd.+e"}, after: "aBx+c", other: "aBcd.+e"},
		{name: "shrinking of raw", opts: raw, blockSize: 4096, before: []string{"abcd.+e"}, after: "xb+c", other: "abcd.+e"},
		{name: "shrinking to nothing", opts: raw, blockSize: 4096, before: []string{"abcd"}, after: "", other: "ab"},
		{name: "to holes and back", opts: raw, blockSize: 8192, before: []string{"ab..c"}, after: "..de.", other: "ab..c"},
		{name: "new spgz, resumed", blockSize: 12287, cut: 3, after: "aB.c+d", other: "aB"},
		{name: "new raw, resumed", opts: raw, blockSize: 4096, cut: 3, after: "a..bC+d", other: "a..x"},
		{name: "update of spgz, resumed", blockSize: 12287, before: []string{"aBc.e+f"}, cut: 4, after: "xBCd.+g", other: "aBc.e+f"},
		{name: "update of raw, resumed", opts: raw, blockSize: 4096, before: []string{"aab.c+d"}, cut: 4, after: "2bx.y+e", other: "aab.c+d"},
		{name: "growth, resumed", opts: raw, blockSize: 4096, before: []string{"ab+c"}, cut: 3, after: "abcd.+e", other: "ab+c"},
		{name: "shrinking, resumed", opts: raw, blockSize: 4096, before: []string{"abcd.+e"}, cut: 2, after: "xy+c", other: "abcd.+e"},
		{name: "first update of spgz", blockSize: 12287, bare: true, before: []string{"aBc.e+f"}, after: "xBCd.+g", other: "aBc"},
		{name: "first update of raw", opts: raw, blockSize: 4096, bare: true, before: []string{"aab.c+d"}, after: "xby.c+e", other: "aab.c+d"},
		{name: "without holes", opts: raw, blockSize: 4096, flat: true, before: []string{"ab..c"}, after: "..de.", other: "ab..c"},
		{name: "spgz without holes", blockSize: 12287, flat: true, before: []string{"aBc.+e"}, after: ".xBc+", other: "aBc"},
		{name: "a coarse clock", opts: raw, blockSize: 4096, frozen: true, before: []string{"abc", "abd"}, after: "abc", other: "axc"},
		{name: "in place", opts: TargetOptions{Raw: true, InPlace: true}, blockSize: 4096,
			before: []string{"abc.+d"}, after: "xb.de", other: "abc.+d"},
		{name: "in place, spgz", opts: TargetOptions{InPlace: true}, blockSize: 12287,
			before: []string{"aBc.+d"}, after: "xB.dE", other: "aBc"},
		{name: "in place, resumed", opts: TargetOptions{Raw: true, InPlace: true}, blockSize: 4096,
			before: []string{"abc.+d"}, cut: 2, after: "xb.de", other: "abc.+d"},
		{name: "new spgz, cut before the commit", blockSize: 12287, cut: beforeCommit, after: "aB.c+d", other: "aB"},
		{name: "update of spgz, cut before the commit", blockSize: 12287, before: []string{"aBc.e+f"}, cut: beforeCommit, after: "xBCd.+g", other: "aBc"},
		{name: "update of raw, cut before the commit", opts: raw, blockSize: 4096, before: []string{"aab.c+d"}, cut: beforeCommit, after: "2bx.y+e", other: "aab.c+d"},
		{name: "new raw, cut before it is settled", opts: raw, blockSize: 4096, cut: beforeSettle, after: "a..bC+d", other: "a..x"},
		{name: "update of raw, cut before it is settled", opts: raw, blockSize: 4096, before: []string{"aab.c+d"}, cut: beforeSettle, after: "2bx.y+e", other: "aab.c+d"},
		{name: "several regions", opts: raw, blockSize: 512, before: []string{strings.Repeat("abc.", 150)},
			after: strings.Repeat("abc.", 62) + "xy.c.x.." + strings.Repeat("abc.", 90), other: strings.Repeat("abc.", 151)},
		{name: "several regions, resumed", opts: raw, blockSize: 512, before: []string{strings.Repeat("ab.c", 140)},
			cut: 4, after: "xyz." + strings.Repeat("ab.c", 130) + ".yx", other: strings.Repeat("ab.c", 140)},
	}
}

// Whenever the power fails, the image is the old one or the new one, whole, and
// the next sync goes on from there.
func TestCrashAnywhere(t *testing.T) {
	for _, sc := range scenes() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			sc.crashEverywhere(t)
		})
	}
}

func (sc *scene) crashEverywhere(t *testing.T) {
	c := sc.prepare(t)
	s := sc.syncing(1)
	must(t, s.to(c, sc.content(sc.after)))
	random, step := 2, 1
	if testing.Short() {
		random, step = 1, 5
	}
	for k := 0; k <= len(c.log); k += step {
		r := newRand(uint64(k))
		fates := map[string]fate{"lost": keepNone, "kept": keepAll}
		for i := range random {
			fates[fmt.Sprint("random ", i)] = keepAtRandom(newRand(uint64(1000*k + i)))
		}
		for what, f := range fates {
			sc.afterCrash(t, c.crash(k, f), sc.rule(s, k), r.Uint64())
			if t.Failed() {
				t.Fatalf("after %d of %d changes, %s; those were\n%s", k, len(c.log), what, story(c, k))
			}
		}
		run := c.killed(k)
		sc.afterKill(t, run, sc.rule(s, k), r.Uint64())
		if t.Failed() {
			t.Fatalf("after a kill behind %d of %d changes", k, len(c.log))
		}
	}
}

// story tells the changes before a crash, for the message of a test.
func story(c *crashFS, k int) string {
	names := []string{"write", "punch", "truncate", "stamp", "sync", "FAILED SYNC", "make", "link", "rename", "remove", "sync folder"}
	var out strings.Builder
	known := map[uint64]string{}
	for name, inode := range c.base.names {
		known[inode] = name
	}
	for i, ch := range c.log[:k] {
		if ch.name != "" {
			known[ch.inode] = ch.name
		}
		what := known[ch.inode]
		if ch.kind == didSyncFolder {
			what = ch.name
		}
		fmt.Fprintf(&out, "%4d %s %s %d+%d, size %d\n", i, names[ch.kind], what, ch.off, len(ch.data), ch.size)
	}
	return out.String()
}

// afterCrash reads what a crash has left, and syncs it in several ways, with
// another crash on the way in one of them.
func (sc *scene) afterCrash(t *testing.T, left *crashFS, rule *ruling, seed uint64) {
	t.Helper()
	r := newRand(seed)
	seen := left.reboot()
	content, whole := rule.check(t, seen, sc.options())
	if t.Failed() {
		return
	}
	// What a reader does is not undone by the next crash.
	then := *rule
	if whole {
		then = ruling{when: "after a crash of a reader", missing: content == nil}
		if content != nil {
			then.contents = [][]byte{content}
		}
	}
	again := seen.crash(r.IntN(len(seen.log)+1), keepAtRandom(r))
	then.check(t, again, sc.options())

	next := sc.content([]string{sc.after, sc.other}[r.IntN(2)])
	for _, start := range []*crashFS{left, []*crashFS{seen, again}[r.IntN(2)]} {
		run := start.reboot()
		s := sc.syncing(r.Uint64())
		sc.settleAfter(t, run, next, s)
		if t.Failed() {
			return
		}
		k := r.IntN(len(run.log) + 1)
		twice := run.crash(k, keepAtRandom(r))
		sc.during(&then, s, k, next).check(t, twice, sc.options())
		sc.settleAfter(t, twice.reboot(), next, sc.syncing(r.Uint64()))
	}
}

// afterKill syncs what a process has left that was killed, on a file system in
// which nothing of that is durable, until the power fails.
func (sc *scene) afterKill(t *testing.T, run *crashFS, rule *ruling, seed uint64) {
	t.Helper()
	r := newRand(seed)
	next := sc.content([]string{sc.after, sc.other}[r.IntN(2)])
	killed := len(run.log)
	s := sc.syncing(r.Uint64())
	if r.IntN(2) == 0 {
		rule.check(t, run, sc.options())
	}
	sc.settleAfter(t, run, next, s)
	for k := killed; k <= len(run.log); k++ {
		f := keepAtRandom(r)
		if k == len(run.log) || durableNext(run, k) {
			f = keepNone // there is the most that can be lost
		} else if r.IntN(3) > 0 {
			continue
		}
		if sc.during(rule, s, k, next).check(t, run.crash(k, f), sc.options()); t.Failed() {
			t.Fatalf("the power failed after %d changes, %d of them before a kill; there was a commit at %d\n%s",
				k, killed, s.committed, story(run, len(run.log)))
		}
	}
}

// durableNext reports whether the next change makes something durable.
func durableNext(c *crashFS, k int) bool {
	return c.log[k].kind == didSync || c.log[k].kind == didSyncFolder
}

// during returns what may be found after the first k changes of a sync to next
// that began where rule held.
func (sc *scene) during(rule *ruling, s *syncing, k int, next []byte) *ruling {
	if k >= s.committed {
		return &ruling{when: "after the commit", contents: [][]byte{next}}
	}
	return &ruling{when: "during the next sync", contents: append(slices.Clone(rule.contents), next), missing: rule.missing,
		incomplete: rule.incomplete || sc.opts.InPlace}
}

// Every combination of what a small sync has written and not yet synced.
func TestCrashExhaustively(t *testing.T) {
	for _, sc := range []*scene{
		{name: "new", opts: TargetOptions{Raw: true}, blockSize: 512, after: "a", other: "b"},
		{name: "update", opts: TargetOptions{Raw: true}, blockSize: 512, before: []string{"a.+b"}, after: ".c+b", other: "a"},
	} {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			c := sc.prepare(t)
			s := sc.syncing(1)
			must(t, s.to(c, sc.content(sc.after)))
			for k := range c.log {
				sc.everySubset(t, c, s, k)
			}
		})
	}
}

// everySubset tries them all just before something is made durable: what may be
// left earlier may be left then as well.
func (sc *scene) everySubset(t *testing.T, c *crashFS, s *syncing, k int) {
	const most = 12
	if !durableNext(c, k) && k+1 < len(c.log) {
		return
	}
	open := undecided(c.log[:k])
	masks := uint64(1) << min(most, len(open))
	if testing.Short() {
		masks = min(masks, 16)
	}
	for i := range masks {
		mask := i
		if len(open) > most || testing.Short() {
			mask = newRand(i).Uint64()
		}
		left := c.crash(k, keepSubset(mask, open))
		sc.rule(s, k).check(t, left, sc.options())
		sc.settleAfter(t, left.reboot(), sc.content(sc.other), sc.syncing(i))
		if t.Failed() {
			t.Fatalf("after %d of %d changes, kept are those of %b in %v\n%s", k, len(c.log), mask, open, story(c, k))
		}
	}
}
