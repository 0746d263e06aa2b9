package image

import (
	"errors"
	"math"

	"github.com/diskrsync/diskrsync/merkle"
)

// hashes is what is known of the tree of an image without reading it: what was
// stored when it was last committed, and what its journal has since.
type hashes struct {
	g       merkle.Geometry // of the content as it is seen
	tree    *tree           // nil if nothing is stored
	zeros   bool            // without a tree, all is zero: a new image
	j       *journal
	batches []batch
	stable  int64 // the content in front of this had these blocks in every size
}

// newHashes returns what is known in blocks of the size that g has. It is nil, and
// knows nothing, if the journal has others.
func newHashes(g merkle.Geometry, t *tree, zeros bool, j *journal, batches []batch) *hashes {
	if len(batches) > 0 && j.head.BlockSize != g.BlockSize() {
		return nil
	}
	h := &hashes{g: g, tree: t, zeros: zeros, j: j, batches: batches, stable: math.MaxInt64}
	if t != nil && t.g.BlockSize() != g.BlockSize() {
		h.tree = nil
	}
	if h.tree != nil {
		h.limit(t.g.Size())
	}
	for i := range batches {
		h.limit(batches[i].size)
	}
	return h
}

// limit takes into account that something is known of a content of a size.
func (h *hashes) limit(size int64) {
	if size != h.g.Size() {
		h.stable = min(h.stable, size, h.g.Size())
	}
}

// same reports whether a region has had the blocks that it has now in every
// size. One that was cut has not, even if all that is left of it was there.
func (h *hashes) same(region int64) bool {
	return (region+1)*merkle.RegionBlocks*int64(h.g.BlockSize()) <= h.stable
}

// Root returns the root of a region, or false if it is not known.
func (h *hashes) Root(region int64) (merkle.Hash, bool) {
	if h == nil || !h.same(region) {
		return merkle.Hash{}, false
	}
	if len(h.batches) == 0 {
		return h.storedRoot(region)
	}
	e, err := h.j.find(h.batches, true, region)
	if err != nil {
		return merkle.Hash{}, false
	}
	switch newer, err := h.newer(region, &e, nil); {
	case err != nil:
		return merkle.Hash{}, false
	case newer:
		leaves, ok := h.Leaves(region)
		return merkle.RegionRoot(leaves), ok
	case e.kind != 0:
		return e.hash, true
	}
	return h.storedRoot(region)
}

// storedRoot is Root without the journal.
func (h *hashes) storedRoot(region int64) (merkle.Hash, bool) {
	if h.tree == nil {
		return merkle.Hash{}, h.zeros
	}
	root, err := h.tree.root(region)
	return root, err == nil
}

// Leaves returns the leaves of a region, nil for zeros, or false if they are
// not known. They then hash to what Root returns.
func (h *hashes) Leaves(region int64) ([]merkle.Hash, bool) {
	if h == nil || !h.same(region) {
		return nil, false
	}
	var e entry
	var err error
	if len(h.batches) > 0 {
		if e, err = h.j.find(h.batches, true, region); err != nil {
			return nil, false
		}
	}
	leaves, err := h.before(region, &e)
	if err == nil && len(h.batches) > 0 {
		_, err = h.newer(region, &e, func(block int64, leaf merkle.Hash) {
			if leaves == nil {
				leaves = make([]merkle.Hash, h.g.RegionLen(region))
			}
			leaves[block-region*merkle.RegionBlocks] = leaf
		})
	}
	return leaves, err == nil
}

// before returns the leaves that an entry has, or those that are stored if it is
// none.
func (h *hashes) before(region int64, e *entry) ([]merkle.Hash, error) {
	switch {
	case e.kind == 0 && h.tree != nil:
		return h.tree.leaves(region)
	case e.kind == 0 && h.zeros:
		return nil, nil
	case e.kind == 0:
		return nil, errors.ErrUnsupported
	}
	return h.j.leaves(e, h.g.RegionLen(region))
}

// leaves returns those of a region entry.
func (j *journal) leaves(e *entry, n int) ([]merkle.Hash, error) {
	flat, err := j.payload(e, nil)
	if err != nil {
		return nil, err
	}
	leaves := merkle.DecodeLeaves(flat)
	if len(leaves) != n || merkle.RegionRoot(leaves) != e.hash {
		return nil, errJournal
	}
	return leaves, nil
}

// newer reports whether blocks of a region have changed after an entry about all
// of it was made, and tells which, in the order of the changes.
func (h *hashes) newer(region int64, since *entry, each func(block int64, leaf merkle.Hash)) (bool, error) {
	first := region * merkle.RegionBlocks
	end := first + int64(h.g.RegionLen(region))
	found := false
	for _, n := range h.j.index.about(false, region) {
		if int(n) >= len(h.batches) {
			break
		}
		err := h.j.between(&h.batches[n], first, end, func(e *entry) bool {
			if since.kind != 0 && e.offset <= since.offset {
				return true
			}
			found = true
			if each == nil {
				return false
			}
			for block := max(first, e.index); block < min(end, e.end()); block++ {
				each(block, e.hash)
			}
			return true
		})
		if err != nil || found && each == nil {
			return found, err
		}
	}
	return found, nil
}
