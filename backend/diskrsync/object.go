package diskrsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/hash"

	"github.com/diskrsync/diskrsync/backend/endpoint"
	"github.com/diskrsync/diskrsync/merkle/image"
)

// Object is an image, by its content
type Object struct {
	f      *Fs
	remote string

	readers holding

	mu sync.Mutex // for what follows
	description
}

// Fs returns read only access to the Fs that this object is part of
func (o *Object) Fs() fs.Info { return o.f }

// String returns a description of the Object
func (o *Object) String() string {
	if o == nil {
		return "<nil>"
	}
	return o.remote
}

// Remote returns the remote path
func (o *Object) Remote() string { return o.remote }

// now returns what is known of the image.
func (o *Object) now() description {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.description
}

// Size returns the size of the content, however large the image's file is
func (o *Object) Size() int64 { return o.now().size }

// ModTime returns when the source was modified
func (o *Object) ModTime(context.Context) time.Time { return o.now().modified }

// Hash returns none: that of all the content is not stored, see the commands.
func (o *Object) Hash(context.Context, hash.Type) (string, error) { return "", hash.ErrUnsupported }

// Storable says whether this object can be stored
func (o *Object) Storable() bool { return true }

// UnWrap returns the file that the image is in
func (o *Object) UnWrap() fs.Object { return o.now().file }

// place returns where the image is, for what only an agent or this machine can do.
func (o *Object) place() (endpoint.Place, error) { return o.f.place(o.remote) }

// ImageSource returns the image that a sync reads instead of the stream of Open
func (o *Object) ImageSource(ctx context.Context) (endpoint.Source, error) {
	if o.f.site == nil {
		return endpoint.Source{}, endpoint.ErrNotPlaced
	}
	src, err := o.source()
	if err != nil {
		return src, err
	}
	if !o.f.here() {
		if err := o.f.prove(ctx); err != nil && ctx.Err() == nil {
			fs.Logf(o, "is read over sftp, and all of it: %v", err)
			return src, endpoint.ErrNotPlaced
		}
	}
	o.readers.release() // who asks for the image does not want the stream
	return src, nil
}

func (o *Object) source() (endpoint.Source, error) {
	place, err := o.place()
	return endpoint.Source{Place: place, Format: o.now().choice(), Checksum: o.f.opt.Checksum, Force: o.f.opt.Force}, err
}

// SetModTime sets when the source was modified, and keeps what is stored of the
// image's hashes
func (o *Object) SetModTime(ctx context.Context, modified time.Time) error {
	d := o.now()
	if o.f.site == nil {
		if err := d.file.SetModTime(ctx, modified); err != nil {
			return err
		}
	} else {
		place, err := o.f.placeToWrite(ctx, o.remote)
		if err != nil {
			return err
		}
		if err := endpoint.SetModified(ctx, place, modified); err != nil {
			return err
		}
	}
	return o.refresh(ctx)
}

// refresh looks at the image anew.
func (o *Object) refresh(ctx context.Context) error {
	d, err := o.f.find(ctx, o.remote)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.description = d
	return nil
}

// Update brings the image to what in gives, or to the image behind src, by a sync
func (o *Object) Update(ctx context.Context, in io.Reader, src fs.ObjectInfo, options ...fs.OpenOption) error {
	size, err := o.f.upload(ctx, o, in, src, o.remote)
	if err != nil {
		return err
	}
	if err := o.refresh(ctx); err != nil {
		return err
	}
	return o.now().checkSize(o.remote, size)
}

// Remove an image, and what is stored about it
func (o *Object) Remove(ctx context.Context) error {
	if o.f.site != nil {
		place, err := o.f.placeToWrite(ctx, o.remote)
		if err != nil {
			return err
		}
		return endpoint.Remove(ctx, place) // and nobody writes it meanwhile
	}
	if err := o.now().file.Remove(ctx); err != nil {
		return err
	}
	return o.f.removeStored(ctx, o.remote)
}

// Open the content for reading. Images of this machine are kept from changing
// meanwhile; with those elsewhere it is an error at the end if they have.
func (o *Object) Open(ctx context.Context, options ...fs.OpenOption) (io.ReadCloser, error) {
	if o.f.here() {
		src, err := o.source()
		if err != nil {
			return nil, err
		}
		return src.Open(ctx, o, o.Size(), false, options)
	}
	if o.f.site != nil && isCopy(options) {
		if err := o.f.prove(ctx); err != nil { // so that it need not be waited for then
			return o.openThere(ctx, options)
		}
		return o.readers.hold(ctx, func() (io.ReadCloser, error) { return o.openThere(ctx, options) }), nil
	}
	return o.openThere(ctx, options)
}

func (o *Object) openThere(ctx context.Context, options []fs.OpenOption) (io.ReadCloser, error) {
	d := o.now()
	if d.unfinished {
		if err := o.complete(ctx); err != nil {
			return nil, err
		}
		d = o.now()
	}
	img, err := d.view(ctx, o.f, o.remote)
	if err != nil {
		return nil, endpoint.Classify(err)
	}
	if img.Size() != d.size {
		return nil, errors.Join(fmt.Errorf("%s: has %d bytes now and had %d when it was found", o.remote, img.Size(), d.size), img.Close())
	}
	changed := func() error {
		if err := img.failed(); err != nil {
			return err
		}
		now, err := o.f.find(ctx, o.remote)
		if err != nil {
			return err
		}
		if !now.same(&d) {
			return fmt.Errorf("%s: %w", o.remote, image.ErrChanged)
		}
		return nil
	}
	return endpoint.NewReader(ctx, o, img, d.size, changed, func() error { return nil }, options)
}

// complete has the far machine put into the image what was committed and waits in
// its journal. Where that cannot be done nobody can say what the image holds.
func (o *Object) complete(ctx context.Context) error {
	if o.f.site == nil {
		return fmt.Errorf("%s: a sync of it is unfinished, or was when it was copied to %s: complete it where it was made, and copy it again", o.remote, shown(o.f.opt.Remote))
	}
	src, err := o.source()
	if err == nil {
		_, err = o.f.placeToRead(ctx, o.remote)
	}
	if err != nil {
		return err
	}
	info, _, err := endpoint.Inspect(ctx, src, false)
	switch {
	case err != nil:
		return err
	case info.Incomplete:
		return fmt.Errorf("%s: is incomplete: an update in place was interrupted: sync to it again", o.remote)
	case info.Waiting > 0:
		return fmt.Errorf("%s: an update of it waits until it is no longer being read: try again then", o.remote)
	}
	return o.refresh(ctx)
}

var (
	_ fs.Object          = (*Object)(nil)
	_ fs.ObjectUnWrapper = (*Object)(nil)
	_ endpoint.Placed    = (*Object)(nil)
)
