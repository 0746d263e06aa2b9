package blockdev

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/fserrors"
	"github.com/rclone/rclone/fs/hash"

	"github.com/diskrsync/diskrsync/backend/endpoint"
	"github.com/diskrsync/diskrsync/merkle/image"
)

// Object is a block device or an image file.
type Object struct {
	fs     *Fs
	remote string
	path   string // on this machine
	device bool
	number uint64 // of the device, 0 if unknown

	mu      sync.Mutex // for what follows
	size    int64
	modTime time.Time
	partial bool // an update of a larger device: what it held behind the content is still there
}

// stateOf returns the size and the time of the content of an image file: those of
// the file, unless an update of it waits in the store for a reader to end.
func stateOf(p string, info os.FileInfo) (int64, time.Time) {
	if !waits(p) {
		return info.Size(), info.ModTime()
	}
	place, err := image.Locate(p)
	if err != nil {
		return info.Size(), info.ModTime()
	}
	defer place.Close() // it was only looked at
	img, err := image.Open(place, image.Options{Choice: image.AsRaw, Examine: true, ReadOnly: true})
	if err != nil {
		fs.Debugf(p, "an update of it waits and cannot be read, so its size and time are those of its file: %v", err)
		return info.Size(), info.ModTime()
	}
	defer img.Close()
	if img.State().Waiting == 0 {
		return info.Size(), info.ModTime()
	}
	return img.Size(), img.Modified()
}

// waits reports whether there may be an update in the store of an image.
func waits(p string) bool {
	if real, err := filepath.EvalSymlinks(p); err == nil {
		p = real
	}
	_, err := os.Lstat(filepath.Join(filepath.Dir(p), image.KindJournal.Of(filepath.Base(p))))
	return err == nil
}

// Fs returns where the object was found.
func (o *Object) Fs() fs.Info { return o.fs }

// String returns the name of the object, also for messages about none.
func (o *Object) String() string {
	if o == nil {
		return "<nil>"
	}
	return o.remote
}

// Remote returns the name of the object, relative to the root of its Fs.
func (o *Object) Remote() string { return o.remote }

// Size returns how many bytes the content has. After an Update that is what was
// written, even if the device is larger.
func (o *Object) Size() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.size
}

// ModTime returns when an image file was modified. Of a device nobody knows, so it
// is when the object was made: any backup is older.
func (o *Object) ModTime(context.Context) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.modTime
}

// Hash returns no hash, see Fs.Hashes.
func (o *Object) Hash(context.Context, hash.Type) (string, error) { return "", hash.ErrUnsupported }

// Storable is true of everything that is an object here.
func (o *Object) Storable() bool { return true }

// ImageSource returns the image that a sync reads instead of the stream of Open. What
// an update has left behind its content is not part of the object, which then is a
// stream.
func (o *Object) ImageSource(context.Context) (endpoint.Source, error) {
	info, err := o.look()
	if err != nil {
		return endpoint.Source{}, err
	}
	o.mu.Lock()
	size, partial := o.size, o.partial
	o.mu.Unlock()
	if partial {
		return endpoint.Source{}, fmt.Errorf("%s: %w", o.path, endpoint.ErrNotPlaced)
	}
	now, _ := stateOf(o.path, info)
	if o.device {
		if now, err = deviceSize(o.path, info); err != nil {
			return endpoint.Source{}, err
		}
	}
	if now != size {
		return endpoint.Source{}, resized(o.path, size, now)
	}
	return o.source(), nil
}

func (o *Object) source() endpoint.Source {
	opt := &o.fs.opt
	return endpoint.Source{
		Place:  endpoint.Place{Path: o.path},
		Format: image.AsRaw, Checksum: opt.Checksum, Force: opt.Force, ReadOnly: !opt.AllowWrite, StateDir: opt.StateDir,
	}
}

// resized says that a source is not as long as rclone thinks it is: it would take
// the copy for a failed one, and remove it.
func resized(p string, then, now int64) error {
	return fmt.Errorf("%s: has %d bytes now and had %d when it was found", p, now, then)
}

// look describes what the path leads to. It fails if that is not what was found
// there before: devices come and go, and get each other's names.
func (o *Object) look() (os.FileInfo, error) {
	info, err := os.Stat(o.path)
	switch {
	case isMissing(err):
		return nil, fserrors.NoRetryError(fmt.Errorf("%s: is no longer there: %w", o.path, fs.ErrorObjectNotFound))
	case err != nil:
		return nil, fmt.Errorf("looking at %s: %w", o.path, cause(err))
	case o.device && !isDevice(info.Mode()):
		return nil, fserrors.NoRetryError(fmt.Errorf("%s: was a block device and is none now", o.path))
	case o.device && deviceNumber(info) != o.number:
		return nil, fserrors.NoRetryError(fmt.Errorf("%s: is now another device than the one that was found there", o.path))
	case !o.device && !info.Mode().IsRegular():
		return nil, fserrors.NoRetryError(fmt.Errorf("%s: was an image file and is none now", o.path))
	}
	return info, nil
}

// Open returns the content, or the part of it that options ask for. A part that lies
// outside is empty.
func (o *Object) Open(ctx context.Context, options ...fs.OpenOption) (io.ReadCloser, error) {
	if _, err := o.look(); err != nil {
		return nil, err
	}
	o.mu.Lock()
	size, partial := o.size, o.partial
	o.mu.Unlock()
	return o.source().Open(ctx, o, size, partial, options)
}

var (
	_ fs.Object       = (*Object)(nil)
	_ endpoint.Placed = (*Object)(nil)
)
