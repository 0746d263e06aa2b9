package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

const (
	// rootsBatch bounds the roots of one message.
	rootsBatch = 1024

	// maxRegions bounds what is held of regions: those of the window, and those
	// that wait behind a block that was asked for again. An honest source
	// answers before there are many.
	maxRegions = 4 * window
)

// Receive plays the target: it makes img equal to what the peer sends. When it
// returns nil, and only then, img has been committed.
func Receive(ctx context.Context, c *Conn, img Target, opt Options) (Result, error) {
	if opt.Monitor == nil {
		opt.Monitor = new(Monitor)
	}
	t := &target{img: img, mon: opt.Monitor, n: &opt.Monitor.target,
		regions: map[int64]*targetRegion{}, through: newMark(), applied: newMark(),
		jobs: make(chan func(*applier) error), finish: make(chan *wire.Finish, 1)}
	if err := c.interruptible(ctx, func() error { return t.greet(c) }); err != nil {
		return t.result(c), err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers(t.g.BlockSize())),
		zstd.WithDecoderMaxMemory(wire.MaxPayload), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return t.result(c), errors.Join(fmt.Errorf("setting up decompression: %w", err), c.Close())
	}
	defer dec.Close()
	t.dec = dec
	t.link = newLink(c, t.n, &opt.Monitor.source, t.g.BlockSize())
	n := workers(t.g.BlockSize())
	if opt.Sequential {
		n = 1
	}
	work := []func(context.Context) error{t.scan, t.end}
	for range n {
		work = append(work, t.apply)
	}
	err = t.link.run(ctx, t.receive, work...)
	return t.result(c), err
}

type target struct {
	img    Target
	mon    *Monitor
	n      *counters
	g      merkle.Geometry
	tree   tree
	held   int64 // regions of which the image has any content
	hello  *wire.Hello
	accept *wire.Accept
	dec    *zstd.Decoder
	link   *link

	through *mark // regions below are settled by the source
	applied *mark // regions below are settled, written, and folded into acc
	jobs    chan func(*applier) error
	finish  chan *wire.Finish

	mu      sync.Mutex
	regions map[int64]*targetRegion
	scanned int64 // the roots of the regions below have been sent
	acc     merkle.Accumulator
	digest  merkle.Hash // once all is applied
}

// A targetRegion is what the target knows of a region in flight. A region of
// zeros that nothing was sent for has none.
type targetRegion struct {
	leaves  []merkle.Hash // nil for zeros
	taken   blockSet      // blocks that were sent
	again   blockSet      // blocks that were asked for again
	pending int           // blocks taken and not yet written
	root    merkle.Hash   // if stored, and once settled, when leaves is dropped
	stored  bool          // leaves are yet to be had
	read    bool          // the image did not know of the leaves before
	dirty   bool          // a block was taken
	settle  settling
}

// settling is how far a region is from being done with.
type settling int

const (
	open settling = iota
	leaving
	closed // root is set
)

// A blockSet is a set of the blocks of a region.
type blockSet [merkle.RegionBlocks / 64]uint64

func (b *blockSet) has(block int64) bool {
	i := block % merkle.RegionBlocks
	return b[i/64]>>(i%64)&1 == 1
}

func (b *blockSet) set(block int64, to bool) {
	i := block % merkle.RegionBlocks
	b[i/64] &^= 1 << (i % 64)
	if to {
		b[i/64] |= 1 << (i % 64)
	}
}

func (t *target) greet(c *Conn) error {
	hello, err := c.awaitHello()
	if err != nil {
		return err
	}
	t.hello = hello
	if t.img.Identity().Same(hello.Identity) {
		return c.fail(refusal("source and target are the same file or device"))
	}
	bs, err := agree(t.img, hello.BlockSize)
	if err != nil {
		return c.fail(err)
	}
	if t.g, err = merkle.NewGeometry(hello.Size, bs); err != nil {
		return c.fail(err)
	}
	if err := t.img.Begin(hello.Size, bs); err != nil {
		return c.fail(err)
	}
	t.mon.size.Store(hello.Size)
	t.tree = tree{t.g, t.img, t.img}
	t.n.kept.Store(t.img.Kept())
	t.accept = &wire.Accept{BlockSize: bs, Held: t.img.Held(), Slots: t.img.Format() == image.Spgz}
	rand.Read(t.accept.Key[:]) // never fails
	t.held = heldRegions(t.g, t.accept.Held)
	return c.write(t.accept)
}

func (c *Conn) awaitHello() (*wire.Hello, error) {
	for {
		m, err := c.read()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *wire.Progress:
		case *wire.Hello:
			return m, nil
		default:
			return nil, c.fail(fmt.Errorf("the source began with a %T", m))
		}
	}
}

func (t *target) result(c *Conn) Result {
	r := t.mon.Snapshot()
	r.Digest, r.BlockSize = t.digest, t.g.BlockSize()
	r.Sent, r.Received = c.received.Load(), c.sent.Load()
	return r
}

// scan tells the source what the target has.
func (t *target) scan(ctx context.Context) error {
	if t.held == 0 {
		return nil
	}
	batch := &wire.Roots{}
	flush := func() error {
		if len(batch.Hashes) == 0 {
			return nil
		}
		// From now on the source may ask for them.
		t.mu.Lock()
		t.scanned = batch.First + int64(len(batch.Hashes))
		t.mu.Unlock()
		m := batch
		batch = &wire.Roots{First: t.scanned}
		return t.link.send(ctx, m)
	}
	err := t.tree.scan(ctx, 0, t.held, readTarget(), func(r known) error {
		if limit := r.Index - window + 1; t.through.get() < limit {
			if err := flush(); err != nil {
				return err
			}
			if err := t.through.reach(ctx, limit); err != nil {
				return err
			}
		}
		t.n.region(t.g, r.Region)
		if !r.stored || !r.root.IsZero() {
			t.mu.Lock()
			t.regions[r.Index] = &targetRegion{leaves: r.Leaves, root: r.root, stored: r.stored, read: !r.stored}
			t.mu.Unlock()
		}
		batch.Hashes = append(batch.Hashes, r.root)
		if (r.stored || r.Leaves == nil) && len(batch.Hashes) < rootsBatch {
			return nil
		}
		return flush()
	})
	if err != nil {
		return fmt.Errorf("reading the target: %w", err)
	}
	return flush()
}

// readTarget says how the target is read.
func readTarget() merkle.BuildOptions {
	return merkle.BuildOptions{ScanOptions: merkle.ScanOptions{Unreadable: unreadable}}
}

// unreadable lets a scan of the target pass over blocks that are corrupt: they
// are about to be rewritten.
func unreadable(_ int64, err error) error {
	var corrupt *image.CorruptError
	if errors.As(err, &corrupt) {
		return nil
	}
	return err
}

// receive handles what the source sends. It may wait for the workers.
func (t *target) receive(ctx context.Context, m wire.Message) error {
	switch m := m.(type) {
	case *wire.Expand:
		return t.answer(ctx, m)
	case *wire.AskPages:
		if err := t.checkAsk(m); err != nil {
			return err
		}
		return t.do(ctx, func(a *applier) error { return a.answerPages(ctx, m.Blocks) })
	case *wire.Holes:
		return t.takeHoles(ctx, m)
	case *wire.Block:
		return t.takeBlock(ctx, m)
	case *wire.Patch:
		return t.takePatch(ctx, m)
	case *wire.Advance:
		return t.advance(m.Through)
	case *wire.Finish:
		return t.takeFinish(m)
	}
	return fmt.Errorf("the source sent a %T out of turn", m)
}

// leaves returns the leaves of a region that is in flight; nil for zeros.
func (t *target) leaves(ctx context.Context, index int64) ([]merkle.Hash, error) {
	t.mu.Lock()
	err := t.inFlight(index)
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := t.load(ctx, index); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.regions[index]; r != nil && r.leaves != nil {
		// A copy, as blocks may be written meanwhile.
		return append([]merkle.Hash(nil), r.leaves...), nil
	}
	return make([]merkle.Hash, t.g.RegionLen(index)), nil
}

// load gets the leaves of a region in flight that are stored. Only the goroutine
// that receives calls it, which is also the only one that makes regions close.
func (t *target) load(ctx context.Context, index int64) error {
	t.mu.Lock()
	r := t.regions[index]
	t.mu.Unlock()
	if r == nil || !r.stored {
		return nil
	}
	leaves, err := t.tree.leaves(ctx, index, readTarget())
	if err != nil {
		return fmt.Errorf("reading the target: %w", err)
	}
	t.mu.Lock()
	r.leaves, r.stored = leaves, false
	r.read = merkle.RegionRoot(leaves) != r.root // then they were damaged
	t.mu.Unlock()
	return nil
}

// inFlight checks that the source may ask about a region. It is called with the
// lock held.
func (t *target) inFlight(index int64) error {
	if index < t.through.get() || index >= t.scanned {
		return fmt.Errorf("the source asks about region %d, which is not in flight", index)
	}
	return nil
}

func (t *target) answer(ctx context.Context, m *wire.Expand) error {
	answer := &wire.Hashes{Level: m.Level, Nodes: m.Nodes}
	if len(m.Nodes) > expandBatch {
		return fmt.Errorf("the source asks for the children of %d nodes at once", len(m.Nodes))
	}
	for _, node := range m.Nodes {
		index := node
		if m.Level == 1 {
			index = node / merkle.FanOut
		}
		if t.g.Children(m.Level, node) == 0 {
			return fmt.Errorf("the source asks for node %d of level %d, which does not exist", node, m.Level)
		}
		leaves, err := t.leaves(ctx, index)
		if err != nil {
			return err
		}
		if m.Level == 1 {
			first := node*merkle.FanOut - index*merkle.RegionBlocks
			leaves = leaves[first:][:t.g.Children(1, node)]
		} else {
			leaves = merkle.Parents(leaves)
		}
		answer.Hashes = append(answer.Hashes, leaves...)
	}
	return t.link.send(ctx, answer)
}

// checkAsk checks that the source may ask for the pages of blocks: nothing is
// read that may be being written.
func (t *target) checkAsk(m *wire.AskPages) error {
	if len(m.Blocks) > maxAsk {
		return fmt.Errorf("the source asks for the pages of %d blocks at once", len(m.Blocks))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range m.Blocks {
		if b >= t.g.Blocks() {
			return fmt.Errorf("the source asks for the pages of block %d of %d", b, t.g.Blocks())
		}
		index := b / merkle.RegionBlocks
		if err := t.inFlight(index); err != nil {
			return err
		}
		if r := t.regions[index]; r != nil && r.taken.has(b) {
			return fmt.Errorf("the source asks for the pages of block %d, which it has sent", b)
		}
	}
	return nil
}

// do hands work to a worker. It waits for one to be free.
func (t *target) do(ctx context.Context, job func(*applier) error) error {
	return put(ctx, t.jobs, job)
}

// take checks that a block may be sent now, and marks it taken.
func (t *target) take(ctx context.Context, block int64) error {
	if t.hello.DryRun {
		return errors.New("the source sent a block in a dry run")
	}
	if block >= t.g.Blocks() {
		return fmt.Errorf("the source sent block %d of %d", block, t.g.Blocks())
	}
	index := block / merkle.RegionBlocks
	if err := t.load(ctx, index); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.regions[index]
	if r != nil && r.again.has(block) {
		r.again.set(block, false)
		return nil // it is still pending
	}
	through := t.through.get()
	known := index < t.scanned || index >= t.held
	if index < through || index >= through+window || !known {
		return fmt.Errorf("the source sent block %d of region %d, which is not in flight", block, index)
	}
	if r == nil {
		if len(t.regions) >= maxRegions {
			return errors.New("the source does not send what it was asked for again")
		}
		r = new(targetRegion)
		t.regions[index] = r
	}
	if r.taken.has(block) {
		return fmt.Errorf("the source sent block %d twice", block)
	}
	r.taken.set(block, true)
	r.dirty = true
	r.pending++
	return nil
}

func (t *target) takeHoles(ctx context.Context, m *wire.Holes) error {
	for _, b := range m.Blocks {
		if err := t.take(ctx, b); err != nil {
			return err
		}
	}
	return t.do(ctx, func(a *applier) error { return a.punch(m.Blocks) })
}

func (t *target) takeBlock(ctx context.Context, m *wire.Block) error {
	if err := t.take(ctx, m.Index); err != nil {
		return err
	}
	return t.do(ctx, func(a *applier) error { return a.block(m) })
}

func (t *target) takePatch(ctx context.Context, m *wire.Patch) error {
	for _, b := range m.Blocks {
		if err := t.take(ctx, b.Index); err != nil {
			return err
		}
		pages, set := t.g.Pages(b.Index), 0
		for i, bits8 := range b.Pages {
			set += bits.OnesCount8(bits8)
			if i*8+bits.Len8(bits8) > pages {
				set = 0 // a page that does not exist
				break
			}
		}
		if len(b.Pages) != (pages+7)/8 || set == 0 {
			return fmt.Errorf("the source sent a patch of block %d with a bitmap that does not fit", b.Index)
		}
	}
	return t.do(ctx, func(a *applier) error { return a.patch(ctx, m) })
}

func (t *target) advance(through int64) error {
	known := t.g.Regions()
	t.mu.Lock()
	if t.scanned < t.held {
		known = t.scanned
	}
	t.mu.Unlock()
	last := t.through.get()
	if through <= last || through > min(known, last+window) {
		return fmt.Errorf("the source advanced from region %d to %d of %d", last, through, known)
	}
	t.through.set(through)
	for i := last; i < through; i++ {
		if err := t.close(i); err != nil {
			return err
		}
	}
	t.fold()
	return nil
}

// close settles a region once nothing more can change it.
func (t *target) close(index int64) error {
	t.mu.Lock()
	r := t.regions[index]
	ready := r != nil && r.settle == open && r.pending == 0 && index < t.through.get()
	if ready {
		r.settle = leaving
	}
	t.mu.Unlock()
	if !ready {
		return nil
	}
	root := r.root
	if r.read || r.dirty {
		root = merkle.RegionRoot(r.leaves)
		if err := t.img.Settle(index, r.leaves); err != nil {
			return fmt.Errorf("writing the target: %w", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r.root, r.leaves, r.settle = root, nil, closed
	return nil
}

// fold adds the roots of regions that are closed to the root of the image.
func (t *target) fold() {
	t.mu.Lock()
	defer t.mu.Unlock()
	through := t.through.get()
	next := t.applied.get()
	for ; next < through; next++ {
		r := t.regions[next]
		switch {
		case r == nil:
			t.acc.Add(merkle.Hash{})
		case r.settle == closed:
			t.acc.Add(r.root)
			delete(t.regions, next)
		default:
			t.applied.set(next)
			return
		}
	}
	t.applied.set(next)
}

// written records what a block has become.
func (t *target) written(block int64, leaf merkle.Hash) error {
	index := block / merkle.RegionBlocks
	t.mu.Lock()
	r := t.regions[index]
	if r.leaves == nil && !leaf.IsZero() {
		r.leaves = make([]merkle.Hash, t.g.RegionLen(index))
	}
	if r.leaves != nil {
		if r.leaves[block%merkle.RegionBlocks] == merkle.Unknown {
			t.n.repaired.Add(1)
		}
		r.leaves[block%merkle.RegionBlocks] = leaf
	}
	r.pending--
	last := r.pending == 0
	t.mu.Unlock()
	if !last {
		return nil
	}
	if err := t.close(index); err != nil {
		return err
	}
	t.fold()
	return nil
}

func (t *target) takeFinish(m *wire.Finish) error {
	if t.through.get() != t.g.Regions() {
		return fmt.Errorf("the source finished after %d of %d regions", t.through.get(), t.g.Regions())
	}
	select {
	case t.finish <- m:
		return nil
	default:
		return errors.New("the source finished twice")
	}
}

// end waits for the end of the source and of all writing, then compares, and
// only then commits.
func (t *target) end(ctx context.Context) error {
	var finish *wire.Finish
	select {
	case finish = <-t.finish:
	case <-ctx.Done():
		return ctx.Err()
	}
	t.mon.source.store(finish.Stats)
	t.digest = finish.Digest
	if !t.hello.DryRun {
		if err := t.commit(ctx, finish.Digest); err != nil {
			return err
		}
	}
	note := ""
	if !t.hello.DryRun {
		note = t.img.Remark()
	}
	t.mon.note.Store(&note)
	return t.link.finish(ctx, &wire.Done{Digest: t.digest, Stats: t.n.load(), Note: note})
}

func (t *target) commit(ctx context.Context, want merkle.Hash) error {
	if err := t.applied.reach(ctx, t.g.Regions()); err != nil {
		return err
	}
	t.mu.Lock()
	t.digest = t.g.Digest(t.acc.Root())
	t.mu.Unlock()
	if t.digest != want {
		return fmt.Errorf("the target has digest %v where the source has %v: nothing is committed", t.digest, want)
	}
	var modified time.Time
	if t.hello.Modified > 0 {
		modified = time.Unix(0, t.hello.Modified)
	}
	return t.img.Commit(t.digest, modified)
}
