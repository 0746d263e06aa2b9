//go:build unix

package image

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

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

// lockFile takes a lock on f, or reports false where another holds one that
// excludes it. The lock goes with the process.
func lockFile(f *os.File, how lockMode) (bool, error) {
	op := unix.LOCK_NB | map[lockMode]int{unlocked: unix.LOCK_UN, shared: unix.LOCK_SH, exclusive: unix.LOCK_EX}[how]
	conn, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = unix.Flock(int(fd), op)
	})
	if errors.Is(failed, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err := errors.Join(err, failed); err != nil {
		return false, err
	}
	return true, nil
}

// futimes sets the modification time of a file to the microsecond.
func futimes(fd int, t time.Time) error {
	at := unix.NsecToTimeval(t.UnixNano())
	return unix.Futimes(fd, []unix.Timeval{at, at})
}

func plainInode(f *os.File) uint64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return uint64(st.Ino)
}

// owner returns whose a file is, or false if that is not known.
func owner(info fs.FileInfo) (int, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Uid), true
}

// syncFolder makes the names in a folder durable.
func syncFolder(root *os.Root, name string) error {
	folder, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// freeSpace returns how many bytes a folder's file system has left for us.
func freeSpace(root *os.Root) (int64, error) {
	folder, err := root.Open(".")
	if err != nil {
		return 0, err
	}
	var st unix.Statfs_t
	err = unix.Fstatfs(int(folder.Fd()), &st)
	if st.Blocks == 0 {
		// A file system that does not count its blocks, such as ramfs.
		st.Bavail, st.Bsize = 1<<62, 1
	}
	return int64(min(uint64(st.Bavail)*uint64(st.Bsize), 1<<62)), errors.Join(err, folder.Close())
}
