package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/dop251/spgz"

	"github.com/diskrsync/diskrsync/merkle"
)

// A tree is an open outboard. What it says is true of the file that it was made
// for; whether that is still the image is for the caller to find out.
type tree struct {
	f    file
	path string // for messages
	g    merkle.Geometry
	head merkle.Outboard

	mu   sync.Mutex
	page [merkle.OutboardPage]byte // the roots of a group
	have int64                     // which group that is, -1 for none
}

// openTree opens an outboard for reading. One that is missing, damaged or of
// another version is no error but nil: whatever it said can be found out again.
func openTree(root folder, name, path string) (*tree, error) {
	f, err := openRegular(root, name, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: opening what is stored of its hashes: %w", path, cause(err))
	}
	t := &tree{f: f, path: path, have: -1}
	if t.load() != nil {
		return nil, t.f.Close()
	}
	return t, nil
}

// load reads the first page, and checks that the roots are what it says: as many
// as there is room for in the file, however large the image is said to be.
func (t *tree) load() error {
	page := make([]byte, merkle.OutboardPage)
	if _, err := t.f.ReadAt(page, 0); err != nil {
		return err
	}
	head, err := merkle.DecodeOutboard(page)
	if err != nil {
		return err
	}
	t.head = *head
	if t.g, err = merkle.NewGeometry(head.Size, head.BlockSize); err != nil {
		return err
	}
	info, err := t.f.Stat()
	if err != nil {
		return err
	}
	if t.g.Regions() > info.Size()/merkle.HashSize || t.end() != info.Size() || !Format(head.Format).known() {
		return merkle.ErrOutboard
	}
	digest, err := t.digest()
	if err == nil && digest != t.head.Digest {
		err = merkle.ErrOutboard
	}
	return err
}

// digest computes the digest from the roots that are stored.
func (t *tree) digest() (merkle.Hash, error) {
	var acc merkle.Accumulator
	for i := range t.g.Regions() {
		root, err := t.root(i)
		if err != nil {
			return merkle.Hash{}, err
		}
		acc.Add(root)
	}
	return t.g.Digest(acc.Root()), nil
}

// root returns the stored root of a region. Neighbours are cheap.
func (t *tree) root(region int64) (merkle.Hash, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	group := region / merkle.GroupRegions
	if group != t.have {
		t.have = -1
		if err := t.read(t.page[:], merkle.RootOffset(group*merkle.GroupRegions)); err != nil {
			return merkle.Hash{}, err
		}
		t.have = group
	}
	return merkle.Hash(t.page[region%merkle.GroupRegions*merkle.HashSize:][:merkle.HashSize]), nil
}

// leaves returns the stored leaves of a region, nil for zeros. The error matches
// merkle.ErrOutboard if they are not those of the root.
func (t *tree) leaves(region int64) ([]merkle.Hash, error) {
	root, err := t.root(region)
	if err != nil || root.IsZero() {
		return nil, err
	}
	flat := make([]byte, t.g.RegionLen(region)*merkle.HashSize)
	if err := t.read(flat, merkle.LeavesOffset(region)); err != nil {
		return nil, err
	}
	leaves := merkle.DecodeLeaves(flat)
	if merkle.RegionRoot(leaves) != root {
		return nil, merkle.ErrOutboard
	}
	return leaves, nil
}

// read fills p; what lies behind the end of the file are zeros.
func (t *tree) read(p []byte, off int64) error {
	n, err := t.f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return fmt.Errorf("image %s: reading what is stored of its hashes: %w", t.path, cause(err))
	}
	clear(p[n:])
	return nil
}

func (t *tree) write(p []byte, off int64) error {
	if _, err := t.f.WriteAt(p, off); err != nil {
		return fmt.Errorf("image %s: storing its hashes: %w", t.path, cause(err))
	}
	return nil
}

// set stores the leaves of a region, nil for zeros.
func (t *tree) set(region int64, leaves []merkle.Hash) error {
	root := merkle.RegionRoot(leaves)
	if root.IsZero() {
		leaves = nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.have = -1
	if root.IsZero() {
		// A hole stays one. The leaves of a zero root are not looked at.
		if e, err := t.f.NextData(merkle.RootOffset(region)); err == io.EOF || err == nil && e.Offset >= merkle.RootOffset(region)+merkle.HashSize {
			return nil
		}
		return t.write(root[:], merkle.RootOffset(region))
	}
	if err := t.write(root[:], merkle.RootOffset(region)); err != nil {
		return err
	}
	return t.write(merkle.EncodeLeaves(leaves), merkle.LeavesOffset(region))
}

// clear forgets everything.
func (t *tree) clear() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.have = -1
	if err := t.f.Truncate(0); err != nil {
		return fmt.Errorf("image %s: storing its hashes: %w", t.path, cause(err))
	}
	return nil
}

// finish writes the first page, and makes everything durable.
func (t *tree) finish(head merkle.Outboard) error {
	t.head = head
	if err := t.clearTail(); err != nil {
		return err
	}
	if err := t.f.Truncate(t.end()); err != nil {
		return fmt.Errorf("image %s: storing its hashes: %w", t.path, cause(err))
	}
	if err := t.write(head.Encode(), 0); err != nil {
		return err
	}
	if err := t.f.Sync(); err != nil {
		return fmt.Errorf("image %s: making its stored hashes durable: %w", t.path, cause(err))
	}
	return nil
}

// clearTail removes the roots that the last group has left of a longer image.
func (t *tree) clearTail() error {
	n := t.g.Regions()
	used := n % merkle.GroupRegions * merkle.HashSize
	if used == 0 {
		return nil
	}
	tail := make([]byte, merkle.OutboardPage-used)
	if err := t.read(tail, merkle.RootOffset(n)); err != nil || spgz.IsBlockZero(tail) {
		return err
	}
	clear(tail)
	return t.write(tail, merkle.RootOffset(n))
}

// end is where the file ends.
func (t *tree) end() int64 { return merkle.OutboardSize(t.g) }

func (t *tree) close() error {
	if t == nil {
		return nil
	}
	return t.f.Close()
}
