package session_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
)

// disk is an image in memory: a source, and a target that checks that it is
// used as promised.
type disk struct {
	mu        sync.Mutex
	content   []byte
	format    image.Format
	blockSize int
	held      int64
	kept      int64
	stored    *stored // may be nil
	modified  time.Time
	corrupt   map[int64]bool // blocks that cannot be read until they are written
	changed   error
	broken    error // what writes return
	onRead    func(off int64)
	sparse    bool // writes go nowhere: an image too large for memory

	read   int64 // bytes, by all who read
	looked int   // calls of NextData

	// Since Begin.
	g         merkle.Geometry
	size      int64
	written   map[int64]bool // blocks
	dirty     map[int64]bool // regions
	settled   map[int64][]merkle.Hash
	committed bool
	synced    time.Time // given to Commit
	remark    string    // after that
}

// stored is what is stored of a disk: the tree of some content, perhaps in part.
type stored struct {
	tree
	lost    map[int64]bool // regions of which nothing is known
	damaged map[int64]bool // regions of which only the root is known

	mu    sync.Mutex
	asked []int64 // whose leaves were wanted
}

func storedOf(t testing.TB, content []byte, blockSize int) *stored {
	t.Helper()
	return &stored{tree: treeOf(t, content, blockSize), lost: map[int64]bool{}, damaged: map[int64]bool{}}
}

// seen is what is known of content that is seen through another size: what has
// the same blocks in both.
func (s *stored) seen(g merkle.Geometry) image.Hashes {
	if s == nil || s.BlockSize() != g.BlockSize() {
		return nothing{}
	}
	return view{s, g}
}

type nothing struct{}

func (nothing) Root(int64) (h merkle.Hash, ok bool) { return h, false }
func (nothing) Leaves(int64) ([]merkle.Hash, bool)  { return nil, false }

type view struct {
	s *stored
	g merkle.Geometry
}

func (v view) Root(region int64) (h merkle.Hash, ok bool) {
	end := (region + 1) * merkle.RegionBlocks * int64(v.g.BlockSize())
	if v.s.lost[region] || v.s.Size() != v.g.Size() && end > min(v.s.Size(), v.g.Size()) {
		return h, false
	}
	return merkle.RegionRoot(v.s.region(region)), true
}

func (v view) Leaves(region int64) ([]merkle.Hash, bool) {
	v.s.mu.Lock()
	v.s.asked = append(v.s.asked, region)
	v.s.mu.Unlock()
	if _, ok := v.Root(region); !ok || v.s.damaged[region] {
		return nil, false
	}
	if merkle.AllZero(v.s.region(region)) {
		return nil, true
	}
	return append([]merkle.Hash(nil), v.s.region(region)...), true
}

// rawDisk is a target that holds content.
func rawDisk(content []byte) *disk {
	return &disk{content: bytes.Clone(content), held: int64(len(content)), format: image.Raw}
}

func (d *disk) Size() int64              { return int64(len(d.content)) }
func (d *disk) Format() image.Format     { return d.format }
func (d *disk) Held() int64              { return d.held }
func (d *disk) Kept() int64              { return d.kept }
func (d *disk) Identity() image.Identity { return image.Identity{} }
func (d *disk) Modified() time.Time      { return d.modified }
func (d *disk) Changed() error           { return d.changed }

// BlockSize of a target is what its format has, of a source also what its hashes
// are stored of.
func (d *disk) BlockSize() int {
	if d.format == "" && d.blockSize == 0 {
		return d.Preferred()
	}
	return d.blockSize
}

func (d *disk) Preferred() int {
	if d.stored == nil {
		return 0
	}
	return d.stored.BlockSize()
}

func (d *disk) Hashes(blockSize int) image.Hashes {
	g, err := merkle.NewGeometry(d.Size(), blockSize)
	if err != nil {
		return nil
	}
	return d.stored.seen(g)
}

func (d *disk) Root(region int64) (merkle.Hash, bool)     { return d.stored.seen(d.g).Root(region) }
func (d *disk) Leaves(region int64) ([]merkle.Hash, bool) { return d.stored.seen(d.g).Leaves(region) }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.read += int64(len(p))
	if d.onRead != nil {
		d.onRead(off)
	}
	for b := range d.corrupt {
		e := merkle.Extent{Offset: b * int64(d.blockSize), Length: int64(d.blockSize)}
		if off < e.End() && e.Offset < off+int64(len(p)) {
			return 0, &image.CorruptError{Block: b, Extent: e, Err: errors.New("made so")}
		}
	}
	if d.sparse {
		clear(p)
		return len(p), nil
	}
	if off+int64(len(p)) > int64(len(d.content)) {
		return 0, fmt.Errorf("read of %d bytes at %d of %d", len(p), off, len(d.content))
	}
	return copy(p, d.content[off:]), nil
}

// NextData knows of holes of 64 KiB.
func (d *disk) NextData(off int64) (merkle.Extent, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looked++
	const grain = 64 << 10
	for at := off; at < int64(len(d.content)); at = (at/grain + 1) * grain {
		end := min((at/grain+1)*grain, int64(len(d.content)))
		if len(bytes.Trim(d.content[at:end], "\x00")) > 0 || len(d.corrupt) > 0 {
			return merkle.Extent{Offset: at, Length: end - at}, nil
		}
	}
	return merkle.Extent{}, io.EOF
}

func (d *disk) Begin(size int64, blockSize int) (err error) {
	if d.g, err = merkle.NewGeometry(size, blockSize); err != nil {
		return err
	}
	d.size, d.blockSize, d.committed = size, blockSize, false
	if grow := size - int64(len(d.content)); grow > 0 && !d.sparse {
		d.content = append(d.content, make([]byte, grow)...)
	}
	d.written, d.dirty, d.settled = map[int64]bool{}, map[int64]bool{}, map[int64][]merkle.Hash{}
	return nil
}

// write checks that blocks may be written now, and marks them so.
func (d *disk) write(first, count int64) error {
	if d.broken != nil {
		return d.broken
	}
	if d.committed || first < 0 || count < 1 || first+count > d.g.Blocks() {
		return fmt.Errorf("blocks %d to %d of %d were written, committed %v", first, first+count, d.g.Blocks(), d.committed)
	}
	for b := first; b < first+count; b++ {
		region := b / merkle.RegionBlocks
		if _, done := d.settled[region]; done || d.written[b] {
			return fmt.Errorf("block %d was written twice, or after its region was settled", b)
		}
		d.written[b], d.dirty[region] = true, true
		delete(d.corrupt, b)
	}
	return nil
}

func (d *disk) Put(b image.Block) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sparse {
		return d.broken
	}
	if err := d.write(b.Index, 1); err != nil {
		return err
	}
	e := d.g.Block(b.Index)
	old := d.content[e.Offset:e.End()]
	if int64(len(b.Data)) != e.Length || merkle.Leaf(b.Data) != b.Leaf {
		return fmt.Errorf("block %d: %d bytes that are not what the leaf says", b.Index, len(b.Data))
	}
	if b.Slot != nil {
		data, err := image.DecodeSlot(nil, b.Slot, int(e.Length))
		if err != nil || d.format != image.Spgz || !bytes.Equal(data, b.Data) {
			return fmt.Errorf("block %d: a slot of something else, for a %s image: %w", b.Index, d.format, err)
		}
	}
	patched := bytes.Clone(old)
	for _, x := range b.Changed {
		copy(patched[x.Offset:x.End()], b.Data[x.Offset:])
	}
	if len(b.Changed) > 0 && !bytes.Equal(patched, b.Data) {
		return fmt.Errorf("block %d: more has changed than is said", b.Index)
	}
	copy(old, b.Data)
	return nil
}

func (d *disk) Punch(first, count int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sparse {
		return d.broken
	}
	if err := d.write(first, count); err != nil {
		return err
	}
	e := d.g.Span(first, count)
	clear(d.content[e.Offset:e.End()])
	return nil
}

func (d *disk) Settle(region int64, leaves []merkle.Hash) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, twice := d.settled[region]; twice || d.committed {
		return fmt.Errorf("region %d was settled twice, or after the commit", region)
	}
	if leaves != nil && len(leaves) != d.g.RegionLen(region) {
		return fmt.Errorf("region %d was settled with %d leaves", region, len(leaves))
	}
	if !d.sparse {
		d.settled[region] = append([]merkle.Hash(nil), leaves...)
	}
	return nil
}

func (d *disk) Commit(digest merkle.Hash, modified time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.committed {
		return errors.New("committed twice")
	}
	if !d.sparse {
		if err := d.check(digest); err != nil {
			return err
		}
		d.content = d.content[:d.size]
	}
	d.committed, d.synced = true, modified
	return nil
}

// check holds what the disk was told of its leaves against what it was told of
// the digest.
func (d *disk) check(digest merkle.Hash) error {
	var acc merkle.Accumulator
	held := (min(d.held, d.size) + int64(d.blockSize)*merkle.RegionBlocks - 1) / (int64(d.blockSize) * merkle.RegionBlocks)
	for i := range d.g.Regions() {
		before, known := d.stored.seen(d.g).Root(i)
		leaves, settled := d.settled[i]
		if must := d.dirty[i] || i < held && !known; must && !settled {
			return fmt.Errorf("region %d was not settled (written %v, known %v)", i, d.dirty[i], known)
		} else if settled && !must && (i >= held || !d.stored.damaged[i]) {
			return fmt.Errorf("region %d was settled, and neither read nor written", i)
		}
		if settled {
			before = merkle.RegionRoot(leaves)
		}
		acc.Add(before)
	}
	if got := d.g.Digest(acc.Root()); got != digest {
		return fmt.Errorf("the leaves hash to %v and not to the digest %v", got, digest)
	}
	return nil
}

func (d *disk) Remark() string { return d.remark }
