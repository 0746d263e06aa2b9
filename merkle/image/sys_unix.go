//go:build unix

package image

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/sys/unix"
)

// identify hashes the machine's name with the numbers that name a file on it. A
// device is identified by its own number: many nodes may lead to it.
func identify(_ *os.File, info fs.FileInfo) Identity {
	st, ok := info.Sys().(*syscall.Stat_t)
	host, err := machine()
	if !ok || err != nil {
		return Identity{}
	}
	var flat [1 + 16]byte
	if info.Mode().IsRegular() {
		binary.LittleEndian.PutUint64(flat[1:], uint64(st.Dev))
		binary.LittleEndian.PutUint64(flat[9:], uint64(st.Ino))
	} else {
		flat[0] = 1
		binary.LittleEndian.PutUint64(flat[1:], uint64(st.Rdev))
	}
	sum := blake2b.Sum256(append(flat[:], host...))
	return Identity(sum[:16])
}

func allocated(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.Size(), nil
	}
	return int64(st.Blocks) * 512, nil
}

func isBusy(err error) bool { return errors.Is(err, unix.EBUSY) }

// lockFile takes the exclusive lock on f, or reports false where another holds
// it. The lock goes with the process.
func lockFile(f *os.File) (bool, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB)
	})
	if errors.Is(failed, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err := errors.Join(err, failed); err != nil {
		return false, err
	}
	return true, nil
}

// syncFolder makes the names in a folder durable.
func syncFolder(root *os.Root, name string) error {
	folder, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
