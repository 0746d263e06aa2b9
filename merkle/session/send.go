package session

import (
	"context"
	"fmt"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// patchBytes is the size from which a Patch is sent. Compressed together, the
// pages of many blocks take a good part less than each alone.
const patchBytes = 256 << 10

// workers returns how many goroutines work on blocks of a size. Each holds a few
// blocks, so it is fewer with large ones than there are cores.
func workers(blockSize int) int {
	const held = 4 << 20
	return max(2, min(16, runtime.GOMAXPROCS(0), held/blockSize))
}

// A coder packs blocks for the wire. It may be used by many goroutines.
type coder struct {
	g     merkle.Geometry
	slots bool // as spgz slots, which the target stores as they come
	plain bool
	enc   *zstd.Encoder
}

func newCoder(g merkle.Geometry, img Source, accept *wire.Accept, plain bool) (*coder, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(workers(g.BlockSize())),
		zstd.WithWindowSize(512<<10), zstd.WithEncoderCRC(false)) // the leaves judge what arrives
	if err != nil {
		return nil, fmt.Errorf("setting up compression: %w", err)
	}
	return &coder{g: g, slots: accept.Slots, plain: plain, enc: enc}, nil
}

// block packs a block of data that is not zero.
func (c *coder) block(index int64, leaf merkle.Hash, data []byte) *wire.Block {
	b := &wire.Block{Index: index, Leaf: leaf}
	if c.slots {
		b.Encoding, b.Data = wire.Slot, image.EncodeSlot(make([]byte, 0, len(data)/2), data)
	} else {
		b.Encoding, b.Data = c.pack(data)
	}
	return b
}

// pack compresses data unless that does not help. The result shares nothing
// with data.
func (c *coder) pack(data []byte) (wire.Encoding, []byte) {
	if !c.plain {
		if packed := c.enc.EncodeAll(data, make([]byte, 0, len(data)/2)); len(packed) < len(data) {
			return wire.Zstd, packed
		}
	}
	return wire.Plain, append([]byte(nil), data...)
}

// encodeRun packs all of a run of data; the blocks are its Value.
func (c *coder) encodeRun(run *merkle.Run) error {
	var blocks []*wire.Block
	for i, leaf := range run.Leaves {
		if leaf.IsZero() {
			continue
		}
		index := run.First + int64(i)
		e := c.g.Block(index)
		at := e.Offset - run.First*int64(c.g.BlockSize())
		blocks = append(blocks, c.block(index, leaf, run.Data[at:][:e.Length]))
	}
	run.Value = blocks
	return nil
}

// A plan is a block to be sent, and the leaf it was found to have.
type plan struct {
	block int64
	leaf  merkle.Hash
}

// A job is work on a few blocks.
type job struct {
	plans []plan
	pages []merkle.PageHash // the target's, of all blocks: send what differs; else send all
	again bool              // a Refetch
}

// resent is the event that a Refetch is answered.
type resent struct{}

// A sender is a worker of the source.
type sender struct {
	*source
	buf    []byte
	hasher *merkle.PageHasher
	own    []merkle.PageHash
	patch  wire.Patch
	pages  []byte // of patch, not yet packed
}

func (s *source) work(ctx context.Context) error {
	w := &sender{source: s, hasher: merkle.NewPageHasher(s.accept.Key)}
	for {
		j, _, err := s.jobs.pop(ctx)
		if err != nil {
			return err
		}
		if err := w.do(ctx, j); err != nil {
			return err
		}
		if j.again {
			s.events.push(resent{})
			continue
		}
		done := sent{make([]int64, len(j.plans)), j.pages != nil}
		for i, p := range j.plans {
			done.blocks[i] = p.block
		}
		s.events.push(done)
	}
}

func (w *sender) do(ctx context.Context, j job) error {
	pages := j.pages
	for _, p := range j.plans {
		data, err := w.read(p)
		if err != nil {
			return err
		}
		if j.pages == nil {
			if err := w.sendBlock(ctx, w.coder.block(p.block, p.leaf, data)); err != nil {
				return err
			}
			continue
		}
		n := w.g.Pages(p.block)
		if err := w.compare(ctx, p, data, pages[:n]); err != nil {
			return err
		}
		pages = pages[n:]
	}
	return w.flushPatch(ctx)
}

// read returns the content of a block, which must still be what it was when it
// was scanned.
func (w *sender) read(p plan) ([]byte, error) {
	e := w.g.Block(p.block)
	if w.buf == nil {
		w.buf = make([]byte, w.g.BlockSize())
	}
	data := w.buf[:e.Length]
	if _, err := w.img.ReadAt(data, e.Offset); err != nil {
		return nil, fmt.Errorf("reading the source: %w", err)
	}
	w.n.read.Add(e.Length)
	w.n.hashed.Add(e.Length)
	if merkle.Leaf(data) != p.leaf {
		run := &merkle.Run{First: p.block, Count: 1, Leaves: []merkle.Hash{merkle.Leaf(data)}}
		if err := w.judge(run); err != nil {
			return nil, fmt.Errorf("reading the source: %w", err)
		}
		return nil, changed(fmt.Sprintf(" (at offset %d)", e.Offset))
	}
	return data, nil
}

// compare adds the pages of a block that differ to the patch, or sends the
// block whole if that is no more.
func (w *sender) compare(ctx context.Context, p plan, data []byte, theirs []merkle.PageHash) error {
	w.own = w.hasher.Block(w.own[:0], w.g, p.block, data)
	bitmap := make([]byte, (len(theirs)+7)/8)
	differ, before := 0, len(w.pages)
	for i := range theirs {
		if w.own[i] == theirs[i] {
			continue
		}
		differ++
		bitmap[i/8] |= 1 << (i % 8)
		page := w.g.Page(p.block, i)
		w.pages = append(w.pages, data[page.Offset:page.End()]...)
	}
	if differ == 0 || differ > len(theirs)*3/4 {
		// None differs: then two pages had one hash.
		w.pages = w.pages[:before]
		return w.sendBlock(ctx, w.coder.block(p.block, p.leaf, data))
	}
	w.patch.Blocks = append(w.patch.Blocks, wire.PatchedBlock{Index: p.block, Leaf: p.leaf, Pages: bitmap})
	if len(w.pages) < patchBytes && len(w.patch.Blocks) < wire.MaxPatches {
		return nil
	}
	return w.flushPatch(ctx)
}

func (w *sender) flushPatch(ctx context.Context) error {
	if len(w.patch.Blocks) == 0 {
		return nil
	}
	m := w.patch
	m.Encoding, m.Data = w.coder.pack(w.pages)
	w.patch, w.pages = wire.Patch{}, w.pages[:0]
	w.n.patched.Add(int64(len(m.Blocks)))
	w.n.payload.Add(int64(len(m.Data)))
	if w.opt.DryRun {
		return nil
	}
	return w.link.send(ctx, &m)
}
