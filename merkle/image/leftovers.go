package image

import (
	"errors"
	"fmt"

	"github.com/docker/go-units"

	"github.com/diskrsync/diskrsync/merkle"
)

// recover puts into the image what was committed and is waiting in the journal.
func (s *store) recover() (err error) {
	// Nobody is to be kept from writing unless there is something to do.
	if j, err := s.readJournal(); err != nil || j == nil {
		return err
	} else if err := j.close(); err != nil || j.lastSeal() == nil {
		return errors.Join(errVoid, err)
	}
	l, err := s.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.release()) }()
	j, err := s.openJournalToWrite()
	if err != nil || j == nil {
		return err
	}
	defer func() { err = errors.Join(err, j.close()) }()
	switch {
	case j.lastSeal() == nil:
		return errVoid
	case j.kept() > 0:
		return errLater
	}
	return s.completeFile(j)
}

// errLater says that a later update was cut off, whose part would be lost if the ones
// before were put into the image.
var errLater = errors.New("has a later update that is to be gone on with")

// lock takes the lock of a writer. A device has none: it is opened exclusively.
func (s *store) lock() (*lock, error) {
	if s.device {
		return nil, nil
	}
	return takeLock(s)
}

// RecordBad marks blocks as unknown in the outboard.
func (r *reader) RecordBad(blocks []int64) (err error) {
	switch {
	case len(blocks) == 0:
		return nil
	case len(r.upto) > 0:
		return refuse(ErrInUse, "image %s: an update of it waits until it is no longer being read", r.store.path)
	case r.tree == nil || r.head.BlockSize == 0:
		return nil
	}
	l, err := r.store.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.release()) }()
	if now, err := r.store.believedTree(r.disk); err != nil || now == nil || now.head != r.tree.head {
		return errors.Join(refuse(ErrChanged, "image %s: was changed since it was opened", r.store.path), err, now.close())
	} else if err := now.close(); err != nil {
		return err
	}
	t, err := r.store.changeTree(false)
	if err != nil || t == nil {
		return err
	}
	t.g, t.head = r.tree.g, r.tree.head
	return errors.Join(markBad(t, blocks), t.close())
}

// markBad stores that the leaves of blocks are not known.
func markBad(t *tree, blocks []int64) error {
	head := t.head
	for _, block := range blocks {
		region := block / merkle.RegionBlocks
		leaves, err := t.leaves(region)
		if err != nil && !errors.Is(err, merkle.ErrOutboard) {
			return err
		}
		if leaves == nil {
			leaves = make([]merkle.Hash, t.g.RegionLen(region))
		}
		if leaf := &leaves[block%merkle.RegionBlocks]; *leaf != merkle.Unknown {
			*leaf = merkle.Unknown
			head.Bad++
		}
		if err := t.set(region, leaves); err != nil {
			return err
		}
	}
	var err error
	if head.Digest, err = t.digest(); err != nil {
		return err
	}
	return t.finish(head)
}

// Clean drops what an interrupted run has left of the image at p, or completes
// it if it was committed, and says what was done. That an image is incomplete
// stays known: only a sync ends that.
func Clean(p *Place, stateDir string) (done string, err error) {
	t := &Target{place: p, store: newStore(p), opts: TargetOptions{StateDir: stateDir}, cleaning: true}
	defer func() { err = errors.Join(err, t.Close()) }()
	if err := t.open(); err != nil {
		return "", err
	}
	switch {
	case t.broken && t.j != nil:
		return "", refuse(ErrIncomplete, "image %s: is incomplete: an update in place was interrupted, and only a sync mends that", p.path)
	case t.j != nil && t.j.lastSeal() != nil:
		return "", refuse(ErrInUse, "image %s: is being read, and a committed update waits for that to end", p.path)
	case t.j != nil:
		if err := t.forget(); err != nil {
			return "", err
		}
	}
	if !t.left {
		if info, err := t.stat(); err != nil || info == nil {
			return "", errors.Join(err, t.store.missing(nil))
		}
		return "nothing was left over", nil
	}
	return fmt.Sprintf("dropped what an interrupted run had left: about %s of content", units.BytesSize(float64(t.dropped))), nil
}
