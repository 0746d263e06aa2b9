package merkle

import "fmt"

const (
	// FanOut is the number of children of a node.
	FanOut = 16

	// RegionLevel is the level whose nodes are regions.
	RegionLevel = 2

	// RegionBlocks is the number of blocks of a region, the unit in which trees
	// are built and compared.
	RegionBlocks = FanOut * FanOut

	// DefaultBlockSize is used where no image has a block size of its own.
	DefaultBlockSize = 128 << 10

	// MaxBlockSize bounds the block size that a peer or a file may ask for, and
	// with it the memory that one block costs.
	MaxBlockSize = 1 << 20

	// MaxSize bounds the size of an image (4 EiB), so that no sum of offsets
	// and lengths inside an image overflows.
	MaxSize = 1 << 62
)

// Geometry is the shape of an image's tree. It is a value: pure arithmetic on
// two numbers. The zero Geometry is not valid; see NewGeometry.
type Geometry struct {
	size      int64
	blockSize int
}

// NewGeometry returns the geometry of an image of size bytes in blocks of
// blockSize bytes.
func NewGeometry(size int64, blockSize int) (Geometry, error) {
	if size < 0 || size > MaxSize {
		return Geometry{}, fmt.Errorf("image size %d is not within 0 and %d", size, int64(MaxSize))
	}
	if blockSize < 1 || blockSize > MaxBlockSize {
		return Geometry{}, fmt.Errorf("block size %d is not within 1 and %d", blockSize, MaxBlockSize)
	}
	return Geometry{size, blockSize}, nil
}

// Size returns the size of the image in bytes.
func (g Geometry) Size() int64 { return g.size }

// BlockSize returns the length of every block but the last, in bytes.
func (g Geometry) BlockSize() int { return g.blockSize }

// Blocks returns the number of blocks.
func (g Geometry) Blocks() int64 { return ceilDiv(g.size, int64(g.blockSize)) }

// Regions returns the number of regions.
func (g Geometry) Regions() int64 { return ceilDiv(g.Blocks(), RegionBlocks) }

// Nodes returns the number of nodes at a level; level 0 are the leaves.
func (g Geometry) Nodes(level int) int64 {
	n := g.Blocks()
	for range level {
		n = ceilDiv(n, FanOut)
	}
	return n
}

// Children returns the number of children of node i of a level from 1 up, or 0
// where there is no such node.
func (g Geometry) Children(level int, i int64) int {
	below := g.Nodes(level - 1)
	if i < 0 || i >= ceilDiv(below, FanOut) {
		return 0
	}
	return int(min(FanOut, below-i*FanOut))
}

// Block returns the extent of block i.
func (g Geometry) Block(i int64) Extent {
	off := i * int64(g.blockSize)
	return Extent{off, min(int64(g.blockSize), g.size-off)}
}

// Span returns the extent of n blocks from block i on, clipped to the image.
func (g Geometry) Span(i, n int64) Extent {
	off := i * int64(g.blockSize)
	return Extent{off, min(n*int64(g.blockSize), g.size-off)}
}

// RegionLen returns the number of blocks of region r.
func (g Geometry) RegionLen(r int64) int {
	return int(min(RegionBlocks, g.Blocks()-r*RegionBlocks))
}

// An Extent is a run of bytes, of data or of a hole.
type Extent struct {
	Offset, Length int64
}

// End returns the offset of the first byte behind e.
func (e Extent) End() int64 { return e.Offset + e.Length }

func ceilDiv(a, b int64) int64 {
	if a <= 0 {
		return 0
	}
	return (a-1)/b + 1
}
