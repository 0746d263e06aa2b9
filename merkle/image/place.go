package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A Place is where an image lies, or will lie: a folder that is held open and a
// name in it. Whoever swaps a part of the path for a symbolic link after the
// Place was made achieves nothing.
type Place struct {
	root folder
	name string
	path string
}

// maxLinks bounds the chain of symbolic links that is followed to an image, so
// that a loop of them ends; 40 is the limit of Linux itself.
const maxLinks = 40

// Locate returns the place that path names on this machine. Symbolic links are
// followed, so /dev/vg/lv becomes the device behind it. The image need not
// exist but its folder must. A path that names a folder is no error yet: Open
// and OpenTarget refuse it.
func Locate(path string) (*Place, error) {
	full := path
	if real, err := filepath.EvalSymlinks(path); err == nil && path != "" {
		full = real
	}
	dir, name := split(full)
	if dir == "" {
		dir = "."
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, folderError(path, dir, err)
	}
	return newPlace(osFolder{root}, name, path), nil
}

// LocateIn returns the place that path names beneath root, and nothing else is
// reachable: a leading "/" means root itself, and symbolic links lead nowhere
// but to other places beneath it. The caller keeps root; it may be closed when
// LocateIn has returned.
func LocateIn(root *os.Root, path string) (*Place, error) {
	rel, err := follow(root, strings.TrimLeft(filepath.ToSlash(path), "/"))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", path, err)
	}
	dir, name := split(rel)
	if dir == "" {
		dir = "."
	}
	folder, err := root.OpenRoot(dir)
	if err != nil {
		return nil, folderError(path, dir, err)
	}
	return newPlace(osFolder{folder}, name, path), nil
}

func newPlace(root folder, name, path string) *Place {
	if path == "" {
		path = "." // an empty name would be invisible in a message
	}
	return &Place{root, name, path}
}

// follow resolves the last element of rel as long as it is a symbolic link.
// Those before it are left to os.Root. The result is not cleaned: only the
// kernel knows what ".." means behind a link.
func follow(root *os.Root, rel string) (string, error) {
	for range maxLinks {
		info, err := root.Lstat(rel)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			return rel, nil // a wrong path shows when its folder is opened
		}
		link, err := root.Readlink(rel)
		if err != nil {
			return "", fmt.Errorf("following a symbolic link: %w", cause(err))
		}
		if filepath.IsAbs(link) {
			return "", errors.New("is a symbolic link that leads out of the folder that is served")
		}
		dir, _ := split(rel)
		rel = dir + filepath.ToSlash(link)
	}
	return "", errors.New("too many symbolic links")
}

// split cuts path behind its last separator. What names a folder has the name
// ".", in itself.
func split(path string) (string, string) {
	dir, name := filepath.Split(path)
	if name == "" || name == "." || name == ".." {
		return path, "."
	}
	return dir, name
}

func folderError(path, dir string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %s: its folder %s does not exist", path, dir)
	}
	return fmt.Errorf("image %s: opening its folder %s: %w", path, dir, cause(err))
}

// Path returns the path as it was given, for messages.
func (p *Place) Path() string { return p.path }

// Close releases the folder. A Target made from p must be closed before.
func (p *Place) Close() error { return p.root.Close() }

// stat describes what is at p, with an error that can be shown as it is.
func (p *Place) stat() (fs.FileInfo, error) {
	info, err := p.root.Lstat(p.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &missingError{path: p.path}
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", p.path, cause(err))
	}
	mode := info.Mode()
	switch {
	case mode.IsRegular(), mode.IsDir(), mode&fs.ModeType == fs.ModeDevice:
		return info, nil
	case mode&fs.ModeSymlink != 0:
		return nil, fmt.Errorf("image %s: is a symbolic link that leads nowhere", p.path)
	}
	return nil, fmt.Errorf("image %s: is a %s: only regular files and block devices are images", p.path, kindOf(mode))
}

func isFolder(p *Place) error {
	return fmt.Errorf("image %s: is a folder, not an image", p.path)
}

// A missingError says that there is no image. It matches fs.ErrNotExist.
type missingError struct{ path, more string }

func (e *missingError) Error() string        { return fmt.Sprintf("image %s: no such file%s", e.path, e.more) }
func (e *missingError) Is(target error) bool { return target == fs.ErrNotExist }

func kindOf(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeCharDevice != 0:
		return "character device"
	case mode&fs.ModeNamedPipe != 0:
		return "named pipe"
	case mode&fs.ModeSocket != 0:
		return "socket"
	}
	return "special file"
}

// open opens what stat has described as want.
func (p *Place) open(flag int, want fs.FileInfo) (*disk, error) {
	f, err := p.root.OpenFile(p.name, flag, 0)
	if err != nil {
		return nil, p.openError(flag, err)
	}
	d, err := newDisk(f, p.path)
	if err == nil && !p.root.Same(d.info, want) {
		err = refuse(ErrChanged, "image %s: was replaced while it was opened", p.path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

func (p *Place) openError(flag int, err error) error {
	if flag&os.O_EXCL != 0 && isBusy(err) {
		return refuse(ErrInUse, "image %s: the device is mounted or in use: unmount or release it first", p.path)
	}
	how := "reading"
	if flag&os.O_RDWR != 0 {
		how = "writing"
	}
	return fmt.Errorf("image %s: opening it for %s: %w", p.path, how, cause(err))
}
