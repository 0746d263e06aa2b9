// Package blockdev is an rclone backend whose objects are the block devices and the
// raw disk images of this machine.
//
// rclone moves files: it skips what has the same size and time, writes a new file
// and renames it over the old one, and deletes a copy whose size is not as
// expected. Each of these ruins a device or its backup, so the backend sees to it
// that none of them happens:
//
//   - The size of a device is exact, and its time is that when it was looked at, so
//     it always differs from that of its backup. Flags by which it would be skipped
//     all the same are refused as soon as a device is found.
//   - A device is written by [endpoint.Upload], in the blocks that differ. There is
//     no way to create, truncate, rename or remove one: beneath /dev nothing but
//     the content of a device that exists is ever written.
//   - After an update, the size of the object is that of the content, and not that
//     of the device, which may be larger. rclone compares it with the source, and
//     would "remove the failed copy" if it differed.
//
// What is read comes from an [image.Image], which knows the holes of a file and
// notices if the file changes. What is written needs the option allow_write.
package blockdev

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rclone/rclone/backend/overview"
	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/rclone/rclone/fs/config/configmap"
	"github.com/rclone/rclone/fs/config/configstruct"
	"github.com/rclone/rclone/fs/fserrors"
	"github.com/rclone/rclone/fs/hash"
	"github.com/rclone/rclone/lib/encoder"

	"github.com/diskrsync/diskrsync/backend/endpoint"
	"github.com/diskrsync/diskrsync/merkle/image"
)

const (
	// devices is the folder that paths without a leading slash are in.
	devices = "/dev"

	// names is how file names are shown to rclone: as they are, but for what it
	// could not handle.
	names = encoder.OS
)

func init() {
	fs.Register(&fs.RegInfo{
		Name:        "blockdev",
		Description: "Block devices and raw disk images of this machine",
		NewFs:       NewFs,
		Overview: &overview.BackendConfig{
			Backend: "blockdev", Name: "Block devices", Tier: "Tier 4", Maintainers: "External",
			Features: []string{"About", "CanHaveEmptyDirectories"}, Precision: 1,
		},
		Options: options(),
	})
}

func options() []fs.Option {
	return []fs.Option{{
		Name: "allow_write",
		Help: `Allow to write to devices and image files.

Without it the remote is read-only. With it, a copy to a device
overwrites those of its blocks that differ. Devices that are mounted or
smaller than the source are refused.`,
		Default: false,
	}, {
		Name: "state_dir",
		Help: `Folder in which hashes of devices are stored.

If it is set, a device that was written is not read again to find out
what it holds, as long as the kernel has counted no other write to it.
It cannot know of writes below a logical volume, to the file behind a
loop device, or from another machine.`,
		Advanced: true,
	}, {
		Name: "checksum",
		Help: `Read and hash everything, whatever is stored about it.

This is not the global flag --checksum, which makes rclone compare
checksums that devices do not have.`,
		Default:  false,
		Advanced: true,
	}, {
		Name: "force",
		Help: `Read devices and images that are known to be incomplete or damaged.

A device on which an update was interrupted holds a mixture of two
contents, and an image may have blocks that are known to be bad. They
are refused as a source unless this is set.`,
		Default:  false,
		Advanced: true,
	}}
}

// Options are what the user has configured.
type Options struct {
	AllowWrite bool   `config:"allow_write"`
	StateDir   string `config:"state_dir"`
	Checksum   bool   `config:"checksum"`
	Force      bool   `config:"force"`
}

// Fs represents a folder of this machine with devices and images in it, or, if
// the root is empty, the machine's disks.
type Fs struct {
	name     string
	root     string // as rclone sees it, without a slash at the end
	folder   string // the same, as a path of this machine
	opt      Options
	features *fs.Features
	budget   endpoint.Budget
}

// NewFs returns the Fs of a path. A path without a leading slash is under
// /dev. If it leads to a device or an image, the Fs is that of the folder which
// the path names it in, and the error is fs.ErrorIsFile.
func NewFs(ctx context.Context, name, root string, m configmap.Mapper) (fs.Fs, error) {
	f := &Fs{name: name}
	if err := configstruct.Set(m, &f.opt); err != nil {
		return nil, err
	}
	if err := f.setRoot(root); err != nil {
		return nil, err
	}
	f.features = (&fs.Features{
		CanHaveEmptyDirectories: true,
		CaseInsensitive:         caseInsensitive,

		// Front to back and once, so that it is noticed if the source changes:
		// what reads it in pieces cannot know. For the same reason IsLocal is
		// not set. To backends it means that reading a source a second time, to
		// hash it, costs little and gives the same.
		NoMultiThreading: true,
	}).Fill(ctx, f)

	info, err := os.Stat(f.folder)
	switch {
	case isMissing(err) && beneathDev(f.folder):
		// It cannot be made, and what rclone says of it has not even its name.
		return nil, fserrors.NoRetryError(fmt.Errorf("%s: there is no such device or folder", f.folder))
	case isMissing(err):
		return f, nil // it may be made yet
	case err != nil:
		return nil, fmt.Errorf("looking at %s: %w", f.folder, cause(err))
	case info.IsDir():
		return f, nil
	}
	leaf := path.Base(f.root)
	if err := f.setRoot(path.Dir(f.root)); err != nil {
		return nil, err
	}
	if _, err := f.NewObject(ctx, leaf); err != nil {
		return nil, err
	}
	return f, fs.ErrorIsFile
}

// setRoot makes root the root, in the form without anything superfluous.
func (f *Fs) setRoot(root string) error {
	elements := strings.Split(root, "/")
	if slices.Contains(elements, "..") {
		return fserrors.NoRetryError(fmt.Errorf("%s: has .. in it: name the folder itself", root))
	}
	if slices.Contains(elements, image.StoreFolder) {
		return fserrors.NoRetryError(fmt.Errorf("%s: %s holds what diskrsync knows of the images beside it, and no images", root, image.StoreFolder))
	}
	if f.root = path.Clean(root); f.root == "." {
		f.root = ""
	}
	volume := filepath.VolumeName(filepath.FromSlash(f.root)) // C: on Windows, whose colon is no part of a name
	f.folder = volume + filepath.FromSlash(names.FromStandardPath(f.root[len(volume):]))
	if volume == "" && !strings.HasPrefix(f.root, "/") {
		f.folder = filepath.Join(devices, f.folder)
	}
	return nil
}

// Name returns what the remote is called in the configuration.
func (f *Fs) Name() string { return f.name }

// Root returns the path that the names of objects are relative to.
func (f *Fs) Root() string { return f.root }

// String describes the Fs in messages.
func (f *Fs) String() string {
	if f.root == "" {
		return "the disks of this machine"
	}
	return "devices and images at " + f.folder
}

// Features tells rclone what can be done here besides reading and writing.
func (f *Fs) Features() *fs.Features { return f.features }

// Precision is that of Linux: no two times that differ are the same.
func (f *Fs) Precision() time.Duration { return time.Nanosecond }

// Hashes returns none: to hash a device takes as long as to copy it, and until
// the two are compared it may have changed.
func (f *Fs) Hashes() hash.Set { return hash.Set(hash.None) }

// errHidden is what every path into a store folder leads to.
var errHidden = fmt.Errorf("the folder %s is diskrsync's own", image.StoreFolder)

// local returns the path of this machine for what rclone calls remote. It does not
// lead out of the root: the encoding makes an ordinary name of "..".
func (f *Fs) local(remote string) (string, error) {
	below := names.FromStandardPath(remote)
	if slices.Contains(strings.Split(below, "/"), image.StoreFolder) {
		return "", fserrors.NoRetryError(fmt.Errorf("%s: %w", remote, errHidden))
	}
	return filepath.Join(f.folder, filepath.FromSlash(below)), nil
}

// NewObject returns what lies at remote, or fs.ErrorObjectNotFound if there is
// nothing.
func (f *Fs) NewObject(ctx context.Context, remote string) (fs.Object, error) {
	p, err := f.local(remote)
	if errors.Is(err, errHidden) {
		return nil, fs.ErrorObjectNotFound
	}
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(p)
	switch {
	case isMissing(err):
		return nil, fs.ErrorObjectNotFound
	case errors.Is(err, iofs.ErrPermission):
		return nil, fs.ErrorPermissionDenied
	case err != nil:
		return nil, fmt.Errorf("looking at %s: %w", p, cause(err))
	}
	o, err := f.objectOf(ctx, remote, p, info, beneathDev(filepath.Dir(p)))
	if err != nil {
		return nil, err
	}
	return o, nil
}

// errEmpty matches a device that holds nothing, such as a loop device without a
// file. It is no object: a copy of it would replace a backup by nothing.
var errEmpty = errors.New("the device has no content: nothing is attached to it")

// objectOf returns the object for what lies at p. In a folder of devices nothing
// else is one: /dev/core is a regular file, and has the size of all memory.
func (f *Fs) objectOf(ctx context.Context, remote, p string, info os.FileInfo, amongDevices bool) (*Object, error) {
	o := &Object{fs: f, remote: remote, path: p}
	switch mode := info.Mode(); {
	case isDevice(mode):
		size, err := deviceSize(p, info)
		if err != nil {
			return nil, err
		}
		if size == 0 {
			return nil, fserrors.NoRetryError(fmt.Errorf("%s: %w", p, errEmpty))
		}
		if err := checkFlags(ctx, p); err != nil {
			return nil, err
		}
		o.device, o.number = true, deviceNumber(info)
		o.size, o.modTime = size, time.Now()
	case mode.IsRegular() && amongDevices:
		return nil, fs.ErrorObjectNotFound
	case mode.IsRegular():
		o.size, o.modTime = stateOf(p, info)
	case mode.IsDir():
		return nil, fs.ErrorIsDir
	default:
		return nil, fserrors.NoRetryError(fmt.Errorf("%s: is neither a block device nor a file: %w", p, fs.ErrorNotAFile))
	}
	return o, nil
}

// longestWindow is how far apart two times may be for rclone to take them for the
// same. FAT rounds to two seconds.
const longestWindow = 2 * time.Second

// errFlag matches the refusal of a flag.
var errFlag = errors.New("a device always has the same size, and neither a time nor a checksum, so it would be skipped")

// checkFlags refuses the global flags by which rclone would take a device for
// unchanged, and report as done what it has skipped.
func checkFlags(ctx context.Context, device string) error {
	ci := fs.GetConfig(ctx)
	for _, flag := range []struct {
		name string
		set  bool
	}{
		{"--size-only", ci.SizeOnly},
		{"--checksum", ci.CheckSum},
		{"--ignore-existing", ci.IgnoreExisting},
		{"--refresh-times", ci.RefreshTimes},
		{"--update", ci.UpdateOlder},
		{"--track-renames", ci.TrackRenames},
		{fmt.Sprintf("--modify-window %v", ci.ModifyWindow), time.Duration(ci.ModifyWindow) > longestWindow},
	} {
		if flag.set {
			return fserrors.NoRetryError(fmt.Errorf("device %s: leave out %s: %w", device, flag.name, errFlag))
		}
	}
	return nil
}

// List returns the devices, images and folders in dir. At the empty root these are
// the machine's disks and their partitions.
func (f *Fs) List(ctx context.Context, dir string) (fs.DirEntries, error) {
	if f.root == "" && dir == "" {
		return f.listDisks(ctx)
	}
	p, err := f.local(dir)
	if errors.Is(err, errHidden) {
		return nil, fs.ErrorDirNotFound
	}
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(p) // opening what is no folder may wait for ever
	if isMissing(err) {
		return nil, fs.ErrorDirNotFound
	}
	if err == nil && !info.IsDir() {
		return nil, fs.ErrorIsFile
	}
	found, err := os.ReadDir(p)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", p, cause(err))
	}
	var entries fs.DirEntries
	amongDevices := beneathDev(p)
	for _, e := range found {
		if e.Name() == image.StoreFolder {
			continue
		}
		remote := path.Join(dir, names.ToStandardName(e.Name()))
		entry, err := f.entry(ctx, remote, filepath.Join(p, e.Name()), amongDevices)
		if err != nil {
			return nil, err
		}
		if entry != nil {
			entries = append(entries, entry)
		}
	}
	return entries, nil
}

// listDisks lists the disks and partitions that the kernel knows, by their names
// in /dev.
func (f *Fs) listDisks(ctx context.Context) (fs.DirEntries, error) {
	disks, err := machineDisks()
	if err != nil {
		return nil, err
	}
	var entries fs.DirEntries
	var folders []string
	for _, name := range disks {
		remote := names.ToStandardPath(name)
		if folder, _, nested := strings.Cut(remote, "/"); nested {
			if !slices.Contains(folders, folder) {
				folders = append(folders, folder)
				entries = append(entries, fs.NewDir(folder, time.Time{}))
			}
			continue
		}
		entry, err := f.entry(ctx, remote, filepath.Join(devices, name), true)
		if err != nil {
			return nil, err
		}
		if entry != nil {
			entries = append(entries, entry)
		}
	}
	return entries, nil
}

// entry returns the entry of a listing for what lies at p, nil if there is none. A
// trouble with one is counted, so that the run fails, and does not keep the others
// from being listed.
func (f *Fs) entry(ctx context.Context, remote, p string, amongDevices bool) (fs.DirEntry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	link, err := os.Lstat(p)
	if isMissing(err) {
		return nil, nil // it went while we looked
	}
	info, err := os.Stat(p)
	if isMissing(err) {
		fs.Debugf(remote, "leads nowhere, not listed")
		return nil, nil
	}
	if err != nil {
		return nil, f.skip(ctx, remote, fmt.Errorf("looking at %s: %w", p, cause(err)))
	}
	switch mode := info.Mode(); {
	case mode.IsDir() && link.Mode()&os.ModeSymlink != 0:
		return nil, nil // it may lead in circles
	case mode.IsDir():
		return fs.NewDir(remote, info.ModTime()), nil
	case !isDevice(mode) && (!mode.IsRegular() || amongDevices):
		return nil, nil
	}
	o, err := f.objectOf(ctx, remote, p, info, amongDevices)
	switch {
	case errors.Is(err, errEmpty):
		return nil, nil
	case errors.Is(err, errFlag):
		return nil, err
	case err != nil:
		return nil, f.skip(ctx, remote, err)
	}
	return o, nil
}

// skip leaves an entry out of a listing, and has the run fail for it.
func (f *Fs) skip(ctx context.Context, remote string, err error) error {
	fs.Errorf(remote, "not listed: %v", err)
	_ = accounting.Stats(ctx).Error(fserrors.NoRetryError(err)) // it returns what it is given
	return nil
}

// isMissing reports whether an error says that nothing is there: no such file, one
// in the place of a folder above it, or links in a circle.
func isMissing(err error) bool {
	return errors.Is(err, iofs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

// cause strips the system call and the name from an error of package os.
func cause(err error) error {
	var pathErr *iofs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// beneathDev reports whether a path is in the system's folder of devices, where
// none but the kernel and its servants make anything. What of the path does not
// exist is not looked at. /dev may also be found elsewhere, for a chroot.
func beneathDev(p string) bool {
	real, err := filepath.EvalSymlinks(p)
	for err != nil && filepath.Dir(p) != p {
		p = filepath.Dir(p)
		real, err = filepath.EvalSymlinks(p)
	}
	if real == devices || strings.HasPrefix(real, devices+"/") {
		return true
	}
	return err == nil && onDevFileSystem(real)
}

var _ fs.Fs = (*Fs)(nil)
