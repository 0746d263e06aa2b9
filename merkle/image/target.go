package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/docker/go-units"

	"github.com/diskrsync/diskrsync/merkle"
)

// TargetOptions say how a target is opened. The zero value is the ordinary case.
type TargetOptions struct {
	// Raw makes a new image a raw file rather than an spgz file.
	Raw bool

	// DryRun promises that nothing will be written. Nothing is opened for
	// writing, created or locked, and the methods that write fail.
	DryRun bool

	// InPlace changes an existing image as the blocks come, which takes no
	// space for a journal. Until the Commit it is marked as incomplete.
	InPlace bool

	// Checksum believes no stored hashes.
	Checksum bool

	// StateDir is a folder for what is stored about devices. If it is not given,
	// a device is only marked as incomplete while it is written, in a folder of
	// the system's, and nothing is believed of what it held before.
	StateDir string
}

// A Target is an image about to receive a sync. It is used in this order:
// OpenTarget, Begin, reads and writes, Commit, Close.
//
// Between Begin and Commit its methods may be called by many goroutines at once,
// as long as each block is put or punched at most once and not read meanwhile.
// Without a Commit, what was written counts as held when the image is next
// opened as a target, and is not seen by anyone else; but for an image that is
// changed in place.
type Target struct {
	place  *Place
	store  *store
	opts   TargetOptions
	format Format
	notes  []string
	held   int64
	kept   int64

	cleaning bool  // what is left over is to be dropped
	left     bool  // something was
	dropped  int64 // like kept, of that

	lock *lock
	disk *disk   // the image or the partial file, nil as long as there is none
	body content // what is in there, never nil
	tree *tree   // nil if nothing is believed

	way        way
	fresh      bool     // there is no image yet
	empty      Identity // of the empty file that a new image replaces
	broken     bool     // the image is incomplete
	generation int64
	waits      bool // the update is committed, and not in the image yet

	g      merkle.Geometry
	view   *overlay
	hashes *hashes // nil if nothing is to be believed
	anew   bool    // the outboard is to be made anew
	stage  stage
	stop   chan struct{} // ends the goroutine that makes things durable
	tick   sync.WaitGroup

	mu     sync.Mutex
	j      *journal  // what lay there, or was made since; may be nil
	rec    *recorder // nil until something is recorded
	failed error     // what ended all writing
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

// A Block is the content of a block.
type Block struct {
	Index int64
	Leaf  merkle.Hash
	Data  []byte

	// Changed are the extents of Data that differ from what the target has. If
	// there are none, all of it may differ.
	Changed []merkle.Extent

	// Slot, if set, is the slot of an spgz image that holds the block, as
	// EncodeSlot made it. The caller has decoded it: here nothing but its flag
	// and length is checked.
	Slot []byte
}

// OpenTarget opens the image at p to receive a sync, or prepares for a new one.
// What an earlier run has left is completed, if it was committed, or else
// continued. It fails with ErrInUse if another writer has the image or the
// device is mounted, and with ErrRefused if the image is spgz but o asks for a
// raw one. The caller closes the target, and only then p.
func OpenTarget(p *Place, o TargetOptions) (*Target, error) {
	t := &Target{place: p, store: newStore(p), opts: o}
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
		if t.lock, err = takeLock(t.store); err != nil {
			return err
		}
	}
	if err := t.takeOver(); err != nil {
		return err
	}
	// Another writer may have put the image into place until we had the lock, or
	// we have just now.
	if info, err = t.stat(); err != nil {
		return err
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
	if info.IsDir() && t.cleaning {
		return nil, isFolder(t.place)
	}
	if info.IsDir() {
		return nil, fmt.Errorf("image %s: is a folder: add \"/\" to put the image into it", t.place.path)
	}
	return info, nil
}

// flag returns how to open what exists.
func (t *Target) flag(more int) int {
	if t.opts.DryRun {
		return os.O_RDONLY
	}
	return os.O_RDWR | more
}

// Format returns the format of the image, or that in which a new one is made.
func (t *Target) Format() Format { return t.format }

// BlockSize returns the block size that an existing spgz image dictates, else 0.
func (t *Target) BlockSize() int { return t.body.BlockSize() }

// Preferred returns the block size in which something is known of the image
// already, or 0.
func (t *Target) Preferred() int {
	switch {
	case t.j != nil && len(t.j.batches) > 0:
		return t.j.head.BlockSize
	case t.tree != nil:
		return t.tree.g.BlockSize()
	}
	return t.BlockSize()
}

// Held returns how many bytes of content there may be when the target is
// opened: 0 for a new image, all of a device.
func (t *Target) Held() int64 { return t.held }

// Kept returns about how many bytes of content an interrupted run has left.
func (t *Target) Kept() int64 { return t.kept }

// Identity returns the identity of what exists, zero for a new image. An empty
// file exists as well, although a new image is to replace it.
func (t *Target) Identity() Identity {
	if t.disk == nil || t.fresh {
		return t.empty
	}
	return t.disk.identity()
}

// Note returns one line that the operator should see, or "".
func (t *Target) Note() string { return strings.Join(t.notes, "; ") }

// tell adds to what the operator should see.
func (t *Target) tell(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf("image %s: ", t.place.path)+fmt.Sprintf(format, args...))
}

// Root returns the root of a region without reading the image, or false if it
// is not known.
func (t *Target) Root(region int64) (merkle.Hash, bool) { return t.hashes.Root(region) }

// Leaves returns the leaves of a region without reading the image, nil for
// zeros, or false if they are not known. They belong to the caller.
func (t *Target) Leaves(region int64) ([]merkle.Hash, bool) { return t.hashes.Leaves(region) }

// ReadAt reads the content as it is now, seen through the size given to Begin:
// cut to it, or extended with zeros. An error may hold a *CorruptError.
func (t *Target) ReadAt(p []byte, off int64) (int, error) { return t.view.ReadAt(p, off) }

// NextData is merkle.Source.NextData for what ReadAt reads.
func (t *Target) NextData(off int64) (merkle.Extent, error) { return t.view.NextData(off) }

// Begin says that the content will be size bytes, written in blocks of blockSize
// bytes, and creates a new image. An existing image is not touched yet, but seen
// through the new size from now on. A device smaller than size is refused with
// ErrTooSmall.
func (t *Target) Begin(size int64, blockSize int) error {
	if t.stage != opened {
		return fmt.Errorf("image %s: begun twice", t.place.path)
	}
	var err error
	if t.g, err = merkle.NewGeometry(size, blockSize); err != nil {
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
	if err := t.beginJournal(); err != nil {
		return err
	}
	var batches []batch
	if t.j != nil && t.way != wayInPlace {
		batches = t.j.batches
	}
	t.view = over(t.body, size, t.j, batches)
	t.anew = true
	if !t.opts.Checksum {
		t.hashes = t.know(batches)
		t.anew = t.hashes.tree == nil && !slices.ContainsFunc(batches, batch.whole)
	}
	if t.rec != nil {
		t.view.record(t.rec)
	}
	t.stage = begun
	return t.adopt(batches)
}

// adopt makes what an interrupted run has left part of this one, which has to
// commit it even if nothing else is to be done. The leaves of its blocks are put
// together to regions: nobody else is going to say what those are where the
// source has them as well.
func (t *Target) adopt(batches []batch) error {
	if t.j == nil || t.opts.DryRun {
		return nil
	}
	left := batches[min(len(batches), t.j.sealedBatches()):]
	if len(left) == 0 {
		return nil
	}
	if err := t.startRecording(); err != nil {
		return err
	}
	if err := t.j.eachRegion(left, t.g.Regions(), t.adoptRegion); err != nil {
		return err
	}
	return t.rec.flush(nil, (*pending).some)
}

// adoptRegion stores the leaves of a region if they are known, but not stored
// since blocks of it were changed.
func (t *Target) adoptRegion(region int64) error {
	leaves, ok := t.hashes.Leaves(region)
	if !ok {
		return nil
	}
	stored, err := t.j.find(t.hashes.batches, true, region)
	if err != nil || stored.kind != 0 && stored.hash == merkle.RegionRoot(leaves) {
		return err
	}
	return t.settle(region, leaves)
}

// know returns what is known of the content without reading it.
func (t *Target) know(batches []batch) *hashes {
	if slices.ContainsFunc(batches, batch.whole) {
		// A committed update that waits has all there is to know.
		return newHashes(t.g, nil, true, t.j, batches)
	}
	return newHashes(t.g, t.tree, t.way == wayNew, t.j, batches)
}

// beginJournal gets ready to write, as far as that has to happen before it is
// known whether anything will be written.
func (t *Target) beginJournal() error {
	if t.j != nil && t.j.head.BlockSize != t.g.BlockSize() {
		if t.j.lastSeal() != nil {
			return refuse(ErrInUse, "image %s: an update of it waits until it is no longer being read: try again then, or have diskrsync clean complete it", t.place.path)
		}
		if err := t.forget(); err != nil {
			return err
		}
	}
	if t.way != wayNew {
		if t.way == wayInPlace {
			t.body.resize(t.g.Size())
		}
		return nil
	}
	if t.opts.DryRun {
		t.body.resize(t.g.Size())
		return nil
	}
	if t.disk == nil {
		if err := t.create(t.g.BlockSize()); err != nil {
			return err
		}
	}
	t.body.resize(t.g.Size())
	if t.j == nil {
		return t.startRecording()
	}
	if err := t.sweep(); err != nil {
		return err
	}
	return t.startRecording()
}

// checkBlockSize keeps the blocks of the caller and of the file the same: else
// writers of different blocks would meet in one slot.
func (t *Target) checkBlockSize(blockSize int) error {
	if have := t.BlockSize(); have != 0 && have != blockSize && !t.fresh {
		return fmt.Errorf("image %s: has blocks of %d bytes, not of %d", t.place.path, have, blockSize)
	}
	if err := checkBlockSize(blockSize); err != nil {
		return fmt.Errorf("image %s: %w", t.place.path, err)
	}
	return nil
}

// Put writes a block.
func (t *Target) Put(b Block) error {
	if err := t.check(b.Index, 1); err != nil {
		return err
	}
	return t.keep(t.put(&b))
}

// Punch makes count blocks read as zeros.
func (t *Target) Punch(first, count int64) error {
	if err := t.check(first, count); err != nil {
		return err
	}
	return t.keep(t.punch(first, count))
}

// Settle says what the leaves of a region are, nil for zeros: of every region
// that was read because its root was not known, and of every one in which a
// block was put or punched, after that.
func (t *Target) Settle(region int64, leaves []merkle.Hash) error {
	if t.opts.DryRun {
		return nil
	}
	if err := t.writable(); err != nil {
		return err
	}
	return t.keep(t.settle(region, leaves))
}

// keep remembers the first error of writing: there is no going on after it.
func (t *Target) keep(err error) error {
	if isFull(err) && t.way != wayInPlace {
		err = t.fullError(err)
	}
	if err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.failed == nil {
			t.failed = err
		}
	}
	return err
}

// fullError adds what there is to a full disk.
func (t *Target) fullError(err error) error {
	what := "its journal has"
	if t.way == wayNew {
		what = "the new image has"
	}
	var have, kept int64
	if t.rec != nil {
		have, kept = t.rec.tail(), t.rec.kept()
	}
	if t.disk != nil && t.way == wayNew {
		have, _ = t.disk.allocated() // only for the words
	}
	free, _ := t.place.root.Free()
	return fmt.Errorf("%w (%s %s so far, and %s are free: about %s of content are kept for the next run, and diskrsync clean drops them)",
		err, what, units.BytesSize(float64(have)), units.BytesSize(float64(free)), units.BytesSize(float64(kept)))
}

// isFull reports whether an error says that there is no more space, or that the user
// has been given no more.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

func (t *Target) check(first, count int64) error {
	if err := t.writable(); err != nil {
		return err
	}
	if first < 0 || count < 0 || first > t.g.Blocks() || count > t.g.Blocks()-first {
		return fmt.Errorf("image %s: there are no blocks %d to %d in %d", t.place.path, first, first+count-1, t.g.Blocks())
	}
	return nil
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
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

// Close releases the target. What was written without a Commit is made durable,
// for the next run to go on with. Only the first call does anything.
func (t *Target) Close() error {
	if t.stage == closed {
		return nil
	}
	t.stopFlushing()
	var errs []error
	if t.stage == begun && !t.opts.DryRun {
		errs = append(errs, t.suspend())
	}
	t.stage = closed
	if t.disk != nil {
		if err := t.disk.f.Close(); err != nil {
			errs = append(errs, fmt.Errorf("image %s: closing it: %w", t.place.path, cause(err)))
		}
	}
	errs = append(errs, t.tree.close(), t.j.close())
	if t.lock != nil {
		errs = append(errs, t.lock.release())
	}
	errs = append(errs, t.store.close())
	return errors.Join(errs...)
}

// flushEvery is how often it is looked whether something is to be made durable.
const flushEvery = flushAfter / 3

func (t *Target) startFlushing() {
	stop, rec := make(chan struct{}), t.rec
	t.stop = stop
	t.tick.Go(func() {
		tick := time.NewTicker(flushEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-rec.soon:
			case <-stop:
				return
			}
			_ = t.keep(rec.flush(nil, (*pending).ripe)) // shows at the next write, or the Commit
		}
	})
}

func (t *Target) stopFlushing() {
	if t.stop != nil {
		close(t.stop)
		t.tick.Wait()
		t.stop = nil
	}
}
