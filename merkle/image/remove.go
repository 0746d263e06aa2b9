package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// RemoveAt removes the image at a path of this machine, as Remove does, or beneath root if
// that is set. Of a symbolic link it removes nothing but the link.
func RemoveAt(root *os.Root, path string) error {
	lstat, unlink, locate := os.Lstat, os.Remove, Locate
	if root != nil {
		lstat, unlink = root.Lstat, root.Remove
		locate = func(path string) (*Place, error) { return LocateIn(root, path) }
		path = strings.TrimLeft(filepath.ToSlash(path), "/")
	}
	if info, err := lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if err := unlink(path); err != nil {
			return fmt.Errorf("image %s: removing the link: %w", path, cause(err))
		}
		return nil
	}
	p, err := locate(path)
	if err != nil {
		return err
	}
	return errors.Join(Remove(p), p.Close())
}

// Remove removes the image at p, durably, with all that is stored about it, and what an
// interrupted run has left of one that never came to be. It fails with ErrInUse if
// someone is writing the image, or if what is stored is about an image that was moved
// away and needs it, with ErrRefused for a device, and with fs.ErrNotExist, after all
// that, if there is no image. Who reads it can go on.
func Remove(p *Place) (err error) {
	info, missing := p.stat()
	switch {
	case missing != nil && !errors.Is(missing, fs.ErrNotExist):
		return missing
	case info != nil && info.IsDir():
		return isFolder(p)
	case info != nil && !info.Mode().IsRegular():
		return refuse(ErrRefused, "image %s: is a device, and devices are never removed", p.path)
	}
	s := newStore(p)
	if _, err := s.root.Lstat(s.dir); errors.Is(err, fs.ErrNotExist) {
		// Nobody writes it, and to make a folder for the lock takes room that a
		// full disk has not.
		return errors.Join(missing, s.removeImage(info))
	}
	l, err := s.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.release()) }()
	if err := s.mayRemove(); err != nil {
		return err
	}
	// The image first: without its journal it could be taken for whole.
	if err := s.removeImage(info); err != nil {
		return err
	}
	for _, kind := range []Kind{KindPartial, KindFresh, KindTree, KindJournal} {
		if err := s.drop(kind); err != nil {
			return err
		}
	}
	return errors.Join(missing, s.sync())
}

// mayRemove returns an error if the journal is of use to an image elsewhere.
func (s *store) mayRemove() error {
	j, err := s.readJournal()
	if errors.Is(err, errJournal) {
		return nil
	}
	if err != nil || j == nil {
		return err
	}
	return errors.Join(s.strayed(j), j.close())
}

func (s *store) removeImage(info fs.FileInfo) error {
	if info == nil {
		return nil
	}
	if err := s.images.Remove(s.name); err != nil {
		return fmt.Errorf("image %s: removing it: %w", s.path, cause(err))
	}
	return s.syncImages()
}
