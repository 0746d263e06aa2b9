package image

import (
	"errors"
	"fmt"
	"time"

	"github.com/docker/go-units"

	"github.com/diskrsync/diskrsync/merkle"
)

// Commit makes the content that was written the content of the image, whose
// digest is given, and makes it durable. When it returns nil, all of it is on
// the disk: even if someone is reading the image, in which case it is put into
// it later. The time is when the source was modified last, if that is known.
func (t *Target) Commit(digest merkle.Hash, modified time.Time) error {
	if err := t.writable(); err != nil {
		return err
	}
	t.stopFlushing()
	if err := t.commit(digest, modified); err != nil {
		return t.keep(err)
	}
	t.stage = committed
	return nil
}

func (t *Target) commit(digest merkle.Hash, modified time.Time) error {
	if err := t.writable(); err != nil {
		return err // the goroutine that flushes may have failed until it stopped
	}
	if err := t.pinEnd(); err != nil {
		return err
	}
	if t.way == wayInPlace {
		if err := t.settleInPlace(modified); err != nil {
			return err
		}
	}
	if t.rec == nil { // nothing has changed
		if t.j != nil && len(t.j.batches) == 0 {
			if err := t.forget(); err != nil {
				return err
			}
		}
		return t.follow(modified)
	}
	if t.way == wayNew {
		// Once it is sealed it has to get into place.
		if err := t.store.mayReplace(); err != nil {
			return err
		}
	}
	s, err := t.seal(digest, modified)
	if err != nil {
		return err
	}
	if err := t.checkSpace(); err != nil {
		return err
	}
	if err := t.rec.flush(s, nil); err != nil {
		return err
	}
	lost, err := t.store.complete(t.j, t.disk)
	switch {
	case errors.Is(err, errReaders):
		t.waits = true
		return nil // it is sealed, and so it is done
	case errors.Is(err, errVoid):
		return refuse(ErrChanged, "image %s: was changed by another program during the sync, and is left alone", t.place.path)
	case err == nil && lost > 0:
		return fmt.Errorf("image %s: %d blocks were damaged in its journal: sync again, which fetches them", t.place.path, lost)
	case err != nil:
		return err
	}
	return t.follow(modified)
}

// Remark returns one line that the operator should see after the Commit, or "".
func (t *Target) Remark() string {
	if !t.waits {
		return ""
	}
	return fmt.Sprintf("image %s: is being read, and stays as it is for those who do: the update is committed, and waits in the journal until diskrsync opens the image when they have ended (diskrsync info does)", t.place.path)
}

// follow is touch for a sync, which is complete without it: whoever reads the image
// has it as it was, and the next sync sets its time.
func (t *Target) follow(modified time.Time) error {
	if err := t.touch(modified); !errors.Is(err, errReaders) {
		return err
	}
	return nil
}

func (t *Target) seal(digest merkle.Hash, modified time.Time) (*seal, error) {
	s := &seal{Digest: digest, Generation: t.generation + 1, Synced: time.Now().UnixNano(), Whole: t.anew, Modified: nanoseconds(modified)}
	if t.way != wayInPlace {
		return s, nil
	}
	s.Applied = true
	if t.store.noTree {
		return s, nil
	}
	var err error
	if s.Image, err = t.store.bound(t.disk); errors.Is(err, errors.ErrUnsupported) {
		t.store.noTree = true // nobody could tell whether to believe it
		return s, nil
	}
	return s, err
}

// pinEnd makes sure that the journal has the last block of an image whose size
// changes: to give it its length its slot is written anew, which must not go
// wrong half way. The same is true of a new image whose last block is held from
// a run in which it may have been longer.
func (t *Target) pinEnd() error {
	if t.way == wayInPlace || t.way == wayRedo && t.g.Size() == t.baseSize() {
		return nil
	}
	if err := t.startRecording(); err != nil {
		return err
	}
	last := t.g.Blocks() - 1
	if last < 0 || t.format != Spgz {
		return nil
	}
	known, err := t.rec.find(last)
	if err != nil {
		return err
	}
	before, err := t.j.find(t.rec.old, false, last)
	if err != nil {
		return err
	}
	held := known.kind == entryHeld && before.kind == entryHeld
	if !held && (known.kind != 0 || t.way == wayNew) {
		return nil
	}
	e := t.g.Block(last)
	data := make([]byte, e.Length)
	if _, err := t.view.ReadAt(data, e.Offset); err != nil {
		return err
	}
	return t.put(&Block{Index: last, Leaf: merkle.Leaf(data), Data: data})
}

// baseSize returns the size of the content before the sync.
func (t *Target) baseSize() int64 {
	if t.j != nil {
		if n := t.j.sealedBatches(); n > 0 {
			return t.j.batches[n-1].size
		}
	}
	return t.body.Size()
}

// settleInPlace makes durable what was changed in place.
func (t *Target) settleInPlace(modified time.Time) error {
	if t.g.Size() != t.held && t.format != Device {
		if err := t.startRecording(); err != nil {
			return err
		}
	}
	if t.rec == nil && t.store.root != nil && !t.broken {
		return nil
	}
	if t.broken {
		// Nothing differed, but it is only now that this is known.
		if err := t.startRecording(); err != nil {
			return err
		}
	}
	if err := t.body.settle(); err != nil {
		return err
	}
	return t.disk.stamp(nanoseconds(modified))
}

// nanoseconds is 0 for a time that is not known.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// checkSpace finds out whether there is space for what is in the journal to be put
// into the image and its outboard, so that it is not sealed and then stuck.
func (t *Target) checkSpace() error {
	if t.way == wayInPlace {
		return nil // the image has it already, and can do without an outboard
	}
	free, err := t.place.root.Free()
	if err != nil {
		return fmt.Errorf("image %s: finding out how much space there is: %w", t.place.path, cause(err))
	}
	if t.rec.tail()-firstBatch <= free {
		return nil // even if all of it were new
	}
	if err := t.rec.flush(nil, (*pending).some); err != nil {
		return err
	}
	var need int64
	for i := range t.j.batches {
		err := t.j.each(&t.j.batches[i], func(e entry) error {
			n, err := t.grows(&e)
			need += n
			return err
		})
		if err != nil {
			return err
		}
	}
	if need > free {
		return fmt.Errorf("image %s: no space left on its file system: putting the update into it takes %s, and there are %s: what has arrived is kept for the next run (diskrsync clean drops it)",
			t.place.path, units.BytesSize(float64(need)), units.BytesSize(float64(free)))
	}
	return nil
}

// grows returns about how much more space the image and its outboard take with an
// entry.
func (t *Target) grows(e *entry) (int64, error) {
	switch {
	case e.kind == entryRegion && t.anew:
		return e.length, nil
	case e.kind == entryZeros || e.kind == entryRegion || e.kind == entryHeld || e.index >= t.g.Blocks():
		return 0, nil
	}
	var off int64
	switch body := t.body.(type) {
	case *slots:
		off = body.slot(e.index)
	default:
		off = e.index * int64(t.g.BlockSize())
	}
	length := (e.length + grain - 1) / grain * grain
	var have int64
	for at := off; at < off+length; {
		data, err := t.disk.nextData(at)
		if err != nil || data.Offset >= off+length {
			break // a guess that errs on the safe side
		}
		have += min(data.End(), off+length) - max(data.Offset, at)
		at = data.End()
	}
	return length - have, nil
}

// suspend makes durable what has arrived, for the next run to go on with, or
// removes what was made if that is nothing.
func (t *Target) suspend() error {
	if t.rec == nil {
		return nil
	}
	t.mu.Lock()
	failed := t.failed
	t.mu.Unlock()
	if t.rec.empty() && t.way != wayInPlace {
		return t.forget()
	}
	err := t.rec.flush(nil, (*pending).some)
	if failed != nil {
		return nil // it has been told
	}
	return err
}
