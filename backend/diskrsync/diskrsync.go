// Package diskrsync is a backend that keeps disk images in a folder of another
// remote, and brings each up to date by what differs.
//
// # Where the work is done
//
// A sync needs both images where they lie. If the remote behind is a folder of this
// machine, it is opened here; if it is one of an sftp remote, an agent is started on
// that machine over ssh, by the settings of that remote (package sshexec). Through
// alias and combine the same is found. From any other remote images can be read,
// mounted, checked and copied, by ranges of their files, but not written.
//
// # What rclone sees
//
// An object is the content of an image: its size is the logical one, its time that of
// the source. The folder .diskrsync, with what is stored about images, is never seen,
// and moves and goes with them. So there is no option state_dir: that is for devices,
// which have no folder for it beside them (see package blockdev).
//
// Put and Update do not write to a temporary name that rclone then renames
// (PartialUploads is not set): the store is what makes an image safe against crashes,
// and a new name would have no base to compare with. OpenWriterAt and OpenChunkWriter
// do not exist, for rclone would prefer them to Update.
package diskrsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rclone/rclone/backend/crypt"
	"github.com/rclone/rclone/backend/overview"
	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/rclone/rclone/fs/cache"
	"github.com/rclone/rclone/fs/config/configmap"
	"github.com/rclone/rclone/fs/config/configstruct"
	"github.com/rclone/rclone/fs/fserrors"
	"github.com/rclone/rclone/fs/fspath"
	"github.com/rclone/rclone/fs/hash"
	"github.com/rclone/rclone/fs/list"
	"golang.org/x/sync/errgroup"

	"github.com/diskrsync/diskrsync/backend/endpoint"
	"github.com/diskrsync/diskrsync/merkle/image"
)

func init() {
	fs.Register(&fs.RegInfo{
		Name:        "diskrsync",
		Description: "Disk images on another remote, updated by what differs",
		NewFs:       NewFs,
		CommandHelp: commandHelp,
		Overview: &overview.BackendConfig{
			Backend: "diskrsync", Name: "Disk images", Tier: "Tier 4", Maintainers: "External",
			Features: []string{"Purge", "Move", "DirMove", "StreamUpload", "About", "CanHaveEmptyDirectories"},
		},
		Options: options(),
	})
}

// Fs represents a folder of images on another remote
type Fs struct {
	name     string
	root     string
	opt      Options
	base     fs.Fs // the folder
	site     *site // the same, where images can be written; nil if they cannot
	wrapper  fs.Fs
	features *fs.Features

	budget endpoint.Budget

	proof   sync.Mutex // for what follows
	proved  bool       // what sftp shows is what agents see
	refuted error      // it is not
}

// NewFs constructs an Fs from the path, container:path
func NewFs(ctx context.Context, name, rpath string, m configmap.Mapper) (fs.Fs, error) {
	f := &Fs{name: name, root: strings.Trim(rpath, "/")}
	if err := configstruct.Set(m, &f.opt); err != nil {
		return nil, err
	}
	if err := f.check(); err != nil {
		return nil, fserrors.NoRetryError(err)
	}
	base, err := cache.Get(ctx, fspath.JoinRootPath(f.opt.Remote, f.root))
	isFile := errors.Is(err, fs.ErrorIsFile)
	if err != nil && !isFile {
		return nil, fmt.Errorf("making the remote %s behind it: %w", shown(f.opt.Remote), err)
	}
	if isFile {
		if f.root == "" {
			return nil, fserrors.NoRetryError(fmt.Errorf("remote %s is a file: it must be the folder that images are in", shown(f.opt.Remote)))
		}
		if f.root = path.Dir(f.root); f.root == "." {
			f.root = ""
		}
	}
	f.base = base
	if f.site, err = f.resolve(); err != nil {
		return nil, err
	}
	if hidden(f.base.Root()) || f.site != nil && hidden(filepath.ToSlash(f.site.root)) {
		return nil, fserrors.NoRetryError(fmt.Errorf("remote %s: %w", shown(f.opt.Remote), errHidden))
	}
	f.setFeatures(ctx)
	cache.PinUntilFinalized(f.base, f)
	f.warn(ctx)
	if isFile {
		return f, fs.ErrorIsFile
	}
	return f, nil
}

// errHidden is what every path into a store folder leads to.
var errHidden = fmt.Errorf("%s holds what is known of the images beside it, and no images", image.StoreFolder)

// check refuses settings and paths that can never be right.
func (f *Fs) check() error {
	switch {
	case f.opt.Remote == "":
		return errors.New("remote is not set: it is the folder that images are in, such as nas:/mnt/backup")
	case leadsTo(f.opt.Remote, []string{f.name}):
		return errors.New("remote points to itself, or to remotes that do: it must be another one, such as nas:/mnt/backup")
	case f.opt.Format != string(image.Spgz) && f.opt.Format != string(image.Raw):
		return fmt.Errorf("format %q is neither spgz nor raw", f.opt.Format)
	case f.opt.AgentPath == "":
		return errors.New("agent_path is empty")
	case time.Duration(f.opt.KeepAlive) < time.Second:
		return fmt.Errorf("keep_alive %v is less than a second", f.opt.KeepAlive)
	case slices.Contains(strings.Split(f.root, "/"), ".."):
		return fmt.Errorf("%s: has .. in it: name the folder itself", f.root)
	case hidden(f.root):
		return fmt.Errorf("%s: %w", f.root, errHidden)
	}
	return nil
}

func (f *Fs) setFeatures(ctx context.Context) {
	f.features = (&fs.Features{
		CaseInsensitive:          true,
		CanHaveEmptyDirectories:  true,
		BucketBased:              true,
		BucketBasedRootOK:        true,
		SlowModTime:              true,
		ReadDirMetadata:          true,
		WriteDirMetadata:         true,
		UserDirMetadata:          true,
		WriteDirSetModTime:       true,
		DirModTimeUpdatesOnWrite: true,
	}).Fill(ctx, f).Mask(ctx, f.base).WrapsFs(f, f.base)
	f.features.Command = f.Command
	f.features.Shutdown = f.Shutdown
	f.features.ListP = f.ListP
	if f.site != nil {
		f.features.PutStream = f.PutStream
	}
	// Reading an image in pieces at once, each piece from its own look at it, could
	// not tell if it changes.
	f.features.NoMultiThreading = true
}

// warn tells about flags that leave nothing to compare with.
func (f *Fs) warn(ctx context.Context) {
	ci := fs.GetConfig(ctx)
	if ci.BackupDir != "" || ci.Suffix != "" {
		fs.Logf(f, "--backup-dir and --suffix move the old image away first, so that all of the new one has to be sent: leave them out, and keep old images by snapshots of the file system")
	}
}

// Name of the remote (as passed into NewFs)
func (f *Fs) Name() string { return f.name }

// Root of the remote (as passed into NewFs)
func (f *Fs) Root() string { return f.root }

// Features returns the optional features of this Fs
func (f *Fs) Features() *fs.Features { return f.features }

// String returns a description of the FS
func (f *Fs) String() string { return fmt.Sprintf("disk images '%s:%s'", f.name, f.root) }

// Precision of the ModTimes in this Fs
func (f *Fs) Precision() time.Duration { return f.base.Precision() }

// Hashes returns none: a digest of all the content would have to be made by reading
// it. The command info tells the one that is stored.
func (f *Fs) Hashes() hash.Set { return hash.Set(hash.None) }

// UnWrap returns the Fs that this Fs is wrapping
func (f *Fs) UnWrap() fs.Fs { return f.base }

// WrapFs returns the Fs that is wrapping this Fs
func (f *Fs) WrapFs() fs.Fs { return f.wrapper }

// SetWrapper sets the Fs that is wrapping this Fs
func (f *Fs) SetWrapper(wrapper fs.Fs) {
	f.wrapper = wrapper
	if _, ok := wrapper.(*crypt.Fs); ok {
		fs.Logf(f, "crypt on top of it makes other bytes of the same content each time, so nothing will ever match: put crypt on the remote behind it, or leave it out")
	}
}

// here reports whether the images are on this machine.
func (f *Fs) here() bool { return f.site != nil && f.site.host == nil }

// checkName refuses names that lead elsewhere than rclone means, and those in a store.
func checkName(remote string) error {
	switch {
	case hidden(remote):
		return fserrors.NoRetryError(fmt.Errorf("%s: %w", remote, errHidden))
	case slices.Contains(strings.Split(remote, "/"), ".."):
		return fserrors.NoRetryError(fmt.Errorf("%s: has .. in it: name the image itself", remote))
	}
	return nil
}

// place returns where an image is.
func (f *Fs) place(remote string) (endpoint.Place, error) {
	if f.site == nil {
		return endpoint.Place{}, f.notWritable()
	}
	return f.site.place(remote, &f.opt), checkName(remote)
}

// List the objects and directories in dir into entries.
func (f *Fs) List(ctx context.Context, dir string) (fs.DirEntries, error) {
	return list.WithListP(ctx, dir, f)
}

// ListP lists the objects and directories in dir in portions.
func (f *Fs) ListP(ctx context.Context, dir string, callback fs.ListRCallback) error {
	if hidden(dir) {
		return fs.ErrorDirNotFound
	}
	beside, err := f.listStore(ctx, dir)
	if err != nil {
		return err
	}
	wrap := func(found fs.DirEntries) error {
		entries, err := f.wrapEntries(ctx, found, beside)
		if err != nil {
			return err
		}
		return callback(entries)
	}
	if do := f.base.Features().ListP; do != nil {
		return do(ctx, dir, wrap)
	}
	found, err := f.base.List(ctx, dir)
	if err != nil {
		return err
	}
	return wrap(found)
}

// listStore lists what is stored about the images of a folder, if that is needed to
// describe them.
func (f *Fs) listStore(ctx context.Context, dir string) (map[string]fs.Object, error) {
	if f.here() {
		return nil, nil
	}
	entries, err := f.base.List(ctx, path.Join(dir, image.StoreFolder))
	if err != nil && !errors.Is(err, fs.ErrorDirNotFound) {
		return nil, err
	}
	beside := map[string]fs.Object{}
	for _, entry := range entries {
		if o, ok := entry.(fs.Object); ok {
			beside[o.Remote()] = o
		}
	}
	return beside, nil
}

// wrapEntries makes images of files, and leaves out what is not to be seen.
func (f *Fs) wrapEntries(ctx context.Context, found fs.DirEntries, beside map[string]fs.Object) (fs.DirEntries, error) {
	entries := make(fs.DirEntries, len(found))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, fs.GetConfig(ctx).Checkers))
	for i, entry := range found {
		switch x := entry.(type) {
		case fs.Object:
			if isProbe(x.Remote()) {
				continue
			}
			group.Go(func() error {
				d, err := f.describeListed(gctx, x, beside)
				if err != nil {
					return f.skip(gctx, x, err)
				}
				entries[i] = &Object{f: f, remote: x.Remote(), description: d}
				return nil
			})
		case fs.Directory:
			if !hidden(x.Remote()) {
				entries[i] = x
			}
		}
	}
	err := group.Wait()
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e == nil }), err
}

func (f *Fs) describeListed(ctx context.Context, file fs.Object, beside map[string]fs.Object) (description, error) {
	if f.here() {
		return f.describeHere(ctx, file)
	}
	return f.describe(ctx, file, beside[stored(file.Remote(), image.KindTree)], beside[stored(file.Remote(), image.KindJournal)] != nil)
}

// skip leaves an entry out of a listing, and has the run fail for it.
func (f *Fs) skip(ctx context.Context, o fs.Object, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	fs.Errorf(o, "not listed: %v", err)
	_ = accounting.Stats(ctx).Error(err) // it returns what it is given
	return nil
}

// NewObject finds the Object at remote.
func (f *Fs) NewObject(ctx context.Context, remote string) (fs.Object, error) {
	d, err := f.find(ctx, remote)
	if err != nil {
		return nil, err
	}
	return &Object{f: f, remote: remote, description: d}, nil
}

// Put syncs in, or the image behind src, to an image, whether that exists or not.
func (f *Fs) Put(ctx context.Context, in io.Reader, src fs.ObjectInfo, options ...fs.OpenOption) (fs.Object, error) {
	size, err := f.upload(ctx, src, in, src, src.Remote())
	if err != nil {
		return nil, err
	}
	d, err := f.find(ctx, src.Remote())
	if err != nil {
		return nil, fmt.Errorf("%s: was synced, and cannot be found now: %w", src.Remote(), err)
	}
	if err := d.checkSize(src.Remote(), size); err != nil {
		return nil, err
	}
	return &Object{f: f, remote: src.Remote(), description: d}, nil
}

// PutStream is Put for what does not say how long it is.
func (f *Fs) PutStream(ctx context.Context, in io.Reader, src fs.ObjectInfo, options ...fs.OpenOption) (fs.Object, error) {
	return f.Put(ctx, in, src, options...)
}

// upload brings an image to what in gives, or to the image behind src, and returns its
// size.
func (f *Fs) upload(ctx context.Context, o any, in io.Reader, src fs.ObjectInfo, remote string) (int64, error) {
	if _, err := f.place(remote); err != nil {
		return 0, err
	}
	endpoint.Claim(ctx, in, src)
	dir := path.Dir(remote)
	if dir == "." {
		dir = ""
	}
	if err := f.base.Mkdir(ctx, dir); err != nil {
		return 0, err
	}
	place, err := f.placeToWrite(ctx, remote)
	if err != nil {
		return 0, err
	}
	done, err := endpoint.Upload(ctx, o, in, src, endpoint.Target{Place: place,
		Raw: f.opt.Format == string(image.Raw), InPlace: f.opt.InPlace, Checksum: f.opt.Checksum, Budget: &f.budget})
	if err != nil {
		return 0, err
	}
	return done.Size, f.outlast(ctx, src.ModTime(ctx))
}

// outlast waits until what is changed from now on has another time, by what rclone
// compares here, than a source that was found just now: else the next run would take it
// for unchanged. A device always has just been found.
func (f *Fs) outlast(ctx context.Context, modified time.Time) error {
	window := max(f.Precision(), time.Duration(fs.GetConfig(ctx).ModifyWindow))
	rest := time.Until(modified.Add(window))
	if window > longestWindow || rest <= 0 || rest > longestWindow {
		return nil // no times are compared, or it is one of the future
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(rest):
		return nil
	}
}

// longestWindow is how far apart two times may be for rclone to take them for the same:
// FAT rounds to two seconds.
const longestWindow = 2 * time.Second

// Shutdown the backend, closing its connections.
func (f *Fs) Shutdown(ctx context.Context) error {
	err := f.site.close()
	if do := f.base.Features().Shutdown; do != nil {
		err = errors.Join(err, do(ctx))
	}
	return err
}
