package session

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
)

// A known region is one whose root was found out, by reading or from what is
// stored.
type known struct {
	merkle.Region             // without leaves if it is stored
	root          merkle.Hash // of the region
	stored        bool        // it was not read
}

// ErrStored says that what is stored of an image is not what the image has.
var ErrStored = errors.New("is not what was stored of it when it was synced")

// A tree is an image whose hashes may be stored.
type tree struct {
	g      merkle.Geometry
	src    merkle.Source
	hashes image.Hashes // nil if nothing is stored
}

// root returns the root of a region if it is stored.
func (t *tree) root(region int64) (merkle.Hash, bool) {
	if t.hashes == nil {
		return merkle.Hash{}, false
	}
	return t.hashes.Root(region)
}

// stored returns the leaves of a region if they are stored.
func (t *tree) stored(region int64) ([]merkle.Hash, bool) {
	if t.hashes == nil {
		return nil, false
	}
	return t.hashes.Leaves(region)
}

// scan finds out the regions of t from first up to end in order. Those whose
// hashes are not stored are read; opt says how.
func (t *tree) scan(ctx context.Context, first, end int64, opt merkle.BuildOptions, emit func(known) error) error {
	for i := first; i < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if root, ok := t.root(i); ok {
			if err := emit(known{merkle.Region{Index: i}, root, true}); err != nil {
				return err
			}
			i++
			continue
		}
		opt.First = i * merkle.RegionBlocks
		for ok := false; i < end && !ok; {
			if i++; i < end {
				_, ok = t.root(i)
			}
		}
		opt.End = i * merkle.RegionBlocks
		err := merkle.Build(ctx, t.g, t.src, opt, func(r merkle.Region) error {
			return emit(known{r, r.Root(), false})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// leaves returns the leaves of a region whose root is stored, nil for zeros. If
// they are damaged, or lost, it reads the region instead.
func (t *tree) leaves(ctx context.Context, index int64, opt merkle.BuildOptions) (leaves []merkle.Hash, err error) {
	if leaves, ok := t.stored(index); ok {
		return leaves, nil
	}
	opt.First, opt.End = index*merkle.RegionBlocks, (index+1)*merkle.RegionBlocks
	err = merkle.Build(ctx, t.g, t.src, opt, func(r merkle.Region) error {
		leaves = r.Leaves
		return nil
	})
	return leaves, err
}

// judge returns nil if a run has the leaves that are stored of it, none of them
// if it is a hole, or else an error that names the first block that has not.
func (t *tree) judge(run *merkle.Run) error {
	if t.hashes == nil {
		return nil
	}
	end := run.First + run.Count
	for first := run.First; first < end; {
		region := first / merkle.RegionBlocks
		next := min(end, (region+1)*merkle.RegionBlocks)
		stored, ok := t.stored(region)
		if !ok || stored == nil && run.Leaves == nil {
			first = next
		}
		for ; first < next; first++ {
			leaf, want := merkle.At(run.Leaves, int(first-run.First)), merkle.At(stored, int(first%merkle.RegionBlocks))
			if leaf != want {
				return fmt.Errorf("block %d at offset %d %w: it is damaged, or was changed by something that left the file's time as it was (diskrsync verify finds all such blocks)",
					first, t.g.Block(first).Offset, ErrStored)
			}
		}
	}
	return nil
}

// Judge returns a function that is told of the runs of a scan of img, holes too,
// and fails at the first block that is not what is stored of it, so that damage
// does not pass for content. Many goroutines may call it.
func Judge(g merkle.Geometry, img image.Image) func(*merkle.Run) error {
	t := &tree{g, img, &recent{Hashes: img.Hashes(g.BlockSize()), region: -1}}
	return func(run *merkle.Run) error {
		if !run.IsHole() {
			if _, ok := t.stored(run.First / merkle.RegionBlocks); !ok {
				return nil
			}
			run.Leaves = g.Leaves(run)
		}
		err := t.judge(run)
		if err == nil {
			return nil
		}
		if now := img.Changed(); now != nil {
			return now
		}
		return err
	}
}

// recent remembers the leaves of the last region that was asked for: a judge asks for
// the same ones again and again.
type recent struct {
	image.Hashes

	mu     sync.Mutex
	region int64 // -1 for none
	leaves []merkle.Hash
	ok     bool
}

func (r *recent) Leaves(region int64) ([]merkle.Hash, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if region != r.region {
		r.leaves, r.ok = r.Hashes.Leaves(region)
		r.region = region
	}
	return r.leaves, r.ok
}
