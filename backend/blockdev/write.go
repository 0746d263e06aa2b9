package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/fserrors"

	"github.com/diskrsync/diskrsync/backend/endpoint"
	"github.com/diskrsync/diskrsync/merkle/image"
)

// errReadOnly says what is to be done before anything is written.
var errReadOnly = errors.New("the remote is read-only: set its option allow_write (--blockdev-allow-write) to write to devices and images")

// mayWrite returns an error unless the user allows to write at all.
func (f *Fs) mayWrite(p string) error {
	if !f.opt.AllowWrite {
		return fserrors.NoRetryError(fmt.Errorf("%s: %w", p, errReadOnly))
	}
	return nil
}

// mayMake returns an error unless files and folders may be made, changed and
// removed at p.
func (f *Fs) mayMake(p, doing string) error {
	if err := f.mayWrite(p); err != nil {
		return err
	}
	if beneathDev(p) || beneathDev(filepath.Dir(p)) {
		return fserrors.NoRetryError(fmt.Errorf("%s: %s: beneath %s nothing is changed but the content of devices", p, doing, devices))
	}
	return nil
}

// Put writes to what src is called. A device that exists is updated, as is an image
// file; a new image file is made, with the folders above it, but never beneath /dev.
func (f *Fs) Put(ctx context.Context, in io.Reader, src fs.ObjectInfo, options ...fs.OpenOption) (fs.Object, error) {
	p, err := f.local(src.Remote())
	if err != nil {
		return nil, err
	}
	if err := f.mayWrite(p); err != nil {
		return nil, err
	}
	there, err := f.NewObject(ctx, src.Remote())
	if err == nil {
		if err := there.Update(ctx, in, src, options...); err != nil {
			return nil, err
		}
		return there, nil
	}
	if !errors.Is(err, fs.ErrorObjectNotFound) {
		return nil, err
	}
	if err := f.mayMake(p, "there is no such device"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o777); err != nil {
		return nil, fmt.Errorf("making the folder of %s: %w", p, cause(err))
	}
	o := &Object{fs: f, remote: src.Remote(), path: p}
	if err := o.upload(ctx, in, src); err != nil {
		return nil, err
	}
	return o, nil
}

// PutStream is Put for a stream of unknown length, which is put aside first: the size
// of an image has to be known before any of it is compared.
func (f *Fs) PutStream(ctx context.Context, in io.Reader, src fs.ObjectInfo, options ...fs.OpenOption) (fs.Object, error) {
	return f.Put(ctx, in, src, options...)
}

// Update gives a device or an image file another content, by writing the blocks that
// differ.
func (o *Object) Update(ctx context.Context, in io.Reader, src fs.ObjectInfo, _ ...fs.OpenOption) error {
	if err := o.fs.mayWrite(o.path); err != nil {
		return err
	}
	if !o.device {
		if err := o.fs.mayMake(o.path, "writing to it"); err != nil {
			return err
		}
	}
	// Right before, for where a device has gone a file would be made.
	if _, err := o.look(); err != nil {
		return err
	}
	return o.upload(ctx, in, src)
}

// upload gives the image at the object's place the content of src.
func (o *Object) upload(ctx context.Context, in io.Reader, src fs.ObjectInfo) error {
	done, err := endpoint.Upload(ctx, o, in, src, endpoint.Target{
		Place:  endpoint.Place{Path: o.path},
		Device: o.device, Raw: true, Checksum: o.fs.opt.Checksum, StateDir: o.fs.opt.StateDir, Budget: &o.fs.budget,
	})
	if err != nil {
		return err
	}
	if o.device {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.partial = o.partial || done.Size < o.size
		o.size = done.Size
		return nil
	}
	return o.refresh() // it has the time of src, unless someone is reading it
}

// refresh finds out the size and the time of an image file anew.
func (o *Object) refresh() error {
	info, err := os.Stat(o.path)
	if err != nil {
		return fmt.Errorf("looking at %s: %w", o.path, cause(err))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.size, o.modTime = stateOf(o.path, info)
	return nil
}

// SetModTime sets when an image file was modified. A device has no such time: the
// call does nothing and does not fail, because rclone makes it when it takes
// source and destination for the same but for their times.
func (o *Object) SetModTime(_ context.Context, modTime time.Time) error {
	if err := o.fs.mayWrite(o.path); err != nil {
		return err
	}
	if o.device {
		return nil
	}
	if err := o.fs.mayMake(o.path, "setting its time"); err != nil {
		return err
	}
	return o.stamp(modTime)
}

// stamp gives an image file its time, together with what is stored about it: its
// hashes are those of the file with that time.
func (o *Object) stamp(modTime time.Time) (err error) {
	if o.ModTime(context.Background()).Equal(modTime) {
		return nil
	}
	place, err := image.Locate(o.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, place.Close()) }()
	if err := image.SetModified(place, modTime); err != nil {
		return err
	}
	return o.refresh()
}

// Remove removes an image file, with what is stored about it, and no device ever.
func (o *Object) Remove(ctx context.Context) error {
	if o.device {
		return fserrors.NoRetryError(fmt.Errorf("%s: is a device, and devices are never removed", o.path))
	}
	if err := o.fs.mayMake(o.path, "removing it"); err != nil {
		return err
	}
	if _, err := o.look(); err != nil {
		return err
	}
	return endpoint.Remove(ctx, endpoint.Place{Path: o.path})
}

// Mkdir makes a folder, and those above it, unless it is there.
func (f *Fs) Mkdir(_ context.Context, dir string) error {
	p, err := f.local(dir)
	if err != nil {
		return err
	}
	if info, err := os.Stat(p); err == nil && info.IsDir() {
		return nil
	}
	if err := f.mayMake(p, "making a folder"); err != nil {
		return err
	}
	if err := os.MkdirAll(p, 0o777); err != nil {
		return fmt.Errorf("making the folder %s: %w", p, cause(err))
	}
	return nil
}

// Rmdir removes an empty folder. What an interrupted copy has left there of an image
// that never came to be goes with it.
func (f *Fs) Rmdir(ctx context.Context, dir string) error {
	p, err := f.local(dir)
	if err != nil {
		return err
	}
	found, err := os.ReadDir(p)
	if isMissing(err) {
		return fs.ErrorDirNotFound
	}
	if err != nil {
		return fmt.Errorf("listing %s: %w", p, cause(err))
	}
	if err := f.mayMake(p, "removing a folder"); err != nil {
		return err
	}
	if len(found) == 1 && found[0].Name() == image.StoreFolder {
		err = dropLeftovers(ctx, p)
	} else if len(found) > 0 {
		return fs.ErrorDirectoryNotEmpty
	}
	if err == nil {
		err = os.Remove(p)
	}
	if err != nil {
		return fmt.Errorf("removing the folder %s: %w", p, cause(err))
	}
	return nil
}

// dropLeftovers removes the store of a folder in which there is nothing else.
func dropLeftovers(ctx context.Context, p string) error {
	store := filepath.Join(p, image.StoreFolder)
	left, err := os.ReadDir(store)
	if err != nil {
		return err
	}
	for _, e := range left {
		name := strings.TrimSuffix(e.Name(), path.Ext(e.Name()))
		if err := endpoint.Remove(ctx, endpoint.Place{Path: filepath.Join(p, name)}); err != nil && !isMissing(err) {
			return err
		}
	}
	if err := os.Remove(store); !isMissing(err) {
		return err
	}
	return nil
}

var _ fs.PutStreamer = (*Fs)(nil)
