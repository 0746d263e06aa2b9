// Package job brings images up to date for who asks for just that: the command of
// rclone-diskrsync, and rclone's remote control. It is no part of a backend, because
// rclone's sync, which it uses, has all backends in its tests.
package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"sync"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/cache"
	"github.com/rclone/rclone/fs/fserrors"
	"github.com/rclone/rclone/fs/fspath"
	"github.com/rclone/rclone/fs/operations"
	rclonesync "github.com/rclone/rclone/fs/sync"

	"github.com/diskrsync/diskrsync/backend/endpoint"
)

// A Job is a copy that skips nothing: size and time do not tell whether a disk has
// changed, and where it has not, a sync costs little.
type Job struct {
	from, to         fs.Fs
	fromName, toName string // of an image; both empty for all in a folder
}

// NewJob makes a job of two paths of remotes. A source that is a folder stands for
// all images in it. If the target is a folder, an image gets there the name it has.
// The remotes are kept open until Close.
func NewJob(ctx context.Context, src, dst string) (*Job, error) {
	j := &Job{}
	if err := j.find(ctx, src, dst); err != nil {
		return nil, err
	}
	if j.fromName != "" && j.from.Name() == j.to.Name() && path.Join(j.from.Root(), j.fromName) == path.Join(j.to.Root(), j.toName) {
		return nil, fserrors.NoRetryError(fmt.Errorf("source and target are the same: %s", src))
	}
	cache.Pin(j.from)
	cache.Pin(j.to)
	return j, nil
}

// Close lets go of the remotes.
func (j *Job) Close() {
	cache.Unpin(j.from)
	cache.Unpin(j.to)
}

func (j *Job) find(ctx context.Context, src, dst string) error {
	var err error
	if j.from, err = cache.Get(ctx, src); err == nil { // a folder, or nothing at all
		if j.to, err = folder(ctx, dst); err != nil {
			return cmp.Or(j.missing(ctx), err)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrorIsFile) {
		return fmt.Errorf("source %s: %w", src, err)
	}
	if _, j.fromName, err = fspath.Split(src); err != nil {
		return err
	}
	return j.findTarget(ctx, dst)
}

// missing returns an error if the source is neither a folder nor anything else.
func (j *Job) missing(ctx context.Context) error {
	if _, err := j.from.List(ctx, ""); errors.Is(err, fs.ErrorDirNotFound) {
		return fserrors.NoRetryError(j.noSource(err))
	}
	return nil
}

func (j *Job) noSource(err error) error {
	return fmt.Errorf("there is no such device, image or folder: %s:%s: %w", j.from.Name(), j.from.Root(), err)
}

// findTarget finds what an image is to be called, and where.
func (j *Job) findTarget(ctx context.Context, dst string) error {
	parent, name, err := fspath.Split(dst)
	if err != nil {
		return err
	}
	if name == "" {
		j.toName = j.fromName
		j.to, err = folder(ctx, dst)
		return err
	}
	j.toName = name
	if j.to, err = folder(ctx, parent); err != nil {
		return err
	}
	if _, err = j.to.NewObject(ctx, name); !errors.Is(err, fs.ErrorIsDir) {
		return nil // what else there is to say about it is said when it is written
	}
	j.toName = j.fromName
	j.to, err = folder(ctx, dst)
	return err
}

// folder returns the Fs of a folder, which need not be there.
func folder(ctx context.Context, remote string) (fs.Fs, error) {
	if remote == "" {
		remote = "."
	}
	f, err := cache.Get(ctx, remote)
	switch {
	case errors.Is(err, fs.ErrorIsFile):
		return nil, fserrors.NoRetryError(fmt.Errorf("target %s: is a file, and must be a folder here", remote))
	case err != nil:
		return nil, fmt.Errorf("target %s: %w", remote, err)
	}
	return f, nil
}

// Run carries out the job. It may be called again after an error. The reports are of
// those images that were brought up to date, and not of those that were copied to a
// remote of another kind.
func (j *Job) Run(ctx context.Context) ([]endpoint.Report, error) {
	ctx, err := unskipped(ctx)
	if err != nil {
		return nil, fserrors.NoRetryError(err)
	}
	var mu sync.Mutex
	var reports []endpoint.Report
	ctx = endpoint.WithReports(ctx, func(r endpoint.Report) {
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, r)
	})
	if j.fromName != "" {
		err = operations.CopyFile(ctx, j.to, j.from, j.toName, j.fromName)
	} else if err = rclonesync.CopyDir(ctx, j.to, j.from, false); errors.Is(err, fs.ErrorDirNotFound) {
		err = j.noSource(err)
	}
	return reports, err
}

// unskipped returns a context in which nothing is skipped for what it looks like. Who
// asks for it all the same is told that it cannot be had.
func unskipped(ctx context.Context) (context.Context, error) {
	ctx, ci := fs.AddConfig(ctx)
	for _, flag := range []struct {
		name string
		set  bool
	}{
		{"--ignore-existing", ci.IgnoreExisting},
		{"--compare-dest", len(ci.CompareDest) > 0},
		{"--copy-dest", len(ci.CopyDest) > 0},
	} {
		if flag.set {
			return nil, fmt.Errorf("%s skips images, and this skips none: leave it out, or use copyto", flag.name)
		}
	}
	ci.IgnoreTimes = true // goes before --update, --size-only and --checksum
	return ctx, nil
}
