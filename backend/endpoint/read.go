package endpoint

import (
	"context"
	"errors"
	"io"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/fserrors"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
)

// A Reader reads a part of an image from front to back, without asking the disk for
// what is known to be a hole.
type Reader struct {
	ctx      context.Context
	img      image.Image
	size     int64 // of the object
	pos, end int64
	data     merkle.Extent // the next that is not a hole: from pos up to it there is none
	changed  func() error
	close    func() error
}

// NewReader reads what options ask for of an object of so many bytes, which are the
// first of img. At the end of them it asks changed whether what was read is a
// mixture. Close closes img, and calls the function that is given.
func NewReader(ctx context.Context, o any, img image.Image, size int64, changed, close func() error, options []fs.OpenOption) *Reader {
	r := &Reader{ctx: ctx, img: img, size: size, changed: changed, close: close}
	r.pos, r.end = extent(o, size, options)
	r.data = merkle.Extent{Offset: r.pos} // of which nothing is known yet
	return r
}

// extent returns from where to where options ask to read, within the size.
func extent(o any, size int64, options []fs.OpenOption) (from, to int64) {
	length := int64(-1)
	for _, option := range options {
		switch x := option.(type) {
		case *fs.SeekOption:
			from, length = x.Offset, -1
		case *fs.RangeOption:
			from, length = x.Decode(size)
		default:
			if option.Mandatory() {
				fs.Logf(o, "Unsupported mandatory option: %v", option)
			}
		}
	}
	from = min(max(from, 0), size)
	if length < 0 || length > size-from {
		length = size - from
	}
	return from, from + length
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.pos >= r.end {
		return 0, r.ended()
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.pos >= r.data.End() {
		if err := r.findData(); err != nil {
			return 0, err
		}
	}
	p = p[:min(int64(len(p)), r.end-r.pos)]
	if hole := r.data.Offset - r.pos; hole > 0 {
		n := int(min(int64(len(p)), hole))
		clear(p[:n])
		r.pos += int64(n)
		return n, nil
	}
	p = p[:min(int64(len(p)), r.data.End()-r.pos)]
	n, err := r.img.ReadAt(p, r.pos)
	r.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, lasting(err)
}

func (r *Reader) findData() error {
	var err error
	r.data, err = r.img.NextData(r.pos)
	if err == io.EOF {
		r.data, err = merkle.Extent{Offset: r.end}, nil
	}
	return lasting(err)
}

// ended returns io.EOF, unless the image has changed.
func (r *Reader) ended() error {
	if err := r.changed(); err != nil {
		return lasting(err)
	}
	return io.EOF
}

// lasting marks an error about an image that has changed as one that does not go
// away by opening it again and going on behind the place where it was noticed.
func lasting(err error) error {
	if errors.Is(err, image.ErrChanged) {
		return fserrors.NoLowLevelRetryError(err)
	}
	return err
}

// Close implements io.Closer.
func (r *Reader) Close() error { return errors.Join(r.img.Close(), r.close()) }
