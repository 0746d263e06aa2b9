package endpoint

import (
	"context"
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
func (s *transfer) takeStream(ctx context.Context, in io.Reader, size int64) (func() error, error) {
	in, stop := endsWith(ctx, in)
	if size >= 0 {
		s.stream = session.NewStream(in, size, s.modified)
		return stop, nil
	}
	f, err := os.CreateTemp("", "rclone-diskrsync-")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a temporary file for a stream of unknown length: %w", err), stop())
	}
	fs.Debugf(s.o, "its length is not known before its end: it is kept in %s until then", f.Name())
	// Whatever becomes of this process, the file does not stay. Windows removes none
	// that is open.
	early := os.Remove(f.Name())
	remove := func() error {
		err := errors.Join(stop(), f.Close())
		if early != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
		return err
	}
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

// endsWith returns what reads from in, and fails when ctx ends, though in may then still
// be waited for: nobody can make a pipe give its next byte. Stop makes it fail as well.
func endsWith(ctx context.Context, in io.Reader) (io.Reader, func() error) {
	out, w := io.Pipe()
	go func() {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{in}, make([]byte, 1<<20))
		w.CloseWithError(err) // nil is the end
	}()
	stop := context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	return out, func() error {
		stop()
		return out.Close()
	}
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
