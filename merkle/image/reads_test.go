package image

import (
	"slices"
	"testing"

	"github.com/diskrsync/diskrsync/merkle"
)

// manyBatches leaves a sync that was killed after it had made so many batches of
// so many blocks durable, and returns the content that it was to get to.
func manyBatches(t *testing.T, blockSize, batches, perBatch int, seed uint64) (*crashFS, []byte) {
	t.Helper()
	c := newCrashFS()
	size := batches * perBatch * blockSize
	must(t, newSyncing(blockSize, 1).toRaw(c, make([]byte, size)))
	content := noise(2, size)
	tg, err := OpenTarget(crashPlace(c), TargetOptions{Raw: true})
	must(t, err)
	must(t, tg.Begin(int64(size), blockSize))
	order := make([]int64, batches*perBatch)
	for i := range order {
		order[i] = int64(i)
	}
	if r := newRand(seed); seed > 0 {
		// Connections overtake one another, but not by much.
		for i := 0; i < len(order); i += 64 {
			part := order[i:min(len(order), i+64)]
			r.Shuffle(len(part), func(i, k int) { part[i], part[k] = part[k], part[i] })
		}
	}
	for blocks := range slices.Chunk(order, perBatch) {
		for _, i := range blocks {
			must(t, tg.Put(blockOf(content, blockSize, i)))
		}
		must(t, tg.rec.flush(nil, (*pending).some))
	}
	must(t, tg.Close())
	return c.reboot(), content
}

// toRaw is to for a new raw image.
func (s *syncing) toRaw(c *crashFS, content []byte) error {
	s.opts.Raw = true
	return s.to(c, content)
}

// readsToGoOn returns how many reads it takes to open what manyBatches has left
// and find out what is held.
func readsToGoOn(t *testing.T, blockSize, batches, perBatch int, seed uint64) int {
	t.Helper()
	c, content := manyBatches(t, blockSize, batches, perBatch, seed)
	blocks := int64(batches * perBatch)
	c.inject(diskFault{kinds: opRead}) // which never comes, but is counted up to
	tg, err := OpenTarget(crashPlace(c), TargetOptions{Raw: true})
	must(t, err)
	defer tg.Close()
	must(t, tg.Begin(int64(len(content)), blockSize))
	if n := len(tg.j.batches); n < batches || tg.Kept() != int64(len(content)) {
		t.Fatalf("%d batches, and %d bytes are kept: this test shows nothing", n, tg.Kept())
	}
	for region := range tg.g.Regions() {
		leaves, ok := tg.Leaves(region)
		if !ok || len(merkle.Diff(leaves, leavesOf(tg.g, content, region))) > 0 {
			t.Fatalf("the leaves of region %d are not known", region)
		}
	}
	for i := range blocks {
		e, err := tg.rec.find(i)
		must(t, err)
		if e.kind == 0 {
			t.Fatalf("block %d is not found", i)
		}
	}
	return c.seen
}

// To go on after many small batches, as a slow link leaves them, takes a number of
// reads for each batch and each block that does not depend on how many there are:
// at worst, for a block it is looked at each batch that has something of its region.
func TestReadsOfManyBatches(t *testing.T) {
	for _, c := range []struct {
		name     string
		perBatch int
		seed     uint64
		forBlock int // reads
	}{
		{"one block each", 1, 0, 300},
		{"eight in order", 8, 0, 100},
		{"eight in some order", 8, 1, 100},
	} {
		const few, many, blockSize, forBatch = 600, 2400, 512, 8
		first := readsToGoOn(t, blockSize, few, c.perBatch, c.seed)
		second := readsToGoOn(t, blockSize, many, c.perBatch, c.seed)
		t.Logf("%s: %d reads for %d batches, %d for %d", c.name, first, few, second, many)
		if most := many * (forBatch + c.perBatch*c.forBlock); second > most {
			t.Errorf("%s: %d reads for %d batches, want at most %d", c.name, second, many, most)
		}
		if second > 5*first {
			t.Errorf("%s: four times the batches take %d reads instead of %d", c.name, second, first)
		}
	}
}
