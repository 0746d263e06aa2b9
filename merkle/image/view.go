package image

import (
	"errors"
	"io"
	"io/fs"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

// A Sight is an image file that lies where only reading is possible, such as in an
// object store, as far as it can be seen.
type Sight struct {
	Path     string // for messages
	File     io.ReaderAt
	Size     int64 // of the file
	Modified time.Time
	Choice   Choice

	// Outboard, if set, has what is stored of the hashes, and Head is its first page.
	// That it is about this file, and whole, is for the caller to find out.
	Outboard io.ReaderAt
	Head     merkle.Outboard

	Checksum bool // believe no stored hashes
	Force    bool // open an image that has bad blocks
}

// View opens an image that is seen from afar. Nothing is known of its holes; whether
// it changes is for the caller to find out. It must not be used when what it is read
// from is gone. The error matches ErrIncomplete if there are bad blocks.
func View(s Sight) (Image, error) {
	info := viewedInfo{s.Size, s.Modified}
	d, err := newDisk(viewedFile{s.File, info}, s.Path)
	if err != nil {
		return nil, err
	}
	v := &reader{store: &store{path: s.Path}, opts: Options{Choice: s.Choice, Checksum: s.Checksum, Force: s.Force}, disk: d}
	if s.Outboard != nil {
		g, err := merkle.NewGeometry(s.Head.Size, s.Head.BlockSize)
		if err != nil {
			return nil, err
		}
		// What is read of it is checked against the root of its region, and the
		// roots not at all: to read them all for a look at one block takes long.
		v.tree = &tree{f: viewedFile{s.Outboard, info}, path: s.Path, g: g, head: s.Head, have: -1}
	}
	v.describe()
	if err := v.checkState(); err != nil {
		return nil, err
	}
	return v, v.openContent()
}

// viewedFile is a file of which nothing but the content is known.
type viewedFile struct {
	io.ReaderAt
	info viewedInfo
}

func (v viewedFile) Stat() (fs.FileInfo, error)                { return v.info, nil }
func (v viewedFile) Close() error                              { return nil }
func (v viewedFile) Sync() error                               { return errors.ErrUnsupported }
func (v viewedFile) Truncate(int64) error                      { return errors.ErrUnsupported }
func (v viewedFile) WriteAt([]byte, int64) (int, error)        { return 0, errors.ErrUnsupported }
func (v viewedFile) NextData(int64) (e merkle.Extent, _ error) { return e, errors.ErrUnsupported }
func (v viewedFile) Zero(_, _ int64) error                     { return errors.ErrUnsupported }
func (v viewedFile) Lock(lockMode) (bool, error)               { return false, errors.ErrUnsupported }
func (v viewedFile) SetModified(time.Time) error               { return errors.ErrUnsupported }
func (v viewedFile) Allocated() (int64, error)                 { return v.info.size, nil }
func (v viewedFile) Identity() Identity                        { return Identity{} }
func (v viewedFile) Inode() uint64                             { return 0 }
func (v viewedFile) Writes() (uint64, error)                   { return 0, errors.ErrUnsupported }
func (v viewedFile) DeviceName() (string, error)               { return "", errors.ErrUnsupported }
func (v viewedFile) Device() (size, sector int64, err error)   { return 0, 0, errors.ErrUnsupported }

// viewedInfo describes a viewedFile.
type viewedInfo struct {
	size     int64
	modified time.Time
}

func (v viewedInfo) Name() string       { return "" }
func (v viewedInfo) Size() int64        { return v.size }
func (v viewedInfo) Mode() fs.FileMode  { return 0 }
func (v viewedInfo) ModTime() time.Time { return v.modified }
func (v viewedInfo) IsDir() bool        { return false }
func (v viewedInfo) Sys() any           { return nil }
