package merkle

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/blake2b"
)

// The naive model: the definitions of the package comment, word for word.

func naiveLeaf(block []byte) Hash {
	if len(bytes.Trim(block, "\x00")) == 0 {
		return Hash{}
	}
	return blake2b.Sum256(append([]byte{0}, block...))
}

func naiveNode(children []Hash) Hash {
	flat := []byte{1}
	zero := true
	for _, c := range children {
		flat = append(flat, c[:]...)
		zero = zero && c == Hash{}
	}
	if zero {
		return Hash{}
	}
	return blake2b.Sum256(flat)
}

func naiveLeaves(content []byte, blockSize int) (leaves []Hash) {
	for block := range slices.Chunk(content, blockSize) {
		leaves = append(leaves, naiveLeaf(block))
	}
	return leaves
}

func naiveRoot(leaves []Hash) Hash {
	if len(leaves) == 0 {
		return Hash{}
	}
	hashes := leaves
	for level := 0; level < 2 || len(hashes) > 1; level++ {
		var above []Hash
		for c := range slices.Chunk(hashes, 16) {
			above = append(above, naiveNode(c))
		}
		hashes = above
	}
	return hashes[0]
}

// memory is a Source that knows the holes it was given; bad are blocks that
// cannot be read.
type memory struct {
	content []byte
	data    []Extent
	bad     []Extent
}

var errBad = errors.New("bad sector")

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	for _, b := range m.bad {
		if off < b.End() && b.Offset < off+int64(len(p)) {
			return 0, errBad
		}
	}
	return copy(p, m.content[off:]), nil
}

func (m memory) NextData(off int64) (Extent, error) {
	for _, e := range m.data {
		if e.End() > off {
			from := max(off, e.Offset)
			return Extent{from, e.End() - from}, nil
		}
	}
	return Extent{}, io.EOF
}

func dense(content []byte) memory {
	if len(content) == 0 {
		return memory{}
	}
	return memory{content: content, data: []Extent{{0, int64(len(content))}}}
}

func geometry(t testing.TB, size int64, blockSize int) Geometry {
	t.Helper()
	g, err := NewGeometry(size, blockSize)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// build returns all leaves and the root of src.
func build(t testing.TB, g Geometry, src Source) (leaves []Hash, root Hash) {
	t.Helper()
	var acc Accumulator
	next := int64(0)
	err := Build(context.Background(), g, src, BuildOptions{}, func(r Region) error {
		if r.Index != next {
			return fmt.Errorf("region %d came where %d was due", r.Index, next)
		}
		next++
		if r.Leaves != nil && (len(r.Leaves) != g.RegionLen(r.Index) || AllZero(r.Leaves)) {
			return fmt.Errorf("region %d has %d leaves", r.Index, len(r.Leaves))
		}
		for i := range g.RegionLen(r.Index) {
			leaves = append(leaves, At(r.Leaves, i))
		}
		acc.Add(r.Root())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if next != g.Regions() {
		t.Fatalf("%d regions of %d", next, g.Regions())
	}
	return leaves, acc.Root()
}

func TestTreeOfEverySize(t *testing.T) {
	const blockSize = 2
	sizes := 5000 * blockSize
	if testing.Short() {
		sizes = 600 * blockSize
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, sizes)
	for i := range content {
		if i%1500 < 800 { // the rest are zeros, whole regions of them among others
			content[i] = byte(rnd.Uint32())
		}
	}
	full := naiveLeaves(content, blockSize)
	for size := range sizes + 1 {
		want := full[:size/blockSize]
		if size%blockSize != 0 {
			want = append(want[:len(want):len(want)], naiveLeaf(content[size-size%blockSize:size]))
		}
		leaves, root := build(t, geometry(t, int64(size), blockSize), dense(content[:size]))
		if !slices.Equal(leaves, want) {
			t.Fatalf("size %d: leaves differ", size)
		}
		if root != naiveRoot(want) {
			t.Fatalf("size %d: root %v, want %v", size, root, naiveRoot(want))
		}
	}
}

func TestAccumulatorOfEveryCount(t *testing.T) {
	var acc Accumulator
	var regions []Hash
	for n := range 5000 {
		want := Hash{}
		if n > 0 {
			hashes := regions
			for len(hashes) > 1 {
				var above []Hash
				for c := range slices.Chunk(hashes, 16) {
					above = append(above, naiveNode(c))
				}
				hashes = above
			}
			want = hashes[0]
		}
		if got := acc.Root(); got != want {
			t.Fatalf("%d regions: root %v, want %v", n, got, want)
		}
		h := Hash{byte(n), byte(n >> 8), 1}
		regions = append(regions, h)
		acc.Add(h)
	}
}

func TestHolesDoNotChangeTheTree(t *testing.T) {
	for seed := range uint64(400) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		blockSize := 1 + rnd.IntN(40)
		m := memory{content: make([]byte, rnd.IntN(30000))}
		for off := int64(0); ; {
			from := off + int64(rnd.IntN(1+rnd.IntN(4000)))
			length := int64(1 + rnd.IntN(1+rnd.IntN(900)))
			if from+length > int64(len(m.content)) {
				break
			}
			m.data = append(m.data, Extent{from, length})
			for i := from; i < from+length; i++ {
				if rnd.IntN(3) > 0 {
					m.content[i] = byte(rnd.Uint32())
				}
			}
			off = from + length + int64(rnd.IntN(2))
		}
		leaves, root := build(t, geometry(t, int64(len(m.content)), blockSize), m)
		if want := naiveLeaves(m.content, blockSize); !slices.Equal(leaves, want) || root != naiveRoot(want) {
			t.Fatalf("seed %d: the tree differs from the naive one", seed)
		}
	}
}

func TestRegionsOfARange(t *testing.T) {
	content := bytes.Repeat([]byte{1}, 5*RegionBlocks*4+9)
	g := geometry(t, int64(len(content)), 4)
	var got []int64
	err := Build(context.Background(), g, dense(content),
		BuildOptions{ScanOptions: ScanOptions{First: RegionBlocks + 5, End: 2*RegionBlocks + 1}},
		func(r Region) error { got = append(got, r.Index); return nil })
	if err != nil || !slices.Equal(got, []int64{1, 2}) {
		t.Fatalf("regions %v, error %v", got, err)
	}
}

func TestUnreadableBlocks(t *testing.T) {
	content := bytes.Repeat([]byte{7}, 1000)
	g := geometry(t, 1000, 10)
	m := dense(content)
	m.bad = []Extent{{35, 1}, {990, 10}}
	var mu sync.Mutex
	var said []int64
	opt := BuildOptions{ScanOptions: ScanOptions{Unreadable: func(block int64, err error) error {
		if !errors.Is(err, errBad) {
			t.Errorf("block %d: %v", block, err)
		}
		mu.Lock()
		defer mu.Unlock()
		said = append(said, block)
		return nil
	}}}
	err := Build(context.Background(), g, m, opt, func(r Region) error {
		for i, leaf := range r.Leaves {
			if bad := i == 3 || i == 99; (leaf == Unknown) != bad {
				t.Errorf("block %d: leaf %v", i, leaf)
			}
		}
		return nil
	})
	slices.Sort(said)
	if err != nil || !slices.Equal(said, []int64{3, 99}) {
		t.Fatalf("unreadable: %v, error %v", said, err)
	}
	if err := Build(context.Background(), g, m, BuildOptions{}, func(Region) error { return nil }); !errors.Is(err, errBad) {
		t.Fatalf("without Unreadable: %v", err)
	}
}

func TestScanStopsAtErrors(t *testing.T) {
	before := runtime.NumGoroutine()
	content := bytes.Repeat([]byte{7}, 1<<20)
	g := geometry(t, 1<<20, 64)
	boom := errors.New("boom")
	nothing := func(*Run) error { return nil }
	for name, scan := range map[string]func() error{
		"emit": func() error {
			return Scan(context.Background(), g, dense(content), ScanOptions{}, func(r *Run) error {
				if r.First > 500 {
					return boom
				}
				return nil
			})
		},
		"each": func() error {
			return Scan(context.Background(), g, dense(content), ScanOptions{Each: func(r *Run) error {
				if r.First > 500 {
					return boom
				}
				return nil
			}}, nothing)
		},
		"context": func() error {
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			err := Scan(ctx, g, dense(content), ScanOptions{}, func(r *Run) error { cancel(boom); return nil })
			if errors.Is(err, context.Canceled) {
				return context.Cause(ctx)
			}
			return err
		},
		"source": func() error {
			m := dense(content)
			m.bad = []Extent{{1 << 19, 1}}
			if err := Scan(context.Background(), g, m, ScanOptions{}, nothing); !errors.Is(err, errBad) {
				return err
			}
			return boom
		},
		"extent": func() error {
			m := dense(content)
			m.data[0].Length = 0
			if err := Scan(context.Background(), g, backward{m}, ScanOptions{}, nothing); err == nil {
				return nil
			}
			return boom
		},
	} {
		if err := scan(); !errors.Is(err, boom) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	for range 100 { // Scan promises that nothing is left running
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines before, %d after", before, runtime.NumGoroutine())
}

// backward is a Source that would make a scan go around in circles.
type backward struct{ memory }

func (backward) NextData(off int64) (Extent, error) { return Extent{off - 10, 5}, nil }

func TestPagesTileTheirBlock(t *testing.T) {
	for _, blockSize := range []int{1, 100, 4095, 4096, 4097, 12287, 131071, 131072} {
		g := geometry(t, int64(blockSize)*40+int64(blockSize)/3+1, blockSize)
		for i := range g.Blocks() {
			block, at := g.Block(i), int64(0)
			for p := range g.Pages(i) {
				e := g.Page(i, p)
				onGrid := (block.Offset+e.Offset)%PageSize == 0 || e.Offset == 0
				if e.Offset != at || e.Length < 1 || e.Length > PageSize || !onGrid {
					t.Fatalf("block size %d, block %d, page %d: %+v", blockSize, i, p, e)
				}
				at = e.End()
			}
			if at != block.Length {
				t.Fatalf("block size %d, block %d: pages cover %d of %d", blockSize, i, at, block.Length)
			}
		}
	}
}

func TestPageHashes(t *testing.T) {
	g := geometry(t, 131071*2, 131071)
	data := bytes.Repeat([]byte{5}, 131071)
	a := NewPageHasher([16]byte{1}).Block(nil, g, 1, data)
	data[70000]++
	b := NewPageHasher([16]byte{1}).Block(nil, g, 1, data)
	var differ []int
	for p := range a {
		if a[p] != b[p] {
			differ = append(differ, p)
		}
	}
	if at := int((131071+70000)/PageSize - 131071/PageSize); len(a) != 33 || !slices.Equal(differ, []int{at}) {
		t.Errorf("%d pages, differing %v, want %d", len(a), differ, at)
	}
	if c := NewPageHasher([16]byte{2}).Block(nil, g, 1, data); c[5] == b[5] {
		t.Error("the key does not matter")
	}
}

func TestGeometryBounds(t *testing.T) {
	for _, c := range []struct {
		size      int64
		blockSize int
		ok        bool
	}{{0, 1, true}, {-1, 1, false}, {MaxSize, 1, true}, {MaxSize + 1, 1, false}, {1, 0, false}, {1, -1, false}, {1, MaxBlockSize, true}, {1, MaxBlockSize + 1, false}} {
		if _, err := NewGeometry(c.size, c.blockSize); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
	g := geometry(t, MaxSize, 1)
	if got := g.Block(g.Blocks() - 1).End(); got != MaxSize {
		t.Errorf("end of the largest image: %d", got)
	}
	for level, want := range []int64{600, 38, 3, 1} {
		if got := geometry(t, 600*7-3, 7).Nodes(level); got != want {
			t.Errorf("level %d: %d nodes, want %d", level, got, want)
		}
	}
	g = geometry(t, 600*7-3, 7)
	for _, c := range []struct {
		level int
		i     int64
		want  int
	}{{1, 0, 16}, {1, 37, 8}, {1, 38, 0}, {2, 2, 6}, {2, -1, 0}, {3, 0, 3}} {
		if got := g.Children(c.level, c.i); got != c.want {
			t.Errorf("node %d of level %d: %d children, want %d", c.i, c.level, got, c.want)
		}
	}
}

func TestDiff(t *testing.T) {
	a, b := []Hash{{1}, {}, {3}}, []Hash{{1}, {2}, {4}}
	for _, c := range []struct {
		a, b []Hash
		want []int
	}{{a, b, []int{1, 2}}, {a, a, nil}, {nil, b, []int{0, 1, 2}}, {a, nil, []int{0, 2}}, {nil, nil, nil}} {
		if got := Diff(c.a, c.b); !slices.Equal(got, c.want) {
			t.Errorf("Diff(%v, %v) = %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

func TestDigestBindsSizeAndBlockSize(t *testing.T) {
	seen := map[Hash]bool{}
	for _, g := range []Geometry{geometry(t, 1, 1), geometry(t, 2, 1), geometry(t, 1, 2), geometry(t, 0, 1)} {
		seen[g.Digest(Hash{})] = true
		seen[g.Digest(Hash{1})] = true
	}
	if len(seen) != 8 {
		t.Errorf("%d digests of 8", len(seen))
	}
}

// A fixed digest, so that no change of the definitions goes unnoticed: images
// are compared across machines and years.
func TestGoldenDigest(t *testing.T) {
	content := make([]byte, 1_000_003)
	for i := range content {
		if i/4096%3 > 0 {
			content[i] = byte(i * 7)
		}
	}
	g := geometry(t, int64(len(content)), 1000)
	_, root := build(t, g, dense(content))
	const want = "ddc13cc032846ae4f755ce02f37b72d0b45d7ff7c9a5d9f835b676a0b44c8f72"
	if got := g.Digest(root).String(); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	flat := []byte{2}
	flat = binary.LittleEndian.AppendUint64(flat, 1_000_003)
	flat = binary.LittleEndian.AppendUint64(flat, 1000)
	naive := naiveRoot(naiveLeaves(content, 1000))
	if got := Hash(blake2b.Sum256(append(flat, naive[:]...))); got.String() != want {
		t.Errorf("naive digest %s, want %s", got, want)
	}
}

func BenchmarkLeaf(b *testing.B) {
	block := make([]byte, DefaultBlockSize)
	block[len(block)-1] = 1 // not zero, but the zero check has to look at all of it
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		Leaf(block)
	}
}

// BenchmarkBuild is to be read against BenchmarkLeaf: on n cores it should be
// close to n times as fast.
func BenchmarkBuild(b *testing.B) {
	content := make([]byte, 256<<20)
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := 0; i < len(content); i += 512 {
		content[i] = byte(rnd.Uint32()) | 1
	}
	g := geometry(b, int64(len(content)), DefaultBlockSize)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		build(b, g, dense(content))
	}
}

// BenchmarkBuildHole shows what 8 TiB of nothing cost.
func BenchmarkBuildHole(b *testing.B) {
	g := geometry(b, 8<<40, 131071)
	for b.Loop() {
		err := Build(context.Background(), g, memory{}, BuildOptions{}, func(Region) error { return nil })
		if err != nil {
			b.Fatal(err)
		}
	}
}
