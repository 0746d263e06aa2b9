package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/diskrsync/diskrsync/merkle"
)

// An overlay is the content that an image has with what lies in its journal.
type overlay struct {
	base content // may be shorter: what is behind its end is zeros
	size int64
	top  atomic.Pointer[layer] // nil if there is nothing but the base
}

// A layer is what a journal has about blocks.
type layer struct {
	j    *journal
	bs   int64
	find func(block int64) (entry, error)
	next func(block, limit int64) (int64, bool, error)
}

// over returns the content of base with some batches of j on top.
func over(base content, size int64, j *journal, batches []batch) *overlay {
	o := &overlay{base: base, size: size}
	if len(batches) > 0 {
		o.top.Store(&layer{j: j, bs: int64(j.head.BlockSize),
			find: func(block int64) (entry, error) { return j.find(batches, false, block) },
			next: func(block, limit int64) (int64, bool, error) { return j.next(batches, block, limit) }})
	}
	return o
}

// record makes the overlay show what r has, and will have.
func (o *overlay) record(r *recorder) {
	o.top.Store(&layer{j: r.j, bs: int64(r.j.head.BlockSize), find: r.find, next: r.next})
}

func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	n, eof := clip(p, off, o.size)
	if n == 0 {
		return 0, eof
	}
	top := o.top.Load()
	if top == nil {
		if n, err := o.readBase(p[:n], off); err != nil {
			return n, err
		}
		return n, eof
	}
	from := 0 // what is to be read from the base
	for done := 0; done < n; {
		pos := off + int64(done)
		block := pos / top.bs
		part := p[done:min(n, done+int((block+1)*top.bs-pos))]
		e, err := top.find(block)
		if err != nil {
			return 0, err
		}
		if e.kind != 0 && e.kind != entryHeld {
			if n, err := o.readBase(p[from:done], off+int64(from)); err != nil {
				return from + n, err
			}
			if err := o.fill(part, pos, top, &e); err != nil {
				return done, err
			}
			from = done + len(part)
		}
		done += len(part)
	}
	if n, err := o.readBase(p[from:n], off+int64(from)); err != nil {
		return from + n, err
	}
	return n, eof
}

// readBase fills p, or returns how much of it could be read.
func (o *overlay) readBase(p []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(p)), o.base.Size()-off)))
	clear(p[n:])
	if n > 0 {
		if n, err := o.base.ReadAt(p[:n], off); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// fill fills p, a part of one block, with what an entry says of it.
func (o *overlay) fill(p []byte, off int64, top *layer, e *entry) error {
	if e.kind == entryZeros {
		clear(p)
		return nil
	}
	if n := int64(len(p)); off+n > e.keep {
		cut := max(0, e.keep-off)
		clear(p[cut:])
		if p = p[:cut]; cut == 0 {
			return nil
		}
	}
	skip := int(off % top.bs)
	if e.kind == entryPages {
		if _, err := o.readBase(p, off); err != nil {
			return err
		}
	}
	payload, err := top.j.payload(e, nil)
	if err != nil && !errors.Is(err, errJournal) {
		return err
	}
	if err == nil && e.kind == entryPages {
		err = eachExtent(payload, func(at int, data []byte) error {
			if from := at - skip; from < len(p) && from+len(data) > 0 {
				copy(p[max(0, from):], data[max(0, -from):])
			}
			return nil
		})
	} else if err == nil {
		err = top.whole(p, skip, payload, e.kind)
	}
	if err != nil {
		block := off / top.bs
		lost := merkle.Extent{Offset: block * top.bs, Length: min(top.bs, o.size-block*top.bs)}
		return fmt.Errorf("image %s: %w", top.j.path, &CorruptError{Block: block, Extent: lost, Err: err})
	}
	return nil
}

func (l *layer) whole(p []byte, skip int, payload []byte, kind entryKind) error {
	var err error
	if kind == entrySlot {
		if payload, err = DecodeSlot(nil, payload, int(l.bs)); err != nil {
			return err
		}
	}
	n := copy(p, payload[min(skip, len(payload)):])
	clear(p[n:])
	return nil
}

func (o *overlay) NextData(off int64) (merkle.Extent, error) {
	if off < 0 {
		return merkle.Extent{}, fmt.Errorf("negative offset %d", off)
	}
	if off >= o.size {
		return merkle.Extent{}, io.EOF
	}
	e, err := o.base.NextData(off)
	if err != nil && err != io.EOF {
		return e, err
	}
	if err == io.EOF {
		e = merkle.Extent{Offset: o.size}
	}
	if top := o.top.Load(); top != nil {
		at, found, err := top.next(off/top.bs, (e.Offset+top.bs-1)/top.bs)
		if err != nil {
			return e, err
		}
		if found && at*top.bs < e.Offset {
			e = merkle.Extent{Offset: at * top.bs, Length: top.bs}
		}
	}
	return cut(e, off, o.size)
}

// encodeExtents makes the payload of an entry of kind pages.
func encodeExtents(block []byte, extents []merkle.Extent) []byte {
	p := binary.LittleEndian.AppendUint32(nil, uint32(len(extents)))
	for _, x := range extents {
		p = binary.LittleEndian.AppendUint32(p, uint32(x.Offset))
		p = binary.LittleEndian.AppendUint32(p, uint32(x.Length))
	}
	for _, x := range extents {
		p = append(p, block[x.Offset:x.End()]...)
	}
	return p
}

// eachExtent calls do for the extents of a payload of kind pages.
func eachExtent(p []byte, do func(at int, data []byte) error) error {
	if len(p) < 4 {
		return errJournal
	}
	n := binary.LittleEndian.Uint32(p) // which an int of 32 bits may not hold
	if n > maxExtents || len(p) < 4+int(n)*pagesExtent {
		return errJournal
	}
	data := p[4+int(n)*pagesExtent:]
	for i := range int(n) {
		at, length := binary.LittleEndian.Uint32(p[4+i*pagesExtent:]), binary.LittleEndian.Uint32(p[8+i*pagesExtent:])
		if at > merkle.MaxBlockSize || int64(length) > int64(len(data)) {
			return errJournal
		}
		if err := do(int(at), data[:length]); err != nil {
			return err
		}
		data = data[length:]
	}
	return nil
}
