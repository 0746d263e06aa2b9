package endpoint

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/dop251/spgz"
	"github.com/rclone/rclone/fs"

	"github.com/diskrsync/diskrsync/merkle/session"
)

// takeStream makes a stream the source, and returns what is to be called at the end.
// A session has to know how long the image is, so a stream of unknown length goes
// through a temporary file first, as rclone does where a remote takes none.
func (s *transfer) takeStream(in io.Reader, size int64) (func() error, error) {
	if size >= 0 {
		s.stream = session.NewStream(in, size, s.modified)
		return func() error { return nil }, nil
	}
	f, err := os.CreateTemp("", "rclone-diskrsync-")
	if err != nil {
		return nil, fmt.Errorf("making a temporary file for a stream of unknown length: %w", err)
	}
	remove := func() error { return errors.Join(f.Close(), os.Remove(f.Name())) }
	fs.Debugf(s.o, "its length is not known before its end: it is kept in %s until then", f.Name())
	size, err = spool(f, in)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("keeping a stream of unknown length in %s (--temp-dir names another folder): %w", f.Name(), err), remove())
	}
	s.stream = session.NewStream(f, size, s.modified)
	return remove, nil
}

// spool copies in to f, leaves holes where it is zero, and returns its length.
func spool(f *os.File, in io.Reader) (int64, error) {
	buf := make([]byte, 128<<10)
	for size := int64(0); ; {
		n, err := io.ReadFull(in, buf)
		if !spgz.IsBlockZero(buf[:n]) {
			if _, err := f.WriteAt(buf[:n], size); err != nil {
				return 0, err
			}
		}
		size += int64(n)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return size, f.Truncate(size)
		case err != nil:
			return 0, err
		}
	}
}
