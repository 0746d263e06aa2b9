package session_test

import (
	"bytes"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// What the hostile tests are about: an image of three regions, whose blocks have
// two pages each.
const (
	hostileBlock  = 8192
	hostileBlocks = 2*merkle.RegionBlocks + 88
	hostileSize   = hostileBlocks*hostileBlock - 100
)

func hostileImage(t testing.TB) tree { return treeOf(t, noise(hostileSize), hostileBlock) }

// greeted has a target that holds hostileSize bytes and has told all of its
// roots.
func greeted(t testing.TB, x tree) (*peer, *disk) {
	t.Helper()
	old := bytes.Clone(x.content)
	for i := 0; i < len(old); i += hostileBlock {
		old[i]++
	}
	dst := rawDisk(old)
	p := opposeTarget(t, 0, dst)
	p.send(&wire.Hello{Size: hostileSize, BlockSize: hostileBlock})
	await[*wire.Accept](p)
	for n := 0; n < int(x.Regions()); {
		n += len(await[*wire.Roots](p).Hashes)
	}
	return p, dst
}

// A frame by a hostile source that must end the session with an error that says
// want.
type attack struct {
	name string
	send []wire.Message
	want string
}

func list(m ...wire.Message) []wire.Message { return m }

// upTo returns n indexes from 0 on.
func upTo(n int64) []int64 {
	var all []int64
	for i := range n {
		all = append(all, i)
	}
	return all
}

func patch(index int64, leaf merkle.Hash, pages []byte, data []byte) *wire.Patch {
	return &wire.Patch{Blocks: []wire.PatchedBlock{{Index: index, Leaf: leaf, Pages: pages}}, Data: data}
}

func indexAttacks(x tree) []attack {
	last, page := int64(hostileBlocks), make([]byte, merkle.PageSize)
	attacks := []attack{
		{"expand a region behind the last", list(&wire.Expand{Level: 2, Nodes: []int64{3}}), "does not exist"},
		{"expand a node behind the last", list(&wire.Expand{Level: 1, Nodes: []int64{38}}), "does not exist"},
		{"expand far away", list(&wire.Expand{Level: 1, Nodes: []int64{merkle.MaxSize}}), "does not exist"},
		{"expand too many", list(&wire.Expand{Level: 1, Nodes: upTo(513)}), "at once"},
		{"ask for too many pages", list(&wire.AskPages{Blocks: upTo(257)}), "at once"},
		{"advance to where it is", list(&wire.Advance{}), "advanced"},
		{"advance twice to one place", list(&wire.Advance{Through: 1}, &wire.Advance{Through: 1}), "advanced"},
		{"advance backwards", list(&wire.Advance{Through: 2}, &wire.Advance{Through: 1}), "advanced"},
		{"advance too far", list(&wire.Advance{Through: 4}), "advanced"},
		{"expand what is settled", list(&wire.Advance{Through: 1}, &wire.Expand{Level: 2, Nodes: []int64{0}}), "not in flight"},
		{"expand below what is settled", list(&wire.Advance{Through: 1}, &wire.Expand{Level: 1, Nodes: []int64{15, 16}}), "not in flight"},
		{"a block of what is settled", list(&wire.Advance{Through: 1}, x.block(255)), "not in flight"},
		{"pages of what is settled", list(&wire.Advance{Through: 1}, &wire.AskPages{Blocks: []int64{255, 256}}), "not in flight"},
		{"holes in what is settled", list(&wire.Advance{Through: 1}, &wire.Holes{Blocks: []int64{256, 300}}, &wire.Holes{Blocks: []int64{255}}), "not in flight"},
		{"a patch of what is settled", list(&wire.Advance{Through: 3}, patch(0, x.leaves[0], []byte{1}, page)), "not in flight"},
	}
	for _, i := range []int64{last, merkle.MaxSize} {
		attacks = append(attacks, []attack{
			{"block out of range", list(&wire.Block{Index: i, Leaf: x.leaves[0], Data: x.data(0)}), "block"},
			{"hole out of range", list(&wire.Holes{Blocks: []int64{i}}), "block"},
			{"pages out of range", list(&wire.AskPages{Blocks: []int64{0, i}}), "block"},
			{"patch out of range", list(patch(i, x.leaves[0], []byte{1}, page)), "block"},
		}...)
	}
	return attacks
}

func repeatAttacks(x tree) []attack {
	page := make([]byte, merkle.PageSize)
	twice := patch(5, x.leaves[5], []byte{1}, page)
	twice.Blocks = append(twice.Blocks, twice.Blocks[0])
	return []attack{
		{"a block twice", list(x.block(5), x.block(5)), "twice"},
		{"a hole twice", list(&wire.Holes{Blocks: []int64{5}}, &wire.Holes{Blocks: []int64{5}}), "twice"},
		{"a block and its hole", list(x.block(5), &wire.Holes{Blocks: []int64{4, 5}}), "twice"},
		{"a hole and its patch", list(&wire.Holes{Blocks: []int64{5}}, patch(5, x.leaves[5], []byte{1}, page)), "twice"},
		{"a block twice in a patch", list(twice), "twice"},
		{"finish early", list(&wire.Finish{Digest: x.digest()}), "finished after 0 of 3"},
		{"finish a region early", list(&wire.Advance{Through: 2}, &wire.Finish{Digest: x.digest()}), "finished after 2 of 3"},
		{"finish with the source's digest and the target's content", list(&wire.Advance{Through: 3}, &wire.Finish{Digest: x.digest()}), "digest"},
		{"finish twice", list(patch(0, merkle.Hash{1}, []byte{1}, page), &wire.Advance{Through: 3}, &wire.Finish{}, &wire.Finish{}, &wire.Finish{}), "finished twice"},
	}
}

func contentAttacks(t testing.TB, x tree) []attack {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	bomb := make([]byte, 64<<20)
	page, zero := make([]byte, merkle.PageSize), make([]byte, hostileBlock)
	block := func(e wire.Encoding, leaf merkle.Hash, data []byte) []wire.Message {
		return list(&wire.Block{Index: 3, Leaf: leaf, Encoding: e, Data: data})
	}
	leaf, sound := x.leaves[3], x.data(3)
	longer := append(bytes.Clone(sound), 0)
	attacks := []attack{
		{"another leaf", block(wire.Plain, x.leaves[4], sound), "damaged"},
		{"a zero block", block(wire.Plain, merkle.Hash{}, zero), "damaged"},
		{"a zero leaf", block(wire.Plain, merkle.Hash{}, sound), "damaged"},
		{"the leaf of what is unreadable", block(wire.Plain, merkle.Unknown, sound), "damaged"},
		{"slot of another flag", block(wire.Slot, leaf, append([]byte{2}, sound...)), "flag"},
		{"slot that is cut off", block(wire.Slot, leaf, gzipSlot(t, sound)[:4000]), "cannot be unpacked"},
		{"slot of a bomb", block(wire.Slot, leaf, gzipSlot(t, bomb)), "cannot be unpacked"},
		{"zstd bomb", block(wire.Zstd, leaf, enc.EncodeAll(bomb, nil)), "cannot be unpacked"},
		{"zstd that is cut off", block(wire.Zstd, leaf, enc.EncodeAll(sound, nil)[:4000]), "cannot be unpacked"},
		{"what is not zstd", block(wire.Zstd, leaf, sound), "cannot be unpacked"},
		{"patch of a bomb", list(&wire.Patch{Blocks: []wire.PatchedBlock{{Leaf: leaf, Pages: []byte{1}}}, Encoding: wire.Zstd, Data: enc.EncodeAll(bomb, nil)}), "cannot be unpacked"},
		{"patch without a bitmap", list(patch(3, leaf, nil, page)), "bitmap"},
		{"patch without a page", list(patch(3, leaf, []byte{0}, nil)), "bitmap"},
		{"patch of a page that does not exist", list(patch(3, leaf, []byte{4}, page)), "bitmap"},
		{"patch of too long a bitmap", list(patch(3, leaf, []byte{1, 0}, page)), "bitmap"},
		{"patch of too little data", list(patch(3, leaf, []byte{3}, page)), "cannot be unpacked"},
		{"patch of too much data", list(patch(3, leaf, []byte{1}, append(page, 1))), "cannot be unpacked"},
		{"patch of more than fits", list(hugePatch()), "bytes"},
	}
	for _, data := range [][]byte{nil, sound[1:], longer, sound[:1]} {
		attacks = append(attacks, []attack{
			{"plain of another length", block(wire.Plain, leaf, data), "cannot be unpacked"},
			{"zstd of another length", block(wire.Zstd, leaf, enc.EncodeAll(data, nil)), "cannot be unpacked"},
			{"gzip slot of another length", block(wire.Slot, leaf, gzipSlot(t, data)), "cannot be unpacked"},
			{"raw slot of another length", block(wire.Slot, leaf, append([]byte{0}, data...)), "cannot be unpacked"},
		}...)
	}
	return append(attacks, attack{"empty slot", block(wire.Slot, leaf, nil), "cannot be unpacked"})
}

// hugePatch marks more pages than a frame may carry.
func hugePatch() *wire.Patch {
	m := &wire.Patch{Data: []byte{1}, Encoding: wire.Zstd}
	for i := range int64(256) {
		m.Blocks = append(m.Blocks, wire.PatchedBlock{Index: i, Pages: []byte{3}})
	}
	return m
}

func gzipSlot(t testing.TB, data []byte) []byte {
	t.Helper()
	out := bytes.NewBuffer([]byte{1})
	w := gzip.NewWriter(out)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestHostileSource(t *testing.T) {
	left := noGoroutinesLeft(t)
	x := hostileImage(t)
	for _, a := range slices.Concat(indexAttacks(x), repeatAttacks(x), contentAttacks(t, x)) {
		t.Run(a.name, func(t *testing.T) {
			p, dst := greeted(t, x)
			p.send(a.send...)
			p.fails(a.want)
			if dst.committed {
				t.Error("committed")
			}
		})
	}
	left()
}

// In a dry run nothing is written, whatever the source sends.
func TestDryRunTakesNoContent(t *testing.T) {
	x := hostileImage(t)
	for _, m := range []wire.Message{
		&wire.Holes{Blocks: []int64{7}},
		x.block(7),
		patch(7, x.leaves[7], []byte{1}, x.data(7)[:merkle.PageSize]),
	} {
		t.Run(kindName(m), func(t *testing.T) {
			dst := rawDisk(other(t, x).content)
			p := opposeTarget(t, 0, dst)
			p.send(&wire.Hello{Size: hostileSize, BlockSize: hostileBlock, DryRun: true})
			await[*wire.Accept](p)
			for n := 0; n < int(x.Regions()); {
				n += len(await[*wire.Roots](p).Hashes)
			}
			p.send(m, &wire.Advance{Through: 3}, &wire.Finish{})
			if _, err := p.end(); err == nil || !bytes.Equal(dst.content, other(t, x).content) {
				t.Errorf("returned %v, the same content %v", err, bytes.Equal(dst.content, other(t, x).content))
			}
		})
	}
}

// What unfolds to more than it may must not be unfolded.
func TestBombsCostNoMemory(t *testing.T) {
	x := hostileImage(t)
	for _, a := range contentAttacks(t, x) {
		if !strings.Contains(a.name, "bomb") {
			continue
		}
		p, _ := greeted(t, x)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		p.send(a.send...)
		p.fails(a.want)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 16<<20 {
			t.Errorf("%s: %d MiB allocated", a.name, got>>20)
		}
	}
}

// neverFromSource are the kinds that only a target or an agent sends, and those
// that only begin a session.
var neverFromSource = []string{"Request", "Opened", "Hello", "Accept", "Roots", "Hashes", "Pages", "Refetch", "Done", "Info", "Bad"}

// Whatever comes whenever: the target ends with an error once the source goes,
// and with one that names the message if no source ever sends it there.
func TestTargetInEveryState(t *testing.T) {
	x := hostileImage(t)
	states := []struct {
		name  string
		reach func() (*peer, *disk)
		want  string
	}{
		{"before Hello", func() (*peer, *disk) {
			dst := &disk{format: image.Raw}
			return opposeTarget(t, 0, dst), dst
		}, "began with"},
		{"after the roots", func() (*peer, *disk) { return greeted(t, x) }, "out of turn"},
		{"after a region", func() (*peer, *disk) {
			p, dst := greeted(t, x)
			p.send(&wire.Advance{Through: 1})
			return p, dst
		}, "out of turn"},
		{"waiting for a refetched block", func() (*peer, *disk) {
			p, dst := greeted(t, x)
			p.send(patch(0, x.leaves[0], []byte{2}, make([]byte, merkle.PageSize)))
			await[*wire.Refetch](p)
			p.send(&wire.Advance{Through: 3}, &wire.Finish{Digest: x.digest()})
			return p, dst
		}, "out of turn"},
	}
	for _, state := range states {
		for _, m := range everyKind() {
			name := kindName(m)
			t.Run(state.name+"/"+name, func(t *testing.T) {
				p, dst := state.reach()
				p.send(m)
				if slices.Contains(neverFromSource, name) && !(state.want == "began with" && name == "Hello") {
					err := p.wait()
					if err == nil || !strings.Contains(err.Error(), state.want) || !strings.Contains(err.Error(), name) {
						t.Errorf("returned %v", err)
					}
				}
				// What is legal in this state must not end well either.
				p.carrier.Close()
				if _, err := p.end(); err == nil || dst.committed {
					t.Errorf("returned %v, committed %v", err, dst.committed)
				}
			})
		}
	}
}

// The target has told the root of the first region only, and nothing else of it
// may be used.
func TestAheadOfTheRoots(t *testing.T) {
	x := hostileImage(t)
	for _, a := range []attack{
		{"block", list(x.block(300)), "not in flight"},
		{"hole", list(&wire.Holes{Blocks: []int64{300}}), "not in flight"},
		{"expand", list(&wire.Expand{Level: 2, Nodes: []int64{1}}), "not in flight"},
		{"advance", list(&wire.Advance{Through: 2}), "advanced"},
		{"finish", list(&wire.Finish{}), "finished"},
	} {
		t.Run(a.name, func(t *testing.T) {
			release := make(chan struct{})
			dst := rawDisk(x.content)
			slow := &slowTarget{disk: dst, from: merkle.RegionBlocks * hostileBlock, release: release}
			p := opposeTarget(t, 0, slow)
			p.send(&wire.Hello{Size: hostileSize, BlockSize: hostileBlock})
			await[*wire.Accept](p)
			await[*wire.Roots](p)
			p.send(a.send...)
			told := await[*wire.Error](p)
			close(release)
			if _, err := p.end(); err == nil || !strings.Contains(err.Error(), a.want) || !strings.Contains(told.Text, a.want) || dst.committed {
				t.Errorf("returned %v, said %q, committed %v", err, told.Text, dst.committed)
			}
		})
	}
}

// slowTarget makes reads from an offset on wait.
type slowTarget struct {
	*disk
	from    int64
	release chan struct{}
}

func (s *slowTarget) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.from {
		<-s.release
	}
	return s.disk.ReadAt(p, off)
}

// No block is taken too far ahead of what is settled, even where the target has
// nothing to tell.
func TestBeyondTheWindow(t *testing.T) {
	const regions = 5000
	for _, c := range []struct {
		block int64
		want  string
	}{{2048 * merkle.RegionBlocks, "not in flight"}, {regions*merkle.RegionBlocks - 1, "not in flight"}} {
		p := opposeTarget(t, 0, &disk{format: image.Raw, sparse: true})
		p.send(&wire.Hello{Size: regions * merkle.RegionBlocks, BlockSize: 1})
		await[*wire.Accept](p)
		p.send(&wire.Block{Index: c.block, Leaf: merkle.Leaf([]byte{1}), Data: []byte{1}})
		p.fails(c.want)
	}
}

func TestAbsurdHello(t *testing.T) {
	for _, m := range []*wire.Hello{{Size: merkle.MaxSize, BlockSize: 1}, {Size: merkle.MaxSize}, {Size: merkle.MaxSize, BlockSize: merkle.MaxBlockSize}, {BlockSize: 1}} {
		before := heap()
		dst := &disk{format: image.Raw, sparse: true}
		p := opposeTarget(t, 0, dst)
		p.send(m)
		if a := await[*wire.Accept](p); a.Held != 0 || a.BlockSize < 1 {
			t.Errorf("%+v answered with %+v", m, a)
		}
		if grown := heap() - before; grown > 16<<20 {
			t.Errorf("%+v: %d MiB", m, grown>>20)
		}
		p.carrier.Close()
		if _, err := p.end(); err == nil || dst.committed {
			t.Errorf("%+v: returned %v, committed %v", m, err, dst.committed)
		}
	}
}

func TestSilentSource(t *testing.T) {
	for name, begin := range map[string][]wire.Message{
		"from the start": nil,
		"after hello":    {&wire.Hello{Size: 100, BlockSize: 10}},
	} {
		p := opposeTarget(t, 100*time.Millisecond, &disk{format: image.Raw})
		p.send(begin...)
		if _, err := p.end(); err == nil || !strings.Contains(err.Error(), "nothing heard") {
			t.Errorf("%s: returned %v", name, err)
		}
	}
}

// A flood of messages that are sound costs the target no memory.
func TestTargetMemoryBoundedAgainstFlood(t *testing.T) {
	x := hostileImage(t)
	for _, m := range []wire.Message{
		&wire.Expand{Level: 1, Nodes: upTo(38)},
		&wire.AskPages{Blocks: upTo(256)},
		&wire.Holes{},
		&wire.Progress{},
	} {
		t.Run(kindName(m), func(t *testing.T) {
			p, dst := greeted(t, x)
			go func() {
				for p.next() != nil {
				}
			}()
			before := heap()
			for range 300 {
				p.send(m)
			}
			if grown := heap() - before; grown > 32<<20 {
				t.Errorf("%d MiB grown", grown>>20)
			}
			p.carrier.Close()
			if err := p.wait(); err == nil || dst.committed {
				t.Errorf("returned %v, committed %v", err, dst.committed)
			}
		})
	}
}
