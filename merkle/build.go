package merkle

import "context"

// A Region is the part of a tree under one level-2 node.
type Region struct {
	Index  int64
	Leaves []Hash // one for each of its blocks; nil if all are zero

	// What it cost to find out, in bytes: zeros are not hashed, and holes are
	// not read either.
	Read, Hashed int64
}

// Root returns the hash of the region's node.
func (r Region) Root() Hash { return RegionRoot(r.Leaves) }

// RegionRoot returns the hash of the node above up to RegionBlocks leaves.
func RegionRoot(leaves []Hash) Hash { return Node(Parents(leaves)) }

// Parents returns the hashes of the level above hashes, which must begin with
// the first child of a node. A nil list, of zeros, has a nil list above it.
func Parents(hashes []Hash) []Hash {
	if hashes == nil {
		return nil
	}
	above := make([]Hash, 0, ceilDiv(int64(len(hashes)), FanOut))
	for len(hashes) > 0 {
		n := min(FanOut, len(hashes))
		above = append(above, Node(hashes[:n]))
		hashes = hashes[n:]
	}
	return above
}

// Leaves returns the leaves of a run of data.
func (g Geometry) Leaves(run *Run) []Hash {
	leaves := make([]Hash, 0, run.Count)
	for rest := run.Data; len(rest) > 0; {
		n := min(g.blockSize, len(rest))
		leaves = append(leaves, Leaf(rest[:n]))
		rest = rest[n:]
	}
	for _, i := range run.Unreadable {
		leaves[i] = Unknown
	}
	return leaves
}

// BuildOptions adds to a scan what Build does on the way. The zero value builds
// everything. The bounds of the scan are rounded outward to whole regions.
type BuildOptions struct {
	ScanOptions

	// Run, if set, is called for every run, holes included, in order, before
	// emit is called for the region in which it ends. With ScanOptions.Each,
	// which is called once the leaves of a run are known, it lets a caller do
	// more with data that was read than hash it.
	Run func(*Run) error
}

// Build computes the tree of src region by region, on all cores, and calls emit
// with the regions in order, from one goroutine; the leaves then belong to
// emit. A block that opt.Unreadable lets pass has the leaf Unknown.
func Build(ctx context.Context, g Geometry, src Source, opt BuildOptions, emit func(Region) error) error {
	scan := opt.ScanOptions
	scan.First -= scan.First % RegionBlocks
	scan.End = ceilDiv(scan.End, RegionBlocks) * RegionBlocks
	scan.Each = func(run *Run) error {
		run.Leaves = g.Leaves(run)
		if opt.Each != nil {
			return opt.Each(run)
		}
		return nil
	}
	a := assembler{g: g, emit: emit, region: Region{Index: scan.First / RegionBlocks}}
	return Scan(ctx, g, src, scan, func(run *Run) error {
		if opt.Run != nil {
			if err := opt.Run(run); err != nil {
				return err
			}
		}
		return a.add(run)
	})
}

// An assembler puts runs together to regions.
type assembler struct {
	g      Geometry
	emit   func(Region) error
	region Region
	filled int // blocks of region that are known
}

func (a *assembler) add(run *Run) error {
	for rest := run.Count; rest > 0; {
		total := a.g.RegionLen(a.region.Index)
		n := int(min(rest, int64(total-a.filled)))
		if !run.IsHole() {
			a.take(run, total)
		}
		a.filled += n
		rest -= int64(n)
		if a.filled == total {
			if err := a.emit(a.region); err != nil {
				return err
			}
			a.region, a.filled = Region{Index: a.region.Index + 1}, 0
		}
	}
	return nil
}

// take records a run of data, which lies within one region.
func (a *assembler) take(run *Run, total int) {
	a.region.Read += int64(len(run.Data))
	for i, leaf := range run.Leaves {
		if leaf.IsZero() {
			continue
		}
		if a.region.Leaves == nil {
			a.region.Leaves = make([]Hash, total)
		}
		a.region.Leaves[a.filled+i] = leaf
		a.region.Hashed += a.g.Block(run.First + int64(i)).Length
	}
}

// An Accumulator folds the roots of an image's regions, added in order, into
// the root of the image. It holds at most FanOut hashes a level, whatever the
// size. The zero value is ready to use.
type Accumulator struct {
	levels [][]Hash // pending children, from the regions' level up
}

// Add takes the root of the next region.
func (a *Accumulator) Add(root Hash) { a.push(0, root) }

func (a *Accumulator) push(level int, h Hash) {
	if level == len(a.levels) {
		a.levels = append(a.levels, make([]Hash, 0, FanOut))
	}
	a.levels[level] = append(a.levels[level], h)
	if len(a.levels[level]) == FanOut {
		h, a.levels[level] = Node(a.levels[level]), a.levels[level][:0]
		a.push(level+1, h)
	}
}

// Root returns the root over all regions added so far: the zero Hash if there
// are none.
func (a *Accumulator) Root() Hash {
	var carry []Hash // the right edge: the node of what was pending below, if any
	for level, pending := range a.levels {
		children := append(pending[:len(pending):len(pending)], carry...)
		top := level == len(a.levels)-1
		switch {
		case len(children) == 0:
			carry = nil
		case top && len(children) == 1:
			return children[0]
		default:
			carry = []Hash{Node(children)}
		}
	}
	if carry == nil {
		return Hash{}
	}
	return carry[0]
}
