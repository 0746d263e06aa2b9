package session_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// other is an image of the size of x, of which every block differs.
func other(t testing.TB, x tree) tree {
	content := append([]byte(nil), x.content...)
	for i := range x.Blocks() {
		content[x.Block(i).Offset]++
	}
	return treeOf(t, content, x.BlockSize())
}

func greetedSource(t testing.TB, x tree) *peer {
	t.Helper()
	p := opposeSource(t, 0, &disk{content: x.content, blockSize: x.BlockSize()}, session.Options{Plain: true})
	await[*wire.Hello](p)
	p.send(&wire.Accept{BlockSize: x.BlockSize(), Held: x.Size()})
	return p
}

// expanded is greetedSource with the first Expand awaited.
func expanded(t testing.TB, x tree) (*peer, *wire.Expand) {
	t.Helper()
	p := greetedSource(t, x)
	p.send(&wire.Roots{Hashes: other(t, x).roots()[:1]})
	return p, await[*wire.Expand](p)
}

// askedSource is a source that has asked for the pages of some blocks.
func askedSource(t testing.TB, x tree) (*peer, *wire.AskPages) {
	t.Helper()
	p, e := expanded(t, x)
	old := other(t, x)
	for {
		p.send(old.children(e))
		switch m := p.next().(type) {
		case *wire.Expand:
			e = m
		case *wire.AskPages:
			return p, m
		default:
			t.Fatalf("a %T came", m)
		}
	}
}

// finishedSource has sent Finish.
func finishedSource(t testing.TB, x tree) *peer {
	t.Helper()
	p := greetedSource(t, x)
	p.send(&wire.Roots{Hashes: x.roots()})
	for {
		if _, ok := p.next().(*wire.Finish); ok {
			return p
		}
	}
}

func TestHostileTarget(t *testing.T) {
	left := noGoroutinesLeft(t)
	x := hostileImage(t)
	old := other(t, x)
	greet := func() *peer { return greetedSource(t, x) }
	for _, c := range []struct {
		name   string
		script func() *peer
		want   string
	}{
		{"roots that do not begin at 0", func() *peer { p := greet(); p.send(&wire.Roots{First: 1, Hashes: x.roots()[:1]}); return p }, "roots"},
		{"roots far away", func() *peer { p := greet(); p.send(&wire.Roots{First: merkle.MaxSize, Hashes: x.roots()}); return p }, "roots"},
		{"roots twice", func() *peer {
			p := greet()
			p.send(&wire.Roots{Hashes: x.roots()[:1]}, &wire.Roots{Hashes: x.roots()[:1]})
			return p
		}, "roots"},
		{"a root too many", func() *peer { p := greet(); p.send(&wire.Roots{Hashes: append(x.roots(), merkle.Hash{1})}); return p }, "roots"},
		{"hashes that nobody asked for", func() *peer { p := greet(); p.send(old.children(&wire.Expand{Level: 2, Nodes: []int64{0}})); return p }, "not asked for"},
		{"hashes of what does not exist", func() *peer {
			p := greet()
			p.send(&wire.Hashes{Level: 2, Nodes: []int64{merkle.MaxSize}})
			return p
		}, "not asked for"},
		{"hashes of another node", func() *peer {
			p, _ := expanded(t, x)
			p.send(old.children(&wire.Expand{Level: 2, Nodes: []int64{1}}))
			return p
		}, "not asked for"},
		{"hashes of another level", func() *peer {
			p, _ := expanded(t, x)
			p.send(old.children(&wire.Expand{Level: 1, Nodes: []int64{0}}))
			return p
		}, "not asked for"},
		{"hashes twice", func() *peer { p, e := expanded(t, x); p.send(old.children(e), old.children(e)); return p }, "not asked for"},
		{"a hash too few", func() *peer {
			p, e := expanded(t, x)
			m := old.children(e)
			m.Hashes = m.Hashes[1:]
			p.send(m)
			return p
		}, "not asked for"},
		{"a hash too many", func() *peer {
			p, e := expanded(t, x)
			m := old.children(e)
			m.Hashes = append(m.Hashes, merkle.Hash{})
			p.send(m)
			return p
		}, "1 hashes too many"},
		{"hashes of no node", func() *peer { p := greet(); p.send(&wire.Hashes{Level: 2, Hashes: make([]merkle.Hash, 3)}); return p }, "3 hashes too many"},
		{"pages that nobody asked for", func() *peer {
			p := greet()
			p.send(old.pages(&wire.AskPages{Blocks: []int64{0}}, [16]byte{}))
			return p
		}, "not asked for"},
		{"pages of what does not exist", func() *peer {
			p := greet()
			p.send(&wire.Pages{Blocks: []int64{merkle.MaxSize}, Hashes: make([]merkle.PageHash, 2)})
			return p
		}, "not asked for"},
		{"pages of nothing", func() *peer { p := greet(); p.send(&wire.Pages{}); return p }, "page hashes"},
		{"pages twice", func() *peer {
			p, m := askedSource(t, x)
			p.send(old.pages(m, [16]byte{}), old.pages(m, [16]byte{}))
			return p
		}, "not asked for"},
		{"a page too few", func() *peer {
			p, m := askedSource(t, x)
			answer := old.pages(m, [16]byte{})
			answer.Hashes = answer.Hashes[1:]
			p.send(answer)
			return p
		}, "page hashes where"},
		{"a page too many", func() *peer {
			p, m := askedSource(t, x)
			answer := old.pages(m, [16]byte{})
			answer.Hashes = append(answer.Hashes, merkle.PageHash{})
			p.send(answer)
			return p
		}, "page hashes where"},
		{"a block again that does not exist", func() *peer { p := greet(); p.send(&wire.Refetch{Index: hostileBlocks}); return p }, "block"},
		{"a block again far away", func() *peer { p := greet(); p.send(&wire.Refetch{Index: merkle.MaxSize}); return p }, "block"},
		{"done at once", func() *peer { p := greet(); p.send(&wire.Done{Digest: x.digest()}); return p }, "before the source"},
		{"done before it has told its roots", func() *peer { p := greet(); p.send(&wire.Done{}); return p }, "before the source"},
		{"done with another digest", func() *peer { p := finishedSource(t, x); p.send(&wire.Done{Digest: old.digest()}); return p }, "digest"},
		{"done without a digest", func() *peer { p := finishedSource(t, x); p.send(&wire.Done{}); return p }, "digest"},
		{"absurd block size", func() *peer {
			p := opposeSource(t, 0, &disk{content: x.content}, session.Options{})
			await[*wire.Hello](p)
			p.send(&wire.Accept{Held: 1})
			return p
		}, "block size"},
	} {
		t.Run(c.name, func(t *testing.T) { c.script().fails(c.want) })
	}
	left()
}

// neverFromTarget are the kinds that only a source or an agent sends, and the
// one that only begins a session.
var neverFromTarget = []string{"Request", "Opened", "Hello", "Accept", "Expand", "Holes", "Block", "AskPages", "Patch", "Advance", "Finish", "Info", "Bad"}

func TestSourceInEveryState(t *testing.T) {
	x := hostileImage(t)
	for _, state := range []struct {
		name  string
		reach func() *peer
		want  string
	}{
		{"before Accept", func() *peer {
			p := opposeSource(t, 0, &disk{content: x.content}, session.Options{})
			await[*wire.Hello](p)
			return p
		}, "answered with"},
		{"before the roots", func() *peer { return greetedSource(t, x) }, "out of turn"},
		{"waiting for hashes", func() *peer { p, _ := expanded(t, x); return p }, "out of turn"},
		{"waiting for pages", func() *peer { p, _ := askedSource(t, x); return p }, "out of turn"},
		{"waiting for Done", func() *peer { return finishedSource(t, x) }, "out of turn"},
	} {
		for _, m := range everyKind() {
			name := kindName(m)
			t.Run(state.name+"/"+name, func(t *testing.T) {
				p := state.reach()
				p.send(m)
				if slices.Contains(neverFromTarget, name) && !(name == "Accept" && state.want == "answered with") {
					p.fails(state.want)
					return
				}
				p.carrier.Close()
				if _, err := p.end(); err == nil {
					t.Error("no error")
				}
			})
		}
	}
}

// A target may ask for a block again as often as it reads the answer, but not
// pile up what it asks for.
func TestEndlessRefetch(t *testing.T) {
	x := hostileImage(t)
	p := greetedSource(t, x)
	go func() {
		for p.send(&wire.Refetch{Index: 1, Leaf: x.leaves[1]}) {
		}
	}()
	if err := p.wait(); err == nil || !strings.Contains(err.Error(), "again") {
		t.Errorf("returned %v", err)
	}
}

// A block that is not what the target says it was is not sent. The source cannot
// tell who is wrong, as it keeps no leaves of what is settled.
func TestRefetchOfAnotherLeaf(t *testing.T) {
	x := hostileImage(t)
	p := finishedSource(t, x)
	p.send(&wire.Refetch{Index: 1, Leaf: merkle.Hash{1}})
	if told, ok := p.next().(*wire.Error); !ok || told.Code != wire.CodeChanged {
		t.Errorf("the source said %+v", told)
	}
	if _, err := p.end(); !errors.Is(err, session.ErrChanged) {
		t.Errorf("returned %v", err)
	}
}

// What a target accepts may be absurd and yet be carried out: it costs neither
// memory nor a panic.
func TestAbsurdAccept(t *testing.T) {
	content := noise(100_000)
	for _, a := range []wire.Accept{
		{BlockSize: 1, Held: merkle.MaxSize},
		{BlockSize: 1},
		{BlockSize: 1, Slots: true},
		{BlockSize: merkle.MaxBlockSize, Held: merkle.MaxSize, Slots: true},
		{BlockSize: merkle.MaxBlockSize},
		{BlockSize: 4097, Held: 1, Slots: true},
	} {
		before := heap()
		p := opposeSource(t, 0, &disk{content: content}, session.Options{})
		await[*wire.Hello](p)
		p.send(&a)
		if a.Held > 0 {
			x := treeOf(t, make([]byte, len(content)), a.BlockSize)
			held := min(a.Held, x.Size())
			region := int64(a.BlockSize) * merkle.RegionBlocks
			p.send(&wire.Roots{Hashes: x.roots()[:(held+region-1)/region]})
		}
		for {
			m := p.next()
			if m == nil {
				t.Fatalf("%+v: the source went: %v", a, p.wait())
			}
			if f, ok := m.(*wire.Finish); ok {
				p.send(&wire.Done{Digest: f.Digest})
				break
			}
		}
		if _, err := p.end(); err != nil {
			t.Errorf("%+v: %v", a, err)
		}
		if grown := heap() - before; grown > 32<<20 {
			t.Errorf("%+v: %d MiB", a, grown>>20)
		}
	}
}

func TestSilentTarget(t *testing.T) {
	x := hostileImage(t)
	for name, begin := range map[string][]wire.Message{
		"from the start":  nil,
		"after Accept":    {&wire.Accept{BlockSize: hostileBlock, Held: hostileSize}},
		"while it stores": {&wire.Accept{BlockSize: hostileBlock}},
	} {
		p := opposeSource(t, 100*time.Millisecond, &disk{content: x.content}, session.Options{})
		await[*wire.Hello](p)
		p.send(begin...)
		// It does not read either: the source is stuck in writing as well.
		if err := p.wait(); err == nil || !strings.Contains(err.Error(), "nothing heard") {
			t.Errorf("%s: returned %v", name, err)
		}
	}
}

// A flood of messages that are sound but say nothing costs the source no
// memory.
func TestSourceMemoryBoundedAgainstEmptyMessages(t *testing.T) {
	x := hostileImage(t)
	for _, m := range []wire.Message{&wire.Roots{}, &wire.Hashes{Level: 1}, &wire.Progress{}} {
		p := greetedSource(t, x)
		before := heap()
		for range 100_000 {
			if !p.send(m) {
				break
			}
		}
		if grown := heap() - before; grown > 32<<20 {
			t.Errorf("%T: %d MiB grown", m, grown>>20)
		}
		p.carrier.Close()
		if err := p.wait(); err == nil {
			t.Errorf("%T: no error", m)
		}
	}
}
