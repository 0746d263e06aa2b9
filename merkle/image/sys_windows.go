package image

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"

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

// lockFile takes the exclusive lock on f, or reports false where another holds
// it. What is locked lies far behind the end of any file, because here a lock
// also keeps others from reading.
func lockFile(f *os.File) (bool, error) {
	at := windows.Overlapped{OffsetHigh: 1 << 30}
	err := windows.LockFileEx(windows.Handle(f.Fd()),
		windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return false, nil
	}
	return err == nil, err
}

// syncFolder does nothing: folders cannot be synced here.
func syncFolder(*os.Root, string) error { return nil }
