//go:build !linux

package image

import (
	"errors"
	"os"

	"github.com/diskrsync/diskrsync/merkle"
)

// Holes are only known on Linux: elsewhere all of a file is data, and zeros are
// written.

func seekData(*os.File, int64) (merkle.Extent, error) {
	return merkle.Extent{}, errors.ErrUnsupported
}

func punchFile(_ *os.File, _, _ int64) error { return errors.ErrUnsupported }

func deviceSize(*os.File) (size, sector int64, err error) {
	return 0, 0, errors.New("block devices are only supported on Linux")
}

func zeroDevice(_ *os.File, _, _ int64) error { return errors.ErrUnsupported }

func deviceWrites(*os.File) (uint64, error) { return 0, errors.ErrUnsupported }

func deviceName(*os.File) (string, error) { return "", errors.ErrUnsupported }

func machine() (string, error) { return os.Hostname() }
