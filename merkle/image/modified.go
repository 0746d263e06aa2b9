package image

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// SetModified sets when the content of the image at p was modified, which is also
// the time of its file, and keeps what is stored about it. It does nothing for a
// device, which has none, and fails with ErrInUse while someone reads or writes
// the image, or if an interrupted sync of it is yet to be gone on with.
func SetModified(p *Place, modified time.Time) (err error) {
	t := &Target{place: p, store: newStore(p)}
	defer func() { err = errors.Join(err, t.Close()) }()
	if err := t.open(); err != nil {
		return err
	}
	info, err := t.stat()
	switch {
	case err != nil:
		return err
	case info == nil:
		return t.store.missing(nil)
	case t.format == Device:
		return nil
	case t.j != nil || t.broken:
		return refuse(ErrInUse, "image %s: its time cannot be set before an unfinished sync of it is completed: sync to it again", p.path)
	case t.fresh: // it is an empty file
		if t.disk, err = p.open(os.O_RDWR, info); err != nil {
			return err
		}
	}
	if err = t.touch(modified); errors.Is(err, errReaders) {
		return refuse(ErrInUse, "image %s: is being read: its time cannot be set until that ends", p.path)
	}
	return err
}

// touch gives the image's file the time when the source was modified, if that is
// known. It fails with errReaders while someone reads the image, whose file must not
// change then.
func (t *Target) touch(modified time.Time) error {
	at := nanoseconds(modified)
	if at == 0 || t.format == Device || t.disk == nil {
		return nil
	}
	now, err := t.store.fileState(t.disk)
	if err != nil || now.Time == at {
		return err // it was put into the image with all the rest
	}
	stored, err := t.store.believedTree(t.disk)
	if err != nil {
		return err
	}
	return errors.Join(t.touchWith(stored, at), stored.close())
}

func (t *Target) touchWith(stored *tree, at int64) error {
	free, err := t.disk.f.Lock(exclusive)
	if err == nil && !free {
		return errReaders
	}
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("image %s: locking it: %w", t.place.path, cause(err))
	}
	if t.way != wayInPlace && err == nil {
		defer t.disk.f.Lock(unlocked)
	}
	if err := t.disk.stamp(at); err != nil || stored == nil {
		return err
	}
	now, err := t.store.fileState(t.disk)
	if err != nil {
		return err
	}
	w, err := t.store.changeTree(false)
	if err != nil || w == nil {
		return err
	}
	w.g, w.head = stored.g, stored.head
	head := stored.head
	head.FileTime, head.Modified = now.Time, at
	return errors.Join(w.finish(head), w.close())
}
