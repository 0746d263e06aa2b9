package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"

	"github.com/diskrsync/diskrsync/merkle"
)

const (
	// grain is what is punched in: a multiple of the block size of every usual
	// file system. What sticks out at either end is overwritten with zeros,
	// since not every kernel and file server does that part of punching right.
	grain = 4096

	// zeroBuffer is the size of one write where zeros must be written.
	zeroBuffer = 1 << 20
)

// A disk is an open file or device: reads and writes at offsets, and what the
// kernel knows of holes. The offset of the file itself is never relied upon, so
// all methods may be called by many goroutines at once.
type disk struct {
	f      file
	path   string      // for messages
	info   fs.FileInfo // when it was opened
	device bool
	held   int64 // bytes when it was opened; only truncate may take them away
	align  int64 // what can be zeroed without writing, a multiple of grain

	// Set as soon as the file system has turned out not to know how.
	noSeek, noPunch atomic.Bool
}

func newDisk(f file, path string) (*disk, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", path, cause(err))
	}
	d := &disk{f: f, path: path, info: info, align: grain, held: info.Size()}
	if info.Mode().IsRegular() {
		return d, nil
	}
	d.device = true
	d.noSeek.Store(true)
	var sector int64
	if d.held, sector, err = f.Device(); err != nil {
		return nil, fmt.Errorf("image %s: finding the size of the device: %w", path, cause(err))
	}
	d.align = max(grain, sector)
	return d, nil
}

// readFull fills p from off. What lies behind the end of the file, and never
// was there, reads as zeros.
func (d *disk) readFull(p []byte, off int64) error {
	n, err := d.f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return d.fail("reading", off+int64(n), err)
	}
	if n < len(p) && off+int64(n) < d.held {
		return refuse(ErrChanged, "image %s: changed while it was read: it had %d bytes and has lost the end of them: sync from a snapshot, or stop what writes to it",
			d.path, d.held)
	}
	clear(p[n:])
	return nil
}

func (d *disk) writeAt(p []byte, off int64) (int, error) {
	n, err := d.f.WriteAt(p, off)
	if err != nil {
		return n, d.fail("writing", off+int64(n), err)
	}
	return n, nil
}

// size returns how long the file is now.
func (d *disk) size() (int64, error) {
	if d.device {
		return d.held, nil
	}
	info, err := d.f.Stat()
	if err != nil {
		return 0, fmt.Errorf("image %s: finding its size: %w", d.path, cause(err))
	}
	return info.Size(), nil
}

// nextData is merkle.Source.NextData for the file: the first extent at or behind
// off that is not a hole, or io.EOF.
func (d *disk) nextData(off int64) (merkle.Extent, error) {
	if !d.noSeek.Load() {
		e, err := d.f.NextData(off)
		if err == nil || err == io.EOF {
			return e, err
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return e, d.fail("looking for data", off, err)
		}
		d.noSeek.Store(true)
	}
	size, err := d.size()
	if err != nil {
		return merkle.Extent{}, err
	}
	if off >= size {
		return merkle.Extent{}, io.EOF
	}
	return merkle.Extent{Offset: off, Length: size - off}, nil
}

// holds reports whether there is data between off and end.
func (d *disk) holds(off, end int64) (bool, error) {
	if off >= end {
		return false, nil
	}
	e, err := d.nextData(off)
	if err == io.EOF {
		return false, nil
	}
	return e.Offset < end, err
}

// zero makes everything from off to end read as zeros, and gives the space back
// where the file system can. A file does not grow by it.
func (d *disk) zero(off, end int64) error {
	in := (off + d.align - 1) / d.align * d.align
	out := end / d.align * d.align
	if in >= out || d.noPunch.Load() {
		return d.writeZeros(off, end)
	}
	if err := d.release(in, out); errors.Is(err, errors.ErrUnsupported) {
		d.noPunch.Store(true)
		return d.writeZeros(off, end)
	} else if err != nil {
		return d.fail("zeroing", in, err)
	}
	if err := d.writeZeros(off, in); err != nil {
		return err
	}
	return d.writeZeros(out, end)
}

// release zeroes an aligned range without writing. The error matches
// errors.ErrUnsupported where that is not possible.
func (d *disk) release(off, end int64) error {
	if d.device {
		return d.f.Zero(off, end)
	}
	some, err := d.holds(off, end)
	if err != nil || !some {
		return err
	}
	return d.f.Zero(off, end)
}

// writeZeros writes zeros over the data from off to end. Holes stay holes.
func (d *disk) writeZeros(off, end int64) error {
	if off >= end {
		return nil
	}
	zeros := make([]byte, min(zeroBuffer, end-off))
	for off < end {
		e, err := d.nextData(off)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		stop := min(end, e.End())
		for off = e.Offset; off < stop; off += int64(len(zeros)) {
			if _, err := d.writeAt(zeros[:min(int64(len(zeros)), stop-off)], off); err != nil {
				return err
			}
		}
		off = max(stop, e.Offset)
	}
	return nil
}

// truncate gives a file its length. Behind it everything is zero when it grows
// again.
func (d *disk) truncate(size int64) error {
	now, err := d.size()
	if err != nil || now == size {
		return err
	}
	if err := d.f.Truncate(size); err != nil {
		return d.fail("setting its length", size, err)
	}
	d.held = min(d.held, size)
	return nil
}

func (d *disk) sync() error {
	if err := d.f.Sync(); err != nil {
		return fmt.Errorf("image %s: making it durable: %w", d.path, cause(err))
	}
	return nil
}

// lock takes a lock on the file itself, if the file system has such a thing.
func (d *disk) lock(how lockMode) (bool, error) { return d.f.Lock(how) }

func (d *disk) unlock() error {
	if _, err := d.f.Lock(unlocked); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("image %s: unlocking it: %w", d.path, cause(err))
	}
	return nil
}

func (d *disk) identity() Identity { return d.f.Identity() }

func (d *disk) allocated() (int64, error) {
	if d.device {
		return d.held, nil
	}
	n, err := d.f.Allocated()
	if err != nil {
		return 0, fmt.Errorf("image %s: finding its allocated size: %w", d.path, cause(err))
	}
	return n, nil
}

func (d *disk) fail(doing string, off int64, err error) error {
	return fmt.Errorf("image %s: %s at offset %d: %w", d.path, doing, off, spaceError(err))
}

// spaceError is cause, in words that say what to do about a full disk.
func spaceError(err error) error {
	if isFull(err) {
		return fmt.Errorf("no space left on its file system: %w", cause(err))
	}
	return cause(err)
}
