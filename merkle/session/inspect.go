package session

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// InspectOptions say how an image is looked at. The zero value describes it from
// what is stored, and reads nothing of the content.
type InspectOptions struct {
	Read    bool                 // read all of it, and compare it with what is stored
	Record  bool                 // store which blocks are bad, for the next sync to fetch them
	Monitor *Monitor             // if set, is kept up to date
	Bad     func(wire.Bad) error // is told of each bad block, one at a time but in no order; may be nil
}

// Inspect describes img. The digest is that of the content if nothing is bad. It is
// zero, which no digest is, if there are bad blocks; or if none is stored, and the
// content is not read.
func Inspect(ctx context.Context, img image.Image, opt InspectOptions) (*wire.Info, error) {
	if opt.Monitor == nil {
		opt.Monitor = new(Monitor)
	}
	opt.Monitor.size.Store(img.Size())
	bs := img.BlockSize()
	if bs == 0 {
		bs = merkle.DefaultBlockSize
	}
	g, err := merkle.NewGeometry(img.Size(), bs)
	if err != nil {
		return nil, err
	}
	info, err := describe(img, bs)
	if err != nil || !opt.Read {
		return info, err
	}
	i := &inspector{InspectOptions: opt, img: img, tree: tree{g, img, img.Hashes(bs)}}
	root, err := i.read(ctx)
	if err != nil {
		return nil, err
	}
	if info.Bad = int64(len(i.bad)); info.Bad > 0 {
		info.Digest = merkle.Hash{}
		i.record(info)
		return info, nil
	}
	info.Digest = g.Digest(root)
	return info, nil
}

// describe tells what is known of an image without reading it.
func describe(img image.Image, bs int) (*wire.Info, error) {
	s := img.State()
	info := &wire.Info{Format: string(img.Format()), Size: img.Size(), BlockSize: bs, Bad: s.Bad,
		Stored: s.Stored, Changed: s.Changed, Incomplete: s.Incomplete, Kept: s.Kept, Waiting: s.Waiting}
	if s.Incomplete {
		info.Note = s.Why
	}
	if s.Stored || s.Changed {
		info.Synced = s.Synced.UnixNano()
	}
	if s.Stored {
		info.Generation = s.Generation
		if s.Bad == 0 {
			info.Digest = s.Digest
		}
	}
	var err error
	info.Allocated, err = img.Allocated()
	return info, err
}

// An inspector reads an image and finds out what is bad.
type inspector struct {
	InspectOptions
	img  image.Image
	tree tree

	mu  sync.Mutex
	bad []int64
}

// read returns the root of the content.
func (i *inspector) read(ctx context.Context) (merkle.Hash, error) {
	var acc merkle.Accumulator
	opt := merkle.BuildOptions{ScanOptions: merkle.ScanOptions{Unreadable: func(block int64, err error) error {
		if corrupt := (*image.CorruptError)(nil); errors.As(err, &corrupt) {
			err = corrupt.Err // the rest is said by the other fields
		}
		return i.tell(block, err)
	}}}
	err := merkle.Build(ctx, i.tree.g, i.img, opt, func(r merkle.Region) error {
		i.Monitor.source.region(i.tree.g, r)
		acc.Add(r.Root())
		return i.compare(r)
	})
	if err != nil {
		return merkle.Hash{}, err
	}
	return acc.Root(), i.img.Changed()
}

// compare finds the blocks of a region that are not what is stored of them.
func (i *inspector) compare(r merkle.Region) error {
	stored, ok := i.tree.stored(r.Index)
	if !ok || stored == nil && r.Leaves == nil {
		return nil
	}
	for _, at := range merkle.Diff(stored, r.Leaves) {
		block := r.Index*merkle.RegionBlocks + int64(at)
		if merkle.At(r.Leaves, at) == merkle.Unknown {
			continue // it is told already
		}
		err := ErrStored
		if merkle.At(stored, at) == merkle.Unknown {
			err = errors.New("was found to be bad before")
		}
		if err := i.tell(block, err); err != nil {
			return err
		}
	}
	return nil
}

func (i *inspector) tell(block int64, err error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.bad = append(i.bad, block)
	if i.Bad == nil {
		return nil
	}
	e := i.tree.g.Block(block)
	return i.Bad(wire.Bad{Index: block, Offset: e.Offset, Length: e.Length, Text: err.Error()})
}

// record stores what is bad. If that cannot be done the rest is still worth
// telling.
func (i *inspector) record(info *wire.Info) {
	err := errors.New("this agent changes nothing")
	if i.Record {
		err = i.img.RecordBad(i.bad)
	}
	if err != nil {
		info.Note = fmt.Sprintf("the bad blocks could not be recorded, so the next sync will only find them %s: %v", image.HintChecksum, err)
	}
}

// serveInspection is the agent's side of AwaitInspection. It names bad blocks if
// all of the image is read, else it only counts those that are known.
func serveInspection(ctx context.Context, c *Conn, img image.Image, opt InspectOptions) error {
	opt.Monitor = new(Monitor)
	l := newLink(c, &opt.Monitor.source, &opt.Monitor.target, merkle.DefaultBlockSize)
	if opt.Read {
		opt.Bad = func(b wire.Bad) error { return l.send(ctx, &b) }
	}
	return l.run(ctx,
		func(_ context.Context, m wire.Message) error {
			return fmt.Errorf("the client sent a %T out of turn", m)
		},
		func(ctx context.Context) error {
			info, err := Inspect(ctx, img, opt)
			if err != nil {
				return err
			}
			return l.finish(ctx, info)
		})
}

// AwaitInspection is Inspect for an image that an agent opened with the verb
// info or verify. With info there are no bad blocks to be told of, and bad may be nil.
func AwaitInspection(ctx context.Context, c *Conn, mon *Monitor, bad func(wire.Bad) error) (*wire.Info, error) {
	if mon == nil {
		mon = new(Monitor)
	}
	var info *wire.Info
	l := newLink(c, &mon.target, &mon.source, merkle.DefaultBlockSize)
	err := l.run(ctx, func(_ context.Context, m wire.Message) error {
		switch m := m.(type) {
		case *wire.Bad:
			if bad != nil {
				return bad(*m)
			}
		case *wire.Info:
			info = m
			return errFinished
		}
		return fmt.Errorf("the agent sent a %T out of turn", m)
	})
	if err == nil && info == nil {
		err = errors.New("the agent ended without an answer")
	}
	return info, err
}
