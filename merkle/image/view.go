package image

import (
	"errors"
	"io"
	"io/fs"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

// View opens an image file that lies where only reading is possible, such as in an
// object store, by what reads it. Nothing is known of its holes, nor what is stored
// about it; whether it changes is for the caller to find out. The image must not be
// used when r is gone. Path is for messages.
func View(path string, r io.ReaderAt, size int64, modified time.Time, c Choice) (Image, error) {
	f := viewedFile{r, viewedInfo{size, modified}}
	d, err := newDisk(f, path)
	if err != nil {
		return nil, err
	}
	v := &reader{store: &store{path: path}, opts: Options{Choice: c}, disk: d}
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
