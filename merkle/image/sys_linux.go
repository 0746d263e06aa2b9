package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/diskrsync/diskrsync/merkle"
)

// seekData asks the kernel for the next extent of data. The error matches
// errors.ErrUnsupported where the file system has no answer.
func seekData(f *os.File, off int64) (merkle.Extent, error) {
	for {
		start, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return merkle.Extent{}, io.EOF
		}
		if errors.Is(err, unix.EINVAL) {
			return merkle.Extent{}, errors.ErrUnsupported
		}
		if err != nil {
			return merkle.Extent{}, err
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil && !errors.Is(err, unix.ENXIO) {
			return merkle.Extent{}, err
		}
		if err == nil && end > start {
			return merkle.Extent{Offset: start, Length: end - start}, nil
		}
		off = start // it was punched or cut off between the two calls
	}
}

// inode returns a number that tells a file from others of its file system: that of
// its inode and when it was made, where that is known. The number alone is given to
// the next file as soon as one is removed.
func inode(f *os.File) uint64 {
	var st unix.Statx_t
	err := control(f, func(fd int) error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st)
	})
	if err != nil {
		return plainInode(f) // the kernel is older than the call
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return st.Ino
	}
	const odd = 0x9e3779b97f4a7c15 // spreads the time over all bits
	return st.Ino ^ (uint64(st.Btime.Sec)*1e9+uint64(st.Btime.Nsec))*odd
}

// setModified sets the modification time of f to the nanosecond, as long as there is
// a /proc to name it by, else to the microsecond.
func setModified(f *os.File, t time.Time) error {
	return control(f, func(fd int) error {
		to := unix.NsecToTimespec(t.UnixNano())
		omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
		if unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), []unix.Timespec{omit, to}, 0) == nil {
			return nil
		}
		return futimes(fd, t)
	})
}

// punchFile makes a hole of a range of a regular file.
func punchFile(f *os.File, off, end int64) error {
	return control(f, func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, end-off)
	})
}

// control calls do with the descriptor of f, again if a signal interrupted it.
func control(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		for {
			if failed = do(int(fd)); failed != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(err, failed)
}

// machine names this machine, between one boot and the next.
func machine() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("finding the machine's boot id: %w", err)
	}
	return string(id), nil
}
