package image

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/merkle"
)

// A damage is what two flipped bits have made of a sealed journal: one in the
// payload of a block, one in the leaves of a region.
type damage struct {
	c             *crashFS
	block, region entry
	batches       [2]int         // in which these are
	lost          map[int64]bool // blocks of which nothing else is left
	doubtful      map[int64]bool // and those that may be told as bad with them
}

// damageScenes are updates of which a part arrived in a run that was cut off, so
// that their journals have several batches.
func damageScenes() []*scene {
	regions := func(s string) string { return s + strings.Repeat("abc.", 63) + s + strings.Repeat("d.ef", 70) }
	return []*scene{
		{name: "raw", opts: TargetOptions{Raw: true}, blockSize: 512, before: []string{regions("abcd")}, cut: 3,
			after: regions("xyz."), other: regions("yyyy")},
		{name: "pages", opts: TargetOptions{Raw: true}, blockSize: 4096, before: []string{"aaaaaa+b"}, cut: 3, after: "123456+c", other: "aaaaaa"},
		{name: "spgz", blockSize: 12287, before: []string{"abcdef+g"}, cut: 3, after: "xByD..+h", other: "abcd"},
	}
}

// sealedJournal returns what a kill leaves right after an update was sealed.
func (sc *scene) sealedJournal(t *testing.T) *crashFS {
	t.Helper()
	c := sc.prepare(t)
	must(t, sc.syncing(1).to(c, sc.content(sc.after)))
	return sc.firstLeft(t, c, sealedOnly)
}

// firstLeft returns what the first kill of a run leaves that leaves it at a stage.
func (sc *scene) firstLeft(t *testing.T, c *crashFS, stage string) *crashFS {
	t.Helper()
	for k := range c.log {
		if left := c.killed(k); examine(t, left).stage == stage {
			return left.reboot()
		}
	}
	t.Fatalf("no kill leaves the update %s", stage)
	return nil
}

// eachDamage calls do for every pair of a block and a region whose payloads are
// damaged.
func (sc *scene) eachDamage(t *testing.T, c *crashFS, do func(d *damage)) {
	t.Helper()
	j, err := openJournal(c, ".diskrsync/disk.journal", "disk", os.O_RDONLY)
	must(t, err)
	type placed struct {
		entry
		batch int
	}
	var blocks, regions []placed
	for i := range j.batches {
		must(t, j.each(&j.batches[i], func(e entry) error {
			switch e.kind {
			case entryRegion:
				regions = append(regions, placed{e, i})
			case entryPlain, entrySlot, entryPages:
				blocks = append(blocks, placed{e, i})
			}
			return nil
		}))
	}
	r := newRand(1)
	for _, b := range blocks {
		for _, g := range regions {
			wrong := c.reboot()
			wrong.flip(".diskrsync/disk.journal", b.offset+r.Int64N(b.length), r.IntN(8))
			wrong.flip(".diskrsync/disk.journal", g.offset+r.Int64N(g.length), r.IntN(8))
			d := &damage{c: wrong, block: b.entry, region: g.entry, batches: [2]int{b.batch, g.batch}}
			d.weigh(t, j)
			do(d)
		}
	}
}

// weigh finds out what the damage comes to: an entry that a later one has taken
// the place of is no loss.
func (d *damage) weigh(t *testing.T, j *journal) {
	t.Helper()
	d.lost, d.doubtful = map[int64]bool{}, map[int64]bool{d.block.index: true}
	last, err := j.find(j.batches, false, d.block.index)
	must(t, err)
	if last.offset == d.block.offset {
		d.lost[d.block.index] = true
	}
	last, err = j.find(j.batches, true, d.region.index)
	must(t, err)
	g, err := merkle.NewGeometry(j.batches[len(j.batches)-1].size, j.head.BlockSize)
	must(t, err)
	first := d.region.index * merkle.RegionBlocks
	for i := first; i < first+int64(g.RegionLen(d.region.index)); i++ {
		d.doubtful[i] = true
		if last.offset == d.region.offset {
			d.lost[i] = true
		}
	}
}

// Of a journal in which two things are damaged, everything else is put into the
// image. What was lost is known to be, whoever comes first, and the next sync
// fetches it.
func TestTwoFaultsInAJournal(t *testing.T) {
	for _, sc := range damageScenes() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			together, apart := 0, 0
			sc.eachDamage(t, sc.sealedJournal(t), func(d *damage) {
				if d.batches[0] == d.batches[1] {
					together++
				} else {
					apart++
				}
				sc.readThrough(t, d)
				sc.tellsLost(t, d)
				for i, s := range []string{sc.after, sc.other} {
					sc.settleAfter(t, d.c.reboot(), sc.content(s), sc.syncing(uint64(i)))
				}
				if t.Failed() {
					t.Fatalf("block %d of batch %d and region %d of batch %d were damaged",
						d.block.index, d.batches[0], d.region.index, d.batches[1])
				}
			})
			if together == 0 || apart == 0 {
				t.Errorf("%d pairs in one batch, %d in two", together, apart)
			}
		})
	}
}

// readThrough reads the image with its journal as it is: a block that is lost is
// an error, and only that.
func (sc *scene) readThrough(t *testing.T, d *damage) {
	t.Helper()
	o := sc.options()
	o.ReadOnly = true
	im, err := Open(crashPlace(d.c.reboot()), o)
	must(t, err)
	defer im.Close()
	last := d.lost[d.block.index]
	if d.region.index == d.block.index/merkle.RegionBlocks {
		last = true // its leaves are lost as well, which does not matter to its data
	}
	want := sc.content(sc.after)
	for i := range int64(len(want)+sc.blockSize-1) / int64(sc.blockSize) {
		part := want[i*int64(sc.blockSize):]
		part = part[:min(len(part), sc.blockSize)]
		got := make([]byte, len(part))
		_, err := im.ReadAt(got, i*int64(sc.blockSize))
		if corrupt := new(CorruptError); err != nil && (!errors.As(err, &corrupt) || i != d.block.index || !last) {
			t.Errorf("block %d: %v", i, err)
		} else if err == nil {
			same(t, "through the journal", got, part)
		}
	}
	checkUnknown(t, im.Hashes(sc.blockSize), want, sc.blockSize)
}

// tellsLost checks what a reader is told after it has put the journal into the
// image.
func (sc *scene) tellsLost(t *testing.T, d *damage) {
	t.Helper()
	o := sc.options()
	c := d.c.reboot()
	_, err := Open(crashPlace(c), o)
	if len(d.lost) > 0 {
		wantError(t, err, ErrIncomplete, "bad block")
	} else if err != nil && !errors.Is(err, ErrIncomplete) {
		t.Errorf("where nothing is lost: %v", err)
	}
	o.Examine = true
	im, err := Open(crashPlace(c), o)
	must(t, err)
	defer im.Close()
	want := sc.content(sc.after)
	unknown := checkUnknown(t, im.Hashes(sc.blockSize), want, sc.blockSize)
	if s := im.State(); s.Waiting != 0 || s.Bad != int64(len(unknown)) {
		t.Errorf("%d blocks are not known, the state is %+v", len(unknown), s)
	}
	for block := range d.lost {
		if !unknown[block] {
			t.Errorf("block %d is lost, and nothing says so", block)
		}
	}
	for block := range unknown {
		if !d.doubtful[block] {
			t.Errorf("block %d is said to be bad", block)
		}
	}
	got := make([]byte, im.Size())
	_, err = im.ReadAt(got, 0)
	must(t, err)
	if block := d.block.index * int64(sc.blockSize); unknown[d.block.index] {
		end := min(block+int64(sc.blockSize), int64(len(want)))
		copy(got[block:end], want[block:end]) // whatever is there is said to be bad
	}
	same(t, "but for what is lost, the image", got, want)
}

// checkUnknown checks that the leaves that are known are those of content, and
// returns the blocks of which none is.
func checkUnknown(t *testing.T, h Hashes, content []byte, blockSize int) map[int64]bool {
	t.Helper()
	g, err := merkle.NewGeometry(int64(len(content)), blockSize)
	must(t, err)
	unknown := map[int64]bool{}
	for region := range g.Regions() {
		leaves, ok := h.Leaves(region)
		if !ok {
			continue // whoever wants them reads the image
		}
		want := leavesOf(g, content, region)
		for i := range want {
			switch leaf := merkle.At(leaves, i); {
			case leaf == merkle.Unknown:
				unknown[region*merkle.RegionBlocks+int64(i)] = true
			case leaf != want[i]:
				t.Errorf("the leaf of block %d of region %d is that of something else", i, region)
			}
		}
	}
	return unknown
}

// Where someone else may have changed the image as well, no hashes are left that
// could say which blocks are bad: all of it is incomplete, until a sync.
func TestLostAndChanged(t *testing.T) {
	for _, sc := range damageScenes() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			c := sc.prepare(t)
			must(t, sc.syncing(1).to(c, sc.content(sc.after)))
			for _, stage := range []string{halfWay, allApplied} {
				sc.eachDamage(t, sc.firstLeft(t, c, stage), func(d *damage) {
					sc.touch(t, d.c, 0)
					sc.wholeOrNot(t, d, stage)
					for i, s := range []string{sc.after, sc.other} {
						sc.settleAfter(t, d.c.reboot(), sc.content(s), sc.syncing(uint64(i)))
					}
					if t.Failed() {
						t.Fatalf("block %d and region %d were damaged, the journal is %s", d.block.index, d.region.index, stage)
					}
				})
			}
		})
	}
}

// wholeOrNot checks that an image is not read where something of it is lost, nor
// believed to be anything.
func (sc *scene) wholeOrNot(t *testing.T, d *damage, stage string) {
	t.Helper()
	c := d.c.reboot()
	_, err := Open(crashPlace(c), sc.options())
	if stage == halfWay || err != nil {
		wantError(t, err, ErrIncomplete, "is incomplete")
	}
	o := sc.options()
	o.Examine = true
	im, err := Open(crashPlace(c), o)
	must(t, err)
	defer im.Close()
	if s := im.State(); s.Stored || s.Bad != 0 || !s.Incomplete {
		t.Errorf("the state is %+v", s)
	}
	if _, ok := im.Hashes(sc.blockSize).Root(0); ok {
		t.Error("hashes are believed")
	}
}
