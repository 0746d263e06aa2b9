package session_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
)

// disk is an image in memory: a source, and a target that checks that it is
// used as promised.
type disk struct {
	mu        sync.Mutex
	content   []byte
	format    image.Format
	blockSize int
	held      int64
	size      int64 // given to Begin
	committed bool
	corrupt   map[int64]bool // blocks that cannot be read until they are written
	changed   error
	broken    error // what writes return
	written   map[int64]bool
	onRead    func(off int64)
	sparse    bool // writes go nowhere: an image too large for memory
}

func (d *disk) Size() int64              { return int64(len(d.content)) }
func (d *disk) BlockSize() int           { return d.blockSize }
func (d *disk) Format() image.Format     { return d.format }
func (d *disk) Held() int64              { return d.held }
func (d *disk) Identity() image.Identity { return image.Identity{} }
func (d *disk) Changed() error           { return d.changed }

func (d *disk) Begin(size int64, blockSize int) error {
	d.size, d.blockSize = size, blockSize
	if grow := size - int64(len(d.content)); grow > 0 && !d.sparse {
		d.content = append(d.content, make([]byte, grow)...)
	}
	d.written = map[int64]bool{}
	return nil
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.onRead != nil {
		d.onRead(off)
	}
	for b := range d.corrupt {
		e := merkle.Extent{Offset: b * int64(d.blockSize), Length: int64(d.blockSize)}
		if off < e.End() && e.Offset < off+int64(len(p)) {
			return 0, &image.CorruptError{Block: b, Extent: e, Err: errors.New("made so")}
		}
	}
	if d.sparse {
		clear(p)
		return len(p), nil
	}
	if off+int64(len(p)) > int64(len(d.content)) {
		return 0, fmt.Errorf("read of %d bytes at %d of %d", len(p), off, len(d.content))
	}
	return copy(p, d.content[off:]), nil
}

// NextData knows of holes of 64 KiB.
func (d *disk) NextData(off int64) (merkle.Extent, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	const grain = 64 << 10
	for at := off; at < int64(len(d.content)); at = (at/grain + 1) * grain {
		end := min((at/grain+1)*grain, int64(len(d.content)))
		if len(bytes.Trim(d.content[at:end], "\x00")) > 0 || len(d.corrupt) > 0 {
			return merkle.Extent{Offset: at, Length: end - at}, nil
		}
	}
	return merkle.Extent{}, io.EOF
}

func (d *disk) write(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil {
		return d.broken
	}
	if d.sparse {
		return nil
	}
	if d.size == 0 || off+int64(len(p)) > d.size {
		return fmt.Errorf("write of %d bytes at %d of %d", len(p), off, d.size)
	}
	copy(d.content[off:], p)
	delete(d.corrupt, off/int64(d.blockSize))
	return nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) { return len(p), d.write(p, off) }

func (d *disk) WriteSlot(block int64, slot []byte) error {
	data, err := image.DecodeSlot(nil, slot, d.blockSize)
	if err != nil || d.format != image.Spgz {
		return fmt.Errorf("slot for a %s image: %w", d.format, err)
	}
	return d.write(data, block*int64(d.blockSize))
}

func (d *disk) Punch(off, length int64) error { return d.write(make([]byte, length), off) }

func (d *disk) Commit() error {
	d.content = d.content[:d.size]
	d.committed = true
	return nil
}

// outcome is what both ends of a session returned.
type outcome struct {
	source, target       session.Result
	sourceErr, targetErr error
}

func (o outcome) err() error { return errors.Join(o.sourceErr, o.targetErr) }

// sync runs a session over a pipe of 64 KiB each way, or over what wrap makes of
// its ends.
func runSession(t testing.TB, src *disk, dst *disk, opt session.Options, wrap func(a, b session.Carrier) (session.Carrier, session.Carrier)) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var a, b session.Carrier = transport.Pipe()
	if wrap != nil {
		a, b = wrap(a, b)
	}
	var o outcome
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := session.NewConn(ctx, b, 0)
		if err != nil {
			o.targetErr = err
			return
		}
		o.target, o.targetErr = session.Receive(ctx, c, dst, session.Options{Sequential: opt.Sequential})
	})
	c, err := session.NewConn(ctx, a, 0)
	if err != nil {
		o.sourceErr = err
	} else {
		o.source, o.sourceErr = session.Send(ctx, c, src, opt)
	}
	wg.Wait()
	if ctx.Err() != nil {
		t.Fatal("the session hung")
	}
	return o
}

// randomContent makes an image with the textures of real ones: holes, zeros,
// repetition, noise.
func randomContent(r *rand.Rand, size int) []byte {
	p := make([]byte, size)
	for at := 0; at < size; {
		n := min(1+r.IntN(1+r.IntN(200_000)), size-at)
		switch r.IntN(4) {
		case 0:
		case 1:
			for i := at; i < at+n; i++ {
				p[i] = byte(r.Uint32())
			}
		default:
			word := []byte(strconv.Itoa(r.Int()))
			for i := at; i < at+n; i++ {
				p[i] = word[i%len(word)]
			}
		}
		at += n
	}
	return p
}

// edited returns a copy of p with a few changes, of another size perhaps.
func edited(r *rand.Rand, p []byte) []byte {
	q := append([]byte(nil), p...)
	for range r.IntN(1 + r.IntN(40)) {
		if len(q) == 0 {
			break
		}
		at := r.IntN(len(q))
		end := min(len(q), at+1+r.IntN(1+r.IntN(30_000)))
		switch r.IntN(5) {
		case 0:
			clear(q[at:end])
		case 1:
			q[at] ^= 1 << r.IntN(8)
		default:
			copy(q[at:end], randomContent(r, end-at))
		}
	}
	switch r.IntN(4) {
	case 0:
		q = q[:r.IntN(len(q)+1)]
	case 1:
		q = append(q, randomContent(r, r.IntN(500_000))...)
	}
	return q
}

func seeds(t testing.TB, usual int) int {
	if n, err := strconv.Atoi(os.Getenv("DISKRSYNC_TEST_SEEDS")); err == nil {
		return n
	}
	if testing.Short() {
		return usual / 10
	}
	return usual
}

func TestRandomSyncs(t *testing.T) {
	for seed := range seeds(t, 2000) {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		old := randomContent(r, r.IntN(1+r.IntN(3_000_000)))
		src := &disk{content: edited(r, old)}
		dst := &disk{content: old, held: int64(len(old)), format: image.Raw}
		switch r.IntN(4) {
		case 0: // blocks so small that there are many regions
			src.blockSize = 200 + r.IntN(3000)
		case 1:
			src.blockSize = 4096 << r.IntN(4)
		case 2:
			dst.format, dst.blockSize = image.Spgz, []int{12287, 131071, 65535}[r.IntN(3)]
		}
		if r.IntN(5) == 0 {
			dst.content, dst.held = nil, 0
		}
		if bs := int64(dst.blockSize); bs > 0 && dst.held > bs && r.IntN(2) == 0 {
			dst.corrupt = map[int64]bool{r.Int64N(dst.held / bs): true}
		}
		damaged := len(dst.corrupt)
		want := append([]byte(nil), src.content...)
		o := runSession(t, src, dst, session.Options{Plain: r.IntN(2) == 0}, nil)
		if err := o.err(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !dst.committed || !bytes.Equal(dst.content, want) {
			t.Fatalf("seed %d: committed %v, %d bytes where the source has %d", seed, dst.committed, len(dst.content), len(want))
		}
		if o.source.Digest != o.target.Digest || o.source.Digest.IsZero() {
			t.Fatalf("seed %d: digests %v and %v", seed, o.source.Digest, o.target.Digest)
		}
		if o.source.Source.Scanned != int64(len(want)) {
			t.Fatalf("seed %d: %d bytes scanned of %d", seed, o.source.Source.Scanned, len(want))
		}
		if left := len(dst.corrupt); left > 0 && dst.size > 0 {
			for b := range dst.corrupt {
				if b*int64(dst.blockSize) < dst.size {
					t.Fatalf("seed %d: block %d of %d corrupt ones was not rewritten", seed, b, damaged)
				}
			}
		}
		// Once more: there is nothing to do.
		dst.held = int64(len(dst.content))
		again := runSession(t, src, dst, session.Options{}, nil)
		if err := again.err(); err != nil {
			t.Fatalf("seed %d, again: %v", seed, err)
		}
		if n := again.source.Source; n.Changed+n.Patched+n.Holes != 0 || again.source.Digest != o.source.Digest {
			t.Fatalf("seed %d, again: %+v", seed, n)
		}
	}
}
