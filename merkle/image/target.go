package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/diskrsync/diskrsync/merkle"
)

// TargetOptions say how a target is opened. The zero value is the ordinary case.
type TargetOptions struct {
	// Raw makes a new image a raw file rather than an spgz file.
	Raw bool

	// DryRun promises that nothing will be written. Nothing is opened for
	// writing, created or locked, and the methods that write fail.
	DryRun bool
}

// A Target is an image about to receive a sync. It is used in this order:
// OpenTarget, Begin, reads and writes, Commit, Close.
//
// Between Begin and Commit, ReadAt, NextData, WriteAt, WriteSlot and Punch may be
// called by many goroutines at once as long as they write distinct blocks of the
// size given to Begin and do not read one that is being written.
type Target struct {
	place  *Place
	opts   TargetOptions
	format Format
	note   string
	held   int64

	lock *lock
	disk *disk   // nil as long as there is no file
	body content // never nil

	fresh    bool        // the image is new: written as a partial file
	replaces fs.FileInfo // the empty file that a new image replaces, or nil
	empty    Identity    // of that file
	partial  bool        // the partial file exists
	stage    stage
}

// A stage is how far a Target has come.
type stage int

const (
	opened stage = iota
	begun
	committed
	closed
)

// errNotBegun is what writing to an image that does not exist fails with.
var errNotBegun = errors.New("the target was written to before Begin")

// OpenTarget opens the image at p to receive a sync, or prepares for a new one.
// It fails with ErrInUse if another writer has it or the device is mounted, and
// with ErrRefused if the image is spgz but o asks for a raw one. The caller
// closes the target, and only then p.
func OpenTarget(p *Place, o TargetOptions) (*Target, error) {
	t := &Target{place: p, opts: o}
	if err := t.open(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Target) open() error {
	info, err := t.stat()
	if err != nil {
		return err
	}
	if info != nil && !info.Mode().IsRegular() {
		return t.openDevice(info)
	}
	if !t.opts.DryRun {
		if err := t.takeLock(info != nil); err != nil {
			return err
		}
		// Another writer may have put the image into place until we had the lock.
		if info, err = t.stat(); err != nil {
			return err
		}
	}
	if info == nil || info.Size() == 0 {
		return t.openNew(info)
	}
	return t.openFile(info)
}

// stat describes what is at the target's place, nil if nothing is.
func (t *Target) stat() (fs.FileInfo, error) {
	info, err := t.place.stat()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("image %s: is a folder: add \"/\" to put the image into it", t.place.path)
	}
	return info, nil
}

// takeLock locks the image and removes what a writer that died has left behind.
func (t *Target) takeLock(exists bool) error {
	l, err := takeLock(t.place)
	if err != nil {
		if exists && errors.Is(err, fs.ErrPermission) {
			return nil // the image's own lock must do: see openFile
		}
		return err
	}
	t.lock = l
	if err := t.place.root.Remove(partialName(t.place.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %s: removing the partial file of an earlier run: %w", t.place.path, cause(err))
	}
	return nil
}

func (t *Target) openNew(replaces fs.FileInfo) error {
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
	t.fresh, t.replaces = true, replaces
	t.body = &blank{}
	t.format = Spgz
	if t.opts.Raw {
		t.format = Raw
	}
	return nil
}

func (t *Target) openDevice(info fs.FileInfo) error {
	var err error
	if t.disk, err = t.place.open(t.flag(os.O_EXCL), info); err != nil {
		return err
	}
	t.format, t.held = Device, t.disk.held
	t.body = &flat{disk: t.disk, length: t.held}
	return nil
}

// flag returns how to open what exists.
func (t *Target) flag(more int) int {
	if t.opts.DryRun {
		return os.O_RDONLY
	}
	return os.O_RDWR | more
}

func (t *Target) openFile(info fs.FileInfo) error {
	var err error
	if t.disk, err = t.place.open(t.flag(0), info); err != nil {
		return err
	}
	if !t.opts.DryRun {
		// Besides the lock file: two writers may see the folder differently.
		got, err := t.disk.f.Lock(exclusive)
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("image %s: locking it: %w", t.place.path, cause(err))
		}
		if err == nil && !got {
			return inUse(t.place.path, "another process")
		}
	}
	if t.format, t.note, err = detect(t.disk, Auto); err != nil {
		return err
	}
	if t.format == Raw {
		t.body = &flat{disk: t.disk, length: t.disk.held}
	} else if err := t.openSlots(); err != nil {
		return err
	}
	t.held = t.body.Size()
	return nil
}

func (t *Target) openSlots() error {
	if t.opts.Raw {
		return refuse(ErrRefused, "image %s: is or looks like an spgz image: leave out --no-compress to update it as one, or remove it to make a raw one", t.place.path)
	}
	s, err := openAnySlots(t.disk)
	if err != nil {
		return err
	}
	if s.corrupt != nil {
		t.note = s.corrupt.Error()
	}
	t.body = s
	return nil
}

// Format returns the format of the image, or that in which a new one is made.
func (t *Target) Format() Format { return t.format }

// BlockSize returns the block size that an existing spgz image dictates, else 0.
func (t *Target) BlockSize() int {
	if t.fresh {
		return 0
	}
	return t.body.BlockSize()
}

// Held returns how many bytes of content there were when the target was opened:
// 0 for a new image, all of a device.
func (t *Target) Held() int64 { return t.held }

// Identity returns the identity of what exists, zero for a new image. An empty
// file exists as well, although a new image is to replace it.
func (t *Target) Identity() Identity {
	if t.disk == nil || t.fresh {
		return t.empty
	}
	return t.disk.identity()
}

// Note returns one line that the operator should see, or "".
func (t *Target) Note() string { return t.note }

// Begin says that the content will be size bytes, written in blocks of blockSize
// bytes, and creates a new image. An existing image is not touched yet, but seen
// through the new size from now on. A device smaller than size is refused with
// ErrTooSmall.
func (t *Target) Begin(size int64, blockSize int) error {
	if t.stage != opened {
		return fmt.Errorf("image %s: begun twice", t.place.path)
	}
	if _, err := merkle.NewGeometry(size, blockSize); err != nil {
		return fmt.Errorf("image %s: %w", t.place.path, err)
	}
	if t.format == Device && size > t.held {
		return refuse(ErrTooSmall, "image %s: the device has %d bytes, the source %d: it does not fit", t.place.path, t.held, size)
	}
	if t.format == Spgz {
		if err := t.checkBlockSize(blockSize); err != nil {
			return err
		}
	}
	if t.fresh && !t.opts.DryRun {
		if err := t.create(blockSize); err != nil {
			return err
		}
	}
	t.body.resize(size)
	t.stage = begun
	return nil
}

// checkBlockSize keeps the blocks of the caller and of the file the same: else
// writers of different blocks would meet in one slot.
func (t *Target) checkBlockSize(blockSize int) error {
	if have := t.BlockSize(); have != 0 && have != blockSize {
		return fmt.Errorf("image %s: has blocks of %d bytes, not of %d", t.place.path, have, blockSize)
	}
	if err := checkBlockSize(blockSize); err != nil {
		return fmt.Errorf("image %s: %w", t.place.path, err)
	}
	return nil
}

// create makes the partial file of a new image.
func (t *Target) create(blockSize int) error {
	f, err := t.place.root.OpenFile(partialName(t.place.name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("image %s: creating its partial file: %w", t.place.path, cause(err))
	}
	t.partial = true
	if t.disk, err = newDisk(f, t.place.path); err != nil {
		return errors.Join(err, f.Close())
	}
	if t.format == Raw {
		t.body = &flat{disk: t.disk}
		return nil
	}
	t.body = &slots{disk: t.disk, blockSize: blockSize}
	_, err = t.disk.writeAt(encodeHeader(blockSize), 0)
	return err
}

// ReadAt reads the content as it is now, seen through the size given to Begin:
// cut to it, or extended with zeros. An error may hold a *CorruptError.
func (t *Target) ReadAt(p []byte, off int64) (int, error) { return t.body.ReadAt(p, off) }

// NextData is merkle.Source.NextData for what ReadAt reads.
func (t *Target) NextData(off int64) (merkle.Extent, error) { return t.body.NextData(off) }

// WriteAt writes content. Into an spgz image it is fastest in whole blocks.
func (t *Target) WriteAt(p []byte, off int64) (int, error) {
	if err := t.writable(); err != nil {
		return 0, err
	}
	return t.body.WriteAt(p, off)
}

// WriteSlot stores the slot of a block of an spgz image as EncodeSlot made it.
// The caller has decoded it and found the block that it wants: here nothing but
// its flag and length is checked. An empty slot is a block of zeros.
func (t *Target) WriteSlot(block int64, slot []byte) error {
	if err := t.writable(); err != nil {
		return err
	}
	s, ok := t.body.(*slots)
	if !ok {
		return fmt.Errorf("image %s: block %d: a %s image has no slots", t.place.path, block, t.format)
	}
	return s.storeSlot(block, slot)
}

// Punch makes length bytes at off read as zeros, and gives their space back
// where that is possible.
func (t *Target) Punch(off, length int64) error {
	if err := t.writable(); err != nil {
		return err
	}
	return t.body.Punch(off, length)
}

func (t *Target) writable() error {
	switch {
	case t.opts.DryRun:
		return fmt.Errorf("image %s: the target was opened for a dry run", t.place.path)
	case t.stage == opened:
		return fmt.Errorf("image %s: %w", t.place.path, errNotBegun)
	case t.stage != begun:
		return fmt.Errorf("image %s: the target is committed or closed", t.place.path)
	}
	return nil
}

// Commit gives the image its final size and makes it durable; a new image then
// takes its place, unless something else has appeared there in the meantime.
// When it returns nil, all of it is on the disk.
func (t *Target) Commit() error {
	if err := t.writable(); err != nil {
		return err
	}
	if err := t.body.settle(); err != nil {
		return err
	}
	if err := t.disk.sync(); err != nil {
		return err
	}
	if t.fresh {
		if err := t.publish(); err != nil {
			return err
		}
		if err := t.syncFolders(); err != nil {
			return err
		}
	}
	t.stage = committed
	return nil
}

// publish moves the partial file to the image's name. A hard link is the way to
// do so that never replaces anything.
func (t *Target) publish() error {
	root, name, partial := t.place.root, t.place.name, partialName(t.place.name)
	if t.replaces == nil {
		if err := root.Link(partial, name); err == nil {
			return t.dropPartial()
		}
	}
	// Something is in the way, or there are no hard links here, or an empty file
	// is to be replaced.
	now, err := root.Lstat(name)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("image %s: %w", t.place.path, cause(err))
	case err == nil && (t.replaces == nil || !root.Same(now, t.replaces) || now.Size() != 0):
		return t.appeared()
	}
	if err := root.Rename(partial, name); err != nil {
		return fmt.Errorf("image %s: putting it into place: %w", t.place.path, cause(err))
	}
	t.partial = false
	return nil
}

func (t *Target) appeared() error {
	return refuse(ErrChanged, "image %s: was made by someone else in the meantime, and is left alone", t.place.path)
}

func (t *Target) dropPartial() error {
	err := t.place.root.Remove(partialName(t.place.name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %s: removing its partial file: %w", t.place.path, cause(err))
	}
	t.partial = false
	return nil
}

func (t *Target) syncFolders() error {
	for _, folder := range []string{".", storeFolder} {
		if err := t.place.root.Sync(folder); err != nil && !errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("image %s: making its name durable: %w", t.place.path, cause(err))
		}
	}
	return nil
}

// Close releases the target. Without a Commit before, a new image leaves no trace
// and an existing one stays as it is now. Only the first call does anything.
func (t *Target) Close() error {
	if t.stage == closed {
		return nil
	}
	t.stage = closed
	var errs []error
	if t.disk != nil {
		if err := t.disk.f.Close(); err != nil {
			errs = append(errs, fmt.Errorf("image %s: closing it: %w", t.place.path, cause(err)))
		}
	}
	if t.partial {
		errs = append(errs, t.dropPartial())
	}
	if t.lock != nil {
		errs = append(errs, t.lock.release())
	}
	return errors.Join(errs...)
}
