package diskrsync

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/rclone/rclone/fs/fserrors"
	"github.com/rclone/rclone/fs/object"

	"github.com/diskrsync/diskrsync/backend/endpoint"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
)

// probePrefix begins the names of files that are there for a moment only.
const probePrefix = image.StoreFolder + "-probe-"

// placeToWrite returns where an image is that is to be changed or removed.
func (f *Fs) placeToWrite(ctx context.Context, remote string) (endpoint.Place, error) {
	place, err := f.place(remote)
	if err == nil && !f.here() {
		err = f.prove(ctx)
	}
	return place, err
}

// prove holds that the folder that sftp shows is the one that an agent sees under the
// path that is known of it. A server may lock sftp into a folder (chroot), or show
// other file systems than programs see, and path_override may be wrong: then an agent
// would change images that nobody has named. A file of a name that is new to the world
// is made by sftp, and the agent has to find it.
func (f *Fs) prove(ctx context.Context) (err error) {
	f.proof.Lock()
	defer f.proof.Unlock()
	if f.proved {
		return nil
	}
	content := []byte(rand.Text())
	name := probePrefix + rand.Text()
	probe, err := f.base.Put(ctx, bytes.NewReader(content), object.NewStaticObjectInfo(name, time.Now(), int64(len(content)), true, nil, nil))
	if err != nil {
		return fmt.Errorf("making a file to find out whether an agent sees the same folder: %w", err)
	}
	defer func() {
		// Also if ctx has ended meanwhile.
		if removeErr := probe.Remove(context.WithoutCancel(ctx)); removeErr != nil {
			err = errors.Join(err, fmt.Errorf("removing %s: %w", name, removeErr))
		}
	}()
	place := f.site.place(name, &f.opt)
	info, _, err := endpoint.Inspect(ctx, endpoint.Source{Place: place, Format: image.AsRaw}, false)
	var peer *session.PeerError
	switch {
	case errors.As(err, &peer), err == nil && info.Size != int64(len(content)):
		folder := path.Dir(place.Path)
		return fserrors.NoRetryError(fmt.Errorf("the folder that sftp shows is not %s to programs on %s: set path_override of %s to @ and what goes before the paths of sftp there", folder, place.Host, place.Host))
	case err != nil:
		return err
	}
	f.proved = true
	return nil
}

// isProbe reports whether a name is that of a file which is there for a moment only.
func isProbe(remote string) bool { return strings.HasPrefix(path.Base(remote), probePrefix) }
