//go:build unix && !linux

package image

import (
	"errors"
	"os"
	"time"
)

// inode returns a number that tells a file from others of its file system.
func inode(f *os.File) uint64 { return plainInode(f) }

// setModified sets the modification time of f to the microsecond.
func setModified(f *os.File, t time.Time) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) { failed = futimes(int(fd), t) })
	return errors.Join(err, failed)
}
