package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zeroStep bounds what one call zeroes on a device: a signal has to wait for it.
const zeroStep = 256 << 20

// deviceSize returns the size of a block device and of its logical sectors.
func deviceSize(f *os.File) (size, sector int64, err error) {
	var bytes uint64
	if err := ioctl(f, unix.BLKGETSIZE64, unsafe.Pointer(&bytes)); err != nil {
		return 0, 0, fmt.Errorf("BLKGETSIZE64: %w", err)
	}
	var logical int32
	if err := ioctl(f, unix.BLKSSZGET, unsafe.Pointer(&logical)); err != nil {
		return 0, 0, fmt.Errorf("BLKSSZGET: %w", err)
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	if uint64(end) != bytes {
		return 0, 0, fmt.Errorf("the device has %d bytes by ioctl but ends at %d", bytes, end)
	}
	return end, int64(logical), nil
}

// zeroDevice zeroes an aligned range of a block device. The kernel writes zeros,
// or has the device do so; it does not discard, because what was discarded may
// read as anything.
func zeroDevice(f *os.File, off, end int64) error {
	for off < end {
		n := min(zeroStep, end-off)
		span := [2]uint64{uint64(off), uint64(n)}
		err := ioctl(f, unix.BLKZEROOUT, unsafe.Pointer(&span))
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
			return errors.ErrUnsupported
		}
		if err != nil {
			return err
		}
		off += n
	}
	return nil
}

func ioctl(f *os.File, request uint, arg unsafe.Pointer) error {
	err := control(f, func(fd int) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		if errno != 0 {
			return errno
		}
		return nil
	})
	runtime.KeepAlive(arg)
	return err
}
