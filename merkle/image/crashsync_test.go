package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

// A syncing plays what a session does with a target.
type syncing struct {
	opts      TargetOptions
	blockSize int        // where the image does not dictate one
	r         *rand.Rand // of the order of blocks, and of what is given with them
	stop      int        // give up before so many blocks, as if the link were cut; or where it says
	slots     *sync.Map  // of blocks, by their hash

	committed int // changes of the file system when Commit had returned nil
	put       int // blocks so far
}

// Other places where a syncing may be stopped.
const (
	never        = 0
	beforeSettle = -1 // of the first region with a block that differs
	beforeCommit = -2
)

// errCut is how a syncing ends that is to be stopped.
var errCut = errors.New("the link was cut")

// lastModified is when the sources of all tests were changed.
var lastModified = time.Unix(1_600_000_000, 0)

func crashPlace(c *crashFS) *Place { return newPlace(c, "disk", "disk") }

// to brings an image to content.
func (s *syncing) to(c *crashFS, content []byte) error {
	t, err := OpenTarget(crashPlace(c), s.opts)
	if err != nil {
		return err
	}
	err = s.run(t, content)
	if err == nil {
		s.committed = len(c.log)
	}
	return errors.Join(err, t.Close())
}

func (s *syncing) run(t *Target, content []byte) error {
	bs := t.BlockSize()
	if bs == 0 {
		bs = s.blockSize
	}
	g, err := merkle.NewGeometry(int64(len(content)), bs)
	if err != nil {
		return err
	}
	if err := t.Begin(g.Size(), bs); err != nil {
		return err
	}
	var acc merkle.Accumulator
	for region := range g.Regions() {
		want := leavesOf(g, content, region)
		acc.Add(merkle.RegionRoot(want))
		if err := s.region(t, g, region, content, want); err != nil {
			return err
		}
	}
	if s.stop == beforeCommit {
		return errCut
	}
	return t.Commit(g.Digest(acc.Root()), lastModified)
}

// region brings the blocks of one region to what they shall be.
func (s *syncing) region(t *Target, g merkle.Geometry, region int64, content []byte, want []merkle.Hash) error {
	if root, ok := t.Root(region); ok && root == merkle.RegionRoot(want) {
		return nil
	}
	have, ok := t.Leaves(region)
	if !ok {
		var err error
		if have, err = readLeaves(g, t, region); err != nil {
			return err
		}
	}
	if have != nil && len(have) != len(want) {
		return fmt.Errorf("region %d has %d leaves, and Leaves returns %d", region, len(want), len(have))
	}
	at := merkle.Diff(have, want)
	s.r.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
	for _, i := range at {
		if s.put++; s.put == s.stop {
			return errCut
		}
		if err := s.block(t, g, region*merkle.RegionBlocks+int64(i), content, want[i]); err != nil {
			return err
		}
	}
	if s.stop == beforeSettle && len(at) > 0 {
		return errCut
	}
	return t.Settle(region, want)
}

// block puts one block, in one of the ways in which a session does.
func (s *syncing) block(t *Target, g merkle.Geometry, index int64, content []byte, leaf merkle.Hash) error {
	if leaf.IsZero() {
		return t.Punch(index, 1)
	}
	e := g.Block(index)
	b := Block{Index: index, Leaf: leaf, Data: content[e.Offset:e.End()]}
	old := make([]byte, e.Length)
	switch way := s.r.IntN(3); {
	case way == 0 && t.Format() == Spgz:
		b.Slot = s.slot(b.Data)
	case way == 1:
		// What cannot be read cannot be patched either.
		if _, err := t.ReadAt(old, e.Offset); err == nil {
			b.Changed = changedPages(old, b.Data)
		}
	}
	return t.Put(b)
}

// changedPages returns the extents of pages in which two blocks differ.
func changedPages(old, data []byte) (changed []merkle.Extent) {
	const page = 512 // smaller than that of the project, as are the blocks
	for at := 0; at < len(data); at += page {
		end := min(len(data), at+page)
		if bytes.Equal(old[at:end], data[at:end]) {
			continue
		}
		if n := len(changed); n > 0 && changed[n-1].End() == int64(at) {
			changed[n-1].Length += int64(end - at)
		} else {
			changed = append(changed, merkle.Extent{Offset: int64(at), Length: int64(end - at)})
		}
	}
	return changed
}

// slot returns the slot of a block. Compressing the same few blocks again after
// each of thousands of crashes would take most of the time.
func (s *syncing) slot(block []byte) []byte {
	key := sha256.Sum256(block)
	slot, ok := s.slots.Load(key)
	if !ok {
		slot, _ = s.slots.LoadOrStore(key, EncodeSlot(nil, block))
	}
	return slot.([]byte)
}

// leavesOf returns the leaves of a region of content.
func leavesOf(g merkle.Geometry, content []byte, region int64) []merkle.Hash {
	e := g.Span(region*merkle.RegionBlocks, merkle.RegionBlocks)
	return g.Leaves(&merkle.Run{Data: content[e.Offset:e.End()]})
}

// readLeaves computes the leaves of a region of a target. Blocks that are lost
// are unknown.
func readLeaves(g merkle.Geometry, src merkle.Source, region int64) ([]merkle.Hash, error) {
	opt := merkle.BuildOptions{ScanOptions: merkle.ScanOptions{
		First: region * merkle.RegionBlocks, End: (region + 1) * merkle.RegionBlocks,
		Unreadable: func(_ int64, err error) error {
			if corrupt := new(CorruptError); errors.As(err, &corrupt) {
				return nil
			}
			return err
		},
	}}
	var leaves []merkle.Hash
	err := merkle.Build(context.Background(), g, src, opt, func(r merkle.Region) error {
		leaves = r.Leaves
		return nil
	})
	if leaves == nil {
		leaves = make([]merkle.Hash, g.RegionLen(region))
	}
	return leaves, err
}

// look reads the image as any reader does, and checks that what is stored of its
// hashes is true.
func look(t *testing.T, c *crashFS, o Options) ([]byte, error) {
	t.Helper()
	im, err := Open(crashPlace(c), o)
	if err != nil {
		return nil, err
	}
	content := make([]byte, im.Size())
	if n, err := im.ReadAt(content, 0); n != len(content) {
		return nil, errors.Join(err, im.Close())
	}
	checkHoles(t, im, content)
	if err := checkStored(im, content); err != nil {
		t.Error(err)
	}
	return content, im.Close()
}

// checkStored compares what an image says of its hashes with its content.
func checkStored(im Image, content []byte) error {
	if im.BlockSize() == 0 {
		return nil
	}
	g, err := merkle.NewGeometry(int64(len(content)), im.BlockSize())
	if err != nil {
		return err
	}
	var acc merkle.Accumulator
	stored := im.Hashes(im.BlockSize())
	for region := range g.Regions() {
		want := leavesOf(g, content, region)
		acc.Add(merkle.RegionRoot(want))
		if root, ok := stored.Root(region); ok && root != merkle.RegionRoot(want) {
			return fmt.Errorf("the stored root of region %d is that of something else", region)
		}
		leaves, ok := stored.Leaves(region)
		if ok && (leaves != nil || !merkle.AllZero(want)) && (len(leaves) != len(want) || len(merkle.Diff(leaves, want)) > 0) {
			return fmt.Errorf("the stored leaves of region %d are those of something else", region)
		}
	}
	if state := im.State(); state.Stored && state.Bad == 0 && state.Digest != g.Digest(acc.Root()) {
		return errors.New("the stored digest is that of something else")
	}
	return nil
}
