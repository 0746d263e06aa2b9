package session

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// coordinate decides what to ask and what to send. All it knows of the regions
// in flight is its own, so it needs no lock.
func (s *source) coordinate(ctx context.Context) error {
	for {
		event, more, err := s.events.pop(ctx)
		if err != nil {
			return err
		}
		if err := s.handle(ctx, event); err != nil {
			return err
		}
		// What came up meanwhile goes out once there is nothing else to do, so
		// that it goes out together.
		if err := s.flush(ctx, !more); err != nil {
			return err
		}
	}
}

func (s *source) handle(ctx context.Context, event any) error {
	if m, ok := event.(wire.Message); ok {
		return s.handleMessage(ctx, m)
	}
	switch e := event.(type) {
	case sourceScan:
		r := s.region(e.Index)
		r.own, r.leaves, r.stored, r.scanned = e.root, e.Leaves, e.stored, true
		s.scanned = e.Index + 1
		return s.compare(ctx, e.Index, r)
	case streamed:
		s.scanned = e.index + 1
		s.region(e.index).scanned = true
		s.region(e.index).rooted = true
	case sent:
		for _, b := range e.blocks {
			s.regions[b/merkle.RegionBlocks].todo--
		}
		if e.asked {
			s.patching -= len(e.blocks)
		}
		s.dealt.set(s.dealt.get() + int64(len(e.blocks)))
	case resent:
		s.refetch--
	case scanEnd:
		s.digest = &e.digest
	}
	return nil
}

func (s *source) handleMessage(ctx context.Context, m wire.Message) error {
	weight, err := weigh(m)
	if err != nil {
		return err
	}
	s.waiting.Add(-weight)
	switch m := m.(type) {
	case *wire.Roots:
		return s.takeRoots(ctx, m)
	case *wire.Hashes:
		return s.takeHashes(m)
	case *wire.Pages:
		return s.takePages(m)
	case *wire.Refetch:
		return s.takeRefetch(m)
	case *wire.Done:
		return s.takeDone(m)
	}
	return nil // weigh knows no others
}

func (s *source) region(i int64) *sourceRegion {
	r := s.regions[i]
	if r == nil {
		r = new(sourceRegion)
		s.regions[i] = r
	}
	return r
}

func (s *source) takeRoots(ctx context.Context, m *wire.Roots) error {
	end := m.First + int64(len(m.Hashes))
	if m.First != s.roots || end > heldRegions(s.g, s.accept.Held) || end > s.through.get()+window {
		return fmt.Errorf("the target sent roots of regions %d to %d where %d was due", m.First, end, s.roots)
	}
	for i, root := range m.Hashes {
		index := m.First + int64(i)
		r := s.region(index)
		r.root, r.rooted = root, true
		if err := s.compare(ctx, index, r); err != nil {
			return err
		}
	}
	s.roots = end
	return nil
}

// compare is called when either side of a region has become known.
func (s *source) compare(ctx context.Context, index int64, r *sourceRegion) error {
	if !r.scanned || !r.rooted || r.own == r.root {
		return nil
	}
	if r.stored {
		var err error
		if r.leaves, err = s.tree.leaves(ctx, index, merkle.BuildOptions{}); err != nil {
			return fmt.Errorf("reading the source: %w", err)
		}
		if r.stored = false; merkle.RegionRoot(r.leaves) != r.own {
			return changed(fmt.Sprintf(" (at offset %d or behind)", s.g.Span(index*merkle.RegionBlocks, 1).Offset))
		}
	}
	if r.root.IsZero() {
		s.compareLeaves(r, index*merkle.RegionBlocks, r.leaves, nil)
		return nil
	}
	s.expandNode(r, merkle.RegionLevel, index)
	return nil
}

func (s *source) expandNode(r *sourceRegion, level int, node int64) {
	if r.awaited == nil {
		r.awaited = map[int64]int{}
	}
	r.awaited[node] = level
	r.todo++
	s.expand[level] = append(s.expand[level], node)
}

func (s *source) takeHashes(m *wire.Hashes) error {
	rest := m.Hashes
	for _, node := range m.Nodes {
		index := node
		if m.Level == 1 {
			index = node / merkle.FanOut
		}
		r := s.regions[index]
		n := s.g.Children(m.Level, node)
		if r == nil || r.awaited[node] != m.Level || n > len(rest) {
			return fmt.Errorf("the target sent hashes of node %d of level %d that were not asked for", node, m.Level)
		}
		delete(r.awaited, node)
		r.todo--
		theirs := rest[:n]
		rest = rest[n:]
		first := node * merkle.FanOut
		if m.Level == 1 {
			within := first - index*merkle.RegionBlocks
			s.compareLeaves(r, first, part(r.leaves, within, n), theirs)
			continue
		}
		for _, i := range merkle.Diff(parents(r.leaves, n), theirs) {
			child := first + int64(i)
			if theirs[i].IsZero() { // then so are all leaves below
				leaves := part(r.leaves, int64(i*merkle.FanOut), s.g.Children(1, child))
				s.compareLeaves(r, child*merkle.FanOut, leaves, nil)
			} else {
				s.expandNode(r, 1, child)
			}
		}
	}
	if len(rest) > 0 {
		return fmt.Errorf("the target sent %d hashes too many", len(rest))
	}
	return nil
}

// part returns n of leaves, which may be nil for zeros.
func part(leaves []merkle.Hash, from int64, n int) []merkle.Hash {
	if leaves == nil {
		return nil
	}
	return leaves[from:][:n]
}

// parents is merkle.Parents for n parents, even if all are zero.
func parents(leaves []merkle.Hash, n int) []merkle.Hash {
	if leaves == nil {
		return make([]merkle.Hash, n)
	}
	return merkle.Parents(leaves)
}

// compareLeaves finds out what to do about the blocks from first on.
func (s *source) compareLeaves(r *sourceRegion, first int64, own, theirs []merkle.Hash) {
	var whole []plan
	for _, i := range merkle.Diff(own, theirs) {
		block, leaf, old := first+int64(i), merkle.At(own, i), merkle.At(theirs, i)
		r.todo++
		s.found.Add(1)
		switch {
		case leaf.IsZero():
			s.holes = append(s.holes, block)
		case old.IsZero() || old == merkle.Unknown:
			whole = append(whole, plan{block, leaf})
		default:
			s.ask = append(s.ask, block)
		}
	}
	for batch := range slices.Chunk(whole, merkle.FanOut) {
		s.jobs.push(job{plans: batch})
	}
}

func (s *source) takePages(m *wire.Pages) error {
	j := job{pages: m.Hashes, plans: make([]plan, 0, len(m.Blocks))}
	n := 0
	for _, block := range m.Blocks {
		if !s.asked[block] {
			return fmt.Errorf("the target sent page hashes of block %d that were not asked for", block)
		}
		delete(s.asked, block)
		r := s.regions[block/merkle.RegionBlocks]
		j.plans = append(j.plans, plan{block, r.leaves[block%merkle.RegionBlocks]})
		n += s.g.Pages(block)
	}
	if n != len(m.Hashes) || n == 0 {
		return fmt.Errorf("the target sent %d page hashes where %d were asked for", len(m.Hashes), n)
	}
	s.jobs.push(j)
	return nil
}

func (s *source) takeRefetch(m *wire.Refetch) error {
	if m.Index >= s.g.Blocks() {
		return fmt.Errorf("the target asks for block %d of %d", m.Index, s.g.Blocks())
	}
	if s.refetch++; s.refetch > maxRefetch {
		return fmt.Errorf("the target asks for more than %d blocks again", maxRefetch)
	}
	s.jobs.push(job{plans: []plan{{m.Index, m.Leaf}}, again: true})
	return nil
}

func (s *source) takeDone(m *wire.Done) error {
	if !s.finished {
		return errors.New("the target says it is done before the source is")
	}
	if m.Digest != *s.digest && !s.opt.DryRun {
		return fmt.Errorf("the target has digest %v where the source has %v", m.Digest, *s.digest)
	}
	s.mon.target.store(m.Stats)
	s.mon.note.Store(&m.Note)
	return errFinished
}

// flush sends what coordinate has collected: what fills a message, or
// everything.
func (s *source) flush(ctx context.Context, everything bool) error {
	for level := merkle.RegionLevel; level > 0; level-- {
		err := batches(&s.expand[level], expandBatch, everything, func(nodes []int64) error {
			return s.link.sendUrgent(ctx, &wire.Expand{Level: level, Nodes: nodes})
		})
		if err != nil {
			return err
		}
	}
	if err := s.flushAsk(ctx, everything); err != nil {
		return err
	}
	err := batches(&s.holes, wire.MaxList, everything, func(blocks []int64) error {
		s.n.holes.Add(int64(len(blocks)))
		s.events.push(sent{blocks: blocks})
		if s.opt.DryRun {
			return nil
		}
		return s.link.send(ctx, &wire.Holes{Blocks: blocks})
	})
	if err != nil || !everything {
		return err
	}
	return s.advance(ctx)
}

func (s *source) flushAsk(ctx context.Context, everything bool) error {
	if room := maxAsked - s.patching; len(s.ask) > room {
		// The rest waits for answers; it is asked for in order.
		slices.Sort(s.ask)
		rest := s.ask[room:]
		s.ask = s.ask[:room:room]
		defer func() { s.ask = append(s.ask, rest...) }()
	}
	return batches(&s.ask, askBatch, everything, func(blocks []int64) error {
		for _, b := range blocks {
			s.asked[b] = true
		}
		s.patching += len(blocks)
		return s.link.sendUrgent(ctx, &wire.AskPages{Blocks: blocks})
	})
}

// batches empties list in messages of up to size indexes in growing order. What
// does not fill a message stays unless everything is to go.
func batches(list *[]int64, size int, everything bool, send func([]int64) error) error {
	if len(*list) == 0 || len(*list) < size && !everything {
		return nil
	}
	all := *list
	*list = nil
	slices.Sort(all)
	for len(all) > 0 && (len(all) >= size || everything) {
		n := min(size, len(all))
		if err := send(all[:n:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	*list = all
	return nil
}

// advance drops the regions that are settled, and says so; after the last one
// it ends the session.
func (s *source) advance(ctx context.Context) error {
	through := s.through.get()
	next := through
	for next < s.scanned {
		r := s.regions[next]
		if !r.rooted || !r.scanned || r.todo > 0 {
			break
		}
		delete(s.regions, next)
		next++
	}
	if next > through {
		if err := s.link.send(ctx, &wire.Advance{Through: next}); err != nil {
			return err
		}
		s.through.set(next)
		if s.once != nil {
			s.once.pass(s.g.Span(next*merkle.RegionBlocks, 0).Offset)
		}
	}
	if s.digest == nil || next < s.g.Regions() || s.finished {
		return nil
	}
	s.finished = true
	return s.link.send(ctx, &wire.Finish{Digest: *s.digest, Stats: s.n.load()})
}
