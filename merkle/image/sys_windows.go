package image

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/sys/windows"
)

// identify hashes the machine's name with the numbers that name a file on it.
func identify(f *os.File, _ fs.FileInfo) Identity {
	var info windows.ByHandleFileInformation
	host, err := machine()
	if err != nil || windows.GetFileInformationByHandle(windows.Handle(f.Fd()), &info) != nil {
		return Identity{}
	}
	var flat [12]byte
	binary.LittleEndian.PutUint32(flat[0:], info.VolumeSerialNumber)
	binary.LittleEndian.PutUint32(flat[4:], info.FileIndexHigh)
	binary.LittleEndian.PutUint32(flat[8:], info.FileIndexLow)
	sum := blake2b.Sum256(append(flat[:], host...))
	return Identity(sum[:16])
}

// allocated returns the length of the file: holes are never made here.
func allocated(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func isBusy(err error) bool { return errors.Is(err, windows.ERROR_BUSY) }

// lockFile takes a lock on f, or reports false where another holds one that
// excludes it. What is locked lies far behind the end of any file, because here
// a lock also keeps others from reading.
func lockFile(f *os.File, how lockMode) (bool, error) {
	at := windows.Overlapped{OffsetHigh: 1 << 30}
	// A lock is not replaced but added, so what was held goes first.
	if err := windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, &at); err != nil && !errors.Is(err, windows.ERROR_NOT_LOCKED) {
		return false, err
	}
	if how == unlocked {
		return true, nil
	}
	var flags uint32 = windows.LOCKFILE_FAIL_IMMEDIATELY
	if how == exclusive {
		flags |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &at)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return false, nil
	}
	return err == nil, err
}

func setModified(f *os.File, t time.Time) error { return os.Chtimes(f.Name(), t, t) }

// owner is not known: who may do what is not told by one name here.
func owner(fs.FileInfo) (int, bool) { return 0, false }

func inode(f *os.File) uint64 {
	var info windows.ByHandleFileInformation
	if windows.GetFileInformationByHandle(windows.Handle(f.Fd()), &info) != nil {
		return 0
	}
	return uint64(info.FileIndexHigh)<<32 | uint64(info.FileIndexLow)
}

// freeSpace returns how many bytes a folder's file system has left for us.
func freeSpace(root *os.Root) (int64, error) {
	name, err := windows.UTF16PtrFromString(root.Name())
	if err != nil {
		return 0, err
	}
	var free uint64
	err = windows.GetDiskFreeSpaceEx(name, &free, nil, nil)
	return int64(min(free, 1<<62)), err
}

// syncFolder does nothing: folders cannot be synced here.
func syncFolder(*os.Root, string) error { return nil }
