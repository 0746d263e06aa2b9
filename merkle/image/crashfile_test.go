package image

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

// crashFile is an open file of a crashFS.
type crashFile struct {
	fs       *crashFS
	inode    uint64
	name     string
	writable bool
	closed   bool
}

// begin checks whether an operation may go on. The caller holds the lock.
func (f *crashFile) begin(op string, kind opKind) error {
	err := error(nil)
	switch {
	case f.closed:
		err = fs.ErrClosed
	case kind == opWrite && !f.writable:
		err = syscall.EBADF
	default:
		err = f.fs.fails(kind)
	}
	if err != nil {
		return crashError(op, f.name, err)
	}
	return nil
}

func (f *crashFile) node() *crashNode { return f.fs.now.nodes[f.inode] }

func (f *crashFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.begin("read", opRead); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, crashError("readat", f.name, errors.New("negative offset"))
	}
	n := f.node().read(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes a part of p if it has to fail, as disks do.
func (f *crashFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off < 0 {
		return 0, crashError("writeat", f.name, errors.New("negative offset"))
	}
	err := f.begin("write", opWrite)
	if errors.Is(err, fs.ErrClosed) || errors.Is(err, syscall.EBADF) {
		return 0, err
	}
	n := len(p)
	if err != nil {
		n /= 2
	} else if n = f.fits(p, off); n < len(p) {
		err = crashError("write", f.name, syscall.ENOSPC)
	}
	if n > 0 {
		f.fs.record(diskChange{kind: didWrite, inode: f.inode, off: off, data: append([]byte(nil), p[:n]...)})
	}
	return n, err
}

// fits returns how much of p there is space for.
func (f *crashFile) fits(p []byte, off int64) int {
	free := f.fs.free() / crashPage
	end := off + int64(len(p))
	for at := off; at < end; at = (at/crashPage + 1) * crashPage {
		if f.node().pages[at/crashPage] != nil {
			continue
		}
		if free == 0 {
			return int(at - off)
		}
		free--
	}
	return len(p)
}

func (f *crashFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.begin("truncate", opWrite); err != nil {
		return err
	}
	f.fs.record(diskChange{kind: didTruncate, inode: f.inode, size: size})
	return nil
}

func (f *crashFile) Zero(off, end int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.flat {
		return errors.ErrUnsupported
	}
	if err := f.begin("punch", opWrite); err != nil {
		return err
	}
	if off%crashPage != 0 || end%crashPage != 0 || off >= end {
		return crashError("punch", f.name, syscall.EINVAL)
	}
	f.fs.record(diskChange{kind: didPunch, inode: f.inode, off: off, end: end})
	return nil
}

func (f *crashFile) SetModified(t time.Time) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.begin("chtimes", opWrite); err != nil {
		return err
	}
	f.fs.record(diskChange{kind: didStamp, inode: f.inode, modified: t})
	return nil
}

// Sync makes the file durable. If it fails, what was written before will not be
// durable by a later Sync either: the kernel takes such pages for clean.
func (f *crashFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.begin("sync", opSync)
	switch {
	case err == nil:
		f.fs.log = append(f.fs.log, diskChange{kind: didSync, inode: f.inode})
	case !f.closed:
		f.fs.log = append(f.fs.log, diskChange{kind: failedSync, inode: f.inode})
	}
	return err
}

func (f *crashFile) NextData(off int64) (merkle.Extent, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.flat {
		return merkle.Extent{}, errors.ErrUnsupported
	}
	if err := f.begin("seek", opRead); err != nil {
		return merkle.Extent{}, err
	}
	n := f.node()
	at := off / crashPage
	for n.pages[at] == nil {
		if at++; at*crashPage >= n.size {
			return merkle.Extent{}, io.EOF
		}
	}
	end := at
	for n.pages[end] != nil {
		end++
	}
	from, to := max(off, at*crashPage), min(n.size, end*crashPage)
	if from >= to {
		return merkle.Extent{}, io.EOF
	}
	return merkle.Extent{Offset: from, Length: to - from}, nil
}

// Lock is that of flock: it belongs to the open file, and one that cannot be
// replaced is lost.
func (f *crashFile) Lock(how lockMode) (bool, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return false, crashError("flock", f.name, fs.ErrClosed)
	}
	delete(f.fs.locks, f)
	if how == unlocked {
		return true, nil
	}
	for other, held := range f.fs.locks {
		if other.inode == f.inode && (how == exclusive || held == exclusive) {
			return false, nil
		}
	}
	f.fs.locks[f] = how
	return true, nil
}

func (f *crashFile) Stat() (fs.FileInfo, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.begin("stat", opRead); err != nil {
		return nil, err
	}
	return f.fs.info(f.name, f.inode), nil
}

func (f *crashFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return crashError("close", f.name, fs.ErrClosed)
	}
	f.closed = true
	f.fs.open[f.inode]--
	delete(f.fs.locks, f)
	return nil
}

func (f *crashFile) Allocated() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.node().pages)) * crashPage, nil
}

func (f *crashFile) Identity() Identity { return f.fs.identity(f.inode) }
func (f *crashFile) Inode() uint64      { return f.inode }

func (f *crashFile) Writes() (uint64, error) { return 0, errors.ErrUnsupported }

func (f *crashFile) DeviceName() (string, error) { return "", errors.ErrUnsupported }

func (f *crashFile) Device() (size, sector int64, err error) {
	return 0, 0, crashError("ioctl", f.name, syscall.ENOTTY)
}
