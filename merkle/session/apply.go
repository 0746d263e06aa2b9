package session

import (
	"context"
	"fmt"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// An applier is a worker of the target: it reads and writes blocks of the image.
type applier struct {
	*target
	hasher *merkle.PageHasher
	old    []byte // a block as it is
	data   []byte // what was decoded
}

func (t *target) apply(ctx context.Context) error {
	a := &applier{target: t, hasher: merkle.NewPageHasher(t.accept.Key)}
	for {
		select {
		case job := <-t.jobs:
			if err := job(a); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read returns the content of a block as it is.
func (a *applier) read(block int64) ([]byte, error) {
	e := a.g.Block(block)
	if a.old == nil {
		a.old = make([]byte, a.g.BlockSize())
	}
	old := a.old[:e.Length]
	if _, err := a.img.ReadAt(old, e.Offset); err != nil {
		return nil, fmt.Errorf("reading the target: %w", err)
	}
	a.n.read.Add(e.Length)
	return old, nil
}

func (a *applier) answerPages(ctx context.Context, blocks []int64) error {
	m := &wire.Pages{Blocks: blocks}
	for _, b := range blocks {
		old, err := a.read(b)
		if err != nil && unreadable(b, err) == nil {
			a.lose(b)
			for range a.g.Pages(b) {
				m.Hashes = append(m.Hashes, noPage)
			}
			continue
		}
		if err != nil {
			return err
		}
		a.n.hashed.Add(int64(len(old)))
		m.Hashes = a.hasher.Block(m.Hashes, a.g, b, old)
	}
	return a.link.send(ctx, m)
}

// noPage is the hash of no page, unless by an absurd chance: if all pages of a
// block have it the source sends the block whole.
var noPage = merkle.PageHash{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// lose records that a block cannot be read, although its leaf is stored.
func (a *applier) lose(block int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.regions[block/merkle.RegionBlocks]; r != nil && r.settle == open && r.leaves != nil {
		r.leaves[block%merkle.RegionBlocks] = merkle.Unknown
	}
}

// punch makes holes of blocks, of neighbours in one go.
func (a *applier) punch(blocks []int64) error {
	for i := 0; i < len(blocks); {
		n := 1
		for i+n < len(blocks) && blocks[i+n] == blocks[i]+int64(n) {
			n++
		}
		if err := a.img.Punch(blocks[i], int64(n)); err != nil {
			return fmt.Errorf("writing the target: %w", err)
		}
		for _, b := range blocks[i : i+n] {
			if err := a.written(b, merkle.Hash{}); err != nil {
				return err
			}
		}
		i += n
	}
	return nil
}

// decode unpacks data that must be n bytes long.
func (a *applier) decode(enc wire.Encoding, data []byte, n int) ([]byte, error) {
	if enc == wire.Plain {
		if len(data) != n {
			return nil, fmt.Errorf("%d bytes where %d were due", len(data), n)
		}
		return data, nil
	}
	if cap(a.data) < n {
		a.data = make([]byte, n)
	}
	var err error
	dst := a.data[:0:n] // what unfolds to more does not fit, and is an error
	if enc == wire.Slot {
		dst, err = image.DecodeSlot(dst, data, n)
	} else {
		dst, err = a.dec.DecodeAll(data, dst)
	}
	if err != nil {
		return nil, err
	}
	if len(dst) != n {
		return nil, fmt.Errorf("%d bytes where %d were due", len(dst), n)
	}
	return dst, nil
}

func (a *applier) block(m *wire.Block) error {
	e := a.g.Block(m.Index)
	data, err := a.decode(m.Encoding, m.Data, int(e.Length))
	if err != nil {
		return fmt.Errorf("the source sent block %d, and it cannot be unpacked: %w", m.Index, err)
	}
	leaf := merkle.Leaf(data)
	a.n.hashed.Add(e.Length)
	if leaf != m.Leaf || leaf.IsZero() {
		return fmt.Errorf("the source sent block %d, and it arrived damaged (its leaf is %v, not %v)", m.Index, leaf, m.Leaf)
	}
	b := image.Block{Index: m.Index, Leaf: leaf, Data: data}
	if m.Encoding == wire.Slot && a.accept.Slots {
		b.Slot = m.Data
	}
	if err := a.img.Put(b); err != nil {
		return fmt.Errorf("writing the target: %w", err)
	}
	return a.written(m.Index, leaf)
}

func (a *applier) patch(ctx context.Context, m *wire.Patch) error {
	total := 0
	for _, b := range m.Blocks {
		a.eachPage(b, func(page merkle.Extent) { total += int(page.Length) })
	}
	if total > wire.MaxPayload {
		return fmt.Errorf("the source sent a patch of %d bytes", total)
	}
	pages, err := a.decode(m.Encoding, m.Data, total)
	if err != nil {
		return fmt.Errorf("the source sent a patch that cannot be unpacked: %w", err)
	}
	for _, b := range m.Blocks {
		if pages, err = a.patchBlock(ctx, b, pages); err != nil {
			return err
		}
	}
	return nil
}

// eachPage calls do with the place in the block of every page of a patch.
func (a *applier) eachPage(b wire.PatchedBlock, do func(merkle.Extent)) {
	for p := range a.g.Pages(b.Index) {
		if b.Pages[p/8]>>(p%8)&1 == 1 {
			do(a.g.Page(b.Index, p))
		}
	}
}

// patchBlock puts pages into a block and returns what is left of them. The leaf
// judges the result before anything is written.
func (a *applier) patchBlock(ctx context.Context, b wire.PatchedBlock, pages []byte) ([]byte, error) {
	block, err := a.read(b.Index)
	if err != nil && unreadable(b.Index, err) == nil {
		a.eachPage(b, func(page merkle.Extent) { pages = pages[page.Length:] })
		return pages, a.refetch(ctx, b)
	}
	if err != nil {
		return nil, err
	}
	var changed []merkle.Extent // neighbours joined
	a.eachPage(b, func(page merkle.Extent) {
		pages = pages[copy(block[page.Offset:page.End()], pages):]
		if n := len(changed); n > 0 && changed[n-1].End() == page.Offset {
			changed[n-1].Length += page.Length
		} else {
			changed = append(changed, page)
		}
	})
	leaf := merkle.Leaf(block)
	a.n.hashed.Add(int64(len(block)))
	if leaf != b.Leaf {
		return pages, a.refetch(ctx, b)
	}
	if err := a.img.Put(image.Block{Index: b.Index, Leaf: leaf, Data: block, Changed: changed}); err != nil {
		return nil, fmt.Errorf("writing the target: %w", err)
	}
	return pages, a.written(b.Index, leaf)
}

// refetch asks for a block again. It stays pending until it comes.
func (a *applier) refetch(ctx context.Context, b wire.PatchedBlock) error {
	a.mu.Lock()
	a.regions[b.Index/merkle.RegionBlocks].again.set(b.Index, true)
	a.mu.Unlock()
	return a.link.sendUrgent(ctx, &wire.Refetch{Index: b.Index, Leaf: b.Leaf})
}
