package image

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

// A folder is what the package needs of the file system: a folder that is held
// open, with the names in it and in the folders below. Everything that lies on
// the disk goes through it, so that a test can put a file system behind it that
// loses what was not synced.
//
// Names are separated by "/". Errors are as those of package os.
type folder interface {
	Lstat(name string) (fs.FileInfo, error)
	OpenFile(name string, flag int, perm fs.FileMode) (file, error)
	Mkdir(name string, perm fs.FileMode) error
	Link(oldname, newname string) error
	Rename(oldname, newname string) error
	Remove(name string) error

	// Names returns the names in a folder, in any order.
	Names(name string) ([]string, error)

	// Sync makes the names in a folder durable. Until then a crash may undo,
	// one by one, whatever was made, moved or removed there.
	Sync(name string) error

	// Same reports whether two descriptions are of one file.
	Same(a, b fs.FileInfo) bool

	// Free returns how many bytes there is space for.
	Free() (int64, error)

	Close() error
}

// A file is an open file or device. All methods but Close may be called by many
// goroutines at once.
type file interface {
	io.ReaderAt
	io.WriterAt
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	Close() error

	// Sync makes content and length durable. Until then a crash may undo any
	// part of what was written.
	Sync() error

	// NextData returns the first extent at or behind off that is not a hole,
	// io.EOF if there is none. The error matches errors.ErrUnsupported where
	// holes are not known.
	NextData(off int64) (merkle.Extent, error)

	// Zero makes an aligned range read as zeros without writing it, and gives
	// its space back where it can. The error matches errors.ErrUnsupported
	// where that is not possible.
	Zero(off, end int64) error

	// Lock takes a lock that goes with the file, or reports false where another
	// holds one that excludes it. It replaces the one that was taken before.
	Lock(how lockMode) (bool, error)

	// SetModified sets the modification time, as exactly as the system can.
	SetModified(t time.Time) error

	Allocated() (int64, error) // bytes on the disk
	Identity() Identity
	Inode() uint64

	// Writes returns a number that is another one as soon as anything has been
	// written to a block device, as far as the system can tell. The error
	// matches errors.ErrUnsupported if it cannot.
	Writes() (uint64, error)

	// DeviceName returns a name under which a block device can be found again.
	DeviceName() (string, error)

	// Device returns the size of a block device and of its logical sectors.
	Device() (size, sector int64, err error)
}

// A lockMode says what a lock excludes.
type lockMode int

const (
	unlocked  lockMode = iota
	shared             // excludes exclusive ones
	exclusive          // excludes all others
)

// osFolder is a folder of the real file system.
type osFolder struct{ *os.Root }

func (o osFolder) OpenFile(name string, flag int, perm fs.FileMode) (file, error) {
	f, err := o.Root.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (o osFolder) Names(name string) ([]string, error) {
	dir, err := o.Root.Open(name)
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	return names, errors.Join(err, dir.Close())
}

func (o osFolder) Sync(name string) error     { return syncFolder(o.Root, name) }
func (o osFolder) Same(a, b fs.FileInfo) bool { return os.SameFile(a, b) }
func (o osFolder) Free() (int64, error)       { return freeSpace(o.Root) }

// osFile is a file of the real file system.
type osFile struct{ *os.File }

func (o osFile) NextData(off int64) (merkle.Extent, error) { return seekData(o.File, off) }
func (o osFile) Lock(how lockMode) (bool, error)           { return lockFile(o.File, how) }
func (o osFile) SetModified(t time.Time) error             { return setModified(o.File, t) }
func (o osFile) Allocated() (int64, error)                 { return allocated(o.File) }
func (o osFile) Device() (size, sector int64, err error)   { return deviceSize(o.File) }
func (o osFile) Writes() (uint64, error)                   { return deviceWrites(o.File) }
func (o osFile) DeviceName() (string, error)               { return deviceName(o.File) }
func (o osFile) Inode() uint64                             { return inode(o.File) }

func (o osFile) Zero(off, end int64) error {
	info, err := o.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return zeroDevice(o.File, off, end)
	}
	return punchFile(o.File, off, end)
}

func (o osFile) Identity() Identity {
	info, err := o.Stat()
	if err != nil {
		return Identity{}
	}
	return identify(o.File, info)
}
