package diskrsync

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/rclone/rclone/fs"

	"github.com/diskrsync/diskrsync/backend/endpoint"
	"github.com/diskrsync/diskrsync/merkle/image"
)

// Mkdir makes the directory (container, bucket)
func (f *Fs) Mkdir(ctx context.Context, dir string) error {
	if err := checkName(dir); err != nil {
		return err
	}
	return f.base.Mkdir(ctx, dir)
}

// Rmdir removes the directory (container, bucket) if empty. What is stored about
// images that are gone does not keep it, but a first copy does that was interrupted
// and is to go on.
func (f *Fs) Rmdir(ctx context.Context, dir string) error {
	found, err := f.base.List(ctx, dir)
	if err != nil {
		return err
	}
	if found, err = f.dropProbes(ctx, found); err != nil {
		return err
	}
	folder := path.Join(dir, image.StoreFolder)
	if len(found) == 1 && found[0].Remote() == folder {
		beside, err := f.base.List(ctx, folder)
		if err != nil {
			return err
		}
		for _, entry := range beside {
			switch image.Kind(strings.TrimPrefix(path.Ext(entry.Remote()), ".")) {
			case image.KindPartial, image.KindJournal:
				return fmt.Errorf("%w: %s is what an interrupted first copy has left for the next one: the command clean drops it", fs.ErrorDirectoryNotEmpty, entry.Remote())
			}
		}
		if err := f.dropFolder(ctx, folder, beside); err != nil {
			return err
		}
	}
	return f.base.Rmdir(ctx, dir)
}

// dropProbes removes probes, which runs that were killed have left, of a folder in which
// there are no images.
func (f *Fs) dropProbes(ctx context.Context, found fs.DirEntries) (rest fs.DirEntries, err error) {
	images := slices.ContainsFunc(found, func(e fs.DirEntry) bool { return !hidden(e.Remote()) })
	for _, entry := range found {
		o, ok := entry.(fs.Object)
		if images || !ok || !isProbe(entry.Remote()) {
			rest = append(rest, entry)
		} else if err := o.Remove(ctx); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// dropFolder removes a store folder with all that is in it.
func (f *Fs) dropFolder(ctx context.Context, folder string, entries fs.DirEntries) error {
	for _, entry := range entries {
		if o, ok := entry.(fs.Object); ok {
			if err := o.Remove(ctx); err != nil {
				return err
			}
		}
	}
	return f.base.Rmdir(ctx, folder)
}

// removeStored removes what is stored about an image that is gone, or has gone
// elsewhere. A lock is its holder's.
func (f *Fs) removeStored(ctx context.Context, remote string) error {
	for _, kind := range []image.Kind{image.KindJournal, image.KindPartial, image.KindFresh, image.KindTree} {
		o, err := f.maybe(ctx, stored(remote, kind))
		if err != nil {
			return err
		}
		if o == nil {
			continue
		}
		if err := o.Remove(ctx); err != nil {
			return err
		}
	}
	// Other images may need the folder, and not every remote has folders.
	if err := f.base.Rmdir(ctx, path.Join(path.Dir(remote), image.StoreFolder)); err != nil {
		fs.Debugf(f, "keeping the folder with what is stored beside %s: %v", remote, err)
	}
	return nil
}

// Purge all files in the directory specified
func (f *Fs) Purge(ctx context.Context, dir string) error {
	do := f.base.Features().Purge
	if do == nil {
		return fs.ErrorCantPurge
	}
	return do(ctx, dir)
}

// Move src to this remote, with what is stored about it.
func (f *Fs) Move(ctx context.Context, src fs.Object, remote string) (fs.Object, error) {
	do := f.base.Features().Move
	o, ok := src.(*Object)
	if do == nil || !ok {
		return nil, fs.ErrorCantMove
	}
	if err := checkName(remote); err != nil {
		return nil, err
	}
	if err := o.settle(ctx); err != nil {
		return nil, err
	}
	if err := f.makeWay(ctx, remote); err != nil {
		return nil, err
	}
	tree, err := o.f.maybe(ctx, stored(o.remote, image.KindTree))
	if err != nil {
		return nil, err
	}
	if _, err := do(ctx, o.now().file, remote); err != nil {
		return nil, err
	}
	if tree != nil {
		if _, err := do(ctx, tree, stored(remote, image.KindTree)); err != nil {
			fs.Logf(remote, "moved, but not what is stored of its hashes, so all of it will be read by the next sync: %v", err)
		}
	}
	if err := o.f.removeStored(ctx, o.remote); err != nil {
		return nil, err
	}
	return f.NewObject(ctx, remote)
}

// makeWay removes what is stored about an image that was there before, and that too if
// it still is.
func (f *Fs) makeWay(ctx context.Context, remote string) error {
	there, err := f.NewObject(ctx, remote)
	switch {
	case err == nil:
		return there.Remove(ctx)
	case !errors.Is(err, fs.ErrorObjectNotFound):
		return err
	}
	for _, kind := range []image.Kind{image.KindJournal, image.KindPartial} {
		left, err := f.maybe(ctx, stored(remote, kind))
		if err != nil {
			return err
		}
		if left == nil || f.site == nil {
			continue
		}
		place, err := f.placeToWrite(ctx, remote)
		if err != nil {
			return err
		}
		if _, err := endpoint.Clean(ctx, endpoint.Target{Place: place}); err != nil {
			return err // such as that someone is making it
		}
		break
	}
	return f.removeStored(ctx, remote)
}

// Copy src to this remote where no agent can be started, with what is stored about it. At
// any other place a copy is made by a sync: what the remote calls one may be a hard link.
func (f *Fs) Copy(ctx context.Context, src fs.Object, remote string) (fs.Object, error) {
	do := f.base.Features().Copy
	o, ok := src.(*Object)
	if do == nil || !ok || f.site != nil || o.f.site != nil {
		return nil, fs.ErrorCantCopy
	}
	if err := checkName(remote); err != nil {
		return nil, err
	}
	d := o.now()
	if d.unfinished {
		return nil, o.complete(ctx) // which says why that cannot be done
	}
	if err := f.makeWay(ctx, remote); err != nil {
		return nil, err
	}
	if _, err := do(ctx, d.file, remote); err != nil {
		return nil, err
	}
	if d.tree != nil {
		if _, err := do(ctx, d.tree, stored(remote, image.KindTree)); err != nil {
			return nil, err
		}
	}
	return f.NewObject(ctx, remote)
}

// settle sees to it that no sync of an image is unfinished.
func (o *Object) settle(ctx context.Context) error {
	journal, err := o.f.maybe(ctx, stored(o.remote, image.KindJournal))
	if err != nil {
		return err
	}
	if journal == nil {
		return o.unlocked(ctx)
	}
	if err := o.complete(ctx); err != nil {
		return err
	}
	if journal, err = o.f.maybe(ctx, stored(o.remote, image.KindJournal)); err != nil || journal == nil {
		return err
	}
	return fmt.Errorf("%s: cannot be moved while a sync of it is unfinished: sync to it again, or drop what has arrived with the command clean", o.remote)
}

// unlocked returns an error if someone has begun to write an image. A lock that is seen
// may be that of a run that was killed: only where it is can that be told.
func (o *Object) unlocked(ctx context.Context) error {
	lock, err := o.f.maybe(ctx, stored(o.remote, image.KindLock))
	if err != nil || lock == nil || o.f.site == nil {
		return err
	}
	place, err := o.f.placeToWrite(ctx, o.remote)
	if err != nil {
		return err
	}
	_, err = endpoint.Clean(ctx, endpoint.Target{Place: place}) // of which there is nothing without a journal
	return err
}

// DirMove moves src, srcRemote to this remote at dstRemote, with all that is stored
// about images in there.
func (f *Fs) DirMove(ctx context.Context, src fs.Fs, srcRemote, dstRemote string) error {
	do := f.base.Features().DirMove
	from, ok := src.(*Fs)
	if do == nil || !ok {
		return fs.ErrorCantDirMove
	}
	return do(ctx, from.base, srcRemote, dstRemote)
}

// DirSetModTime sets the directory modtime for dir
func (f *Fs) DirSetModTime(ctx context.Context, dir string, modTime time.Time) error {
	if do := f.base.Features().DirSetModTime; do != nil {
		return do(ctx, dir, modTime)
	}
	return fs.ErrorNotImplemented
}

// MkdirMetadata makes the directory with metadata.
func (f *Fs) MkdirMetadata(ctx context.Context, dir string, metadata fs.Metadata) (fs.Directory, error) {
	do := f.base.Features().MkdirMetadata
	if do == nil {
		return nil, fs.ErrorNotImplemented
	}
	if err := checkName(dir); err != nil {
		return nil, err
	}
	return do(ctx, dir, metadata)
}

// ChangeNotify calls the passed function with a path that has had changes.
func (f *Fs) ChangeNotify(ctx context.Context, notify func(string, fs.EntryType), pollInterval <-chan time.Duration) {
	do := f.base.Features().ChangeNotify
	if do == nil {
		return
	}
	do(ctx, func(remote string, kind fs.EntryType) {
		if !hidden(remote) {
			notify(remote, kind)
		}
	}, pollInterval)
}

// CleanUp the trash in the Fs
func (f *Fs) CleanUp(ctx context.Context) error {
	if do := f.base.Features().CleanUp; do != nil {
		return do(ctx)
	}
	return errors.New("not supported by the remote behind")
}

// UserInfo returns info about the connected user
func (f *Fs) UserInfo(ctx context.Context) (map[string]string, error) {
	if do := f.base.Features().UserInfo; do != nil {
		return do(ctx)
	}
	return nil, fs.ErrorNotImplemented
}

// Disconnect the current user
func (f *Fs) Disconnect(ctx context.Context) error {
	if do := f.base.Features().Disconnect; do != nil {
		return do(ctx)
	}
	return fs.ErrorNotImplemented
}

// About gets quota information from the Fs
func (f *Fs) About(ctx context.Context) (*fs.Usage, error) {
	if do := f.base.Features().About; do != nil {
		return do(ctx)
	}
	return nil, errors.New("not supported by the remote behind")
}

// DirCacheFlush resets the directory cache
func (f *Fs) DirCacheFlush() {
	if do := f.base.Features().DirCacheFlush; do != nil {
		do()
	}
}

var (
	_ fs.Fs              = (*Fs)(nil)
	_ fs.PutStreamer     = (*Fs)(nil)
	_ fs.Purger          = (*Fs)(nil)
	_ fs.Copier          = (*Fs)(nil)
	_ fs.Mover           = (*Fs)(nil)
	_ fs.DirMover        = (*Fs)(nil)
	_ fs.DirSetModTimer  = (*Fs)(nil)
	_ fs.MkdirMetadataer = (*Fs)(nil)
	_ fs.ChangeNotifier  = (*Fs)(nil)
	_ fs.CleanUpper      = (*Fs)(nil)
	_ fs.UserInfoer      = (*Fs)(nil)
	_ fs.Disconnecter    = (*Fs)(nil)
	_ fs.ListPer         = (*Fs)(nil)
	_ fs.Abouter         = (*Fs)(nil)
	_ fs.DirCacheFlusher = (*Fs)(nil)
	_ fs.UnWrapper       = (*Fs)(nil)
	_ fs.Wrapper         = (*Fs)(nil)
	_ fs.Commander       = (*Fs)(nil)
	_ fs.Shutdowner      = (*Fs)(nil)
)
