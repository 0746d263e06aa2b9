package endpoint

import (
	"io"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
)

// blocks reads an image by whole blocks, and compares each with what is stored of it.
// If it has none, because nothing is stored and it is no spgz image, it reads what it is
// asked for.
type blocks struct {
	img   image.Image
	g     merkle.Geometry
	whole bool                    // read by blocks
	judge func(*merkle.Run) error // of what nothing is stored of it says nothing

	held int64 // the block that buf has, -1 for none
	buf  []byte
}

func newBlocks(img image.Image) (*blocks, error) {
	b := &blocks{img: img, held: -1}
	bs := img.BlockSize()
	if bs == 0 {
		return b, nil
	}
	var err error
	if b.g, err = merkle.NewGeometry(img.Size(), bs); err != nil {
		return nil, err
	}
	b.whole, b.judge = true, session.Judge(b.g, img)
	return b, nil
}

// floor returns where the block begins that an offset is in.
func (b *blocks) floor(off int64) int64 {
	if !b.whole {
		return off
	}
	return off - off%int64(b.g.BlockSize())
}

// cover returns the whole blocks that an extent has a part of.
func (b *blocks) cover(e merkle.Extent) merkle.Extent {
	if !b.whole || e.Offset >= b.g.Size() {
		return e
	}
	from, end := b.floor(e.Offset), b.floor(e.End())
	if end < e.End() {
		end = min(b.g.Size(), end+int64(b.g.BlockSize()))
	}
	return merkle.Extent{Offset: from, Length: end - from}
}

// judgeHole compares blocks that are a hole, from the first one up to an offset, with
// what is stored of them.
func (b *blocks) judgeHole(from, end int64) error {
	if !b.whole || from >= end {
		return nil
	}
	first := from / int64(b.g.BlockSize())
	last := (min(end, b.g.Size()) - 1) / int64(b.g.BlockSize())
	return b.judge(&merkle.Run{First: first, Count: last - first + 1})
}

// ReadAt reads within one extent of data.
func (b *blocks) ReadAt(p []byte, off int64) (n int, err error) {
	if !b.whole {
		return b.img.ReadAt(p, off)
	}
	for n < len(p) && off+int64(n) < b.g.Size() {
		at := off + int64(n)
		if err := b.hold(at / int64(b.g.BlockSize())); err != nil {
			return n, err
		}
		n += copy(p[n:], b.buf[at-b.floor(at):])
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// hold reads a block.
func (b *blocks) hold(block int64) error {
	if block == b.held {
		return nil
	}
	b.held = -1
	e := b.g.Block(block)
	if int64(cap(b.buf)) < e.Length {
		b.buf = make([]byte, b.g.BlockSize())
	}
	b.buf = b.buf[:e.Length]
	if n, err := b.img.ReadAt(b.buf, e.Offset); int64(n) < e.Length {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if err := b.judge(&merkle.Run{First: block, Count: 1, Data: b.buf}); err != nil {
		return err
	}
	b.held = block
	return nil
}
