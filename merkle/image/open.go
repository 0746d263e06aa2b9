package image

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/docker/go-units"

	"github.com/diskrsync/diskrsync/merkle"
)

// Options say how an image is opened for reading. The zero value is the ordinary
// case.
type Options struct {
	// Choice is what the user says about the format.
	Choice Choice

	// Examine opens what is damaged too: an image that is incomplete or has bad
	// blocks, and an spgz image whose last block cannot be decoded, and whose
	// size is therefore not known, as if that block were full.
	Examine bool

	// Force opens an image that is incomplete or has bad blocks.
	Force bool

	// Checksum believes no stored hashes.
	Checksum bool

	// ReadOnly leaves an update that waits in the journal there.
	ReadOnly bool

	// StateDir is as for a target.
	StateDir string
}

// Open opens the image at p for reading. An update that was committed but not
// put into the image yet is, if that is possible now; else the image is read
// together with its journal. The caller closes the image; p must stay open as
// long.
func Open(p *Place, o Options) (Image, error) {
	s := newStore(p)
	if _, err := p.stat(); errors.Is(err, fs.ErrNotExist) && !o.ReadOnly {
		// It may be a new image that only has to be put into place.
		if err := s.recover(); err != nil && !errors.Is(err, errVoid) {
			return nil, s.missing(err)
		}
	}
	for range lockTries {
		r, err := openReader(p, s, o)
		if err != nil {
			return nil, err
		}
		// What was committed goes into the image first, if no one keeps us from
		// it. But for that our own lock must go.
		if r.state.Waiting == 0 || o.ReadOnly {
			return r, nil
		}
		if err := r.disk.unlock(); err != nil {
			return nil, errors.Join(err, r.Close())
		}
		if r.store.recover() != nil {
			// Not now: we read through the journal, if we still have it.
			if ok, err := r.disk.lock(shared); (ok || err != nil) && r.current() {
				return r, nil // as in excludeWriters
			}
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
	}
	return nil, refuse(ErrInUse, "image %s: is being changed all the time", p.path)
}

// reader implements Image.
type reader struct {
	*overlay
	store   *store
	opts    Options
	disk    *disk
	format  Format
	guessed bool
	note    string
	bs      int // of slots, else of stored hashes, else 0
	tree    *tree
	j       *journal
	upto    []batch         // what of j counts
	head    merkle.Outboard // what is stored about the image, zero if nothing is
	state   State
}

func openReader(p *Place, s *store, o Options) (*reader, error) {
	info, err := p.stat()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.missing(nil)
	}
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, isFolder(p)
	}
	if o.Choice == AsSpgz && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("image %s: is not a regular file and so no spgz image", p.path)
	}
	d, err := p.open(os.O_RDONLY, info)
	if err != nil {
		return nil, err
	}
	r := &reader{store: s, opts: o, disk: d}
	if err := r.open(p); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// missing says that there is no image, and whether there may be one soon. If it was
// tried to put one into place, why says why that has failed.
func (s *store) missing(why error) error {
	missing := &missingError{path: s.path}
	if _, err := s.root.Lstat(s.file(KindPartial)); err != nil {
		return missing
	}
	if why != nil {
		missing.more = fmt.Sprintf(" yet: a first copy of it is complete, and putting it into place failed: %v", why)
		return missing
	}
	missing.more = ": a first copy of it is under way, or was interrupted, and the next sync goes on with it"
	if j, err := s.readJournal(); err == nil && j != nil {
		missing.more += fmt.Sprintf(": about %s are here", units.BytesSize(float64(j.kept())))
		_ = j.close() // it was only looked at, and for the words
	}
	return missing
}

func (r *reader) open(p *Place) error {
	if r.disk.device {
		s, err := deviceStore(p, r.disk, r.opts.StateDir, false)
		if err != nil {
			return err
		}
		r.store = s
	}
	if err := r.excludeWriters(); err != nil {
		return err
	}
	if r.store.root != nil {
		if err := r.readStore(); err != nil {
			return err
		}
	}
	if err := r.checkState(); err != nil {
		return err
	}
	return r.openContent()
}

// checkState refuses what is known not to be what it should be.
func (r *reader) checkState() error {
	switch {
	case r.opts.Examine || r.opts.Force:
		return nil
	case r.state.Incomplete:
		return refuse(ErrIncomplete, "image %s: is incomplete: %s, or %s", r.store.path, r.state.Why, HintForce)
	case r.state.Bad > 0:
		return refuse(ErrIncomplete, "image %s: has %d bad blocks: sync to it again to repair them, or %s", r.store.path, r.state.Bad, HintForce)
	}
	return nil
}

// excludeWriters keeps the image as it is for as long as it is open. What cannot
// be locked is read all the same, unless it is one of ours who writes it; of a device
// that somebody else has locked it is known that it is about to be changed, because
// that is what such locks are for.
func (r *reader) excludeWriters() error {
	for range lockTries {
		ok, err := r.disk.lock(shared)
		if err != nil || ok {
			return nil
		}
		time.Sleep(lockPause) // the start of an update takes no longer
	}
	switch {
	case r.opts.Force || r.opts.Examine:
		return nil
	case r.disk.device:
		return refuse(ErrInUse, "device %s: is locked by another program, which is changing it: wait for that to end, or %s", r.store.path, HintForce)
	case !r.store.beingWritten():
		return nil
	}
	return refuse(ErrInUse, "image %s: is being changed in place: wait for that to end", r.store.path)
}

// readStore finds out what is stored about the image.
func (r *reader) readStore() error {
	var err error
	r.j, err = r.store.readJournal()
	switch {
	case errors.Is(err, errJournal):
		r.state.Incomplete, r.state.Why = true, "the journal of an update is damaged: sync to it again"
		return nil
	case errors.Is(err, fs.ErrPermission) && r.opts.Force:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: only who may read the folder %s beside it can tell whether the image is whole (%s, if that does not matter)", err, StoreFolder, HintForce)
	case err != nil:
		return err
	}
	if r.j != nil {
		if err := r.useJournal(); err != nil || r.state.Incomplete {
			return err
		}
	}
	// Only now: an update that has just been put into the image has changed it.
	if r.disk.info, err = r.disk.f.Stat(); err != nil {
		return fmt.Errorf("image %s: looking at it: %w", r.store.path, cause(err))
	}
	if !r.disk.device {
		r.disk.held = r.disk.info.Size()
	}
	if r.store.noTree {
		return nil
	}
	if r.tree, err = openTree(r.store.trees, r.store.file(KindTree), r.store.path); err != nil {
		return err
	}
	// With a journal, the outboard may be on its way from the old image to the
	// new one.
	if r.tree != nil && len(r.upto) == 0 && !r.store.isOf(r.tree, r.disk) {
		r.state.Changed, r.state.Synced = true, time.Unix(0, r.tree.head.Synced)
		err, r.tree = r.tree.close(), nil
	}
	if err == nil && r.tree == nil && len(r.upto) == 0 {
		err = r.lookForClaims()
	}
	r.describe()
	return err
}

// describe finds out what is stored about the image, in its outboard or, of what
// waits, in the journal.
func (r *reader) describe() {
	switch n := len(r.upto); {
	case n > 0 && (r.tree != nil || slices.ContainsFunc(r.upto, batch.whole)):
		s := r.upto[n-1].seal
		r.head = merkle.Outboard{Size: r.upto[n-1].size, BlockSize: r.j.head.BlockSize, Format: string(r.j.head.Format),
			Digest: s.Digest, Generation: s.Generation, Synced: s.Synced, Modified: s.Modified}
	case n == 0 && r.tree != nil:
		r.head = r.tree.head
	default:
		return
	}
	r.state.Stored, r.state.Bad = true, r.head.Bad
	r.state.Digest, r.state.Generation, r.state.Synced = r.head.Digest, r.head.Generation, time.Unix(0, r.head.Synced)
}

// useJournal decides what the journal means for the image.
func (r *reader) useJournal() error {
	now, err := r.store.base(r.disk)
	if err != nil {
		return err
	}
	h := &r.j.head
	switch {
	case now.Inode != h.Base.Inode && r.j.claim() == claimHalf:
		r.state.Incomplete, r.state.Why = true, "an update of a file of this name was cut off half way, and this may be a copy of that: sync to it again (diskrsync clean, if it is not)"
		return nil
	case now.Inode != h.Base.Inode || h.Way == wayRedo && !r.j.marked && now != h.Base:
		return nil // it is about another image, or a former one
	}
	sealed := r.j.sealedBatches()
	switch {
	case sealed == 0 && h.Way == wayInPlace:
		r.state.Incomplete, r.state.Why = true, "an update in place was interrupted: sync to it again"
		return nil
	case sealed > 0:
		r.state.Waiting = r.j.batches[sealed-1].end()
	}
	if h.Way == wayInPlace { // the image is whole, and its outboard is outdated
		return nil
	}
	r.state.Kept = r.j.kept()
	return r.useBatches(sealed)
}

// useBatches has the image read through what is sealed. If all of that is in it, and
// someone else has changed it since, it is another image.
func (r *reader) useBatches(sealed int) error {
	if applied := r.j.applied(); applied != nil {
		now, err := r.store.bound(r.disk)
		if err != nil || now != *applied {
			return err
		}
	}
	r.upto = r.j.batches[:sealed]
	return nil
}

// lookForClaims finds out whether the image was moved here while an update was on its
// way into it. It has no outboard then that is that of it as it is.
func (r *reader) lookForClaims() error {
	old, c, err := r.store.former(r.disk.f.Inode())
	switch {
	case err != nil && (r.opts.Force || r.opts.Examine):
		return nil
	case err != nil:
		return err
	case c == claimHalf:
		r.state.Incomplete, r.state.Why, r.state.Changed = true, movedHalfWay(old), false
	case c == claimWaiting:
		r.note = fmt.Sprintf("image %s: a committed update of it waits where it was before: give it its name %s back to have that", r.store.path, old)
	}
	return nil
}

func (r *reader) openContent() error {
	format, note, err := r.formatOf()
	if err != nil {
		return err
	}
	r.format, r.note = format, cmp.Or(note, r.note)
	var base content = &flat{disk: r.disk, length: r.disk.held}
	if r.format == Spgz {
		s, err := openAnySlots(r.disk)
		if err == nil && s.corrupt != nil && len(r.upto) == 0 && !r.opts.Examine {
			err = s.corrupt
		}
		if err != nil {
			return err
		}
		base, r.bs = s, s.blockSize
	}
	size := base.Size()
	for i := range r.upto {
		if b := &r.upto[i]; b.seal != nil {
			size = b.size
			base.resize(min(base.Size(), size))
		}
	}
	r.overlay = over(base, size, r.j, r.upto)
	if r.head.Format != string(r.format) {
		r.head = merkle.Outboard{} // of another content
	}
	if r.bs == 0 {
		r.bs = r.head.BlockSize
	}
	if r.opts.Checksum || r.state.Bad > 0 && !r.opts.Examine {
		r.head = merkle.Outboard{}
	}
	// A device may be larger than what was synced to it.
	if r.head.BlockSize == 0 || r.head.Size != size {
		r.state.Stored, r.state.Digest, r.state.Generation = false, merkle.Hash{}, 0
	}
	return nil
}

// formatOf returns what the user says, or what the image was made as, or what it
// looks like.
func (r *reader) formatOf() (Format, string, error) {
	switch {
	case r.disk.device:
		return Device, "", nil
	case r.j != nil && len(r.upto) > 0:
		f := r.j.head.Format
		if c := cmp.Or(r.opts.Choice, Auto); c != Auto && string(c) != string(f) {
			return "", "", refuse(ErrInUse, "image %s: an update of it as a %s image waits until it is no longer being read: it cannot be read as %s until then", r.store.path, f, c)
		}
		return f, "", nil
	case r.opts.Choice != Auto && r.opts.Choice != "":
	case r.tree != nil:
		return Format(r.tree.head.Format), "", nil
	}
	c := cmp.Or(r.opts.Choice, Auto)
	r.guessed = c == Auto
	return detect(r.disk, c)
}

// current reports whether the journal is still the one that we have, with no
// more in it that was committed, and none of it newly put into the image.
func (r *reader) current() bool {
	j, err := r.store.readJournal()
	if err != nil || j == nil {
		return false
	}
	same := j.head.ID == r.j.head.ID && j.sealedBatches() == r.j.sealedBatches() && j.marked == r.j.marked
	return j.close() == nil && same
}

func (r *reader) Size() int64               { return r.overlay.size }
func (r *reader) BlockSize() int            { return r.bs }
func (r *reader) Format() Format            { return r.format }
func (r *reader) Guessed() bool             { return r.guessed }
func (r *reader) Identity() Identity        { return r.disk.identity() }
func (r *reader) Note() string              { return r.note }
func (r *reader) State() State              { return r.state }
func (r *reader) Allocated() (int64, error) { return r.disk.allocated() }

func (r *reader) Hashes(blockSize int) Hashes {
	g, err := merkle.NewGeometry(r.Size(), blockSize)
	if err != nil || r.head.BlockSize == 0 {
		return (*hashes)(nil)
	}
	if slices.ContainsFunc(r.upto, batch.whole) {
		return newHashes(g, nil, true, r.j, r.upto)
	}
	return newHashes(g, r.tree, false, r.j, r.upto)
}

func (r *reader) Modified() time.Time {
	switch {
	case r.head.Modified != 0:
		return time.Unix(0, r.head.Modified)
	case r.disk.device:
		return time.Time{}
	}
	return r.disk.info.ModTime()
}

func (r *reader) Close() error {
	errs := []error{r.tree.close(), r.j.close(), r.disk.f.Close()}
	errs = append(errs, r.store.close())
	return errors.Join(errs...)
}

func (r *reader) Changed() error {
	if r.disk.device || len(r.upto) > 0 && r.j.marked {
		// What waits in the journal is being put into the image, which changes
		// nothing for us. Before that was begun, our lock keeps it from beginning.
		return nil
	}
	then := r.disk.info
	now, err := r.disk.f.Stat()
	if err != nil {
		return fmt.Errorf("image %s: looking for changes: %w", r.disk.path, cause(err))
	}
	if now.Size() != then.Size() {
		return refuse(ErrChanged, "image %s: changed while it was read: its file had %d bytes and has %d now",
			r.disk.path, then.Size(), now.Size())
	}
	if !now.ModTime().Equal(then.ModTime()) {
		return refuse(ErrChanged, "image %s: changed while it was read: it was modified at %s",
			r.disk.path, now.ModTime().Format("2006-01-02 15:04:05.000000000"))
	}
	return nil
}
