package image

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
)

// A rig is a kind of image that the conformance suite runs over.
type rig struct {
	name      string
	opts      TargetOptions
	format    Format
	blockSize int
	fixed     int64                       // size of a device, 0 for files
	path      func(t *testing.T) string   // of a place for one image
	tune      func(t *testing.T, d *disk) // switches to a fallback, or nil
}

func tempPath(t *testing.T) string { return filepath.Join(t.TempDir(), "disk") }

// noHoles makes a file behave as on a file system that knows nothing of holes.
func noHoles(_ *testing.T, d *disk) {
	d.noSeek.Store(true)
	d.noPunch.Store(true)
}

// noPunching is a file system that finds holes but cannot make them.
func noPunching(_ *testing.T, d *disk) { d.noPunch.Store(true) }

func fileRigs() []rig {
	raw := TargetOptions{Raw: true}
	return []rig{
		{name: "raw", opts: raw, format: Raw, blockSize: 8192, path: tempPath},
		{name: "raw, odd blocks", opts: raw, format: Raw, blockSize: 12287, path: tempPath},
		{name: "raw without holes", opts: raw, format: Raw, blockSize: 12287, path: tempPath, tune: noHoles},
		{name: "raw without punching", opts: raw, format: Raw, blockSize: 8192, path: tempPath, tune: noPunching},
		{name: "spgz 12287", format: Spgz, blockSize: 12287, path: tempPath},
		{name: "spgz 131071", format: Spgz, blockSize: 131071, path: tempPath},
		{name: "spgz without holes", format: Spgz, blockSize: 12287, path: tempPath, tune: noHoles},
		{name: "spgz without punching", format: Spgz, blockSize: 12287, path: tempPath, tune: noPunching},
	}
}

func TestConformance(t *testing.T) {
	for _, rg := range fileRigs() {
		t.Run(rg.name, func(t *testing.T) {
			t.Parallel()
			seeds := 40
			if rg.blockSize > 100_000 {
				seeds = 10 // they take ten times as long
			}
			conform(t, rg, seeds)
		})
	}
}

// conform runs many sequences of random syncs over one kind of image.
func conform(t *testing.T, rg rig, seeds int) {
	if testing.Short() {
		seeds = min(seeds, 5)
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			m := &modelRun{rig: rg, r: newRand(uint64(seed)), file: rg.path(t)}
			if rg.fixed > 0 {
				m.content = readAll(t, m.file, Auto)
			}
			for range 4 {
				m.sync(t)
			}
		})
	}
}

// modelRun is an image beside the bytes that it must hold.
type modelRun struct {
	rig
	r       *rand.Rand
	file    string
	content []byte
}

// pickSize returns a size, often close to a multiple of the block size.
func (m *modelRun) pickSize() int64 {
	bs := int64(m.blockSize)
	size := m.r.Int64N(6) * bs
	switch m.r.IntN(4) {
	case 0:
		size += m.r.Int64N(bs)
	case 1:
		size += m.r.Int64N(5) - 2
	}
	size = max(0, size)
	if m.fixed > 0 {
		size = min(size, m.fixed)
	}
	return size
}

// sync opens the image as a target, changes its size and content, commits, and
// compares what every reader then finds.
func (m *modelRun) sync(t *testing.T) {
	tg := target(t, m.file, m.opts)
	if tg.Held() != int64(len(m.content)) {
		t.Fatalf("holds %d bytes, want %d", tg.Held(), len(m.content))
	}
	if tg.Format() != m.format {
		t.Fatalf("format %s, want %s", tg.Format(), m.format)
	}
	size := m.pickSize()
	must(t, tg.Begin(size, m.blockSize))
	if m.tune != nil {
		m.tune(t, tg.disk)
	}
	seen := resized(m.content, size)
	m.compare(t, tg, seen)
	for range 3 {
		m.step(t, tg, seen)
		m.compare(t, tg, seen)
	}
	must(t, tg.Commit())
	must(t, tg.Close())
	if m.fixed > 0 {
		copy(m.content, seen) // what is behind it stays
	} else {
		m.content = seen
	}
	same(t, "the image", readAll(t, m.file, Auto), m.content)
	if m.format == Spgz {
		same(t, "the library's image", libraryRead(t, m.file), m.content)
	}
}

func (m *modelRun) compare(t *testing.T, tg *Target, want []byte) {
	t.Helper()
	got := noise(8, len(want)) // what is there must be overwritten, holes too
	if n, err := tg.ReadAt(got, 0); n != len(got) || err != nil {
		t.Fatalf("ReadAt of all %d bytes = %d, %v", len(got), n, err)
	}
	same(t, "the target", got, want)
	checkHoles(t, tg, want)
}

// step changes every block at once in some way, each from a goroutine of its own.
func (m *modelRun) step(t *testing.T, tg *Target, seen []byte) {
	var wg sync.WaitGroup
	for i, off := 0, 0; off < len(seen); i, off = i+1, off+m.blockSize {
		block := seen[off:min(len(seen), off+m.blockSize)]
		from := m.r.IntN(len(block))
		to := from + m.r.IntN(len(block)-from) + 1
		var change func() error
		switch m.r.IntN(6) {
		case 0: // left as it is
			continue
		case 1:
			fill(m.r, block)
			change = func() error { _, err := tg.WriteAt(block, int64(off)); return err }
		case 2:
			fill(m.r, block[from:to])
			change = func() error { _, err := tg.WriteAt(block[from:to], int64(off+from)); return err }
		case 3:
			clear(block)
			change = func() error { return tg.Punch(int64(off), int64(len(block))) }
		case 4:
			clear(block[from:to])
			change = func() error { return tg.Punch(int64(off+from), int64(to-from)) }
		case 5:
			fill(m.r, block)
			change = func() error { return m.writeEncoded(tg, i, block) }
		}
		wg.Go(func() {
			if err := change(); err != nil {
				t.Errorf("block %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	m.wideStep(t, tg, seen)
}

func (m *modelRun) writeEncoded(tg *Target, i int, block []byte) error {
	if m.format == Spgz {
		return tg.WriteSlot(int64(i), EncodeSlot(nil, block))
	}
	_, err := tg.WriteAt(block, int64(i*m.blockSize))
	return err
}

// wideStep writes or punches a range over several blocks.
func (m *modelRun) wideStep(t *testing.T, tg *Target, seen []byte) {
	if len(seen) == 0 {
		return
	}
	from := m.r.IntN(len(seen))
	to := from + m.r.IntN(len(seen)-from) + 1
	switch m.r.IntN(4) {
	case 0:
		clear(seen[from:to])
		must(t, tg.Punch(int64(from), int64(to-from)))
	case 1:
		fill(m.r, seen[from:to])
		if _, err := tg.WriteAt(seen[from:to], int64(from)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSizes takes every image from every size around the edges of blocks to
// every other one, without writing anything, as when a disk is resized.
func TestSizes(t *testing.T) {
	for _, rg := range fileRigs() {
		t.Run(rg.name, func(t *testing.T) {
			t.Parallel()
			sizeMatrix(t, rg)
		})
	}
}

func sizeMatrix(t *testing.T, rg rig) {
	bs := int64(rg.blockSize)
	sizes := []int64{0, 1, bs - 2000, bs - 1, bs, bs + 1, 2 * bs, 2*bs + 1}
	contents := map[string]func(int) []byte{"noise": func(n int) []byte { return noise(9, n) }}
	if rg.format == Spgz { // only there do slots differ
		contents["text"] = text
		contents["zeros"] = func(n int) []byte { return make([]byte, n) }
	}
	for _, content := range contents {
		for _, from := range sizes {
			for _, to := range sizes {
				resizeOne(t, rg, content(int(from)), to)
			}
		}
	}
}

func resizeOne(t *testing.T, rg rig, before []byte, to int64) {
	path := filepath.Join(t.TempDir(), "disk")
	writeImage(t, path, rg.opts, rg.blockSize, before)
	same(t, "before", readAll(t, path, Auto), before)
	tg := target(t, path, rg.opts)
	must(t, tg.Begin(to, rg.blockSize))
	if rg.tune != nil {
		rg.tune(t, tg.disk)
	}
	must(t, tg.Commit())
	must(t, tg.Close())
	want := resized(before, to)
	same(t, fmt.Sprintf("from %d to %d", len(before), to), readAll(t, path, Auto), want)
	if tg.Format() == Spgz {
		same(t, fmt.Sprintf("from %d to %d, library", len(before), to), libraryRead(t, path), want)
	}
}
