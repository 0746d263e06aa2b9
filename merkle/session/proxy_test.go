package session_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// between puts itself between the two ends of a session: it hands the bytes of
// every frame, by direction, to pass and on what that returns. When pass returns
// false it cuts both connections.
func between(pass func(toTarget bool, frame []byte) ([]byte, bool)) func(a, b session.Carrier) (session.Carrier, session.Carrier) {
	return func(a, b session.Carrier) (session.Carrier, session.Carrier) {
		c, d := transport.Pipe()
		var once sync.Once
		cut := func() { once.Do(func() { b.Close(); c.Close() }) }
		carry := func(from, to session.Carrier, toTarget bool) {
			defer cut()
			if _, err := io.CopyN(to, from, 12); err != nil {
				return
			}
			for {
				frame := make([]byte, 5)
				if _, err := io.ReadFull(from, frame); err != nil {
					return
				}
				frame = append(frame, make([]byte, binary.LittleEndian.Uint32(frame))...)
				if _, err := io.ReadFull(from, frame[5:]); err != nil {
					return
				}
				frame, more := pass(toTarget, frame)
				if _, err := to.Write(frame); err != nil || !more {
					return
				}
			}
		}
		go carry(b, c, true)
		go carry(c, b, false)
		return a, d
	}
}

func isProgress(frame []byte) bool { return frame[4] == 17 }
func isDone(frame []byte) bool     { return frame[4] == 16 }

// A pair is a source and a target to begin with.
type pair struct {
	name     string
	now, old []byte
	format   image.Format
	block    int
}

func pairs() []pair {
	old := noise(900_000)
	now := bytes.Clone(old)
	clear(now[300_000:500_000])
	copy(now[600_000:], "a change")
	return []pair{
		{"new", now, nil, image.Raw, 32 << 10},
		{"new spgz", now, nil, image.Spgz, 65535},
		{"edited", now, old, image.Raw, 32 << 10},
		{"edited spgz", now, old, image.Spgz, 65535},
		{"grown", now, old[:400_000], image.Raw, 1000},
		{"shrunk", now[:400_000], old, image.Raw, 1000},
	}
}

func (p pair) disks() (src, dst *disk) {
	dst = rawDisk(p.old)
	dst.format = p.format
	src = &disk{content: bytes.Clone(p.now), blockSize: p.block}
	if p.format == image.Spgz {
		dst.blockSize, src.blockSize = p.block, 0
	}
	return src, dst
}

// A cut is where a connection breaks: behind so many frames in one direction, or
// in the middle of the next one.
type cut struct {
	toTarget bool
	after    int
	inFrame  bool
}

func (c cut) String() string {
	return fmt.Sprintf("to target %v, after %d frames, in a frame %v", c.toTarget, c.after, c.inFrame)
}

// cutAt runs a session that is cut, and returns whether it came to the cut.
func cutAt(t *testing.T, p pair, c cut) bool {
	t.Helper()
	var mu sync.Mutex
	frames, reached, done := 0, false, false
	src, dst := p.disks()
	o := runSession(t, src, dst, session.Options{Plain: true}, between(func(toTarget bool, frame []byte) ([]byte, bool) {
		mu.Lock()
		defer mu.Unlock()
		if toTarget != c.toTarget || isProgress(frame) {
			return frame, true
		}
		if frames++; frames <= c.after {
			done = done || isDone(frame)
			return frame, true
		}
		reached = true
		if c.inFrame {
			return frame[:5+len(frame[5:])/2], false
		}
		return nil, false
	}))
	switch {
	case dst.committed && !bytes.Equal(dst.content, p.now):
		t.Errorf("%s, %v: something else was committed", p.name, c)
	case o.sourceErr == nil && !dst.committed:
		t.Errorf("%s, %v: the source reports success and nothing is committed", p.name, c)
	case o.targetErr == nil && !dst.committed:
		t.Errorf("%s, %v: the target reports success and nothing is committed", p.name, c)
	case reached && !done && o.sourceErr == nil:
		t.Errorf("%s, %v: the source reports success without Done", p.name, c)
	case done && o.err() != nil:
		t.Errorf("%s, %v: cut behind Done: %v", p.name, c, o.err())
	}
	return reached
}

// However the connection ends, both ends notice, and the target is only
// committed when it is complete.
func TestCuts(t *testing.T) {
	left := noGoroutinesLeft(t)
	for _, p := range pairs() {
		for _, toTarget := range []bool{true, false} {
			for _, inFrame := range []bool{true, false} {
				n := 0
				for cutAt(t, p, cut{toTarget, n, inFrame}) {
					n++
				}
				if n < 2 {
					t.Errorf("%s: only %d frames", p.name, n)
				}
			}
		}
	}
	left()
}

// A target whose page hashes lie, or meet by chance, gets a patch that does not
// make the block it should be. It must find that out and get the block whole.
func TestPageHashCollisions(t *testing.T) {
	const blockSize, blocks = 64 << 10, 300
	old := noise(blockSize * blocks)
	now := bytes.Clone(old)
	for b := 0; b < blocks; b += 3 {
		for _, page := range []int{2, 3, 9} {
			now[b*blockSize+page*merkle.PageSize]++
		}
	}
	for _, format := range []image.Format{image.Raw, image.Spgz} {
		dst := rawDisk(old)
		dst.format = format
		x := treeOf(t, now, blockSize)
		if format == image.Spgz {
			dst.blockSize = blockSize - 1
			x = treeOf(t, now, blockSize-1)
		}
		var mu sync.Mutex
		var key [merkle.PageKeySize]byte
		asked, refetched := 0, 0
		lie := func(toTarget bool, frame []byte) ([]byte, bool) {
			mu.Lock()
			defer mu.Unlock()
			m, err := wire.NewReader(bytes.NewReader(frame)).Read()
			if err != nil {
				t.Error(err)
				return frame, false
			}
			switch m := m.(type) {
			case *wire.Accept:
				key = m.Key
			case *wire.Refetch:
				refetched++
			case *wire.Pages:
				asked += len(m.Blocks)
				return appendFrame(t, hidePage(x, m, key)), true
			}
			return frame, true
		}
		src := &disk{content: bytes.Clone(now)}
		if format == image.Raw {
			src.blockSize = blockSize
		}
		o := runSession(t, src, dst, session.Options{}, between(lie))
		if err := o.err(); err != nil || !dst.committed || !bytes.Equal(dst.content, now) {
			t.Errorf("%s: %v, committed %v", format, err, dst.committed)
		}
		if asked == 0 || refetched == 0 || o.source.Source.Patched == 0 {
			t.Errorf("%s: %d blocks asked for, %d again, %d patched", format, asked, refetched, o.source.Source.Patched)
		}
	}
}

// hidePage replaces the hash of the first page of each block that differs from
// the source's with that of the source.
func hidePage(x tree, m *wire.Pages, key [merkle.PageKeySize]byte) *wire.Pages {
	own := x.pages(&wire.AskPages{Blocks: m.Blocks}, key)
	at := 0
	for _, b := range m.Blocks {
		n := x.Pages(b)
		for p := at; p < at+n; p++ {
			if m.Hashes[p] != own.Hashes[p] {
				m.Hashes[p] = own.Hashes[p]
				break
			}
		}
		at += n
	}
	return m
}

func appendFrame(t testing.TB, m wire.Message) []byte {
	frame, err := wire.Append(nil, m)
	if err != nil {
		t.Error(err)
	}
	return frame
}

// Bytes that change on the way are noticed, whichever they are.
func TestDamageOnTheWay(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for i := range seeds(t, 200) {
		p := pairs()[i%len(pairs())]
		src, dst := p.disks()
		at := int64(r.IntN(60_000))
		var mu sync.Mutex
		seen := int64(0)
		toward := r.IntN(3) > 0
		o := runSession(t, src, dst, session.Options{}, between(func(toTarget bool, frame []byte) ([]byte, bool) {
			mu.Lock()
			defer mu.Unlock()
			if toTarget != toward {
				return frame, true
			}
			// The length is left alone: a longer frame would be waited for.
			if i := at - seen; i >= 4 && i < int64(len(frame)) {
				frame[i] ^= 1 << (i % 8)
			}
			seen += int64(len(frame))
			return frame, true
		}))
		if dst.committed && !bytes.Equal(dst.content, p.now) {
			t.Fatalf("%s, damage at %d, to target %v: something else was committed (%v)", p.name, at, toward, o.err())
		}
		if o.err() == nil && !dst.committed {
			t.Fatalf("%s, damage at %d, to target %v: success, and nothing committed", p.name, at, toward)
		}
	}
}
