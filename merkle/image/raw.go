package image

import (
	"fmt"
	"io"

	"github.com/diskrsync/diskrsync/merkle"
)

// flat is content that lies on the disk as it is: a raw file or a device.
type flat struct {
	*disk
	length int64
}

func (r *flat) Size() int64       { return r.length }
func (r *flat) BlockSize() int    { return 0 }
func (r *flat) resize(size int64) { r.length = size }

func (r *flat) ReadAt(p []byte, off int64) (int, error) {
	n, err := clip(p, off, r.length)
	if n == 0 {
		return 0, err
	}
	if err := r.readFull(p[:n], off); err != nil {
		return 0, err
	}
	return n, err
}

func (r *flat) NextData(off int64) (merkle.Extent, error) {
	if off < 0 {
		return merkle.Extent{}, fmt.Errorf("image %s: negative offset %d", r.path, off)
	}
	if off >= r.length {
		return merkle.Extent{}, io.EOF
	}
	e, err := r.nextData(off)
	if err != nil {
		return merkle.Extent{}, err
	}
	return cut(e, off, r.length)
}

func (r *flat) WriteAt(p []byte, off int64) (int, error) {
	if err := within(r.path, off, int64(len(p)), r.length); err != nil {
		return 0, err
	}
	return r.writeAt(p, off)
}

func (r *flat) Punch(off, length int64) error {
	if err := within(r.path, off, length, r.length); err != nil {
		return err
	}
	return r.zero(off, off+length)
}

func (r *flat) settle() error {
	if r.device {
		return nil // what lies behind the content is not ours
	}
	return r.truncate(r.length)
}

// clip returns how much of p can be read at off, with io.EOF if not all of it.
func clip(p []byte, off, size int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("negative offset %d", off)
	}
	if rest := max(0, size-off); int64(len(p)) > rest {
		return int(rest), io.EOF
	}
	return len(p), nil
}

// cut returns the part of e from off up to end, io.EOF if there is none.
func cut(e merkle.Extent, off, end int64) (merkle.Extent, error) {
	from, to := max(e.Offset, off), min(e.End(), end)
	if from >= to {
		return merkle.Extent{}, io.EOF
	}
	return merkle.Extent{Offset: from, Length: to - from}, nil
}

// within checks that length bytes at off lie in the content.
func within(path string, off, length, size int64) error {
	if off < 0 || length < 0 || off > size || length > size-off {
		return fmt.Errorf("image %s: %d bytes at offset %d do not lie within its %d bytes", path, length, off, size)
	}
	return nil
}
