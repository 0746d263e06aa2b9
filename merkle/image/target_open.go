package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/docker/go-units"
)

// takeOver looks at what an earlier run has left. What was committed is
// completed; what can be gone on with stays in t.j; the rest is dropped.
func (t *Target) takeOver() error {
	j, err := t.openJournal()
	if errors.Is(err, errJournal) {
		t.broken = true
		t.tell("the journal of an update is damaged: the image is made anew from what it has")
		return nil
	}
	if err != nil {
		return err
	}
	if j == nil {
		return t.dropPartial()
	}
	t.j = j
	switch {
	case j.lastSeal() == nil || t.opts.DryRun:
		return nil
	case j.kept() > 0 && !t.cleaning && !t.opts.InPlace:
		return nil // to put in what was sealed would lose what has arrived since
	}
	switch err := t.store.completeFile(j); {
	case t.cleaning && errors.As(err, new(*takenError)):
		return t.forget()
	case errors.Is(err, errReaders):
		t.tell("is being read: updates of it wait in its journal")
		return nil
	case errors.Is(err, errVoid):
		return t.void(err)
	case err != nil:
		return err
	}
	t.j = nil
	return j.close()
}

// void deals with a journal that was sealed and is not about what is here now. Unless
// what it is about can be found, it has nothing for anyone.
func (t *Target) void(why error) error {
	if err := t.store.strayed(t.j); err != nil && !t.cleaning {
		return err
	}
	if t.j.claim() == claimHalf {
		return nil // checkLeftovers looks what is here instead
	}
	t.tell("%v: what waited there is dropped", why)
	return t.forget()
}

func (t *Target) openJournal() (*journal, error) {
	if t.opts.DryRun {
		return t.store.readJournal()
	}
	return t.store.openJournalToWrite()
}

// forget drops what an earlier run has left.
func (t *Target) forget() error {
	t.dropped += t.j.content(t.j.batches)
	err := t.j.close()
	t.j, t.kept, t.left = nil, 0, true
	if t.opts.DryRun || err != nil {
		return err
	}
	if t.fresh && t.disk != nil {
		err = t.disk.f.Close()
		t.disk, t.body, t.held = nil, &blank{}, 0
	}
	return errors.Join(err, t.store.dropJournal(), t.dropPartial())
}

func (t *Target) dropPartial() error {
	if t.opts.DryRun {
		return nil
	}
	return errors.Join(t.store.drop(KindPartial), t.store.drop(KindFresh))
}

// openNew prepares for a new image, which may replace an empty file, or goes on
// with one.
func (t *Target) openNew(replaces fs.FileInfo) error {
	t.fresh, t.way = true, wayNew
	t.body = &blank{}
	t.format = Spgz
	if t.opts.Raw {
		t.format = Raw
	}
	if replaces != nil {
		d, err := t.place.open(os.O_RDONLY, replaces)
		if err != nil {
			return err
		}
		t.empty = d.identity()
		if err := d.f.Close(); err != nil {
			return fmt.Errorf("image %s: closing it: %w", t.place.path, cause(err))
		}
	}
	if t.broken {
		t.broken, t.notes = false, nil // there is nothing yet that could be
		return errors.Join(t.dropPartial(), t.dropDamaged())
	}
	if t.j == nil {
		return nil
	}
	if err := t.store.strayed(t.j); err != nil && !t.cleaning {
		return err
	}
	going, err := t.reopenPartial()
	if err != nil {
		return err
	}
	if !going {
		return t.forget()
	}
	t.resumed()
	return nil
}

func (t *Target) dropDamaged() error {
	if t.opts.DryRun {
		return nil
	}
	return t.store.dropJournal()
}

// reopenPartial opens the partial file of an earlier run, if there is one that
// fits.
func (t *Target) reopenPartial() (bool, error) {
	h := &t.j.head
	if h.Way != wayNew || h.Format != t.format || len(t.j.batches) == 0 {
		return false, nil
	}
	f, err := openRegular(t.store.root, t.store.file(KindPartial), t.flag(0))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("image %s: opening its partial file: %w", t.place.path, cause(err))
	}
	if t.disk, err = newDisk(f, t.place.path); err != nil {
		return false, errors.Join(err, f.Close())
	}
	if f.Inode() != h.Base.Inode {
		return false, nil
	}
	t.body, err = bodyOf(t.disk, h.Format, h.BlockSize)
	return err == nil, err
}

// resumed takes into account what an earlier run has left.
func (t *Target) resumed() {
	bs := int64(t.j.head.BlockSize)
	t.kept = t.j.kept()
	for i := range t.j.batches {
		b := &t.j.batches[i]
		t.held = max(t.held, b.last*bs)
	}
	if t.kept > 0 {
		t.tell("goes on where an interrupted run has stopped: about %s are here", units.BytesSize(float64(t.kept)))
	}
}

func (t *Target) openFile(info fs.FileInfo) error {
	var err error
	if t.disk, err = t.place.open(t.flag(0), info); err != nil {
		return err
	}
	if err := t.checkLeftovers(); err != nil {
		return err
	}
	if err := t.believe(); err != nil {
		return err
	}
	if err := t.checkClaims(); err != nil {
		return err
	}
	t.way = wayRedo
	if t.broken || t.opts.InPlace {
		t.way = wayInPlace
		if err := t.excludeReaders(); err != nil {
			return err
		}
	}
	var note string
	if t.format, note, err = t.formatOf(); err != nil {
		return err
	}
	if note != "" {
		t.notes = append(t.notes, note)
	}
	if err := t.openBody(); err != nil {
		return err
	}
	t.held = t.body.Size()
	if t.j == nil || t.way == wayInPlace {
		return nil
	}
	// What was committed, and could not be put into the image, may have cut it.
	for _, b := range t.j.batches[:t.j.sealedBatches()] {
		if b.seal != nil && b.size < t.body.Size() {
			t.body.resize(b.size)
		}
	}
	t.resumed()
	return nil
}

// checkLeftovers decides whether the journal is one of this image.
func (t *Target) checkLeftovers() error {
	if t.j == nil {
		return nil
	}
	now, err := t.store.base(t.disk)
	if err != nil {
		return err
	}
	then := t.j.head.Base
	switch {
	case t.j.head.Way == wayInPlace && now.Inode == then.Inode:
		t.broken = t.j.lastSeal() == nil
		return nil
	case t.j.head.Way == wayRedo && (now == then || t.j.marked && now.Inode == then.Inode):
		return nil
	case t.cleaning:
		return t.forget()
	}
	if err := t.store.strayed(t.j); err != nil {
		return err
	}
	if t.j.claim() == claimHalf {
		// The file may be a copy of one that an update was put into half way.
		err := t.j.close()
		t.j, t.broken = nil, true
		return err
	}
	return t.forget()
}

// checkClaims refuses an image that was moved here while an update was half way in it:
// if it got its old name back later, the rest of that would be put on top of this one.
func (t *Target) checkClaims() error {
	if t.j != nil || t.tree != nil {
		return nil
	}
	old, c, err := t.store.former(t.disk.f.Inode())
	if err != nil || c != claimHalf {
		return err
	}
	return refuse(ErrInUse, "image %s: %s, or drop that update with diskrsync clean of %s", t.place.path, movedHalfWay(old), old)
}

// believe reads what is stored of the image's hashes.
func (t *Target) believe() error {
	if t.store.noTree {
		return nil
	}
	stored, err := openTree(t.store.trees, t.store.file(KindTree), t.store.path)
	if err != nil {
		return err
	}
	if stored != nil {
		t.generation = stored.head.Generation // goes on, whatever else it is worth
		if err := stored.close(); err != nil {
			return err
		}
	}
	if t.j != nil {
		if s := t.j.lastSeal(); s != nil {
			t.generation = s.Generation
		}
	}
	if t.broken {
		return nil
	}
	t.tree, err = t.store.believedTree(t.disk)
	return err
}

// formatOf finds out the format of an existing image: from its journal, from what
// was stored when it was made, or else from its bytes.
func (t *Target) formatOf() (Format, string, error) {
	switch {
	case t.j != nil:
		return t.j.head.Format, "", nil
	case t.tree != nil:
		return Format(t.tree.head.Format), "", nil
	}
	return detect(t.disk, Auto)
}

func (t *Target) openBody() error {
	if t.format == Raw {
		t.body = &flat{disk: t.disk, length: t.disk.held}
		return nil
	}
	if t.opts.Raw {
		return refuse(ErrRefused, "image %s: is or looks like an spgz image, and a raw one is asked for: %s, or remove it to make a raw one", t.place.path, HintRaw)
	}
	s, err := openAnySlots(t.disk)
	if err != nil {
		return err
	}
	if s.corrupt != nil {
		t.notes = append(t.notes, s.corrupt.Error())
	}
	t.body = s
	return nil
}

// bodyOf returns the content of an image whose format is known.
func bodyOf(d *disk, f Format, blockSize int) (content, error) {
	var err error
	if d.held, err = d.size(); err != nil {
		return nil, err
	}
	if f != Spgz {
		return &flat{disk: d, length: d.held}, nil
	}
	s, err := openAnySlots(d)
	if err == nil && s.blockSize != blockSize {
		err = fmt.Errorf("image %s: has blocks of %d bytes where its journal has %d", d.path, s.blockSize, blockSize)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// excludeReaders keeps everyone from reading the image until the target is
// closed, because it is about to be changed in place.
func (t *Target) excludeReaders() error {
	if t.opts.DryRun {
		return nil
	}
	if t.j != nil && t.j.lastSeal() != nil {
		return refuse(ErrInUse, "image %s: is being read, and an update waits for that to end: try again then", t.place.path)
	}
	free, err := t.disk.f.Lock(exclusive)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("image %s: locking it: %w", t.place.path, cause(err))
	}
	if err == nil && !free {
		return refuse(ErrInUse, "image %s: is being read, and cannot be changed in place: wait for that to end, or %s", t.place.path, HintInPlace)
	}
	return nil
}

// glances is how long those are waited for who only look at a device: udev, and who
// lists what there is.
const glances = 10 * time.Second

// excludeReadersOfDevice keeps those who read the device as we do from doing so until
// the target is closed.
func (t *Target) excludeReadersOfDevice() error {
	if t.opts.DryRun {
		return nil
	}
	for range glances / lockPause {
		free, err := t.disk.f.Lock(exclusive)
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("device %s: locking it: %w", t.place.path, cause(err))
		}
		if free || err != nil {
			return nil
		}
		time.Sleep(lockPause)
	}
	return refuse(ErrInUse, "device %s: is being read: wait for that to end", t.place.path)
}

func (t *Target) openDevice(info fs.FileInfo) error {
	var err error
	if t.disk, err = t.place.open(t.flag(os.O_EXCL), info); err != nil {
		return err
	}
	t.format, t.held, t.way = Device, t.disk.held, wayInPlace
	if err := t.excludeReadersOfDevice(); err != nil {
		return err
	}
	t.body = &flat{disk: t.disk, length: t.held}
	if t.store, err = deviceStore(t.place, t.disk, t.opts.StateDir, !t.opts.DryRun); err != nil {
		return err
	}
	if t.store.root == nil {
		t.tell("cannot be marked as incomplete while it is written: there is no folder for that")
		return nil
	}
	t.j, err = t.openJournal()
	if errors.Is(err, errJournal) {
		t.broken = true
		return nil
	}
	if err != nil {
		return err
	}
	if t.j != nil && t.j.lastSeal() != nil && !t.opts.DryRun {
		if _, err := t.store.complete(t.j, t.disk); err != nil {
			return err
		}
		if err := t.j.close(); err != nil {
			return fmt.Errorf("device %s: closing its journal: %w", t.place.path, cause(err))
		}
		t.j = nil
	}
	t.broken = t.j != nil && t.j.lastSeal() == nil
	return t.believe()
}
