package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// systemState is where the system keeps the state of services.
const systemState = "/var/lib/diskrsync"

// stateFolder returns the usual folder for what is stored about devices.
func stateFolder() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "diskrsync"), nil
	}
	if os.Geteuid() == 0 {
		return systemState, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local", "state", "diskrsync"), nil
}

// deviceStore returns the store of a device. That a device is incomplete is
// always said in the usual folder, where all who run as the same user find it. If that is not there,
// or cannot be made, the store has none: a machine that was started to restore a
// disk may well have nowhere to write. Hashes are only kept in a folder that the
// user has named.
func deviceStore(p *Place, d *disk, named string, make bool) (*store, error) {
	s := &store{images: p.root, name: p.name, path: p.path, dir: ".", device: true, noTree: named == ""}
	name, err := d.f.DeviceName()
	if err != nil {
		if errors.Is(err, errors.ErrUnsupported) || named == "" {
			return s, nil
		}
		return nil, fmt.Errorf("device %s: finding what to call it: %w", p.path, cause(err))
	}
	s.key = name
	if dir, err := stateFolder(); err == nil {
		if root, err := openState(dir, make); err == nil {
			s.root = root
		}
	}
	if named == "" {
		return s, nil
	}
	s.trees, err = openState(named, make)
	if !make && errors.Is(err, fs.ErrNotExist) {
		s.noTree = true
		return s, nil
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("device %s: the folder for its state, %s: %w", p.path, named, cause(err)), s.close())
	}
	return s, nil
}

// openState opens a folder, and makes it if that is asked for, durably.
func openState(dir string, make bool) (folder, error) {
	if make {
		if err := makeDurably(dir); err != nil {
			return nil, err
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return osFolder{root}, nil
}

// makeDurably makes a folder and those above it.
func makeDurably(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	parent := filepath.Dir(dir)
	if errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := makeDurably(parent); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return err
	}
	above, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	return errors.Join(syncFolder(above, "."), above.Close())
}
