package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/diskrsync/diskrsync/merkle"
)

// Magic is what an spgz file begins with. So may any other.
const Magic = "SPGZ0001"

const (
	headerSize = 4096 // of the file, padding included
	headerUsed = len(Magic) + 4
	unit       = 4096 // what the header counts the size of a slot in

	minUnits = 3 // the smallest slot that the original makes
	maxUnits = (merkle.MaxBlockSize + 1) / unit

	// runBlocks bounds how many slots NextData looks at to make one extent of
	// neighbouring ones: each costs two system calls.
	runBlocks = 64

	// runBytes bounds what one read of slots takes, and so its buffer, unless
	// a single slot is larger.
	runBytes = 1 << 20
)

var (
	errNotSpgz   = errors.New("does not begin like an spgz image")
	errBadHeader = errors.New("spgz header that is not valid")
)

// slots is the content of an spgz file: block i lies in slot i, see FORMAT.md.
type slots struct {
	*disk
	blockSize int
	length    int64

	// corrupt is set if the last slot could not be decoded when the file was
	// opened, so that the length is a guess.
	corrupt error
	buffers sync.Pool // of *[]byte, see buffer
}

// checkBlockSize checks that slots of an spgz image can hold blockSize bytes.
func checkBlockSize(blockSize int) error {
	if units := (blockSize + 1) / unit; (blockSize+1)%unit != 0 || units < minUnits || units > maxUnits {
		return fmt.Errorf("spgz images have blocks of n*%d-1 bytes, n from %d to %d, not of %d", unit, minUnits, maxUnits, blockSize)
	}
	return nil
}

func encodeHeader(blockSize int) []byte {
	h := make([]byte, headerSize)
	copy(h, Magic)
	binary.LittleEndian.PutUint32(h[len(Magic):], uint32((blockSize+1)/unit))
	return h
}

// readHeader returns the block size of an spgz file. The error matches
// errNotSpgz if there is no such header at all and errBadHeader if it is wrong.
func readHeader(d *disk) (int, error) {
	h := make([]byte, min(headerSize, d.held))
	if err := d.readFull(h, 0); err != nil {
		return 0, err
	}
	if len(h) < headerUsed || string(h[:len(Magic)]) != Magic {
		return 0, fmt.Errorf("image %s: %w", d.path, errNotSpgz)
	}
	units := binary.LittleEndian.Uint32(h[len(Magic):])
	if units < minUnits || units > maxUnits {
		return 0, fmt.Errorf("image %s: %w: slots of %d times %d bytes, not %d to %d times",
			d.path, errBadHeader, units, unit, minUnits, maxUnits)
	}
	for _, b := range h[headerUsed:] {
		if b != 0 {
			return 0, fmt.Errorf("image %s: %w: it is not padded with zeros", d.path, errBadHeader)
		}
	}
	return int(units)*unit - 1, nil
}

// openAnySlots opens an spgz file. Only the last slot tells the size of the
// content: one that cannot be decoded counts as a full one, and is noted in
// corrupt.
func openAnySlots(d *disk) (*slots, error) {
	blockSize, err := readHeader(d)
	if err != nil {
		return nil, err
	}
	s := &slots{disk: d, blockSize: blockSize}
	whole, rest := max(0, d.held-headerSize)/s.slotSize(), max(0, d.held-headerSize)%s.slotSize()
	if whole > merkle.MaxSize/s.slotSize() {
		return nil, fmt.Errorf("image %s: is longer than an image can be", d.path)
	}
	s.length = whole * int64(blockSize)
	if rest == 0 {
		return s, nil
	}
	last := make([]byte, rest)
	if err := d.readFull(last, s.slot(whole)); err != nil {
		return nil, err
	}
	data, err := DecodeSlot(nil, last, blockSize)
	if err != nil {
		s.corrupt = s.corruptError(whole, err)
		s.length += int64(blockSize)
		return s, nil
	}
	s.length += int64(len(data))
	return s, nil
}

func (s *slots) Size() int64       { return s.length }
func (s *slots) BlockSize() int    { return s.blockSize }
func (s *slots) resize(size int64) { s.length = size }

func (s *slots) slotSize() int64 { return int64(s.blockSize) + 1 }

// slot returns where slot i begins in the file.
func (s *slots) slot(i int64) int64 { return headerSize + i*s.slotSize() }

// slotAt returns the slot that an offset in the file lies in.
func (s *slots) slotAt(off int64) int64 { return max(0, off-headerSize) / s.slotSize() }

// block returns the extent of block i of the content.
func (s *slots) block(i int64) merkle.Extent {
	off := i * int64(s.blockSize)
	return merkle.Extent{Offset: off, Length: min(int64(s.blockSize), s.length-off)}
}

func (s *slots) corruptError(block int64, err error) error {
	e := s.block(block)
	if e.Length <= 0 {
		e.Length = int64(s.blockSize)
	}
	return fmt.Errorf("image %s: %w", s.path, &CorruptError{Block: block, Extent: e, Err: err})
}

// buffer returns n bytes of any content, at most those of a run, and what gives
// them back.
func (s *slots) buffer(n int) ([]byte, func()) {
	p, ok := s.buffers.Get().(*[]byte)
	if !ok || cap(*p) < n {
		fresh := make([]byte, max(n, int(s.slotSize())))
		p = &fresh
	}
	return (*p)[:n], func() { s.buffers.Put(p) }
}

// runSlots returns how many slots are read at once.
func (s *slots) runSlots() int64 { return max(1, runBytes/s.slotSize()) }

// NextData maps the extents of the file to those of the content. A block is
// data if any part of its slot is.
func (s *slots) NextData(off int64) (merkle.Extent, error) {
	if off < 0 {
		return merkle.Extent{}, fmt.Errorf("image %s: negative offset %d", s.path, off)
	}
	if off >= s.length {
		return merkle.Extent{}, io.EOF
	}
	return s.nextRun(off, runBlocks)
}

// nextRun is NextData that looks at no more than limit slots where it can know
// the extent to be that long.
func (s *slots) nextRun(off, limit int64) (merkle.Extent, error) {
	first, end, err := s.nextSlots(off/int64(s.blockSize), limit)
	if err != nil {
		return merkle.Extent{}, err
	}
	e := merkle.Extent{Offset: first * int64(s.blockSize), Length: (end - first) * int64(s.blockSize)}
	return cut(e, off, s.length)
}

// nextSlots returns the first run of slots at or behind slot i that are not
// holes. Compressed slots have a hole each at their end, so the run goes on over
// those, until it has limit slots.
func (s *slots) nextSlots(i, limit int64) (first, end int64, err error) {
	e, err := s.nextData(s.slot(i))
	if err != nil {
		return 0, 0, err
	}
	first, end = s.slotAt(e.Offset), s.slotAt(e.End()-1)+1
	for end-first < limit {
		e, err := s.nextData(s.slot(end))
		if err == io.EOF || err == nil && s.slotAt(e.Offset) > end {
			break
		}
		if err != nil {
			return 0, 0, err
		}
		end = s.slotAt(e.End()-1) + 1
	}
	return first, end, nil
}

// ReadAt decodes the blocks that p touches. If one of them is corrupt it returns
// how much was read before that one, and an error that holds a *CorruptError.
func (s *slots) ReadAt(p []byte, off int64) (int, error) {
	n, eof := clip(p, off, s.length)
	p = p[:n]
	for done := 0; done < n; {
		pos := off + int64(done)
		e, err := s.nextRun(pos, s.runSlots())
		if err == io.EOF {
			clear(p[done:])
			break
		}
		if err != nil {
			return done, err
		}
		if hole := min(int64(n-done), e.Offset-pos); hole > 0 {
			clear(p[done : done+int(hole)])
			done += int(hole)
			continue
		}
		got, err := s.readRun(p[done:done+int(min(int64(n-done), e.Length))], pos)
		done += got
		if err != nil {
			return done, err
		}
	}
	return n, eof
}

// readRun reads the slots behind p, or as many of them as one read may take, and
// decodes them. It returns how much of p it has filled.
func (s *slots) readRun(p []byte, off int64) (int, error) {
	bs := int64(s.blockSize)
	first, last := off/bs, (off+int64(len(p))-1)/bs
	last = min(last, first+s.runSlots()-1)
	raw, done := s.buffer(int((last - first + 1) * s.slotSize()))
	defer done()
	if err := s.readFull(raw, s.slot(first)); err != nil {
		return 0, err
	}
	filled := 0
	for i := first; i <= last; i++ {
		slot := raw[(i-first)*s.slotSize():][:s.slotSize()]
		skip := int(off + int64(filled) - i*bs)
		part := p[filled:min(len(p), filled+s.blockSize-skip)]
		if err := s.decode(part, slot, skip); err != nil {
			return filled, s.corruptError(i, err)
		}
		filled += len(part)
	}
	return filled, nil
}

// decode fills p with what the block in slot has from skip on.
func (s *slots) decode(p, slot []byte, skip int) error {
	if slot[0] == flagRaw {
		copy(p, slot[1+skip:])
		return nil
	}
	if len(p) == s.blockSize {
		data, err := DecodeSlot(p[:0:len(p)], slot, s.blockSize)
		clear(p[len(data):])
		return err
	}
	block, done := s.buffer(s.blockSize)
	defer done()
	data, err := DecodeSlot(block[:0], slot, s.blockSize)
	if err != nil {
		return err
	}
	n := copy(p, data[min(skip, len(data)):])
	clear(p[n:])
	return nil
}
