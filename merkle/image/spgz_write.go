package image

import (
	"fmt"

	"github.com/dop251/spgz"
)

// WriteAt stores p at off. A block that p covers to its end in the content is
// stored without being read; of others the rest is read first, which fails with
// a *CorruptError where that cannot be done.
func (s *slots) WriteAt(p []byte, off int64) (int, error) {
	if err := within(s.path, off, int64(len(p)), s.length); err != nil {
		return 0, err
	}
	return s.eachBlock(off, int64(len(p)), func(i, skip, at, n int64) error {
		return s.writeBlock(i, skip, p[at:at+n])
	})
}

// eachBlock calls do for every block that length bytes at off touch: n bytes of
// block i from skip on, which are those from at on. It returns how far it came.
func (s *slots) eachBlock(off, length int64, do func(i, skip, at, n int64) error) (int, error) {
	bs := int64(s.blockSize)
	for at := int64(0); at < length; {
		i := (off + at) / bs
		skip := off + at - i*bs
		n := min(bs-skip, length-at)
		if err := do(i, skip, at, n); err != nil {
			return int(at), err
		}
		at += n
	}
	return int(length), nil
}

// writeBlock stores p in block i from skip on.
func (s *slots) writeBlock(i, skip int64, p []byte) error {
	if whole := s.block(i).Length; int64(len(p)) < whole {
		block, done := s.buffer(int(whole))
		defer done()
		if _, err := s.ReadAt(block, i*int64(s.blockSize)); err != nil {
			return err
		}
		copy(block[skip:], p)
		p = block
	}
	if spgz.IsBlockZero(p) {
		return s.zero(s.slot(i), s.slot(i+1))
	}
	slot, done := s.buffer(int(s.slotSize()))
	defer done()
	return s.writeSlot(i, EncodeSlot(slot[:0], p))
}

// writeSlot stores an encoded slot, with zeros up to the next unit so that no
// part of one must be read, and gives back what the slot before it took behind
// that. Nothing depends on the latter: what is behind a gzip member is ignored,
// and a raw slot is as long as any before it.
func (s *slots) writeSlot(i int64, slot []byte) error {
	n := (len(slot) + unit - 1) / unit * unit
	padded, done := s.buffer(n)
	defer done()
	clear(padded[copy(padded, slot):])
	if _, err := s.writeAt(padded, s.slot(i)); err != nil {
		return err
	}
	if s.noPunch.Load() {
		return nil
	}
	return s.zero(s.slot(i)+int64(n), s.slot(i+1))
}

// storeSlot is writeSlot for a slot that was encoded elsewhere.
func (s *slots) storeSlot(i int64, slot []byte) error {
	if i < 0 || i*int64(s.blockSize) >= s.length {
		return fmt.Errorf("image %s: there is no block %d", s.path, i)
	}
	if len(slot) == 0 {
		return s.zero(s.slot(i), s.slot(i+1))
	}
	if err := checkSlot(slot, s.block(i).Length, s.blockSize); err != nil {
		return fmt.Errorf("image %s: block %d: %w", s.path, i, err)
	}
	return s.writeSlot(i, slot)
}

// checkSlot checks what can be checked of the slot of a block of a length without
// decoding it. An empty slot is a block of zeros.
func checkSlot(slot []byte, length int64, blockSize int) error {
	switch {
	case len(slot) > blockSize+1:
		return fmt.Errorf("a slot of %d bytes, %d are the most", len(slot), blockSize+1)
	case len(slot) == 0, slot[0] == flagGzip:
	case slot[0] == flagRaw && int64(len(slot))-1 == length:
	case slot[0] == flagRaw:
		return fmt.Errorf("a slot with %d bytes for a block of %d", len(slot)-1, length)
	default:
		return fmt.Errorf("unknown slot flag %d", slot[0])
	}
	return nil
}

// Punch makes a range read as zeros. The slots of whole blocks become holes.
func (s *slots) Punch(off, length int64) error {
	if err := within(s.path, off, length, s.length); err != nil {
		return err
	}
	bs := int64(s.blockSize)
	first, last := (off+bs-1)/bs, (off+length)/bs // whole blocks
	if first > last {
		return s.clearPart(off, length) // within one block
	}
	if err := s.clearPart(off, first*bs-off); err != nil {
		return err
	}
	if err := s.zero(s.slot(first), s.slot(last)); err != nil {
		return err
	}
	return s.clearPart(last*bs, off+length-last*bs)
}

// clearPart writes zeros over a part of one block, or over a last block that is
// not a full one.
func (s *slots) clearPart(off, length int64) error {
	if length <= 0 {
		return nil
	}
	zeros := make([]byte, length)
	_, err := s.WriteAt(zeros, off)
	return err
}

// settle cuts the file so that it holds length bytes of content: behind the last
// slot if that one is full, else behind what makes it exactly as long as it must
// be. Blocks in front of it may be shorter in their slots, since those are
// extended with zeros by every reader.
func (s *slots) settle() error {
	bs := int64(s.blockSize)
	last, rest := s.length/bs, s.length%bs
	if rest == 0 {
		return s.truncate(s.slot(last))
	}
	slot, done := s.buffer(int(s.slotSize()))
	defer done()
	if err := s.readFull(slot, s.slot(last)); err != nil {
		return err
	}
	if slot[0] == flagRaw {
		return s.truncate(s.slot(last) + 1 + rest)
	}
	block, done2 := s.buffer(s.blockSize)
	defer done2()
	data, used, err := decodeSlot(block[:0], slot, s.blockSize)
	if err != nil {
		return s.corruptError(last, err)
	}
	if int64(len(data)) == rest && used < len(slot) {
		return s.truncate(s.slot(last) + int64(used))
	}
	return s.recut(last, block[:rest], len(data))
}

// recut stores the last block anew, of which n bytes are known and the rest
// is zero, and cuts the file behind it.
func (s *slots) recut(last int64, block []byte, n int) error {
	clear(block[min(n, len(block)):])
	slot := EncodeSlot(nil, block)
	if slot == nil {
		if err := s.zero(s.slot(last), s.slot(last+1)); err != nil {
			return err
		}
		return s.truncate(s.slot(last) + 1 + int64(len(block)))
	}
	if err := s.writeSlot(last, slot); err != nil {
		return err
	}
	return s.truncate(s.slot(last) + int64(len(slot)))
}
