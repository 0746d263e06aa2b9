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

	"github.com/rclone/rclone/fs"
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

// placeToRead is the same for an image of which an agent tells something. If no probe can
// be made, there is nothing that could be lost.
func (f *Fs) placeToRead(ctx context.Context, remote string) (endpoint.Place, error) {
	place, err := f.placeToWrite(ctx, remote)
	if errors.Is(err, errNoProbe) {
		fs.Debugf(remote, "not known is whether agents see the same folder as sftp: %v", err)
		err = nil
	}
	return place, err
}

// errNoProbe says that sftp could make no file.
var errNoProbe = errors.New("cannot find out whether programs there see the same folder as sftp")

// prove holds that the folder that sftp shows is the one that an agent sees under the
// path that is known of it. A server may lock sftp into a folder (chroot), or show
// other file systems than programs see, and path_override may be wrong: then an agent
// would change images that nobody has named. A file of a name that is new to the world
// is made by sftp, and the agent has to find it.
func (f *Fs) prove(ctx context.Context) error {
	f.proof.Lock()
	defer f.proof.Unlock()
	if f.proved || f.refuted != nil {
		return f.refuted
	}
	ctx, stop := endpoint.Interruptible(ctx)
	defer stop()
	name, content := probePrefix+rand.Text(), []byte(rand.Text())
	probe, err := f.base.Put(ctx, bytes.NewReader(content), object.NewStaticObjectInfo(name, time.Now(), int64(len(content)), true, nil, nil))
	if err != nil {
		return fmt.Errorf("%w: %w", errNoProbe, err)
	}
	err = f.seek(ctx, name, int64(len(content)))
	// Also if ctx has ended meanwhile.
	if removeErr := probe.Remove(context.WithoutCancel(ctx)); removeErr != nil {
		err = errors.Join(err, fmt.Errorf("removing %s: %w", name, removeErr))
	}
	f.proved = err == nil
	return err
}

// seek has an agent look for the file.
func (f *Fs) seek(ctx context.Context, name string, size int64) error {
	place := f.site.place(name, &f.opt)
	info, _, err := endpoint.Inspect(ctx, endpoint.Source{Place: place, Format: image.AsRaw}, false)
	var peer *session.PeerError
	switch {
	case errors.As(err, &peer) && strings.Contains(peer.Text, "no such file"), errors.As(err, &peer) && strings.Contains(peer.Text, "does not exist"),
		err == nil && info.Size != size:
		f.refuted = fserrors.NoRetryError(fmt.Errorf("the folder that sftp shows is not %s to programs on %s: set path_override of %s to @ and what goes before the paths of sftp there", path.Dir(place.Path), place.Host, place.Host))
		return f.refuted
	}
	return err
}

// isProbe reports whether a name is that of a file which is there for a moment only.
func isProbe(remote string) bool { return strings.HasPrefix(path.Base(remote), probePrefix) }
