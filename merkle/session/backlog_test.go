package session_test

import (
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// endless is a source of any size that takes no memory.
type endless struct{ size int64 }

func (e endless) Size() int64              { return e.size }
func (e endless) BlockSize() int           { return 0 }
func (e endless) Hashes(int) image.Hashes  { return nil }
func (e endless) Modified() (t time.Time)  { return t }
func (e endless) Identity() image.Identity { return image.Identity{} }
func (e endless) Changed() error           { return nil }

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for i := 0; i+8 <= len(p); i += 512 {
		binary.LittleEndian.PutUint64(p[i:], uint64(off)+uint64(i)+1)
	}
	return len(p), nil
}

func (e endless) NextData(off int64) (merkle.Extent, error) {
	if off >= e.size {
		return merkle.Extent{}, io.EOF
	}
	return merkle.Extent{Offset: off, Length: e.size - off}, nil
}

// A target answers at once what a slow connection has not even begun to carry.
// What the source holds of those answers must stay bounded: it may not ask for
// pages much faster than it sends them.
func TestSourceDoesNotAskFarAhead(t *testing.T) {
	const blockSize, blocks, most = 4096, 60_000, 20_000
	p := opposeSource(t, 0, endless{blocks * blockSize}, session.Options{Plain: true})
	await[*wire.Hello](p)
	g, err := merkle.NewGeometry(blocks*blockSize, blockSize)
	must(t, err)
	p.send(&wire.Accept{BlockSize: blockSize, Held: blocks * blockSize})
	// The source is through with its scan before it hears of the target.
	for scanned := int64(0); scanned < g.Size(); {
		m, err := p.r.Read()
		must(t, err)
		scanned = m.(*wire.Progress).Stats.Scanned
	}
	roots := make([]merkle.Hash, g.Regions())
	for i := range roots {
		roots[i] = merkle.Hash{1}
	}
	p.send(&wire.Roots{Hashes: roots})
	// It keeps back one answer until the last is asked for, so that the source
	// settles no region meanwhile.
	open, peak, asked := 0, 0, 0
	var first *wire.Pages
	for {
		switch m := p.next().(type) {
		case *wire.Expand:
			answer := &wire.Hashes{Level: m.Level, Nodes: m.Nodes}
			for _, n := range m.Nodes {
				for range g.Children(m.Level, n) {
					answer.Hashes = append(answer.Hashes, merkle.Hash{1})
				}
			}
			p.send(answer)
		case *wire.AskPages:
			asked += len(m.Blocks)
			open += len(m.Blocks)
			peak = max(peak, open)
			answer := &wire.Pages{Blocks: m.Blocks, Hashes: make([]merkle.PageHash, len(m.Blocks))}
			if first == nil {
				first = answer
				continue
			}
			p.send(answer)
			if asked == blocks {
				p.send(first)
			}
		case *wire.Block:
			if open--; open%64 == 0 {
				time.Sleep(time.Millisecond) // a slow connection
			}
		case *wire.Finish:
			p.send(&wire.Done{Digest: m.Digest})
			if _, err := p.end(); err != nil || open != 0 {
				t.Errorf("returned %v, %d blocks open", err, open)
			}
			if peak > most {
				t.Errorf("%d blocks asked for and not sent", peak)
			}
			return
		case nil:
			t.Fatalf("the source went: %v", p.wait())
		}
	}
}
