package session_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// A peer speaks the protocol by hand, against a role under test.
type peer struct {
	t       testing.TB
	carrier session.Carrier
	r       *wire.Reader
	w       *wire.Writer
	ended   <-chan error // what the role returned, then closed
	known   error        // the same, once it is waited for
	release func()       // cancels the role
}

// limit is how long a role may take to come to its end. It is only reached by
// one that hangs.
const limit = 20 * time.Second

// oppose runs role against a peer that has exchanged preambles with it. The
// connection of the role has the timeout.
func oppose(t testing.TB, timeout time.Duration, role func(context.Context, *session.Conn) error) *peer {
	t.Helper()
	return opposeCarrier(t, func(ctx context.Context, carrier session.Carrier) error {
		c, err := session.NewConn(ctx, carrier, timeout)
		if err != nil {
			return err
		}
		return role(ctx, c)
	})
}

func opposeCarrier(t testing.TB, role func(context.Context, session.Carrier) error) *peer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var ours, theirs session.Carrier = transport.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- role(ctx, theirs); close(ended) }()
	p := &peer{t: t, carrier: ours, r: wire.NewReader(ours), w: wire.NewWriter(ours), ended: ended}
	p.release = func() { cancel(); ours.Close() }
	t.Cleanup(p.release)
	if err := wire.WritePreamble(ours); err != nil {
		t.Fatal(err)
	}
	if err := wire.ReadPreamble(ours); err != nil {
		t.Fatal(err)
	}
	return p
}

// opposeTarget runs Receive into dst.
func opposeTarget(t testing.TB, timeout time.Duration, dst session.Target) *peer {
	t.Helper()
	return oppose(t, timeout, func(ctx context.Context, c *session.Conn) error {
		_, err := session.Receive(ctx, c, dst, session.Options{})
		return err
	})
}

// opposeSource runs Send of src.
func opposeSource(t testing.TB, timeout time.Duration, src session.Source, opt session.Options) *peer {
	t.Helper()
	return oppose(t, timeout, func(ctx context.Context, c *session.Conn) error {
		_, err := session.Send(ctx, c, src, opt)
		return err
	})
}

// send sends messages. That the role has gone away meanwhile is no failure:
// what it returned is what counts.
func (p *peer) send(messages ...wire.Message) bool {
	p.t.Helper()
	for _, m := range messages {
		if err := p.w.Write(m); errors.Is(err, io.ErrClosedPipe) {
			return false
		} else if err != nil {
			p.t.Fatal(err)
		}
	}
	return true
}

// next returns the next message that is not Progress, nil at the end.
func (p *peer) next() wire.Message {
	p.t.Helper()
	for {
		m, err := p.r.Read()
		if err != nil {
			return nil
		}
		if _, ok := m.(*wire.Progress); !ok {
			return m
		}
	}
}

// await returns the next message, which must be an M.
func await[M wire.Message](p *peer) M {
	p.t.Helper()
	got := p.next()
	m, ok := got.(M)
	if !ok {
		var want M
		p.t.Fatalf("a %T came where a %T was due: %+v", got, want, got)
	}
	return m
}

// end waits for the end of the role and returns its error, and the text that it
// has sent about it.
func (p *peer) end() (string, error) {
	p.t.Helper()
	text := make(chan string, 1)
	go func() {
		told := ""
		for {
			m, err := p.r.Read()
			if err != nil {
				text <- told
				return
			}
			if e, ok := m.(*wire.Error); ok {
				told = e.Text
			}
		}
	}()
	err := p.wait()
	told := <-text // a role that has ended has closed the carrier
	p.carrier.Close()
	return told, err
}

// wait waits for the end of the role without reading what it says.
func (p *peer) wait() error {
	p.t.Helper()
	select {
	case err, first := <-p.ended:
		if first {
			p.known = err
		}
		return p.known
	case <-time.After(limit):
		p.carrier.Close()
		buf := make([]byte, 1<<20)
		p.t.Fatalf("the role hangs:\n%s", buf[:runtime.Stack(buf, true)])
		return nil
	}
}

// fails checks that the role ended with an error that says want, and that it
// told us the same.
func (p *peer) fails(want string) {
	p.t.Helper()
	told, err := p.end()
	if err == nil || !strings.Contains(err.Error(), want) {
		p.t.Errorf("the role returned %v, want %q", err, want)
	}
	if !strings.Contains(told, want) {
		p.t.Errorf("the role said %q, want %q", told, want)
	}
}

// noise returns n bytes that do not compress, none of their blocks zero.
func noise(n int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32()) | 1
	}
	return p
}

// tree is what a peer by hand knows of its own content.
type tree struct {
	merkle.Geometry
	content []byte
	leaves  []merkle.Hash
}

func treeOf(t testing.TB, content []byte, blockSize int) tree {
	t.Helper()
	g, err := merkle.NewGeometry(int64(len(content)), blockSize)
	if err != nil {
		t.Fatal(err)
	}
	x := tree{Geometry: g, content: content}
	for i := range g.Blocks() {
		x.leaves = append(x.leaves, merkle.Leaf(x.data(i)))
	}
	return x
}

func (x tree) data(i int64) []byte {
	e := x.Block(i)
	return x.content[e.Offset:e.End()]
}

func (x tree) block(i int64) *wire.Block {
	return &wire.Block{Index: i, Leaf: x.leaves[i], Data: x.data(i)}
}

func (x tree) region(i int64) []merkle.Hash {
	return x.leaves[i*merkle.RegionBlocks:][:x.RegionLen(i)]
}

func (x tree) roots() []merkle.Hash {
	var roots []merkle.Hash
	for i := range x.Regions() {
		roots = append(roots, merkle.RegionRoot(x.region(i)))
	}
	return roots
}

func (x tree) digest() merkle.Hash {
	var acc merkle.Accumulator
	for _, root := range x.roots() {
		acc.Add(root)
	}
	return x.Digest(acc.Root())
}

// children answers Expand.
func (x tree) children(m *wire.Expand) *wire.Hashes {
	answer := &wire.Hashes{Level: m.Level, Nodes: m.Nodes}
	for _, n := range m.Nodes {
		if m.Level == 1 {
			answer.Hashes = append(answer.Hashes, x.leaves[n*merkle.FanOut:][:x.Children(1, n)]...)
		} else {
			answer.Hashes = append(answer.Hashes, merkle.Parents(x.region(n))...)
		}
	}
	return answer
}

// pages answers AskPages.
func (x tree) pages(m *wire.AskPages, key [merkle.PageKeySize]byte) *wire.Pages {
	answer := &wire.Pages{Blocks: m.Blocks}
	h := merkle.NewPageHasher(key)
	for _, b := range m.Blocks {
		answer.Hashes = h.Block(answer.Hashes, x.Geometry, b, x.data(b))
	}
	return answer
}

// everyKind has one sound message of each kind, in the order of PROTOCOL.md.
func everyKind() []wire.Message {
	leaf := merkle.Leaf([]byte{1})
	return []wire.Message{
		&wire.Request{Verb: wire.VerbSource, Path: "x"},
		&wire.Opened{Format: "x"},
		&wire.Hello{Size: 10, BlockSize: 4},
		&wire.Accept{BlockSize: 4, Held: 4},
		&wire.Roots{Hashes: []merkle.Hash{leaf}},
		&wire.Expand{Level: 2, Nodes: []int64{0}},
		&wire.Hashes{Level: 2, Nodes: []int64{0}, Hashes: []merkle.Hash{leaf}},
		&wire.Holes{Blocks: []int64{0}},
		&wire.Block{Leaf: leaf, Data: []byte{1}},
		&wire.AskPages{Blocks: []int64{0}},
		&wire.Pages{Blocks: []int64{0}, Hashes: make([]merkle.PageHash, 1)},
		&wire.Patch{Blocks: []wire.PatchedBlock{{Leaf: leaf, Pages: []byte{1}}}, Data: []byte{1}},
		&wire.Refetch{Leaf: leaf},
		&wire.Advance{Through: 1},
		&wire.Finish{Digest: leaf},
		&wire.Done{Digest: leaf},
		&wire.Progress{},
		&wire.Error{Code: wire.CodeFailed, Text: "enough"},
		&wire.Info{Format: "raw"},
		&wire.Bad{Text: "x"},
	}
}

func kindName(m wire.Message) string { return reflect.TypeOf(m).Elem().Name() }

// heap returns the bytes in use: the least of a few collections, since what the
// others do meanwhile leaves garbage.
func heap() int64 {
	least := uint64(1 << 62)
	for range 5 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		least = min(least, m.HeapAlloc)
	}
	return int64(least)
}

// noGoroutinesLeft returns a function that checks that there are no more
// goroutines than there were. The last ones may still be on their way out.
func noGoroutinesLeft(t testing.TB) func() {
	before := runtime.NumGoroutine()
	return func() {
		t.Helper()
		for range 500 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
	}
}
