//go:build !linux

package blockdev

import (
	"errors"
	"os"
	"runtime"
)

// caseInsensitive is whether two names that differ in case are one.
const caseInsensitive = runtime.GOOS == "windows" || runtime.GOOS == "darwin"

// errOnlyLinux is what everything about devices ends in: elsewhere images are
// plain files.
var errOnlyLinux = errors.New("block devices are only supported on Linux: name a folder with image files, by a path from the root")

func isDevice(os.FileMode) bool                     { return false }
func machineDisks() ([]string, error)               { return nil, errOnlyLinux }
func deviceSize(string, os.FileInfo) (int64, error) { return 0, errOnlyLinux }
func deviceNumber(os.FileInfo) uint64               { return 0 }
func onDevFileSystem(string) bool                   { return false }
