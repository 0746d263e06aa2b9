package session_test

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// What these tests are about: an image of four regions, the third of which is
// zeros, in blocks of two pages.
const (
	storedBlock   = 8192
	storedRegion  = storedBlock * merkle.RegionBlocks
	storedContent = 3*storedRegion + 90*storedBlock + 1000
)

func storedNoise() []byte {
	p := noise(storedContent)
	clear(p[2*storedRegion : 3*storedRegion])
	return p
}

// knowing returns a target that holds content and knows of its hashes.
func knowing(t testing.TB, content []byte) *disk {
	d := rawDisk(content)
	d.stored = storedOf(t, content, storedBlock)
	return d
}

// knownSource returns a source that knows of its hashes.
func knownSource(t testing.TB, content []byte) *disk {
	return &disk{content: bytes.Clone(content), stored: storedOf(t, content, storedBlock)}
}

// synced runs a session that must end well.
func synced(t *testing.T, src, dst *disk) outcome {
	t.Helper()
	o := runSession(t, src, dst, session.Options{}, nil)
	must(t, o.err())
	if !dst.committed || !bytes.Equal(dst.content, src.content) {
		t.Fatal("the target is not what the source is")
	}
	if o.source.Digest != treeOf(t, src.content, o.source.BlockSize).digest() || o.source.Digest != o.target.Digest {
		t.Errorf("digests %v and %v", o.source.Digest, o.target.Digest)
	}
	return o
}

func regions(d *disk) []int64 { return slices.Sorted(maps.Keys(d.settled)) }

// What is stored is not read, on either side.
func TestNothingIsReadOfWhatIsStored(t *testing.T) {
	content := storedNoise()
	for name, c := range map[string]struct{ src, dst *disk }{
		"target": {&disk{content: content}, knowing(t, content)},
		"source": {knownSource(t, content), rawDisk(content)},
		"both":   {knownSource(t, content), knowing(t, content)},
	} {
		t.Run(name, func(t *testing.T) {
			o := synced(t, c.src, c.dst)
			for who, d := range map[string]*disk{"source": c.src, "target": c.dst} {
				n := o.source.Source
				if who == "target" {
					n = o.target.Target
				}
				if n.Scanned != storedContent {
					t.Errorf("the %s scanned %d bytes", who, n.Scanned)
				}
				if d.stored != nil && (d.read != 0 || d.looked != 0 || n.Read != 0 || n.Hashed != 0 || len(d.stored.asked) > 0) {
					t.Errorf("the %s was read: %d bytes, %d looks, %+v, leaves of %d", who, d.read, d.looked, n, d.stored.asked)
				}
				if d.stored == nil && n.Read < storedContent-storedRegion {
					t.Errorf("the %s read %d bytes only", who, n.Read)
				}
			}
			if c.dst.stored != nil && len(c.dst.settled) > 0 {
				t.Errorf("settled %d", regions(c.dst))
			}
		})
	}
}

// A block changes, one becomes a hole, and one is no hole any more: only these
// are read, and only their regions settled.
func TestOnlyChangesAreRead(t *testing.T) {
	old := storedNoise()
	now := bytes.Clone(old)
	now[5*storedBlock]++
	clear(now[9*storedBlock : 10*storedBlock])
	copy(now[2*storedRegion:], "no hole")
	for _, sourceKnows := range []bool{false, true} {
		src, dst := &disk{content: now}, knowing(t, old)
		if sourceKnows {
			src = knownSource(t, now)
		}
		o := synced(t, src, dst)
		if n := o.source.Source; n.Changed != 1 || n.Patched != 1 || n.Holes != 1 {
			t.Errorf("the source says %+v", n)
		}
		// For its pages and to be patched.
		if dst.read != 2*storedBlock || dst.looked != 0 || o.target.Target.Read != dst.read {
			t.Errorf("%d bytes read of the target, %d looks, %+v", dst.read, dst.looked, o.target.Target)
		}
		if sourceKnows && (src.read != 2*storedBlock || src.looked != 0) {
			t.Errorf("%d bytes read of the source, %d looks", src.read, src.looked)
		}
		if got := regions(dst); !slices.Equal(got, []int64{0, 2}) {
			t.Errorf("settled %d", got)
		}
	}
}

// Regions of which nothing is stored are read, and settled; those whose leaves
// are lost are read if they are needed.
func TestPartlyStored(t *testing.T) {
	old := storedNoise()
	now := bytes.Clone(old)
	now[storedRegion+7]++
	for _, c := range []struct {
		name          string
		lost, damaged []int64
		now           []byte
		read, settled []int64 // regions of the target
	}{
		{"the first", []int64{0}, nil, old, []int64{0}, []int64{0}},
		{"the last", []int64{3}, nil, old, []int64{3}, []int64{3}},
		{"zeros", []int64{2}, nil, old, nil, []int64{2}},
		{"neighbours", []int64{1, 2, 3}, nil, old, []int64{1, 3}, []int64{1, 2, 3}},
		{"every other", []int64{0, 2}, nil, now, []int64{0}, []int64{0, 1, 2}},
		{"all", []int64{0, 1, 2, 3}, nil, now, []int64{0, 1, 3}, []int64{0, 1, 2, 3}},
		{"leaves that nobody wants", nil, []int64{0, 3}, now, nil, []int64{1}},
		{"leaves that are wanted", nil, []int64{1}, now, []int64{1}, []int64{1}},
		{"leaves of all", nil, []int64{0, 1, 2, 3}, now, []int64{1}, []int64{1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, dst := &disk{content: c.now}, knowing(t, old)
			known := knownSource(t, c.now) // knows as much, and sends it elsewhere
			for _, s := range []*stored{dst.stored, known.stored} {
				for _, r := range c.lost {
					s.lost[r] = true
				}
				for _, r := range c.damaged {
					s.damaged[r] = true
				}
			}
			seen := map[int64]bool{}
			dst.onRead = func(off int64) { seen[off/storedRegion] = true }
			synced(t, src, dst)
			if bytes.Equal(c.now, now) {
				c.read = append(c.read, 1) // the block that changed
			}
			if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, slices.Compact(slices.Sorted(slices.Values(c.read)))) {
				t.Errorf("read %d, want %d", got, c.read)
			}
			if got := regions(dst); !slices.Equal(got, c.settled) {
				t.Errorf("settled %d, want %d", got, c.settled)
			}
			synced(t, known, rawDisk(old))
		})
	}
}

// Hashes in other blocks than those of the session are of no use. The source's
// win, as long as the target has no slots.
func TestStoredInOtherBlocks(t *testing.T) {
	content := storedNoise()
	in := func(bs int) *stored { return storedOf(t, content, bs) }
	for _, c := range []struct {
		name               string
		source, target     *stored
		slots              int
		want               int
		sourceReads, reads bool
	}{
		{"none", nil, nil, 0, merkle.DefaultBlockSize, true, true},
		{"the target's", nil, in(4096), 0, 4096, true, false},
		{"the source's", in(4096), nil, 0, 4096, false, true},
		{"the same", in(12287), in(12287), 0, 12287, false, false},
		{"two sizes", in(4096), in(8192), 0, 4096, false, true},
		{"the target's slots, the source's others", in(4096), in(12287), 12287, 12287, true, false},
		{"the same slots", in(12287), in(12287), 12287, 12287, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, dst := &disk{content: content, stored: c.source}, rawDisk(content)
			dst.stored = c.target
			if c.slots > 0 {
				dst.format, dst.blockSize = image.Spgz, c.slots
			}
			o := synced(t, src, dst)
			if o.source.BlockSize != c.want || o.target.BlockSize != c.want {
				t.Errorf("blocks of %d and %d, want %d", o.source.BlockSize, o.target.BlockSize, c.want)
			}
			if (src.read > 0) != c.sourceReads || (dst.read > 0) != c.reads {
				t.Errorf("read %d bytes of the source, %d of the target", src.read, dst.read)
			}
		})
	}
}

// Blocks that are recorded as bad are fetched, and only these, without reading
// anything of the target.
func TestBadBlocksAreFetched(t *testing.T) {
	content := storedNoise()
	bad := []int64{0, 17, 255, 256, 3*merkle.RegionBlocks + 90} // the last is the short one at the end
	dst := knowing(t, content)
	for _, b := range bad {
		dst.stored.leaves[b] = merkle.Unknown
		dst.content[b*storedBlock]++
	}
	fetched := map[int64]bool{}
	src := knownSource(t, content)
	src.onRead = func(off int64) { fetched[off/storedBlock] = true }
	o := synced(t, src, dst)
	if got := slices.Sorted(maps.Keys(fetched)); !slices.Equal(got, bad) || !maps.Equal(fetched, dst.written) {
		t.Errorf("fetched %d, written %d, want %d", got, slices.Sorted(maps.Keys(dst.written)), bad)
	}
	if n := o.source.Source; n.Changed != int64(len(bad)) || n.Patched != 0 || dst.read != 0 || o.target.Target.Repaired != n.Changed {
		t.Errorf("source %+v, target %+v, %d bytes read", n, o.target.Target, dst.read)
	}
	if got := regions(dst); !slices.Equal(got, []int64{0, 1, 3}) {
		t.Errorf("settled %d", got)
	}
}

// A block that cannot be read although its hash is stored is rewritten, if it is
// found out because it changes.
func TestStoredBlockCannotBeRead(t *testing.T) {
	old := storedNoise()
	now := bytes.Clone(old)
	for _, b := range []int{3, 4, 5} {
		now[b*storedBlock]++
	}
	dst := knowing(t, old)
	dst.blockSize = storedBlock
	dst.corrupt = map[int64]bool{4: true}
	o := synced(t, &disk{content: now}, dst)
	if n := o.source.Source; len(dst.corrupt) > 0 || n.Changed != 1 || n.Patched != 2 || o.target.Target.Repaired != 1 {
		t.Errorf("source %+v, target %+v, corrupt %v", n, o.target.Target, dst.corrupt)
	}
}

// The same for a source that sends a patch without having asked for the pages.
func TestPatchOfWhatCannotBeRead(t *testing.T) {
	x := treeOf(t, storedNoise(), storedBlock)
	dst := knowing(t, x.content)
	dst.blockSize = storedBlock
	dst.corrupt = map[int64]bool{4: true}
	p := opposeTarget(t, 0, dst)
	p.send(&wire.Hello{Size: x.Size(), BlockSize: storedBlock})
	await[*wire.Accept](p)
	await[*wire.Roots](p)
	two := patch(4, x.leaves[4], []byte{1}, nil)
	two.Blocks = append(two.Blocks, wire.PatchedBlock{Index: 6, Leaf: x.leaves[6], Pages: []byte{1}})
	two.Data = slices.Concat(x.data(4)[:merkle.PageSize], x.data(6)[:merkle.PageSize])
	p.send(two)
	if again := await[*wire.Refetch](p); again.Index != 4 || again.Leaf != x.leaves[4] {
		t.Fatalf("%+v", again)
	}
	p.send(x.block(4), &wire.Advance{Through: x.Regions()}, &wire.Finish{Digest: x.digest()})
	await[*wire.Done](p)
	if _, err := p.end(); err != nil || len(dst.corrupt) > 0 {
		t.Errorf("returned %v, corrupt %v", err, dst.corrupt)
	}
}

// A source may send blocks of regions that it never asked about. The target has
// only their roots then, and must not forget the other blocks.
func TestBlocksOfRegionsThatWereNotExpanded(t *testing.T) {
	old := storedNoise()
	now := bytes.Clone(old)
	now[3*storedBlock]++
	clear(now[storedRegion:][:storedBlock])
	copy(now[2*storedRegion+storedBlock:], "no hole")
	x := treeOf(t, now, storedBlock)
	for _, damaged := range []bool{false, true} {
		dst := knowing(t, old)
		if damaged {
			dst.stored.damaged = map[int64]bool{0: true, 1: true, 2: true, 3: true}
		}
		p := opposeTarget(t, 0, dst)
		p.send(&wire.Hello{Size: x.Size(), BlockSize: storedBlock})
		await[*wire.Accept](p)
		await[*wire.Roots](p)
		p.send(x.block(3), &wire.Holes{Blocks: []int64{merkle.RegionBlocks}}, x.block(2*merkle.RegionBlocks+1),
			&wire.Advance{Through: x.Regions()}, &wire.Finish{Digest: x.digest()})
		if done := await[*wire.Done](p); done.Digest != x.digest() {
			t.Errorf("done with %v", done.Digest)
		}
		if _, err := p.end(); err != nil || !dst.committed || !bytes.Equal(dst.content, now) {
			t.Errorf("leaves damaged %v: %v, committed %v", damaged, err, dst.committed)
		}
		if got := regions(dst); !slices.Equal(got, []int64{0, 1, 2}) {
			t.Errorf("settled %d", got)
		}
	}
}

// All attacks of a hostile source on a target that has read nothing.
func TestHostileSourceAgainstStored(t *testing.T) {
	x := hostileImage(t)
	for _, a := range slices.Concat(indexAttacks(x), repeatAttacks(x), contentAttacks(t, x)) {
		t.Run(a.name, func(t *testing.T) {
			dst := rawDisk(other(t, x).content)
			dst.stored = storedOf(t, dst.content, hostileBlock)
			p := opposeTarget(t, 0, dst)
			p.send(&wire.Hello{Size: hostileSize, BlockSize: hostileBlock})
			await[*wire.Accept](p)
			await[*wire.Roots](p)
			p.send(a.send...)
			p.fails(a.want)
			if dst.committed {
				t.Error("committed")
			}
		})
	}
}

// A source that is not what is stored of it does not send what it has instead.
func TestSourceIsNotWhatIsStored(t *testing.T) {
	was, strange := storedNoise(), noise(storedContent + 1)[:storedContent]
	for _, c := range []struct {
		name   string
		damage func([]byte)
		old    []byte
		want   string
	}{
		{"compared", func(p []byte) { p[20*storedBlock+1] ^= 4 }, strange, "block 20 at offset 163840"},
		{"compared, now a hole", func(p []byte) { clear(p[64*storedBlock : 80*storedBlock]) }, strange, "block 64 at offset 524288"},
		{"streamed", func(p []byte) { p[storedRegion+1] ^= 4 }, nil, "block 256 at offset 2097152"},
		{"streamed, now a hole", func(p []byte) { clear(p[64*storedBlock : 80*storedBlock]) }, nil, "block 64 at offset 524288"},
		{"streamed, no hole any more", func(p []byte) { p[2*storedRegion+5*storedBlock] = 1 }, nil, "block 517 at offset 4235264"},
		{"streamed, all a hole", func(p []byte) { clear(p) }, nil, "block 0 at offset 0"},
		{"streamed, the end", func(p []byte) { p[len(p)-1] ^= 1 }, nil, "block 858 at offset 7028736"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := knownSource(t, was)
			c.damage(src.content)
			dst := rawDisk(c.old)
			o := runSession(t, src, dst, session.Options{}, nil)
			for who, err := range map[string]error{"source": o.sourceErr, "target": o.targetErr} {
				if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, session.ErrChanged) {
					t.Errorf("the %s returned %v, want %q", who, err, c.want)
				}
			}
			if dst.committed {
				t.Error("committed")
			}
			// If it is known to have been written to, that is the reason.
			src.changed = errors.New("modified at noon")
			if o := runSession(t, src, rawDisk(c.old), session.Options{}, nil); !errors.Is(o.sourceErr, session.ErrChanged) {
				t.Errorf("a source that was written to: %v", o.sourceErr)
			}
		})
	}
}

// With its leaves lost as well, a source can still not send anything else than
// its root says.
func TestSourceIsNotWhatItsRootSays(t *testing.T) {
	src := knownSource(t, storedNoise())
	src.stored.damaged[0] = true
	src.content[20*storedBlock] ^= 4
	dst := rawDisk(noise(storedContent + 1)[:storedContent])
	o := runSession(t, src, dst, session.Options{}, nil)
	if !errors.Is(o.sourceErr, session.ErrChanged) || dst.committed {
		t.Errorf("returned %v, committed %v", o.sourceErr, dst.committed)
	}
}

// What both sides tell each other about the image and its past.
func TestKeptAndModified(t *testing.T) {
	then := time.Unix(1_700_000_000, 123_456_789)
	for _, c := range []struct{ modified, want time.Time }{
		{then, then},
		{time.Time{}, time.Time{}},
		{time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC), time.Time{}},
	} {
		src, dst := &disk{content: noise(100_000), modified: c.modified}, rawDisk(nil)
		dst.kept = 12345
		o := synced(t, src, dst)
		if o.source.Target.Kept != 12345 || o.target.Target.Kept != 12345 || o.source.Source.Kept != 0 {
			t.Errorf("kept %d and %d", o.source.Target.Kept, o.target.Target.Kept)
		}
		if !dst.synced.Equal(c.want) {
			t.Errorf("modified %v, committed as of %v", c.modified, dst.synced)
		}
	}
}
