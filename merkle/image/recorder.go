package image

import (
	"cmp"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

const (
	// A sync loses no more than this when the machine does.
	flushBytes = 256 << 20
	flushAfter = 15 * time.Second

	// flushSoon is how much is made durable at once while more arrives, so that
	// little is left to be waited for at the end.
	flushSoon = 32 << 20
)

// A recorder appends to a journal. Its methods may be called by many goroutines
// at once.
type recorder struct {
	j    *journal
	size int64         // of the content
	base func() error  // makes durable what entries of kind held are about
	old  []batch       // what was there when the recorder began
	soon chan struct{} // has something in it when flushSoon is reached

	flushing sync.Mutex   // one at a time
	writing  sync.RWMutex // held exclusively while a batch ends

	mu  sync.Mutex
	cur pending
}

// pending is the batch that is being made.
type pending struct {
	at      int64 // of its header
	tail    int64 // of the next payload
	blocks  []entry
	ranges  []entry // of zeros
	regions []entry
	place   map[int64]int // of blocks in blocks
	data    int64         // bytes that entries are about
	since   time.Time     // of the first entry
}

func newRecorder(j *journal, size int64, base func() error) *recorder {
	r := &recorder{j: j, size: size, base: base, old: j.batches, soon: make(chan struct{}, 1)}
	r.cur.reset(j.end())
	return r
}

func (p *pending) reset(at int64) {
	*p = pending{at: at, tail: at + batchHeader, place: map[int64]int{}}
}

func (p *pending) count() int { return len(p.blocks) + len(p.ranges) + len(p.regions) }

// some reports whether there are any entries.
func (p *pending) some() bool { return p.count() > 0 }

// due reports whether it is time to make the batch durable.
func (p *pending) due() bool {
	return p.count() > 0 && (p.data >= flushBytes || max(len(p.blocks)+len(p.ranges), len(p.regions)) >= maxEntries/2 || time.Since(p.since) >= flushAfter)
}

// ripe reports whether making it durable is worth the while.
func (p *pending) ripe() bool { return p.data >= flushSoon || p.due() }

// reserve returns where length bytes of payload are to go.
func (r *recorder) reserve(length int) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.cur.tail
	r.cur.tail += int64(length)
	return at
}

// add appends an entry with its payload.
func (r *recorder) add(e entry, payload []byte) error {
	return r.record(e, int64(len(payload)), func(e *entry) error {
		e.length, e.crc = int64(len(payload)), crc32.Checksum(payload, castagnoli)
		e.offset = r.reserve(len(payload))
		if _, err := r.j.f.WriteAt(payload, e.offset); err != nil {
			return r.j.fail("writing", err)
		}
		return nil
	})
}

// hold records a block that write puts into the partial file.
func (r *recorder) hold(e entry, length int64, write func() error) error {
	e.kind = entryHeld
	return r.record(e, length, func(e *entry) error {
		e.offset = r.reserve(0)
		return write()
	})
}

// zeros records that blocks are zero.
func (r *recorder) zeros(first, count int64) error {
	return r.record(entry{kind: entryZeros, index: first, length: count}, 0, func(e *entry) error {
		e.offset = r.reserve(0)
		return nil
	})
}

// record adds an entry once write has done what it is about.
func (r *recorder) record(e entry, length int64, write func(*entry) error) error {
	due, err := r.note(e, length, write)
	if err != nil || !due {
		return err
	}
	return r.flush(nil, (*pending).due)
}

func (r *recorder) note(e entry, length int64, write func(*entry) error) (due bool, err error) {
	r.writing.RLock()
	defer r.writing.RUnlock()
	if err := write(&e); err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.keep = merkle.MaxSize
	p := &r.cur
	if p.count() == 0 {
		p.since = time.Now()
	}
	switch e.kind {
	case entryRegion:
		p.regions = append(p.regions, e)
	case entryZeros:
		p.ranges = append(p.ranges, e)
	default:
		p.place[e.index] = len(p.blocks)
		p.blocks = append(p.blocks, e)
	}
	p.data += length
	if p.ripe() {
		select {
		case r.soon <- struct{}{}:
		default: // it is known already
		}
	}
	return p.due(), nil
}

// flush makes all entries durable, if there are any or a seal is to be set, and
// if it is still time to.
func (r *recorder) flush(s *seal, when func(*pending) bool) error {
	r.flushing.Lock()
	defer r.flushing.Unlock()
	b, crc, at, err := r.rotate(s, when)
	if err != nil || b == nil {
		return err
	}
	if r.base != nil {
		if err := r.base(); err != nil {
			return err
		}
	}
	if err := r.j.sync(); err != nil {
		return err
	}
	if _, err := r.j.f.WriteAt(b.encode(r.j.head.ID, crc), at); err != nil {
		return r.j.fail("writing", err)
	}
	return r.j.sync()
}

// rotate ends the batch that is being made and begins another.
func (r *recorder) rotate(s *seal, when func(*pending) bool) (*batch, uint32, int64, error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &r.cur
	if s == nil && !when(p) {
		return nil, 0, 0, nil
	}
	b := &batch{seq: int64(len(r.j.batches)), size: r.size, payload: p.tail - p.at - batchHeader, seal: s,
		blocks: len(p.blocks) + len(p.ranges), regions: len(p.regions), entries: p.tail}
	table, err := p.table(b)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("image %s: %w", r.j.path, err)
	}
	if _, err := r.j.f.WriteAt(table, p.tail); err != nil {
		return nil, 0, 0, r.j.fail("writing", err)
	}
	at := p.at
	r.j.index.addBatch(len(r.j.batches), b, table)
	r.j.batches = append(r.j.batches, *b)
	p.reset(b.end())
	return b, crc32.Checksum(table, castagnoli), at, nil
}

// table returns the entries as they are stored, and tells b of what blocks they
// are.
func (p *pending) table(b *batch) ([]byte, error) {
	byIndex := func(x, y entry) int { return cmp.Compare(x.index, y.index) }
	blocks := append(p.blocks, p.ranges...)
	slices.SortFunc(blocks, byIndex)
	slices.SortFunc(p.regions, byIndex)
	table := make([]byte, 0, p.count()*entrySize)
	for i := range blocks {
		e := &blocks[i]
		if e.index < b.last {
			return nil, fmt.Errorf("block %d was written twice", e.index)
		}
		if i == 0 {
			b.first = e.index
		}
		b.last = e.end()
		table = e.encode(table)
	}
	for i := range p.regions {
		table = p.regions[i].encode(table)
	}
	return table, nil
}

// find returns the last entry about a block; its kind is 0 if there is none.
func (r *recorder) find(block int64) (entry, error) {
	r.mu.Lock()
	if i, ok := r.cur.place[block]; ok {
		e := r.cur.blocks[i]
		r.mu.Unlock()
		return e, nil
	}
	for _, e := range r.cur.ranges {
		if e.index <= block && block < e.end() {
			r.mu.Unlock()
			return e, nil
		}
	}
	batches := r.j.batches
	r.mu.Unlock()
	return r.j.find(batches, false, block)
}

// findRegion returns the last entry about a region in a batch that has ended; its
// kind is 0 if there is none.
func (r *recorder) findRegion(region int64) (entry, error) {
	r.mu.Lock()
	batches := r.j.batches
	r.mu.Unlock()
	return r.j.find(batches, true, region)
}

// next returns the first block from one on, but in front of another, that there
// is an entry with data about, or false.
func (r *recorder) next(block, limit int64) (int64, bool, error) {
	r.mu.Lock()
	batches := r.j.batches
	best, found := int64(0), false
	for i := range r.cur.blocks {
		if e := &r.cur.blocks[i]; e.index >= block && e.index < limit && (!found || e.index < best) {
			best, found = e.index, true
		}
	}
	r.mu.Unlock()
	at, ok, err := r.j.next(batches, block, limit)
	if err != nil || !ok || found && best < at {
		return best, found, err
	}
	return at, true, nil
}

// tail returns how long the journal is.
func (r *recorder) tail() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cur.tail
}

// kept returns about how many bytes of content are durable and not sealed.
func (r *recorder) kept() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.j.kept()
}

// empty reports whether nothing was ever recorded.
func (r *recorder) empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.j.batches) == 0 && r.cur.count() == 0
}
