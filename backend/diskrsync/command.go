package diskrsync

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/operations"

	"github.com/diskrsync/diskrsync/backend/endpoint"
	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
)

var commandHelp = []fs.CommandHelp{{
	Name:  "info",
	Short: "Describe images.",
	Long: `Tells the format of each image, its sizes, when it was synced, whether it
is whole, and the digest of its content, as it was stored when the image was
synced. Nothing of the content is read.

` + "```console" + `
rclone-diskrsync backend info disks: root.img
` + "```" + `

Nothing of the content is transferred.`,
}, {
	Name:  "verify",
	Short: "Read all of images, where they lie, and name what is bad.",
	Long: `Reads all of each image, and names every block that cannot be read or
decoded, or is not what was stored when the image was synced. These are
recorded, so that the next sync fetches them. It fails if there are any.

` + "```console" + `
rclone-diskrsync backend verify disks: root.img
` + "```" + `

Nothing of the content is transferred.`,
}, {
	Name:  "tree",
	Short: "Show the roots of the regions of images.",
	Long: `Shows what is stored of the hash tree of each image: its digest, and for each
region (256 blocks) that is not all zero its root. Images with the same
content, in blocks of the same size, have the same.

` + "```console" + `
rclone-diskrsync backend tree disks: root.img
` + "```",
}, {
	Name:  "clean",
	Short: "Drop what interrupted syncs have left of images.",
	Long: `Drops what the next sync would go on with. The images themselves are not
changed, but for an update that was committed and waits to be put into one.

` + "```console" + `
rclone-diskrsync backend clean disks: root.img
` + "```",
}}

// Command the backend to run a named command
func (f *Fs) Command(ctx context.Context, name string, arg []string, opt map[string]string) (any, error) {
	do, ok := map[string]func(context.Context, string) (any, error){
		"info":   f.info,
		"verify": f.verify,
		"tree":   f.tree,
		"clean":  f.clean,
	}[name]
	switch {
	case !ok:
		return nil, fs.ErrorCommandNotFound
	case len(opt) > 0:
		return nil, fmt.Errorf("%s takes no options", name)
	case len(arg) == 0:
		return nil, fmt.Errorf("%s needs the names of images behind the remote, such as: backend %s %s: root.img", name, name, f.name)
	}
	var results []any
	var failed []string
	for _, remote := range arg {
		result, err := do(ctx, strings.Trim(remote, "/"))
		if result != nil {
			results = append(results, result)
		}
		if err != nil {
			fs.Errorf(remote, "%v", err)
			failed = append(failed, remote)
		}
	}
	if len(failed) > 0 {
		tell(results) // of a command that fails rclone shows no results
		return results, fmt.Errorf("%s failed for %s", name, strings.Join(failed, ", "))
	}
	return results, nil
}

// tell logs results.
func tell(results []any) {
	for _, result := range results {
		text, err := json.Marshal(result)
		if err != nil {
			text = []byte(err.Error())
		}
		fs.Logf(nil, "%s", text)
	}
}

// An Inspection is what the commands info and verify tell of an image.
type Inspection struct {
	Image      string       `json:"image"`
	Format     string       `json:"format"`
	Size       int64        `json:"size"`
	Allocated  int64        `json:"allocated"`
	BlockSize  int          `json:"block_size"`
	Digest     *merkle.Hash `json:"digest"` // null if it is not known, or there are bad blocks
	State      string       `json:"state"`
	Generation int64        `json:"generation"`
	Synced     *time.Time   `json:"synced"`
	Kept       int64        `json:"kept"`
	Waiting    int64        `json:"waiting"`
	BadBlocks  int64        `json:"bad_blocks"`
	Bad        []BadBlock   `json:"bad,omitempty"`
}

// maxTold bounds how many bad blocks of an image are named in the log. All are in the
// result, which is logged as well if the command fails, as it then does.
const maxTold = 100

// A BadBlock is one that cannot be read, or is not what was stored of it.
type BadBlock struct {
	Block   int64  `json:"block"`
	Offset  int64  `json:"offset"`
	Length  int64  `json:"length"`
	Message string `json:"message"`
}

func (f *Fs) info(ctx context.Context, remote string) (any, error) {
	return known(f.Inspect(ctx, remote, false))
}

func (f *Fs) verify(ctx context.Context, remote string) (any, error) {
	return known(f.Inspect(ctx, remote, true))
}

// known keeps a nil pointer out of an interface.
func known(i *Inspection, err error) (any, error) {
	if i == nil {
		return nil, err
	}
	return i, err
}

// Inspect describes an image, and with verify reads all of it. It may return an
// error as well as what it has found.
func (f *Fs) Inspect(ctx context.Context, remote string, verify bool) (*Inspection, error) {
	place, err := f.placeToRead(ctx, remote)
	if err != nil {
		return nil, err
	}
	src := endpoint.Source{Place: place, Format: image.Auto, Checksum: f.opt.Checksum}
	if f.opt.Format != string(image.Spgz) {
		if d, err := f.find(ctx, remote); err == nil { // else it is said below what is there of it
			src.Format = d.choice()
		}
	}
	info, bad, err := endpoint.Inspect(ctx, src, verify)
	if err != nil {
		return nil, err
	}
	if info.Note != "" {
		fs.Logf(remote, "%s", info.Note)
	}
	result := &Inspection{Image: remote, Format: info.Format, Size: info.Size, Allocated: info.Allocated, BlockSize: info.BlockSize,
		State: info.State(), Generation: info.Generation, Kept: info.Kept, Waiting: info.Waiting, BadBlocks: info.Bad}
	if info.Digest != (merkle.Hash{}) {
		result.Digest = &info.Digest
	}
	if info.Synced != 0 {
		synced := time.Unix(0, info.Synced)
		result.Synced = &synced
	}
	for i, b := range bad {
		result.Bad = append(result.Bad, BadBlock{b.Index, b.Offset, b.Length, b.Text})
		if i < maxTold {
			fs.Errorf(remote, "block %d at offset %d: %s", b.Index, b.Offset, b.Text)
		}
	}
	switch {
	case info.Bad > 0:
		return result, fmt.Errorf("%d bad blocks: the next sync fetches them", info.Bad)
	case verify && (info.Incomplete || info.Changed):
		return result, fmt.Errorf("is %s: sync to it again", info.State())
	}
	return result, nil
}

// clean drops what interrupted syncs have left of an image.
func (f *Fs) clean(ctx context.Context, remote string) (any, error) {
	if operations.SkipDestructive(ctx, remote, "clean") {
		return nil, nil
	}
	if _, err := f.base.List(ctx, path.Dir("/" + remote)[1:]); err != nil {
		return nil, err // and not even a folder is made
	}
	place, err := f.placeToWrite(ctx, remote)
	if err != nil {
		return nil, err
	}
	done, err := endpoint.Clean(ctx, endpoint.Target{Place: place})
	if err != nil {
		return nil, err
	}
	return map[string]string{"image": remote, "done": done}, nil
}

// A hashTree is what the command tree tells of an image.
type hashTree struct {
	Image     string      `json:"image"`
	Digest    merkle.Hash `json:"digest"`
	Size      int64       `json:"size"`
	BlockSize int         `json:"block_size"`
	Regions   int64       `json:"regions"`
	Roots     []root      `json:"roots"` // but for those of zeros
}

type root struct {
	Region int64       `json:"region"`
	Root   merkle.Hash `json:"root"`
}

// tree tells what is stored of an image's hashes.
func (f *Fs) tree(ctx context.Context, remote string) (any, error) {
	if err := checkName(remote); err != nil {
		return nil, err
	}
	file, err := f.base.NewObject(ctx, remote)
	if err != nil {
		return nil, err
	}
	stored, err := f.maybe(ctx, stored(remote, image.KindTree))
	if err != nil {
		return nil, err
	}
	var head *merkle.Outboard
	if stored != nil {
		if head, err = f.readHead(ctx, stored); err != nil {
			return nil, err
		}
	}
	if head == nil || !f.isOf(head, file, file.ModTime(ctx)) {
		return nil, fmt.Errorf("no hashes of it as it is are stored: sync to it first")
	}
	g, err := merkle.NewGeometry(head.Size, head.BlockSize)
	if err != nil {
		return nil, err
	}
	t := &hashTree{Image: remote, Digest: head.Digest, Size: head.Size, BlockSize: head.BlockSize, Regions: g.Regions()}
	return t, t.readRoots(ctx, g, stored)
}

// readRoots reads the roots of all regions, which must hash to the digest.
func (t *hashTree) readRoots(ctx context.Context, g merkle.Geometry, stored fs.Object) error {
	in := &ranged{ctx: ctx, o: stored}
	defer in.close()
	var acc merkle.Accumulator
	page := make([]byte, merkle.OutboardPage)
	for i := range g.Regions() {
		at := i % merkle.GroupRegions
		if at == 0 {
			if n, err := in.ReadAt(page, merkle.RootOffset(i)); err != nil && (err != io.EOF || n < merkle.HashSize) {
				return err
			}
		}
		r := root{i, merkle.Hash(page[at*merkle.HashSize:][:merkle.HashSize])}
		acc.Add(r.Root)
		if !r.Root.IsZero() {
			t.Roots = append(t.Roots, r)
		}
	}
	if g.Digest(acc.Root()) != t.Digest {
		return fmt.Errorf("what is stored of its hashes is damaged: the next sync with --diskrsync-checksum makes it anew")
	}
	return nil
}
