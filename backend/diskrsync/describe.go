package diskrsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/cache"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
)

// stored returns the name of what is stored about an image.
func stored(remote string, kind image.Kind) string {
	dir, leaf := path.Split(remote)
	return path.Join(dir, kind.Of(leaf))
}

// hidden reports whether a name is in a store folder, or one itself: it is never shown,
// nor is anything in it.
func hidden(remote string) bool {
	return slices.Contains(strings.Split(remote, "/"), image.StoreFolder) || isProbe(remote)
}

// A description is what is known of an image without reading it.
type description struct {
	file       fs.Object // that the image is in
	size       int64     // of the content
	modified   time.Time
	format     image.Format
	tree       fs.Object       // the outboard that is that of the file, nil if there is none
	head       merkle.Outboard // its first page
	unfinished bool            // there is a journal beside it
}

// choice returns the format as what the user says.
func (d description) choice() image.Choice {
	if d.format == image.Spgz {
		return image.AsSpgz
	}
	return image.AsRaw
}

// checkSize returns an error if an image is not as long as what has just been synced to
// it. rclone would remove it then, and with it what somebody else has put there.
func (d description) checkSize(remote string, synced int64) error {
	if d.size == synced {
		return nil
	}
	return fmt.Errorf("%s: was synced, and somebody else has changed it since: it has %d bytes now, and had %d", remote, d.size, synced)
}

// same reports whether an image, looked at twice, is the same one. Some stores tell
// the time of a file in whole seconds, and in a listing more exactly.
func (d *description) same(o *description) bool {
	return d.file.Size() == o.file.Size() && d.modified.Sub(o.modified).Abs() < time.Second && d.head == o.head && d.unfinished == o.unfinished
}

// find describes the image of a name.
func (f *Fs) find(ctx context.Context, remote string) (description, error) {
	if hidden(remote) {
		return description{}, fs.ErrorObjectNotFound
	}
	file, err := f.base.NewObject(ctx, remote)
	if err != nil {
		return description{}, err
	}
	if f.here() {
		return f.describeHere(ctx, file)
	}
	var tree, journal fs.Object
	if tree, err = f.maybe(ctx, stored(remote, image.KindTree)); err != nil {
		return description{}, err
	}
	if journal, err = f.maybe(ctx, stored(remote, image.KindJournal)); err != nil {
		return description{}, err
	}
	return f.describe(ctx, file, tree, journal != nil)
}

// maybe returns the object of a name, nil if there is none.
func (f *Fs) maybe(ctx context.Context, remote string) (fs.Object, error) {
	o, err := f.base.NewObject(ctx, remote)
	switch {
	case errors.Is(err, fs.ErrorObjectNotFound), errors.Is(err, fs.ErrorDirNotFound), errors.Is(err, fs.ErrorIsDir), errors.Is(err, fs.ErrorNotAFile):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return o, nil
}

// describeHere describes an image of this machine.
func (f *Fs) describeHere(ctx context.Context, file fs.Object) (description, error) {
	d := description{file: file, modified: file.ModTime(ctx)}
	where, err := f.place(file.Remote())
	if err != nil {
		return d, err
	}
	place, err := where.Locate()
	if err != nil {
		return d, err
	}
	img, err := f.examine(place)
	if err != nil {
		return d, errors.Join(err, place.Close())
	}
	d.size, d.format = img.Size(), img.Format()
	if img.State().Waiting > 0 {
		d.modified = img.Modified()
	}
	return d, errors.Join(img.Close(), place.Close())
}

// examine opens an image of this machine to see what it is. What a guest has written
// must not decide that, as in describe.
func (f *Fs) examine(place *image.Place) (image.Image, error) {
	opt := image.Options{Examine: true, ReadOnly: true}
	img, err := image.Open(place, opt)
	if err != nil || !img.Guessed() || img.Format() == image.Raw || f.opt.Format == string(image.Spgz) {
		return img, err
	}
	if err := img.Close(); err != nil {
		return nil, err
	}
	opt.Choice = image.AsRaw
	return image.Open(place, opt)
}

// describe describes an image that is elsewhere, by its outboard or else by its
// beginning and its end.
func (f *Fs) describe(ctx context.Context, file, tree fs.Object, unfinished bool) (description, error) {
	d := description{file: file, size: file.Size(), modified: file.ModTime(ctx), format: image.Raw, unfinished: unfinished}
	if tree != nil {
		head, err := f.readHead(ctx, tree)
		if err != nil {
			return d, err
		}
		if head != nil && isWhole(head, tree) && f.isOf(head, file, d.modified) {
			d.size, d.format, d.tree, d.head = head.Size, image.Format(head.Format), tree, *head
			return d, nil
		}
	}
	if f.opt.Format != string(image.Spgz) {
		return d, nil
	}
	// What a guest has written must not decide what is read: the user has said
	// that images here are spgz images.
	begin := make([]byte, min(d.size, int64(len(image.Magic))))
	spare, err := f.sparingly(ctx, file)
	if err != nil {
		return d, err
	}
	in := &ranged{ctx: ctx, o: spare}
	defer in.close()
	if _, err := in.ReadAt(begin, 0); err != nil {
		return d, err
	}
	if string(begin) != image.Magic {
		return d, nil
	}
	img, err := image.View(image.Sight{Path: file.Remote(), File: in, Size: d.size, Modified: d.modified, Choice: image.AsSpgz})
	if err != nil {
		fs.Debugf(file, "begins like an spgz image but is none: %v", err)
		return d, nil
	}
	d.size, d.format = img.Size(), image.Spgz
	return d, img.Close()
}

// isWhole reports whether an outboard is as long as it is to be. One that was cut off on its
// way there is none.
func isWhole(head *merkle.Outboard, tree fs.Object) bool {
	g, err := merkle.NewGeometry(head.Size, head.BlockSize)
	return err == nil && tree.Size() == merkle.OutboardSize(g)
}

// isOf reports whether an outboard is that of a file, as far as the remote can tell:
// times may be less exact there, and inode numbers are unknown.
func (f *Fs) isOf(head *merkle.Outboard, file fs.Object, modified time.Time) bool {
	if head.FileSize != file.Size() || head.Format != string(image.Raw) && head.Format != string(image.Spgz) {
		return false
	}
	precision := f.base.Precision()
	if precision == fs.ModTimeNotSupported {
		return true
	}
	return modified.Sub(time.Unix(0, head.FileTime)).Abs() < max(precision, time.Microsecond)
}

// sparingly returns an object from which little is to be read, so that what is read
// ahead does not take longer than what is read. For that there may have to be one more
// connection, so short files are left as they are.
func (f *Fs) sparingly(ctx context.Context, o fs.Object) (fs.Object, error) {
	const short = 256 << 10
	if f.site == nil || f.site.spare == "" || o.Size() <= short {
		return o, nil
	}
	spare, err := cache.Get(ctx, f.site.spare)
	if err != nil {
		return nil, err
	}
	return spare.NewObject(ctx, o.Remote())
}

// readHead reads the first page of an outboard; nil if it is none.
func (f *Fs) readHead(ctx context.Context, tree fs.Object) (*merkle.Outboard, error) {
	if tree.Size() < merkle.OutboardPage {
		return nil, nil
	}
	tree, err := f.sparingly(ctx, tree)
	if err != nil {
		return nil, err
	}
	page := make([]byte, merkle.OutboardPage)
	in := &ranged{ctx: ctx, o: tree}
	defer in.close()
	if _, err := in.ReadAt(page, 0); err != nil {
		return nil, err
	}
	head, err := merkle.DecodeOutboard(page)
	if err != nil {
		return nil, nil // it counts as not there
	}
	return head, nil
}

// view opens an image that is elsewhere.
func (d *description) view(ctx context.Context, f *Fs, remote string) (*viewed, error) {
	v := &viewed{in: &ranged{ctx: ctx, o: d.file}}
	sight := image.Sight{Path: f.name + ":" + path.Join(f.root, remote), File: v.in, Size: d.file.Size(), Modified: d.modified, Choice: d.choice(),
		Checksum: f.opt.Checksum, Force: f.opt.Force}
	if d.tree != nil {
		tree, err := f.sparingly(ctx, d.tree)
		if err != nil {
			return nil, err
		}
		v.tree = &ranged{ctx: ctx, o: tree}
		sight.Outboard, sight.Head = v.tree, d.head
	}
	var err error
	if v.Image, err = image.View(sight); err != nil {
		return nil, errors.Join(err, v.in.close(), v.tree.close())
	}
	return v, nil
}

// viewed closes what it reads from.
type viewed struct {
	image.Image
	in, tree *ranged
}

func (v *viewed) Close() error { return errors.Join(v.Image.Close(), v.in.close(), v.tree.close()) }

// failed returns why what is stored could not be read, if that is why something was not
// compared with it.
func (v *viewed) failed() error {
	if v.tree == nil {
		return nil
	}
	v.tree.mu.Lock()
	defer v.tree.mu.Unlock()
	if v.tree.failed != nil {
		return fmt.Errorf("reading what is stored of its hashes: %w", v.tree.failed)
	}
	return nil
}

// ranged reads an object anywhere. As long as each read begins where the last one has
// ended, it goes on with one stream.
type ranged struct {
	ctx context.Context
	o   fs.Object

	mu    sync.Mutex
	in    io.ReadCloser
	next  int64 // where in is, or where the last read has ended
	limit int64 // where in ends

	failed error // of the first read that has
}

// ReadAt implements io.ReaderAt.
func (r *ranged) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.readAt(p, off)
	if err != nil && err != io.EOF && r.failed == nil {
		r.failed = err
	}
	return n, err
}

func (r *ranged) readAt(p []byte, off int64) (int, error) {
	if off >= r.o.Size() {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.in == nil || off != r.next || off+int64(len(p)) > min(r.limit, r.o.Size()) {
		if err := r.open(off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	n, err := io.ReadFull(r.in, p)
	r.next = off + int64(n)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	if n == len(p) && r.next < r.limit {
		return n, nil
	}
	if closeErr := r.shut(); closeErr != nil {
		return n, errors.Join(err, closeErr)
	}
	return n, err // io.EOF must be that itself
}

// open opens the object at an offset: to its end if it looks as if all of that was
// wanted.
func (r *ranged) open(off, length int64) error {
	sequential := off > 0 && off == r.next
	if err := r.shut(); err != nil {
		return err
	}
	r.limit = min(off+length, r.o.Size())
	if sequential {
		r.limit = r.o.Size()
	}
	var err error
	r.in, err = r.o.Open(r.ctx, &fs.RangeOption{Start: off, End: r.limit - 1})
	return err
}

func (r *ranged) shut() error {
	if r.in == nil {
		return nil
	}
	err := r.in.Close()
	r.in = nil
	return err
}

func (r *ranged) close() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shut()
}
