package merkle

import (
	"hash"

	"golang.org/x/crypto/blake2b"
)

// PageSize is the length of a page, the unit in which changes within a block
// are found. Pages lie on the absolute grid of the image, because that is where
// file systems and databases in it write, whatever the block size; a page that
// crosses the edge of a block is clipped to it.
const PageSize = 4 << 10

// Pages returns the number of pages of block i.
func (g Geometry) Pages(i int64) int {
	e := g.Block(i)
	return int((e.End()-1)/PageSize-e.Offset/PageSize) + 1
}

// Page returns where page p of block i lies within the block.
func (g Geometry) Page(i int64, p int) Extent {
	e := g.Block(i)
	page := e.Offset/PageSize + int64(p)
	from := max(page*PageSize, e.Offset) - e.Offset
	to := min((page+1)*PageSize, e.End()) - e.Offset
	return Extent{from, to - from}
}

// A PageHash only has to tell pages apart well enough to save bytes: a block
// that was patched is judged by its leaf.
type PageHash [8]byte

// PageKeySize is the length of the key of page hashes.
const PageKeySize = 16

// A PageHasher computes page hashes: BLAKE2b with a key and 8 bytes of output.
// Because the key is drawn anew for each session, whoever writes to an image
// cannot prepare pages of equal hash. It must not be used by two goroutines at
// once.
type PageHasher struct{ h hash.Hash }

// NewPageHasher returns a PageHasher with the key.
func NewPageHasher(key [PageKeySize]byte) *PageHasher {
	h, err := blake2b.New(len(PageHash{}), key[:])
	if err != nil {
		panic("merkle: keyed blake2b: " + err.Error()) // both lengths are constants
	}
	return &PageHasher{h}
}

// Block appends the hashes of the pages of block i, whose content is data, to
// dst.
func (p *PageHasher) Block(dst []PageHash, g Geometry, i int64, data []byte) []PageHash {
	for n := range g.Pages(i) {
		e := g.Page(i, n)
		p.h.Reset()
		p.h.Write(data[e.Offset:e.End()])
		var out PageHash
		p.h.Sum(out[:0])
		dst = append(dst, out)
	}
	return dst
}
