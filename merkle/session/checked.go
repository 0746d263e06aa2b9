package session

import (
	"io"
	"sync"

	"github.com/diskrsync/diskrsync/merkle"
)

// A checkedSource is an image whose hashes are stored in blocks of another size
// than those of the session. They save no reading then, but what is read is still
// compared with them, so that damage does not travel.
type checkedSource struct {
	Source
	own     tree      // in the blocks that the hashes are stored of
	buffers sync.Pool // of *[]byte
}

// checked returns img as it is to be read in blocks of a size.
func checked(img Source, blockSize int) (Source, error) {
	bs := img.BlockSize()
	if bs == 0 || bs == blockSize {
		return img, nil // what is read is judged as it is
	}
	g, err := merkle.NewGeometry(img.Size(), bs)
	if err != nil {
		return nil, err
	}
	return &checkedSource{Source: img, own: tree{g, img, img.Hashes(bs)}}, nil
}

// ReadAt reads all of the blocks that p touches, and compares them.
func (c *checkedSource) ReadAt(p []byte, off int64) (int, error) {
	if c.own.hashes == nil || off < 0 || off > c.Size()-int64(len(p)) {
		return c.Source.ReadAt(p, off)
	}
	bs := int64(c.own.g.BlockSize())
	run := &merkle.Run{First: off / bs}
	run.Count = (off+int64(len(p))+bs-1)/bs - run.First
	span := c.own.g.Span(run.First, run.Count)
	buf, ok := c.buffers.Get().(*[]byte)
	if !ok || int64(cap(*buf)) < span.Length {
		fresh := make([]byte, span.Length)
		buf = &fresh
	}
	defer c.buffers.Put(buf)
	run.Data = (*buf)[:span.Length]
	if _, err := c.Source.ReadAt(run.Data, span.Offset); err != nil {
		return 0, err
	}
	run.Leaves = c.own.g.Leaves(run)
	if err := c.own.judge(run); err != nil {
		if now := c.Changed(); now != nil {
			return 0, changed(" (" + now.Error() + ")")
		}
		return 0, err
	}
	return copy(p, run.Data[off-span.Offset:]), nil
}

// NextData also returns what is stored as data, though it may have become a hole.
func (c *checkedSource) NextData(off int64) (merkle.Extent, error) {
	e, err := c.Source.NextData(off)
	if err != nil && err != io.EOF || c.own.hashes == nil {
		return e, err
	}
	end := c.Size()
	if err == nil {
		end = e.Offset
	}
	region := int64(c.own.g.BlockSize()) * merkle.RegionBlocks
	for i := off / region; i*region < end; i++ {
		if root, ok := c.own.root(i); ok && !root.IsZero() {
			stored := c.own.g.Span(i*merkle.RegionBlocks, merkle.RegionBlocks)
			from := max(off, stored.Offset)
			return merkle.Extent{Offset: from, Length: stored.End() - from}, nil
		}
	}
	return e, err
}
