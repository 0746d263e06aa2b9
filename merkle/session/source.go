package session

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// Limits of what the source may hold for the target.
const (
	// maxAsked bounds the blocks that were asked about and are not sent yet: a
	// gigabyte of an image, which keeps a fast link busy over half a second of
	// latency.
	maxAsked = 8192

	// maxAsk bounds the blocks of one AskPages, and so the Pages that answer it.
	maxAsk = 256

	// askBatch is how many blocks are asked for at once, and so how many share
	// a Patch if a page or two of each changed.
	askBatch = 64

	// expandBatch bounds the nodes of one Expand, whose children must fit into
	// one list.
	expandBatch = wire.MaxList / merkle.FanOut

	// maxBacklog bounds the blocks that were found to differ and are not sent
	// yet: a gigabyte. Scanning on would only push them out of the page cache
	// before they are read again.
	maxBacklog = 8192

	// maxWaiting bounds what waits for the coordinator, in bytes. An honest
	// target sends what it is asked for, which are at most the hashes of the
	// regions in flight, 18 MiB, and of the pages asked for, 17 MiB with the
	// largest blocks.
	maxWaiting = 40 << 20

	// maxRefetch bounds the blocks that wait to be sent again. An honest target
	// asks for one in 2^64 pages or so.
	maxRefetch = 4096
)

// Send plays the source: it brings the peer's image up to date with img.
func Send(ctx context.Context, c *Conn, img Source, opt Options) (Result, error) {
	if opt.Monitor == nil {
		opt.Monitor = new(Monitor)
	}
	s := &source{img: img, opt: opt, mon: opt.Monitor, n: &opt.Monitor.source,
		events: newQueue[any](), jobs: newQueue[job](), through: newMark(), dealt: newMark(),
		regions: map[int64]*sourceRegion{}, asked: map[int64]bool{}, window: window}
	opt.Monitor.size.Store(img.Size())
	if err := c.interruptible(ctx, func() error { return s.greet(c) }); err != nil {
		return s.result(c), err
	}
	var err error
	if s.img, err = checked(img, s.g.BlockSize()); err != nil {
		return s.result(c), errors.Join(err, c.Close())
	}
	s.tree = tree{s.g, s.img, img.Hashes(s.g.BlockSize())}
	coder, err := newCoder(s.g, img, s.accept, opt.Plain)
	if err != nil {
		return s.result(c), errors.Join(err, c.Close())
	}
	s.coder = coder
	if s.once, _ = img.(*Stream); s.once != nil {
		s.window = min(window, s.once.window(s.g.Span(0, merkle.RegionBlocks).Length))
	}
	s.link = newLink(c, s.n, &opt.Monitor.target, s.g.BlockSize())
	work := []func(context.Context) error{s.scan, s.coordinate}
	for range workers(s.g.BlockSize()) {
		work = append(work, s.work)
	}
	err = s.link.run(ctx, s.receive, work...)
	return s.result(c), err
}

type source struct {
	img    Source
	once   *Stream // img, if it is one
	window int64   // regions that may be in flight
	opt    Options
	mon    *Monitor
	n      *counters
	g      merkle.Geometry
	tree   tree
	accept *wire.Accept
	coder  *coder
	link   *link

	events  *queue[any]  // for coordinate: messages, sourceScan, sent, scanEnd
	jobs    *queue[job]  // for the workers
	waiting atomic.Int64 // bytes of messages in events
	through *mark        // the number of regions that are settled, from the first on
	found   atomic.Int64 // blocks that were found to differ
	dealt   *mark        // and how many of them are sent

	// Known to coordinate alone.
	regions  map[int64]*sourceRegion // in flight
	roots    int64                   // how many the target has told
	scanned  int64                   // how many are known here
	expand   [merkle.RegionLevel + 1][]int64
	ask      []int64
	asked    map[int64]bool // blocks whose page hashes are awaited
	patching int            // those, and the ones that are answered but not sent
	holes    []int64
	refetch  int          // blocks that wait to be sent again
	digest   *merkle.Hash // once all is scanned
	finished bool         // Finish is sent
}

// A sourceRegion is what the source knows of a region in flight.
type sourceRegion struct {
	own     merkle.Hash   // the source's root
	leaves  []merkle.Hash // the source's, once they are needed if they are stored
	stored  bool          // the leaves are yet to be had
	scanned bool
	root    merkle.Hash // the target's
	rooted  bool
	todo    int           // nodes and blocks that are not dealt with yet
	awaited map[int64]int // the level of each node that was expanded
}

// Events, besides messages.
type (
	sourceScan struct{ known }       // a region was scanned; its target is to be compared
	streamed   struct{ index int64 } // a region was scanned and sent
	sent       struct {
		blocks []int64
		asked  bool
	}
	scanEnd struct{ digest merkle.Hash }
)

func (s *source) greet(c *Conn) error {
	hello := &wire.Hello{Size: s.img.Size(), BlockSize: s.img.BlockSize(), DryRun: s.opt.DryRun, Identity: s.img.Identity()}
	if t := s.img.Modified(); !t.IsZero() && t.Unix() > 0 {
		hello.Modified = t.UnixNano()
	}
	if err := c.write(hello); err != nil {
		return err
	}
	for {
		m, err := c.read()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *wire.Progress:
		case *wire.Accept:
			if s.g, err = merkle.NewGeometry(s.img.Size(), m.BlockSize); err != nil {
				return c.fail(fmt.Errorf("the target answered: %w", err))
			}
			s.accept = m
			return nil
		default:
			return c.fail(fmt.Errorf("the target answered with a %T", m))
		}
	}
}

func (s *source) result(c *Conn) Result {
	r := s.mon.Snapshot()
	if s.digest != nil {
		r.Digest = *s.digest
	}
	r.BlockSize = s.g.BlockSize()
	r.Sent, r.Received = c.sent.Load(), c.received.Load()
	return r
}

// receive only puts the message on the list: reading must not wait.
func (s *source) receive(_ context.Context, m wire.Message) error {
	weight, err := weigh(m)
	if err != nil {
		return err
	}
	if s.waiting.Add(weight) > maxWaiting {
		return errors.New("the target sends more than it was asked for")
	}
	if _, last := m.(*wire.Done); last {
		s.link.ending.Store(true)
	}
	s.events.push(m)
	return nil
}

// weigh returns about how much memory a message from the target takes.
func weigh(m wire.Message) (int64, error) {
	const overhead = 128
	switch m := m.(type) {
	case *wire.Roots:
		return overhead + int64(len(m.Hashes))*merkle.HashSize, nil
	case *wire.Hashes:
		return overhead + int64(len(m.Hashes))*merkle.HashSize, nil
	case *wire.Pages:
		return overhead + int64(len(m.Hashes)+len(m.Blocks))*8, nil
	case *wire.Refetch, *wire.Done:
		return overhead, nil
	}
	return 0, fmt.Errorf("the target sent a %T out of turn", m)
}

// scan finds out the tree of the image, reading it once as far as it is not
// stored. Regions that the target has are compared; what lies behind them is
// sent as it is read.
func (s *source) scan(ctx context.Context) error {
	var acc merkle.Accumulator
	held := heldRegions(s.g, s.accept.Held)
	emit := func(r known) error {
		if err := s.through.reach(ctx, r.Index-s.window+1); err != nil {
			return err
		}
		if err := s.dealt.reach(ctx, s.found.Load()-maxBacklog); err != nil {
			return err
		}
		s.n.region(s.g, r.Region)
		acc.Add(r.root)
		if r.Index < held {
			s.events.push(sourceScan{r})
		} else {
			s.events.push(streamed{r.Index})
		}
		return nil
	}
	if err := s.tree.scan(ctx, 0, held, merkle.BuildOptions{}, emit); err != nil {
		return fmt.Errorf("reading the source: %w", err)
	}
	stream := merkle.BuildOptions{ScanOptions: merkle.ScanOptions{First: held * merkle.RegionBlocks, Each: s.encodeRun}}
	stream.Run = func(run *merkle.Run) error { return s.stream(ctx, run) }
	err := merkle.Build(ctx, s.g, s.img, stream, func(r merkle.Region) error {
		root := r.Root()
		if stored, ok := s.tree.root(r.Index); ok && stored != root { // its leaves are lost
			return fmt.Errorf("what lies from offset %d on %w", s.g.Span(r.Index*merkle.RegionBlocks, 1).Offset, ErrStored)
		}
		return emit(known{r, root, false})
	})
	if err != nil {
		return fmt.Errorf("reading the source: %w", err)
	}
	if err := s.img.Changed(); err != nil {
		return changed(fmt.Sprintf(" (%v)", err))
	}
	s.events.push(scanEnd{s.g.Digest(acc.Root())})
	return nil
}

// judge is tree.judge for an image that may also have been written to since it
// was opened.
func (s *source) judge(run *merkle.Run) error {
	err := s.tree.judge(run)
	if err == nil {
		return nil
	}
	if err := s.img.Changed(); err != nil {
		return changed(fmt.Sprintf(" (%v)", err))
	}
	return err
}

// encodeRun packs a run that is to be streamed, if it is what is stored of it.
func (s *source) encodeRun(run *merkle.Run) error {
	if err := s.judge(run); err != nil {
		return err
	}
	return s.coder.encodeRun(run)
}

// stream sends the blocks of a run whose place is empty at the target.
func (s *source) stream(ctx context.Context, run *merkle.Run) error {
	if run.IsHole() {
		return s.judge(run)
	}
	blocks, _ := run.Value.([]*wire.Block)
	if len(blocks) == 0 {
		return nil
	}
	// The target takes no block of a region too far ahead.
	if err := s.through.reach(ctx, run.First/merkle.RegionBlocks-s.window+1); err != nil {
		return err
	}
	for _, b := range blocks {
		if err := s.sendBlock(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (s *source) sendBlock(ctx context.Context, b *wire.Block) error {
	s.n.changed.Add(1)
	s.n.payload.Add(int64(len(b.Data)))
	if s.opt.DryRun {
		return nil
	}
	return s.link.send(ctx, b)
}
