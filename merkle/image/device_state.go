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

// stateFolder returns the folder for what is stored about devices: the one that
// the user names, or the usual one.
func stateFolder(named string) (string, error) {
	if named != "" {
		return named, nil
	}
	if os.Geteuid() == 0 {
		return systemState, nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "diskrsync"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local", "state", "diskrsync"), nil
}

// deviceStore returns the store of a device. Hashes are only kept in a folder
// that the user has named. If the usual folder is not there, or cannot be made,
// the store has none: a machine that was started to restore a disk may well have
// nowhere to write.
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
	dir, err := stateFolder(named)
	if err == nil && make {
		err = os.MkdirAll(dir, 0o700)
	}
	var root *os.Root
	if err == nil {
		root, err = os.OpenRoot(dir)
	}
	if err == nil {
		s.root = osFolder{root}
		return s, nil
	}
	if named != "" && !(errors.Is(err, fs.ErrNotExist) && !make) {
		return nil, fmt.Errorf("device %s: the folder for its state, %s: %w", p.path, dir, cause(err))
	}
	s.noTree = true
	return s, nil
}
