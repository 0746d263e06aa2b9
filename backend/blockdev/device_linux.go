package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/rclone/rclone/fs"
	"golang.org/x/sys/unix"

	"github.com/diskrsync/diskrsync/merkle/image"
)

// caseInsensitive is whether two names that differ in case are one.
const caseInsensitive = false

// sectorSize is the unit in which the kernel tells sizes of devices, whatever
// their sectors are.
const sectorSize = 512

// isDevice reports whether a mode is that of a block device.
func isDevice(mode os.FileMode) bool { return mode&os.ModeType == os.ModeDevice }

// machineDisks returns the names, relative to /dev, of all disks and partitions.
func machineDisks() ([]string, error) {
	found, err := os.ReadDir("/sys/class/block") // /sys/block, and the partitions
	if err != nil {
		return nil, fmt.Errorf("finding the disks of this machine: %w", err)
	}
	var disks []string
	for _, e := range found {
		disks = append(disks, strings.ReplaceAll(e.Name(), "!", "/")) // cciss!c0d0
	}
	return disks, nil
}

// deviceSize returns the size of a block device in bytes. One that cannot be
// opened has a size as well: it is to fail when it is copied, and not to be
// missing where it is listed.
func deviceSize(p string, info os.FileInfo) (int64, error) {
	size, err := openedSize(p)
	if err == nil || errors.Is(err, unix.ENOMEDIUM) {
		return size, nil
	}
	number := deviceNumber(info)
	attribute := fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(number), unix.Minor(number))
	text, sysErr := os.ReadFile(attribute)
	if sysErr != nil {
		return 0, err
	}
	sectors, sysErr := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if sysErr != nil || sectors < 0 || sectors > (1<<63-1)/sectorSize {
		return 0, fmt.Errorf("%w (and %s says %q)", err, attribute, text)
	}
	return sectors * sectorSize, nil
}

func openedSize(p string) (size int64, err error) {
	place, err := image.Locate(p)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, place.Close()) }()
	img, err := image.Open(place, image.Options{Choice: image.AsRaw, Examine: true, ReadOnly: true})
	if err != nil {
		return 0, err
	}
	return img.Size(), img.Close()
}

// deviceNumber returns by what number the kernel knows a device, 0 if that is not
// to be found out.
func deviceNumber(info os.FileInfo) uint64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return uint64(st.Rdev)
}

// onDevFileSystem reports whether p is on the file system that is mounted on /dev.
func onDevFileSystem(p string) bool {
	var here, dev, top unix.Stat_t
	if unix.Stat(p, &here) != nil || unix.Stat(devices, &dev) != nil || unix.Stat("/", &top) != nil {
		return false
	}
	return here.Dev == dev.Dev && dev.Dev != top.Dev
}

// About tells how much space the folder's file system has.
func (f *Fs) About(ctx context.Context) (*fs.Usage, error) {
	if beneathDev(f.folder) {
		return nil, fmt.Errorf("%s: what devices have is all in use: %w", f, fs.ErrorNotImplemented)
	}
	var st unix.Statfs_t
	err := unix.Statfs(f.folder, &st)
	if isMissing(err) {
		return nil, fs.ErrorDirNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("finding the free space of %s: %w", f.folder, err)
	}
	unit := int64(st.Bsize)
	return &fs.Usage{
		Total: fs.NewUsageValue(unit * int64(st.Blocks)),
		Used:  fs.NewUsageValue(unit * int64(st.Blocks-st.Bfree)),
		Free:  fs.NewUsageValue(unit * int64(st.Bavail)),
	}, nil
}

var _ fs.Abouter = (*Fs)(nil)
