package image

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/dop251/spgz"

	"github.com/diskrsync/diskrsync/merkle"
)

// startRecording makes the journal, if there is none to go on with. For an image
// that is changed in place this is what marks it as incomplete.
func (t *Target) startRecording() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rec != nil || t.store.root == nil {
		return nil
	}
	if t.j == nil || t.way == wayInPlace {
		if err := t.makeJournal(); err != nil {
			return err
		}
	}
	// What an earlier run has not made durable must never come back.
	if err := t.j.cutTail(); err != nil {
		return err
	}
	var base func() error
	if t.way == wayNew {
		base = t.disk.sync
	}
	t.rec = newRecorder(t.j, t.g.Size(), base)
	if t.view != nil && t.way != wayInPlace {
		t.view.record(t.rec)
	}
	t.startFlushing()
	return nil
}

func (t *Target) makeJournal() error {
	if err := t.store.makeFolder(); err != nil {
		return err
	}
	state, err := t.store.base(t.disk)
	if err != nil {
		return err
	}
	if err := t.j.close(); err != nil {
		return fmt.Errorf("image %s: closing its journal: %w", t.place.path, cause(err))
	}
	t.j, err = t.store.createJournal(journalHeader{Way: t.way, BlockSize: t.g.BlockSize(), Format: t.format, ID: rand.Uint64(),
		Base: state, Content: t.held, Started: time.Now().UnixNano()})
	return err
}

// create makes the partial file of a new image.
func (t *Target) create(blockSize int) error {
	f, err := t.store.root.OpenFile(t.store.file(KindPartial), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("image %s: creating its partial file: %w", t.place.path, spaceError(err))
	}
	if t.disk, err = newDisk(f, t.place.path); err != nil {
		return errors.Join(err, f.Close())
	}
	if t.format == Raw {
		t.body = &flat{disk: t.disk}
		return nil
	}
	t.body = &slots{disk: t.disk, blockSize: blockSize}
	_, err = t.disk.writeAt(encodeHeader(blockSize), 0)
	return err
}

// sweep makes holes of all blocks of the partial file that nothing is known of:
// they were on their way when the earlier run was cut off, and whatever they are
// must not be taken for the zeros that the source may have there.
func (t *Target) sweep() error {
	bs := int64(t.g.BlockSize())
	for off := int64(0); ; {
		e, err := t.body.NextData(off)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for block := e.Offset / bs; block*bs < e.End(); block++ {
			known, err := t.j.find(t.j.batches, false, block)
			if err != nil {
				return err
			}
			if known.kind == 0 {
				span := t.g.Block(block)
				if err := t.body.Punch(span.Offset, span.Length); err != nil {
					return err
				}
			}
		}
		off = (e.End() + bs - 1) / bs * bs
	}
}

func (t *Target) put(b *Block) error {
	if err := t.startRecording(); err != nil {
		return err
	}
	if err := t.checkSlot(b); err != nil {
		return err
	}
	if t.way == wayInPlace {
		return t.store1(b)
	}
	e := entry{index: b.Index, hash: b.Leaf}
	before, err := t.j.find(t.rec.old, false, b.Index)
	if err != nil {
		return err
	}
	if t.way == wayNew && before.kind == 0 {
		if len(b.Data) < t.g.BlockSize() && len(b.Slot) == t.g.BlockSize()+1 {
			b.Slot = nil // it would have to be stored anew when the file is cut
		}
		return t.rec.hold(e, int64(len(b.Data)), func() error { return t.store1(b) })
	}
	switch {
	case t.format == Spgz:
		slot := b.Slot
		if slot == nil {
			slot = EncodeSlot(nil, b.Data)
		}
		if slot == nil {
			return t.rec.zeros(b.Index, 1)
		}
		e.kind = entrySlot
		return t.rec.add(e, slot)
	case before.kind == 0 && worthPages(b):
		e.kind = entryPages
		return t.rec.add(e, encodeExtents(b.Data, b.Changed))
	}
	e.kind = entryPlain
	return t.rec.add(e, b.Data)
}

// worthPages reports whether what has changed of a block takes less than the block.
func worthPages(b *Block) bool {
	n := 4
	for _, x := range b.Changed {
		n += pagesExtent + int(x.Length)
	}
	return len(b.Changed) > 0 && len(b.Changed) <= maxExtents && n < len(b.Data)
}

// checkSlot checks what can be checked of a slot without decoding it.
func (t *Target) checkSlot(b *Block) error {
	if b.Slot == nil {
		if want := t.g.Block(b.Index).Length; int64(len(b.Data)) != want {
			return fmt.Errorf("image %s: block %d: %d bytes for a block of %d", t.place.path, b.Index, len(b.Data), want)
		}
		return nil
	}
	if t.format != Spgz {
		return fmt.Errorf("image %s: block %d: a %s image has no slots", t.place.path, b.Index, t.format)
	}
	if err := checkSlot(b.Slot, t.g.Block(b.Index).Length, t.g.BlockSize()); err != nil {
		return fmt.Errorf("image %s: block %d: %w", t.place.path, b.Index, err)
	}
	return nil
}

// store1 writes a block into the base.
func (t *Target) store1(b *Block) error {
	off := b.Index * int64(t.g.BlockSize())
	s, isSlots := t.body.(*slots)
	switch {
	case isSlots && b.Slot != nil:
		return s.storeSlot(b.Index, b.Slot)
	case isSlots || len(b.Changed) == 0:
		if spgz.IsBlockZero(b.Data) {
			return t.body.Punch(off, int64(len(b.Data)))
		}
		_, err := t.body.WriteAt(b.Data, off)
		return err
	}
	for _, x := range b.Changed {
		if _, err := t.body.WriteAt(b.Data[x.Offset:x.End()], off+x.Offset); err != nil {
			return err
		}
	}
	return nil
}

func (t *Target) punch(first, count int64) error {
	if count == 0 {
		return nil
	}
	if err := t.startRecording(); err != nil {
		return err
	}
	if t.way == wayInPlace {
		e := t.g.Span(first, count)
		return t.body.Punch(e.Offset, e.Length)
	}
	if t.way == wayNew && len(t.rec.old) == 0 {
		return nil // it is a hole already
	}
	return t.rec.zeros(first, count)
}

func (t *Target) settle(region int64, leaves []merkle.Hash) error {
	if t.store.noTree {
		return nil
	}
	if t.anew && merkle.AllZero(leaves) {
		// What is not recorded counts as zeros, unless it once was recorded.
		t.mu.Lock()
		rec := t.rec
		t.mu.Unlock()
		if rec == nil {
			return nil
		}
		known, err := rec.findRegion(region)
		if err != nil || known.kind == 0 {
			return err
		}
	}
	if err := t.startRecording(); err != nil {
		return err
	}
	if t.rec == nil {
		return nil // there is nowhere to store it
	}
	if leaves == nil {
		leaves = make([]merkle.Hash, t.g.RegionLen(region))
	}
	e := entry{kind: entryRegion, index: region, hash: merkle.RegionRoot(leaves)}
	return t.rec.add(e, merkle.EncodeLeaves(leaves))
}
