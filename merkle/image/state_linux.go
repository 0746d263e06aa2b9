package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/sys/unix"
)

// sysBlock returns the folder in which the kernel describes a block device.
func sysBlock(f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Mode&syscall.S_IFMT != syscall.S_IFBLK {
		return "", errors.ErrUnsupported
	}
	link := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	return filepath.EvalSymlinks(link)
}

// whole returns the folder of the disk that a partition lies on, or dir itself.
func whole(dir string) string {
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return filepath.Dir(dir)
	}
	return dir
}

// attribute returns what the kernel says in a file of a device, "" if nothing.
func attribute(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// deviceName returns a name for a device under which it can be found again after
// the machine was started anew: what the device says about itself, as far as it
// does, rather than the order in which devices were found.
func deviceName(f *os.File) (string, error) {
	dir, err := sysBlock(f)
	if err != nil {
		return "", err
	}
	disk := whole(dir)
	for _, name := range []string{"dm/uuid", "md/uuid", "device/wwid", "wwid", "device/serial", "serial", "loop/backing_file"} {
		if id := attribute(disk, name); id != "" {
			sum := blake2b.Sum256([]byte(name + "\x00" + id + "\x00" + attribute(dir, "partition")))
			return fmt.Sprintf("device-%x", sum[:12]), nil
		}
	}
	return "device-" + filepath.Base(dir), nil
}

// deviceWrites hashes what the kernel counts of the writes to a device, and to
// the disk under a partition, with what tells this disk from one that was there
// under the same name before. A write counts once it has left the cache, so that
// is emptied first.
func deviceWrites(f *os.File) (uint64, error) {
	if err := f.Sync(); err != nil {
		return 0, err
	}
	dir, err := sysBlock(f)
	if err != nil {
		return 0, err
	}
	disk := whole(dir)
	boot, err := machine()
	seq := attribute(disk, "diskseq")
	if err != nil || seq == "" || attribute(disk, "queue/iostats") != "1" {
		return 0, errors.Join(errors.ErrUnsupported, err)
	}
	count := boot + "\x00" + seq
	for _, d := range []string{dir, disk} {
		field := strings.Fields(attribute(d, "stat"))
		if len(field) < 15 {
			return 0, errors.ErrUnsupported
		}
		// The sectors of writes and of discards. The number of writes has those
		// in it that only empty a cache.
		count += fmt.Sprint("\x00", field[6], " ", field[13])
	}
	sum := blake2b.Sum256([]byte(count))
	return binary.LittleEndian.Uint64(sum[:]), nil
}
