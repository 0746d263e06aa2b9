package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/docker/go-units"

	"github.com/diskrsync/diskrsync/merkle"
)

// An application puts what was sealed in a journal into the image. It may be
// cut off anywhere: whoever does it again gets to the same end.
type application struct {
	store *store
	j     *journal
	bad   map[int64][]int64 // blocks that the journal has lost, by region
	done  bool              // the image has it all
	alien bool              // someone else may have changed the image since
	dirty bool              // the image's file was written
	buf   []byte            // for payloads
}

// payload is that of an entry, until the next one is read.
func (a *application) payload(e *entry) ([]byte, error) {
	if a.buf == nil {
		a.buf = make([]byte, maxPayload)
	}
	return a.j.payload(e, a.buf)
}

// Reasons why a sealed journal is not put into the image.
var (
	// errReaders says that someone is reading the image, who must not see it
	// change.
	errReaders = errors.New("is being read")

	// errVoid says that the image is not the one that the journal is about.
	errVoid = errors.New("was changed or replaced since its journal was made")
)

// complete puts what was sealed into the image, whose file is d, and removes the
// journal. It returns how many blocks the journal has lost, which are known to be
// bad from then on. The caller has the writer's lock. It fails with errReaders or
// errVoid without having changed anything.
func (s *store) complete(j *journal, d *disk) (lost int, err error) {
	a := &application{store: s, j: j, bad: map[int64][]int64{}}
	if err := a.run(d); err != nil {
		if !errors.Is(err, errVoid) {
			a.pause(d)
		}
		if isFull(err) {
			err = s.needsRoom(j, err)
		}
		return 0, err
	}
	for _, blocks := range a.bad {
		lost += len(blocks)
	}
	if j.head.Way == wayNew {
		if err := s.publish(); err != nil {
			return lost, err
		}
	}
	if lost > 0 && a.alien {
		// There is no outboard that could say which blocks are bad.
		return lost, s.markIncomplete(j, d)
	}
	return lost, s.dropJournal()
}

// needsRoom says what becomes of an update that is committed, and for which there is no
// space in the image.
func (s *store) needsRoom(j *journal, err error) error {
	free, _ := s.images.Free() // only for the words
	return fmt.Errorf("%v: the update is committed and safe: it is put into the image by whoever opens it once there is room for up to %s (%s are free)",
		err, units.BytesSize(float64(j.end())), units.BytesSize(float64(free)))
}

// markIncomplete replaces a journal by one that says that the image is a mixture.
func (s *store) markIncomplete(j *journal, d *disk) error {
	h := j.head
	h.Way = wayInPlace
	var err error
	if h.Base, err = s.base(d); err != nil {
		return err
	}
	mark, err := s.createJournal(h)
	if err != nil {
		return err
	}
	return mark.close()
}

// completeFile is complete for an image that is not open.
func (s *store) completeFile(j *journal) error {
	name, err := s.baseOf(j)
	if err != nil {
		return err
	}
	d, err := s.openBase(name)
	if errors.Is(err, fs.ErrNotExist) {
		return errVoid
	}
	if err != nil {
		return err
	}
	_, err = s.complete(j, d) // what is lost is known to whoever reads the image next
	if cerr := d.f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("image %s: closing it: %w", s.path, cause(cerr))
	}
	return err
}

// openBase opens the file that a journal is about, to be changed.
func (s *store) openBase(name string) (*disk, error) {
	flag := os.O_RDWR
	if s.device {
		flag |= os.O_EXCL
	}
	f, err := s.images.OpenFile(name, flag, 0)
	if err != nil {
		return nil, fmt.Errorf("image %s: opening it to put its journal into it: %w", s.path, cause(err))
	}
	d, err := newDisk(f, s.path)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

func (a *application) run(d *disk) error {
	if err := a.begin(d); err != nil {
		return err
	}
	if err := a.putBlocks(d); err != nil {
		return err
	}
	if a.dirty {
		if err := d.stamp(a.j.lastSeal().Modified); err != nil {
			return err
		}
		state, err := a.store.bound(d)
		if err == nil {
			err = a.j.setApplied(state)
		}
		if err != nil {
			return err
		}
	}
	return a.writeTree(d)
}

// pause remembers how the image's file is left, half way, as on a full disk. If
// that cannot be done, no hashes will be believed after the rest is done.
func (a *application) pause(d *disk) {
	if !a.j.marked || a.j.applied() != nil || a.alien || d.stamp(0) != nil {
		return
	}
	if state, err := a.store.base(d); err == nil {
		_ = a.j.mark(state)
	}
}

// stamp makes the file durable, with the time when the source was modified, in ns,
// or that of now if it is 0. Either is as exact as can be: a later change then has
// another time, even one within the same tick of the kernel's clock.
func (d *disk) stamp(modified int64) error {
	if err := d.sync(); err != nil || d.device {
		return err
	}
	at := time.Now()
	if modified != 0 {
		at = time.Unix(0, modified)
	}
	_ = d.f.SetModified(at) // not ours to set on a file of someone else
	return d.sync()
}

// begin makes sure that the image is the one that the journal is about, that no
// one is reading it, and that from now on no one takes it for whole.
func (a *application) begin(d *disk) error {
	now, err := a.store.base(d)
	if err != nil {
		return err
	}
	then := a.j.head.Base
	if now.Inode != then.Inode {
		return errVoid
	}
	if applied := a.j.applied(); applied != nil {
		a.done = true
		if !a.store.noTree {
			bound, err := a.store.bound(d)
			a.alien = err != nil || bound != *applied // then nothing is believed
		}
		return nil
	}
	switch {
	case a.j.head.Way != wayRedo:
		return nil
	case a.j.marked:
		// Half way, someone else may have changed the image as well: only if it
		// was left in order it can be told.
		a.alien = now != a.j.paused
		return a.j.mark(fileState{})
	case now != then:
		return errVoid
	}
	if !a.changesImage() {
		return nil
	}
	// Whoever opens the image from now on finds the journal, and reads it
	// through that. So one moment without readers is enough.
	free, err := d.f.Lock(exclusive)
	if err == nil && !free {
		return errReaders
	}
	if err == nil {
		_, err = d.f.Lock(unlocked)
	}
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("image %s: locking it: %w", a.store.path, cause(err))
	}
	return a.j.mark(fileState{})
}

// changesImage reports whether the journal has anything for the image itself.
func (a *application) changesImage() bool {
	sealed := a.j.batches[:a.j.sealedBatches()]
	return slices.ContainsFunc(sealed, func(b batch) bool { return b.blocks > 0 || b.size != a.j.head.Content })
}

// putBlocks brings the image to what is sealed, unless it is there already. What
// the journal has lost is found out again.
func (a *application) putBlocks(d *disk) error {
	if !a.done {
		return a.writeBlocks(d)
	}
	sealed := a.j.batches[:a.j.sealedBatches()]
	for i := range sealed {
		err := a.j.each(&sealed[i], func(e entry) error {
			if e.kind == entryHeld || e.kind == entryZeros || e.kind == entryRegion {
				return nil
			}
			_, err := a.payload(&e)
			if errors.Is(err, errJournal) {
				a.lose(e.index)
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// writeBlocks brings the image to each of the seals, one after the other.
func (a *application) writeBlocks(d *disk) error {
	if !a.changesImage() && a.j.head.Way == wayRedo {
		return nil
	}
	body, err := bodyOf(d, a.j.head.Format, a.j.head.BlockSize)
	if err != nil {
		return err
	}
	rest := a.j.batches[:a.j.sealedBatches()]
	for len(rest) > 0 {
		n := nextSeal(rest)
		size := rest[n-1].size
		body.resize(size)
		for i := range rest[:n] {
			if err := a.j.each(&rest[i], func(e entry) error { return a.writeBlock(body, &e) }); err != nil {
				return err
			}
		}
		if err := body.settle(); err != nil {
			return err
		}
		rest = rest[n:]
	}
	a.dirty = true
	return nil
}

func (a *application) writeBlock(body content, e *entry) error {
	bs := int64(a.j.head.BlockSize)
	off := e.index * bs
	length := min(bs, body.Size()-off)
	if e.kind == entryHeld || e.kind == entryRegion || length <= 0 {
		return nil
	}
	if e.kind == entryZeros {
		return body.Punch(off, min(e.length*bs, body.Size()-off))
	}
	payload, err := a.payload(e)
	if errors.Is(err, errJournal) {
		a.lose(e.index)
		return nil
	}
	if err != nil {
		return err
	}
	switch e.kind {
	case entryPages:
		return eachExtent(payload, func(at int, data []byte) error {
			// The block may have been cut by a later run.
			data = data[:max(0, min(int64(len(data)), length-int64(at)))]
			if len(data) == 0 {
				return nil
			}
			_, err := body.WriteAt(data, off+int64(at))
			return err
		})
	case entrySlot:
		if s, ok := body.(*slots); ok && len(payload) > 0 && (payload[0] == flagGzip || int64(len(payload)) == 1+length) {
			return s.storeSlot(e.index, payload)
		}
		if payload, err = DecodeSlot(nil, payload, int(bs)); err != nil {
			return fmt.Errorf("image %s: block %d in its journal: %w", a.store.path, e.index, err)
		}
	}
	_, err = body.WriteAt(fit(payload, length), off)
	return err
}

// lose records that a block is bad.
func (a *application) lose(block int64) {
	region := block / merkle.RegionBlocks
	if !slices.Contains(a.bad[region], block) {
		a.bad[region] = append(a.bad[region], block)
	}
}

// fit returns p cut to a length, or extended with zeros.
func fit(p []byte, length int64) []byte {
	if int64(len(p)) >= length {
		return p[:length]
	}
	return append(slices.Clip(p), make([]byte, length-int64(len(p)))...)
}

// writeTree brings the outboard up to the last seal.
func (a *application) writeTree(d *disk) error {
	if a.store.noTree {
		return nil
	}
	if a.alien {
		return a.store.dropTree()
	}
	sealed := a.j.batches[:a.j.sealedBatches()]
	t, err := a.store.changeTree(slices.ContainsFunc(sealed, batch.whole))
	if err != nil || t == nil {
		return err
	}
	err = a.fillTree(t, d, sealed)
	if cerr := t.close(); err == nil && cerr != nil {
		err = fmt.Errorf("image %s: storing its hashes: %w", a.store.path, cause(cerr))
	}
	if errors.Is(err, merkle.ErrOutboard) && len(a.bad) == 0 {
		// It was not what it should have been before. It is made anew the next
		// time that the image is read.
		return a.store.dropTree()
	}
	return err
}

func (a *application) fillTree(t *tree, d *disk, sealed []batch) error {
	last := &sealed[len(sealed)-1]
	var err error
	if t.g, err = merkle.NewGeometry(last.size, a.j.head.BlockSize); err != nil {
		return err
	}
	for rest := sealed; len(rest) > 0; {
		n := nextSeal(rest)
		if rest[n-1].whole() {
			if err := t.clear(); err != nil {
				return err
			}
		}
		for i := range rest[:n] {
			if err := a.j.each(&rest[i], func(e entry) error { return a.fillRegion(t, &e) }); err != nil {
				return err
			}
		}
		rest = rest[n:]
	}
	head := merkle.Outboard{Size: last.size, BlockSize: a.j.head.BlockSize, Format: string(a.j.head.Format),
		Generation: last.seal.Generation, Synced: last.seal.Synced, Modified: last.seal.Modified}
	if head.Digest, err = t.digest(); err != nil {
		return err
	}
	for _, blocks := range a.bad {
		head.Bad += int64(len(blocks))
	}
	if head.Bad == 0 && head.Digest != last.seal.Digest {
		return merkle.ErrOutboard
	}
	state, err := a.store.bound(d)
	if err != nil {
		return err
	}
	head.FileSize, head.FileTime, head.Inode = state.Size, state.Time, state.Inode
	return t.finish(head)
}

func (a *application) fillRegion(t *tree, e *entry) error {
	if e.kind != entryRegion || e.index >= t.g.Regions() {
		return nil
	}
	n := t.g.RegionLen(e.index)
	flat, err := a.payload(e)
	if errors.Is(err, errJournal) {
		// Nothing of the region is known any more, and all of it is fetched again.
		for i := range n {
			a.lose(e.index*merkle.RegionBlocks + int64(i))
		}
	} else if err != nil {
		return err
	}
	leaves := merkle.DecodeLeaves(flat)
	if len(leaves) != n {
		leaves = append(leaves[:min(n, len(leaves))], make([]merkle.Hash, max(0, n-len(leaves)))...)
	}
	for _, block := range a.bad[e.index] {
		leaves[block%merkle.RegionBlocks] = merkle.Unknown
	}
	return t.set(e.index, leaves)
}
