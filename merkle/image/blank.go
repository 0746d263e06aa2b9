package image

import (
	"io"

	"github.com/diskrsync/diskrsync/merkle"
)

// blank is the content of an image that does not exist yet: one hole.
type blank struct{ length int64 }

func (b *blank) Size() int64       { return b.length }
func (b *blank) BlockSize() int    { return 0 }
func (b *blank) resize(size int64) { b.length = size }

func (b *blank) ReadAt(p []byte, off int64) (int, error) {
	n, err := clip(p, off, b.length)
	clear(p[:n])
	return n, err
}

func (b *blank) NextData(int64) (merkle.Extent, error) { return merkle.Extent{}, io.EOF }

func (b *blank) WriteAt([]byte, int64) (int, error) { return 0, errNotBegun }
func (b *blank) Punch(int64, int64) error           { return errNotBegun }
func (b *blank) settle() error                      { return errNotBegun }
