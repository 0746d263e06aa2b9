package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/fserrors"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
)

// A Reader reads a part of an image from front to back, without asking the disk for
// what is known to be a hole.
type Reader struct {
	ctx      context.Context
	img      image.Image
	pos, end int64
	data     merkle.Extent // the next that is not a hole: from pos up to it there is none
	blocks   *blocks
	changed  func() error
	close    func() error
}

// Open reads what options ask for of an image of this machine that has so many bytes, or
// more if it is only the first of them that are wanted.
func (s Source) Open(ctx context.Context, o any, size int64, part bool, options []fs.OpenOption) (io.ReadCloser, error) {
	place, err := s.Locate()
	if err != nil {
		return nil, err
	}
	img, err := image.Open(place, s.options())
	if err != nil {
		return nil, Classify(errors.Join(err, place.Close()))
	}
	if now := img.Size(); now < size || now > size && !part {
		return nil, errors.Join(fmt.Errorf("%s: has %d bytes now and had %d when it was found", s.Path, now, size), img.Close(), place.Close())
	}
	return NewReader(ctx, o, img, size, img.Changed, place.Close, options)
}

// NewReader reads what options ask for of an object of so many bytes, which are the
// first of img. Where hashes of it are stored, whatever is read is compared with them,
// by whole blocks: damage does not pass for content. At the end of them it asks changed
// whether what was read is a mixture. Close closes img, and calls the function that is
// given.
func NewReader(ctx context.Context, o any, img image.Image, size int64, changed, close func() error, options []fs.OpenOption) (io.ReadCloser, error) {
	blocks, err := newBlocks(img)
	if err != nil {
		return nil, errors.Join(err, img.Close(), close())
	}
	r := &Reader{ctx: ctx, img: img, blocks: blocks, changed: changed, close: close}
	r.pos, r.end = extent(o, size, options)
	r.data = merkle.Extent{Offset: r.pos} // of which nothing is known yet
	return r, nil
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
	n, err := r.blocks.ReadAt(p, r.pos)
	r.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, r.lasting(err)
}

func (r *Reader) findData() error {
	from := r.blocks.floor(r.pos)
	data, err := r.img.NextData(from)
	if err == io.EOF {
		data, err = merkle.Extent{Offset: r.end}, nil
	}
	if err == nil {
		r.data = r.blocks.cover(data)
		wanted := r.blocks.cover(merkle.Extent{Offset: from, Length: r.end - from})
		err = r.blocks.judgeHole(from, min(r.data.Offset, wanted.End()))
	}
	return r.lasting(err)
}

// ended returns io.EOF, unless the image has changed.
func (r *Reader) ended() error {
	if err := r.changed(); err != nil {
		return r.lasting(err)
	}
	return io.EOF
}

// lasting marks an error that does not go away by opening the image again and going on
// behind the place where it was noticed: it has changed, or is damaged.
func (r *Reader) lasting(err error) error {
	if errors.Is(err, session.ErrStored) {
		if now := r.changed(); now != nil {
			err = now // and so no wonder
		}
	}
	switch {
	case errors.Is(err, image.ErrChanged):
		return fserrors.NoLowLevelRetryError(err)
	case errors.Is(err, session.ErrStored), errors.As(err, new(*image.CorruptError)):
		return fserrors.NoRetryError(fserrors.NoLowLevelRetryError(err))
	}
	return err
}

// Close implements io.Closer.
func (r *Reader) Close() error { return errors.Join(r.img.Close(), r.close()) }
