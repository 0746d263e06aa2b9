package image

import (
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/dop251/spgz"

	"github.com/diskrsync/diskrsync/merkle"
)

// TestConformance runs many sequences of random syncs over each kind of image.
// Some of them are interrupted, and some happen while the image is being read.
func TestConformance(t *testing.T) {
	rigs := append(fileRigs(),
		rig{name: "raw in place", opts: TargetOptions{Raw: true, InPlace: true}, format: Raw, blockSize: 8192, path: tempPath},
		rig{name: "spgz in place", opts: TargetOptions{InPlace: true}, format: Spgz, blockSize: 12287, path: tempPath})
	for _, rg := range rigs {
		t.Run(rg.name, func(t *testing.T) {
			t.Parallel()
			rg.conform(t, 60)
		})
	}
}

func (rg *rig) conform(t *testing.T, seeds int) {
	rg.eachSeed(t, seeds, func(t *testing.T, r *rand.Rand) {
		m := &model{rig: *rg, r: r, file: rg.path(t), pending: map[int64][]byte{}}
		if rg.fixed > 0 {
			m.committed, m.exists = readAllWith(t, m.file, Options{Force: true, StateDir: rg.opts.StateDir}), true
		}
		for range 6 {
			m.openReader(t)
			m.sync(t)
			m.check(t)
		}
		m.closeReaders(t)
	})
}

// A model is what an image must hold, beside the image.
type model struct {
	rig
	r         *rand.Rand
	file      string
	exists    bool             // something was committed
	committed []byte           // what readers see
	pending   map[int64][]byte // blocks that interrupted runs have left
	readers   []reading
	size      int64 // of the last sync
}

// A reading is an image that was opened, and what it must hold as long as it is.
type reading struct {
	im   Image
	want []byte
}

// inPlace reports whether what is put is in the image at once.
func (m *model) inPlace() bool {
	return m.fixed > 0 || m.opts.InPlace && m.exists && len(m.committed) > 0
}

// view returns what a target holds that begins with a size.
func (m *model) view(size int64) []byte {
	seen := resized(m.committed, size)
	for i, data := range m.pending {
		if off := i * int64(m.blockSize); off < size {
			block := seen[off:min(size, off+int64(m.blockSize))]
			clear(block[copy(block, data):])
		}
	}
	return seen
}

// sync opens the image as a target, changes its size and content, and commits or
// does not.
func (m *model) sync(t *testing.T) {
	size := randomSize(m.r, m.blockSize)
	if m.r.IntN(2) == 0 {
		size = m.size
	}
	m.size = size
	if m.fixed > 0 {
		size = min(size, m.fixed)
	}
	seen := m.view(size)
	if m.r.IntN(3) == 0 {
		m.dryRun(t, seen)
	}
	tg := target(t, m.file, m.opts)
	if len(m.pending) == 0 && len(m.readers) == 0 && tg.Held() != int64(len(m.committed)) {
		t.Fatalf("holds %d bytes, want %d", tg.Held(), len(m.committed))
	}
	if tg.Format() != m.format {
		t.Fatalf("format %s, want %s", tg.Format(), m.format)
	}
	must(t, tg.Begin(size, m.blockSize))
	if m.tune != nil {
		m.tune(t, tg.disk)
	}
	compare(t, tg, seen)
	checkHashes(t, tg, seen)
	inPlace := m.inPlace()
	changed := m.step(t, tg, seen)
	compare(t, tg, seen)
	complete := m.r.IntN(3) > 0
	if complete || m.r.IntN(2) == 0 {
		m.settle(t, tg, seen, changed)
	}
	if complete {
		must(t, tg.Commit(digestOf(t, seen, m.blockSize), lastModified))
		clear(m.pending)
		m.exists = true
		m.hold(seen)
	}
	must(t, tg.Close())
	if !complete && inPlace && changed {
		m.broken(t)
	}
}

// hold says what the image has from now on. What lies behind the content of a
// device stays there.
func (m *model) hold(seen []byte) {
	if m.fixed > 0 {
		copy(m.committed, seen)
	} else {
		m.committed = seen
	}
}

// broken checks that an image that was left half way is only read by force. What
// it holds is what the next sync begins with.
func (m *model) broken(t *testing.T) {
	t.Helper()
	clear(m.pending)
	_, err := Open(place(t, m.file), Options{Choice: m.choice(), StateDir: m.opts.StateDir})
	wantError(t, err, ErrIncomplete, "is incomplete: an update in place was interrupted")
	im := openImage(t, m.file, Options{Choice: m.choice(), Force: true, StateDir: m.opts.StateDir})
	if !im.State().Incomplete || im.State().Stored {
		t.Fatalf("the state of an incomplete image is %+v", im.State())
	}
	m.committed = contentOf(t, im)
	must(t, im.Close())
}

// dryRun looks at what a sync would find.
func (m *model) dryRun(t *testing.T, seen []byte) {
	t.Helper()
	o := m.opts
	o.DryRun = true
	tg := target(t, m.file, o)
	must(t, tg.Begin(int64(len(seen)), m.blockSize))
	compare(t, tg, seen)
	checkHashes(t, tg, seen)
	must(t, tg.Close())
}

// checkHashes checks what is believed of the tree of content without reading it.
func checkHashes(t *testing.T, h Hashes, content []byte) {
	t.Helper()
	tg := h.(*Target)
	for region := range tg.g.Regions() {
		want := leavesOf(tg.g, content, region)
		root, ok := h.Root(region)
		if ok && root != merkle.RegionRoot(want) {
			t.Fatalf("the root of region %d is that of something else", region)
		}
		leaves, known := h.Leaves(region)
		if known != ok {
			t.Fatalf("region %d: the root is known: %v, the leaves: %v", region, ok, known)
		}
		if known && len(merkle.Diff(leaves, want)) > 0 {
			t.Fatalf("the leaves of region %d are those of something else", region)
		}
	}
}

// step changes blocks at random, each at most once and from a goroutine of its own,
// and reports whether there were any.
func (m *model) step(t *testing.T, tg *Target, seen []byte) bool {
	var wg sync.WaitGroup
	before := maps.Clone(m.pending)
	inPlace := m.inPlace()
	idle := m.r.IntN(4) == 0
	for i := int64(0); i < tg.g.Blocks() && !idle; {
		n, change := m.change(tg, seen, i)
		if change != nil {
			wg.Go(func() {
				if err := change(); err != nil {
					t.Errorf("block %d: %v", i, err)
				}
			})
			for k := i; k < i+n; k++ {
				e := tg.g.Block(k)
				m.pending[k] = append([]byte(nil), seen[e.Offset:e.End()]...)
			}
		}
		i += n
	}
	wg.Wait()
	changed := len(m.pending) != len(before)
	for i := range before {
		changed = changed || string(before[i]) != string(m.pending[i])
	}
	if inPlace {
		clear(m.pending)
	}
	return changed
}

// change changes some blocks of seen from one on, and returns how many and what
// makes the target hold them; nil if they are left as they are.
func (m *model) change(tg *Target, seen []byte, i int64) (int64, func() error) {
	e := tg.g.Block(i)
	block := seen[e.Offset:e.End()]
	switch way := m.r.IntN(5); way {
	case 0:
		return 1, nil
	case 1:
		n := 1 + m.r.Int64N(tg.g.Blocks()-i)
		span := tg.g.Span(i, n)
		clear(seen[span.Offset:span.End()])
		return n, func() error { return tg.Punch(i, n) }
	case 2:
		from := m.r.IntN(len(block))
		to := from + m.r.IntN(len(block)-from) + 1
		fill(m.r, block[from:to])
		b := blockOf(seen, m.blockSize, i)
		if len(block) == m.blockSize || len(m.committed) <= len(seen) {
			b.Changed = []merkle.Extent{{Offset: int64(from), Length: int64(to - from)}}
		}
		return 1, func() error { return tg.Put(b) }
	default:
		fill(m.r, block)
		b := blockOf(seen, m.blockSize, i)
		if way == 3 && m.format == Spgz && !spgz.IsBlockZero(block) {
			b.Slot = EncodeSlot(nil, block)
		}
		return 1, func() error { return tg.Put(b) }
	}
}

// settle says what the leaves are where that is asked for.
func (m *model) settle(t *testing.T, tg *Target, seen []byte, changed bool) {
	t.Helper()
	for region := range tg.g.Regions() {
		if _, ok := tg.Root(region); !ok || changed {
			must(t, tg.Settle(region, leavesOf(tg.g, seen, region)))
		}
	}
}

// openReader opens the image, sometimes, and keeps it open. Those who are in the
// way of an update in place are not for here.
func (m *model) openReader(t *testing.T) {
	if !m.exists || m.fixed > 0 || m.opts.InPlace || len(m.readers) > 1 || m.r.IntN(3) > 0 {
		if m.r.IntN(3) == 0 {
			m.closeReaders(t)
		}
		return
	}
	m.readers = append(m.readers, reading{source(t, m.file, m.choice()), m.committed})
}

// closeReaders ends the reading. What was waiting for that is then put into the
// image, unless an interrupted run has left something on top of it.
func (m *model) closeReaders(t *testing.T) {
	for _, r := range m.readers {
		must(t, r.im.Close())
	}
	m.readers = nil
	m.check(t)
}

// check compares what all readers see.
func (m *model) check(t *testing.T) {
	t.Helper()
	for _, r := range m.readers {
		same(t, "what was opened before", contentOf(t, r.im), r.want)
		must(t, r.im.Changed())
	}
	if !m.exists {
		if _, err := Open(place(t, m.file), Options{}); err == nil {
			t.Fatal("there is an image before the first commit")
		}
		return
	}
	im, err := Open(place(t, m.file), Options{Choice: m.choice(), StateDir: m.opts.StateDir})
	if errors.Is(err, ErrIncomplete) {
		return // it was looked at when that happened
	}
	must(t, err)
	defer im.Close()
	same(t, "the image", contentOf(t, im), m.committed)
	if s := im.State(); s.Waiting > 0 {
		if len(m.readers) == 0 && s.Kept == 0 {
			must(t, im.Close())
			t.Fatalf("an update waits, and no one reads the image: %v", newStore(place(t, m.file)).recover())
		}
		return
	}
	if m.format == Spgz {
		same(t, "the library's image", libraryRead(t, m.file), m.committed)
	}
}
