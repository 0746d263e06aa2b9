package session_test

import (
	"bytes"
	"context"
	"errors"
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

// blockSizeOf returns the block size of a disk, or any that its hashes may be
// stored of.
func blockSizeOf(r *rand.Rand, d *disk) int {
	if d.blockSize > 0 {
		return d.blockSize
	}
	return []int{500, 4096, 65536, 131072}[r.IntN(4)]
}

// remember stores the hashes of what a target holds, but for what is corrupt and
// recorded as such, and for some that were lost.
func (d *disk) remember(t *testing.T, r *rand.Rand) {
	d.stored = storedOf(t, d.content[:d.held], blockSizeOf(r, d))
	for b := range d.corrupt {
		d.stored.leaves[b] = merkle.Unknown
	}
	for i := range d.stored.leaves {
		if r.IntN(1+len(d.stored.leaves)) == 0 {
			d.stored.leaves[i] = merkle.Unknown
		}
	}
	d.stored.forget(r)
}

// forget loses a few of the hashes.
func (s *stored) forget(r *rand.Rand) {
	for i := range s.Regions() {
		switch r.IntN(8) {
		case 0:
			s.lost[i] = true
		case 1:
			s.damaged[i] = true
		}
	}
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
		if r.IntN(2) == 0 {
			dst.remember(t, r)
		}
		if r.IntN(3) == 0 {
			src.stored = storedOf(t, src.content, blockSizeOf(r, src))
			src.stored.forget(r)
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
		dst.stored, dst.read = nil, 0
		if r.IntN(2) == 0 {
			dst.stored = storedOf(t, want, o.source.BlockSize)
		}
		again := runSession(t, src, dst, session.Options{}, nil)
		if err := again.err(); err != nil {
			t.Fatalf("seed %d, again: %v", seed, err)
		}
		if n := again.source.Source; n.Changed+n.Patched+n.Holes != 0 || again.source.Digest != o.source.Digest {
			t.Fatalf("seed %d, again: %+v", seed, n)
		}
		if dst.stored != nil && again.source.BlockSize == o.source.BlockSize && dst.read > 0 {
			t.Fatalf("seed %d, again: %d bytes of the target were read", seed, dst.read)
		}
	}
}
