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

// Inspect reads all of img and describes it. Each block that cannot be read is
// reported to bad, one at a time but in no order, and counted; the digest is
// that of the content only if there are none. The Monitor may be nil.
func Inspect(ctx context.Context, img image.Image, mon *Monitor, bad func(wire.Bad) error) (*wire.Info, error) {
	if mon == nil {
		mon = new(Monitor)
	}
	mon.size.Store(img.Size())
	bs := img.BlockSize()
	if bs == 0 {
		bs = merkle.DefaultBlockSize
	}
	g, err := merkle.NewGeometry(img.Size(), bs)
	if err != nil {
		return nil, err
	}
	info := &wire.Info{Format: string(img.Format()), Size: img.Size(), BlockSize: bs, Note: img.Note()}
	if info.Allocated, err = img.Allocated(); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	opt := merkle.BuildOptions{ScanOptions: merkle.ScanOptions{Unreadable: func(block int64, err error) error {
		mu.Lock()
		defer mu.Unlock()
		info.Bad++
		e := g.Block(block)
		if corrupt := (*image.CorruptError)(nil); errors.As(err, &corrupt) {
			err = corrupt.Err // the rest is said by the other fields
		}
		return bad(wire.Bad{Index: block, Offset: e.Offset, Length: e.Length, Text: err.Error()})
	}}}
	var acc merkle.Accumulator
	err = merkle.Build(ctx, g, img, opt, func(r merkle.Region) error {
		mon.source.region(g, r)
		acc.Add(r.Root())
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := img.Changed(); err != nil {
		return nil, err
	}
	if info.Bad == 0 {
		info.Digest = g.Digest(acc.Root())
	}
	return info, nil
}

// serveInspection is the agent's side of AwaitInspection. It names bad blocks if
// it is told to, else it only counts them.
func serveInspection(ctx context.Context, c *Conn, img image.Image, name bool) error {
	mon := new(Monitor)
	l := newLink(c, &mon.source, &mon.target, merkle.DefaultBlockSize)
	return l.run(ctx,
		func(_ context.Context, m wire.Message) error {
			return fmt.Errorf("the client sent a %T out of turn", m)
		},
		func(ctx context.Context) error {
			info, err := Inspect(ctx, img, mon, func(b wire.Bad) error {
				if !name {
					return nil
				}
				return l.send(ctx, &b)
			})
			if err != nil {
				return err
			}
			return l.finish(ctx, info)
		})
}

// AwaitInspection is Inspect for an image that an agent opened with the verb
// info or verify.
func AwaitInspection(ctx context.Context, c *Conn, mon *Monitor, bad func(wire.Bad) error) (*wire.Info, error) {
	if mon == nil {
		mon = new(Monitor)
	}
	var info *wire.Info
	l := newLink(c, &mon.target, &mon.source, merkle.DefaultBlockSize)
	err := l.run(ctx, func(_ context.Context, m wire.Message) error {
		switch m := m.(type) {
		case *wire.Bad:
			return bad(*m)
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
