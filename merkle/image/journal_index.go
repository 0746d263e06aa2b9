package image

import (
	"slices"
	"sync"

	"github.com/diskrsync/diskrsync/merkle"
)

// A batchIndex tells which batches of a journal have entries about a region, so
// that the cost of looking one up does not grow with the number of batches. It
// takes a few bytes for each region and batch.
type batchIndex struct {
	mu      sync.RWMutex
	blocks  map[int64][]int32 // batches with entries of blocks of a region
	regions map[int64][]int32 // batches with entries of a region
	wide    []int32           // batches with entries of zeros in more than one region
	seals   []int32           // batches that are sealed
}

// addBatch takes in a batch, with its entries as they are stored.
func (x *batchIndex) addBatch(n int, b *batch, table []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if b.seal != nil {
		x.seals = appendOnce(x.seals, n)
	}
	for ; len(table) > 0; table = table[entrySize:] {
		e := decodeEntry(table)
		x.add(n, &e)
	}
}

// keep returns where the content was cut by the last seals among batches, from
// batch n on: what an entry of it has behind that is zeros.
func (x *batchIndex) keep(batches []batch, n int) int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	keep := int64(merkle.MaxSize)
	for _, i := range x.seals {
		if int(i) >= n && int(i) < len(batches) {
			keep = min(keep, batches[i].size)
		}
	}
	return keep
}

// add takes in an entry of a batch. The batches come in order.
func (x *batchIndex) add(n int, e *entry) {
	if x.blocks == nil {
		x.blocks, x.regions = map[int64][]int32{}, map[int64][]int32{}
	}
	if e.kind == entryRegion {
		x.regions[e.index] = appendOnce(x.regions[e.index], n)
		return
	}
	first, last := e.index/merkle.RegionBlocks, (e.end()-1)/merkle.RegionBlocks
	if first != last {
		x.wide = appendOnce(x.wide, n)
		return
	}
	x.blocks[first] = appendOnce(x.blocks[first], n)
}

func appendOnce(list []int32, n int) []int32 {
	if len(list) > 0 && list[len(list)-1] == int32(n) {
		return list
	}
	return append(list, int32(n))
}

// about returns the batches that may have entries about a region, or about blocks
// of it, in their order.
func (x *batchIndex) about(regions bool, region int64) []int32 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if regions {
		return x.regions[region]
	}
	list := x.blocks[region]
	if len(x.wide) == 0 {
		return list
	}
	all := slices.Concat(list, x.wide)
	slices.Sort(all)
	return slices.Compact(all)
}
