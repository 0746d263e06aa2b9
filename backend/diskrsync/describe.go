package diskrsync

import (
	"context"
	"errors"
	"io"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/rclone/rclone/fs"

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
	for element := range strings.SplitSeq(remote, "/") {
		if element == image.StoreFolder {
			return true
		}
	}
	return false
}

// A description is what is known of an image without reading it.
type description struct {
	file       fs.Object // that the image is in
	size       int64     // of the content
	modified   time.Time
	format     image.Format
	head       merkle.Outboard // zero if there is none that is that of the file
	unfinished bool            // there is a journal beside it
}

// choice returns the format as what the user says.
func (d description) choice() image.Choice {
	if d.format == image.Spgz {
		return image.AsSpgz
	}
	return image.AsRaw
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
	place, err := image.Locate(where.Path)
	if err != nil {
		return d, err
	}
	img, err := image.Open(place, image.Options{Examine: true, ReadOnly: true})
	if err != nil {
		return d, errors.Join(err, place.Close())
	}
	d.size, d.format = img.Size(), img.Format()
	if img.State().Waiting > 0 {
		d.modified = img.Modified()
	}
	return d, errors.Join(img.Close(), place.Close())
}

// describe describes an image that is elsewhere, by its outboard or else by its
// beginning and its end.
func (f *Fs) describe(ctx context.Context, file, tree fs.Object, unfinished bool) (description, error) {
	d := description{file: file, size: file.Size(), modified: file.ModTime(ctx), format: image.Raw, unfinished: unfinished}
	if tree != nil {
		head, err := readHead(ctx, tree)
		if err != nil {
			return d, err
		}
		if head != nil && f.isOf(head, file, d.modified) {
			d.size, d.format, d.head = head.Size, image.Format(head.Format), *head
			return d, nil
		}
	}
	if f.opt.Format != string(image.Spgz) {
		return d, nil
	}
	// What a guest has written must not decide what is read: the user has said
	// that images here are spgz images.
	begin := make([]byte, min(d.size, int64(len(image.Magic))))
	in := &ranged{ctx: ctx, o: file}
	defer in.close()
	if _, err := in.ReadAt(begin, 0); err != nil {
		return d, err
	}
	if string(begin) != image.Magic {
		return d, nil
	}
	img, err := image.View(file.Remote(), in, d.size, d.modified, image.AsSpgz)
	if err != nil {
		fs.Debugf(file, "begins like an spgz image but is none: %v", err)
		return d, nil
	}
	d.size, d.format = img.Size(), image.Spgz
	return d, img.Close()
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

// readHead reads the first page of an outboard; nil if it is none.
func readHead(ctx context.Context, tree fs.Object) (*merkle.Outboard, error) {
	if tree.Size() < merkle.OutboardPage {
		return nil, nil
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
func (d *description) view(ctx context.Context, f *Fs, remote string) (image.Image, error) {
	in := &ranged{ctx: ctx, o: d.file}
	img, err := image.View(f.name+":"+path.Join(f.root, remote), in, d.file.Size(), d.modified, d.choice())
	if err != nil {
		return nil, errors.Join(err, in.close())
	}
	return viewed{img, in}, nil
}

// viewed closes what it reads from.
type viewed struct {
	image.Image
	in *ranged
}

func (v viewed) Close() error { return errors.Join(v.Image.Close(), v.in.close()) }

// ranged reads an object anywhere. As long as each read begins where the last one has
// ended, it goes on with one stream.
type ranged struct {
	ctx context.Context
	o   fs.Object

	mu    sync.Mutex
	in    io.ReadCloser
	next  int64 // where in is, or where the last read has ended
	limit int64 // where in ends
}

// ReadAt implements io.ReaderAt.
func (r *ranged) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
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
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shut()
}
