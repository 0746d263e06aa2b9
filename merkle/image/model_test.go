package image

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/diskrsync/diskrsync/merkle"
)

// A rig is a kind of image that the conformance suites run over.
type rig struct {
	name      string
	opts      TargetOptions
	format    Format
	blockSize int
	fixed     int64                       // size of a device, 0 for files
	path      func(t *testing.T) string   // of a place for one image
	tune      func(t *testing.T, d *disk) // switches to a fallback, or nil
}

// choice is what a user says of the image who wants to be sure.
func (rg *rig) choice() Choice {
	if rg.format == Spgz {
		return AsSpgz
	}
	return AsRaw
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

// TestContentConformance changes the content of a file as no sync would, in ranges
// of bytes anywhere.
func TestContentConformance(t *testing.T) {
	for _, rg := range fileRigs() {
		t.Run(rg.name, func(t *testing.T) {
			t.Parallel()
			rg.eachSeed(t, 40, func(t *testing.T, r *rand.Rand) {
				m := &contentRun{rig: rg, r: r, file: rg.path(t)}
				for range 4 {
					m.change(t)
				}
			})
		})
	}
}

// eachSeed runs a test with many random numbers.
func (rg *rig) eachSeed(t *testing.T, seeds int, do func(t *testing.T, r *rand.Rand)) {
	if rg.blockSize > 100_000 {
		seeds /= 4 // they take ten times as long
	}
	if testing.Short() {
		seeds = min(seeds, 5)
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { do(t, newRand(uint64(seed))) })
	}
}

// contentRun is a file beside the bytes that it must hold.
type contentRun struct {
	rig
	r    *rand.Rand
	file string
	want []byte
}

// randomSize returns a size, often close to a multiple of the block size.
func randomSize(r *rand.Rand, blockSize int) int64 {
	bs := int64(blockSize)
	size := r.Int64N(6) * bs
	switch r.IntN(4) {
	case 0:
		size += r.Int64N(bs)
	case 1:
		size += r.Int64N(5) - 2
	}
	return max(0, size)
}

// body opens a file, or makes one, whose content is of a format.
func body(t *testing.T, path string, format Format, blockSize int) content {
	t.Helper()
	p := place(t, path)
	f, err := p.root.OpenFile(p.name, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	d, err := newDisk(f, path)
	must(t, err)
	if format == Spgz && d.held == 0 {
		_, err = d.writeAt(encodeHeader(blockSize), 0)
		must(t, err)
	}
	body, err := bodyOf(d, format, blockSize)
	must(t, err)
	return body
}

// diskOf returns the disk below a content.
func diskOf(body content) *disk {
	if s, ok := body.(*slots); ok {
		return s.disk
	}
	return body.(*flat).disk
}

// change gives the file another size and content, and compares what every reader
// then finds.
func (m *contentRun) change(t *testing.T) {
	body := body(t, m.file, m.format, m.blockSize)
	if m.tune != nil {
		m.tune(t, diskOf(body))
	}
	if body.Size() != int64(len(m.want)) {
		t.Fatalf("holds %d bytes, want %d", body.Size(), len(m.want))
	}
	m.want = resized(m.want, randomSize(m.r, m.blockSize))
	body.resize(int64(len(m.want)))
	compare(t, body, m.want)
	for range 3 {
		m.step(t, body)
		compare(t, body, m.want)
	}
	must(t, body.settle())
	must(t, diskOf(body).f.Close())
	if m.format == Spgz {
		same(t, "the library's image", libraryRead(t, m.file), m.want)
	}
	same(t, "the image", readAll(t, m.file, m.choice()), m.want)
}

// compare checks what src holds.
func compare(t *testing.T, src merkle.Source, want []byte) {
	t.Helper()
	got := noise(8, len(want)) // what is there must be overwritten, holes too
	if n, err := src.ReadAt(got, 0); n != len(got) || err != nil {
		t.Fatalf("ReadAt of all %d bytes = %d, %v", len(got), n, err)
	}
	same(t, "what is seen", got, want)
	checkHoles(t, src, want)
}

// step changes every block at once in some way, each from a goroutine of its own.
func (m *contentRun) step(t *testing.T, body content) {
	var wg sync.WaitGroup
	for i, off := int64(0), 0; off < len(m.want); i, off = i+1, off+m.blockSize {
		block := m.want[off:min(len(m.want), off+m.blockSize)]
		from := m.r.IntN(len(block))
		to := from + m.r.IntN(len(block)-from) + 1
		var change func() error
		switch m.r.IntN(6) {
		case 0: // left as it is
			continue
		case 1:
			fill(m.r, block)
			change = func() error { _, err := body.WriteAt(block, int64(off)); return err }
		case 2:
			fill(m.r, block[from:to])
			change = func() error { _, err := body.WriteAt(block[from:to], int64(off+from)); return err }
		case 3:
			clear(block)
			change = func() error { return body.Punch(int64(off), int64(len(block))) }
		case 4:
			clear(block[from:to])
			change = func() error { return body.Punch(int64(off+from), int64(to-from)) }
		case 5:
			fill(m.r, block)
			change = func() error { return storeEncoded(body, i, int64(off), block) }
		}
		wg.Go(func() {
			if err := change(); err != nil {
				t.Errorf("block %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	m.wideStep(t, body)
}

func storeEncoded(body content, i, off int64, block []byte) error {
	if s, ok := body.(*slots); ok {
		return s.storeSlot(i, EncodeSlot(nil, block))
	}
	_, err := body.WriteAt(block, off)
	return err
}

// wideStep writes or punches a range over several blocks.
func (m *contentRun) wideStep(t *testing.T, body content) {
	if len(m.want) == 0 {
		return
	}
	from := m.r.IntN(len(m.want))
	to := from + m.r.IntN(len(m.want)-from) + 1
	switch m.r.IntN(4) {
	case 0:
		clear(m.want[from:to])
		must(t, body.Punch(int64(from), int64(to-from)))
	case 1:
		fill(m.r, m.want[from:to])
		_, err := body.WriteAt(m.want[from:to], int64(from))
		must(t, err)
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
	same(t, "before", readAll(t, path, rg.choice()), before)
	want := resized(before, to)
	tg := target(t, path, rg.opts)
	if rg.tune != nil && tg.disk != nil {
		rg.tune(t, tg.disk)
	}
	update(t, tg, rg.blockSize, want)
	must(t, tg.Close())
	same(t, fmt.Sprintf("from %d to %d", len(before), to), readAll(t, path, rg.choice()), want)
	if tg.Format() == Spgz {
		same(t, fmt.Sprintf("from %d to %d, library", len(before), to), libraryRead(t, path), want)
	}
}
