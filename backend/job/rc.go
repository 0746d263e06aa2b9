package job

import (
	"context"
	"errors"
	"fmt"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/cache"
	"github.com/rclone/rclone/fs/fspath"
	"github.com/rclone/rclone/fs/rc"

	"github.com/diskrsync/diskrsync/backend/diskrsync"
	"github.com/diskrsync/diskrsync/backend/endpoint"
)

func init() {
	rc.Add(rc.Call{
		Path:  "diskrsync/sync",
		Fn:    rcSync,
		Title: "Bring an image, or all images of a folder, up to date",
		Help: `This takes the following parameters:

- src - a device, an image or a folder of images, e.g. "blockdev:/dev/vg0/root-snap"
- dst - what is to be equal to it, e.g. "disks:root.img", or a folder for it

Nothing is skipped because its size and time are as before. If dst is a folder
that exists, or ends in "/" or ":", an image gets there the name that it has.

Returns:

- size - bytes of all images
- sent, received - bytes that went over the wire to the target, and back
- images - what was brought up to date; for each
    - image - its name
    - size, sent, received - the same of this one
    - changed, patched, holes - blocks that were sent whole, sent in parts, and
      that became holes
    - kept - bytes that were there from an interrupted run
    - repaired - blocks of the target that could not be read and were rewritten
    - digest - of its content
    - note - what there is to know of the target, if anything

What is copied to a remote of another kind than diskrsync and blockdev is not
among them. With the _async parameter, the job's group of statistics tells how
far it is.
`,
	})
	for _, call := range []struct {
		name, title, what string
		verify            bool
	}{
		{"info", "Describe an image", "Nothing of the content is transferred.", false},
		{"verify", "Read all of an image, where it lies, and name what is bad", `The call fails if there are bad blocks, which are recorded so that the next sync
fetches them. The output of a job (_async) has all of them under "bad".`, true},
	} {
		rc.Add(rc.Call{
			Path: "diskrsync/" + call.name, Title: call.title,
			Help: `This takes the following parameters:

- image - an image on a diskrsync remote, e.g. "disks:root.img"

Returns what the backend command of that name does.

` + call.what + "\n",
			Fn: func(ctx context.Context, in rc.Params) (rc.Params, error) { return rcInspect(ctx, in, call.verify) },
		})
	}
}

// rcSync is the call diskrsync/sync.
func rcSync(ctx context.Context, in rc.Params) (rc.Params, error) {
	src, err := in.GetString("src")
	if err != nil {
		return nil, err
	}
	dst, err := in.GetString("dst")
	if err != nil {
		return nil, err
	}
	j, err := NewJob(ctx, src, dst)
	if err != nil {
		return nil, fs.CountError(ctx, err) // whatever comes later is counted by rclone
	}
	defer j.Close()
	reports, err := j.Run(ctx)
	return summary(reports), err
}

// summary is what diskrsync/sync returns.
func summary(reports []endpoint.Report) rc.Params {
	var size, sent, received int64
	images := make([]rc.Params, 0, len(reports))
	for _, r := range reports {
		size, sent, received = size+r.Size, sent+r.Sent, received+r.Received
		image := rc.Params{
			"image": r.Remote, "size": r.Size, "sent": r.Sent, "received": r.Received,
			"changed": r.Source.Changed, "patched": r.Source.Patched, "holes": r.Source.Holes,
			"kept": r.Target.Kept, "repaired": r.Target.Repaired, "digest": r.Digest.String(),
		}
		if r.Note != "" {
			image["note"] = r.Note
		}
		images = append(images, image)
	}
	return rc.Params{"size": size, "sent": sent, "received": received, "images": images}
}

// rcInspect is the calls diskrsync/info and diskrsync/verify.
func rcInspect(ctx context.Context, in rc.Params, verify bool) (rc.Params, error) {
	remote, err := in.GetString("image")
	if err != nil {
		return nil, err
	}
	parent, name, err := fspath.Split(remote)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return nil, rc.NewErrParamInvalid(fmt.Errorf("%q is a folder: name an image in it", remote))
	}
	found, err := cache.Get(ctx, parent)
	if err != nil && !errors.Is(err, fs.ErrorIsFile) {
		return nil, err
	}
	f, ok := found.(*diskrsync.Fs)
	if !ok {
		return nil, rc.NewErrParamInvalid(fmt.Errorf("%q is not on a diskrsync remote", remote))
	}
	image, err := f.Inspect(ctx, name, verify)
	out := rc.Params{}
	if image == nil {
		return out, err
	}
	if len(image.Bad) > 0 { // an error is all that a caller gets who does not ask for a job
		err = fmt.Errorf("%w: the first at offset %d: %s", err, image.Bad[0].Offset, image.Bad[0].Message)
	}
	return out, errors.Join(err, rc.Reshape(&out, image))
}
