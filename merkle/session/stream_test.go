package session_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
)

// streamTo syncs within this process.
func streamTo(t testing.TB, src session.Source, dst session.Target) (session.Result, error) {
	t.Helper()
	near, far := transport.Pipe()
	return session.Pair(t.Context(), near, far, src, dst, time.Minute, session.Options{})
}

// What can be read only once arrives like everything else.
func TestStream(t *testing.T) {
	for seed := range seeds(t, 100) {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		content := randomContent(r, r.IntN(3_000_000))
		dst := rawDisk(edited(r, content))
		switch r.IntN(3) {
		case 0:
			dst = rawDisk(nil)
		case 1:
			dst.remember(t, r)
		}
		modified := time.Unix(1_500_000_000+int64(seed), 7)
		src := session.NewStream(iotest.HalfReader(bytes.NewReader(content)), int64(len(content)), modified)
		result, err := streamTo(t, src, dst)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(dst.content, content) {
			t.Fatalf("seed %d: the target has other content", seed)
		}
		if result.Size != int64(len(content)) || !dst.synced.Equal(modified) {
			t.Errorf("seed %d: size %d of %d, modified %v", seed, result.Size, len(content), dst.synced)
		}
	}
}

// A stream of another length than it was said to have, or that fails, is an error,
// and nothing is committed.
func TestStreamOfAnotherLength(t *testing.T) {
	content := noise(1_000_000)
	torn := iotest.ErrReader(errors.New("the tape is torn"))
	for words, in := range map[string]func() io.Reader{
		"ended after 999999 of 1000000 bytes": func() io.Reader { return bytes.NewReader(content[:999_999]) },
		"ended after 0 of 1000000 bytes":      func() io.Reader { return bytes.NewReader(nil) },
		"goes on after the 1000000 bytes":     func() io.Reader { return bytes.NewReader(append(content[:1_000_000:1_000_000], 0)) },
		"at offset 500000: the tape is torn":  func() io.Reader { return io.MultiReader(bytes.NewReader(content[:500_000]), torn) },
		"the tape is torn":                    func() io.Reader { return io.MultiReader(bytes.NewReader(content), torn) },
	} {
		for _, old := range [][]byte{nil, noise(900_000)} {
			dst := rawDisk(old)
			_, err := streamTo(t, session.NewStream(in(), 1_000_000, time.Time{}), dst)
			if err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("%v: does not say %q", err, words)
			}
			if dst.committed {
				t.Errorf("%q: committed", words)
			}
		}
	}
}

// A counted reader gives zeros and counts them.
type countedZeros struct{ n atomic.Int64 }

func (z *countedZeros) Read(p []byte) (int, error) {
	clear(p)
	p[0] = 1
	z.n.Add(int64(len(p)))
	return len(p), nil
}

// A stuck target takes nothing until it is told to.
type stuck struct {
	*disk
	before chan struct{} // one for the first Put
	goOn   chan struct{}
}

func (s *stuck) Put(b image.Block) error {
	select {
	case s.before <- struct{}{}:
	default:
	}
	<-s.goOn
	return s.disk.Put(b)
}

// However far the target is behind, no more than a bounded part of a stream is
// held.
func TestStreamIsHeldInPart(t *testing.T) {
	const size = 12 * merkle.RegionBlocks * merkle.DefaultBlockSize // 384 MiB
	in := new(countedZeros)
	old := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		old[i] = 2
	}
	dst := &stuck{rawDisk(old), make(chan struct{}, 1), make(chan struct{})}
	var ahead int64
	go func() {
		<-dst.before
		last := int64(-1)
		for last != ahead { // until it has come to a stand
			last = ahead
			time.Sleep(200 * time.Millisecond)
			ahead = in.n.Load()
		}
		close(dst.goOn)
	}()
	if _, err := streamTo(t, session.NewStream(io.LimitReader(in, size), size, time.Time{}), dst); err != nil {
		t.Fatal(err)
	}
	if ahead > 160<<20 {
		t.Errorf("%d MiB were read while the target had taken nothing", ahead>>20)
	}
}

// What was read of a stream can be had while the next byte is waited for: else nothing
// of it would be on its way until the source goes on.
func TestStreamThatPauses(t *testing.T) {
	content := noise(3 << 20)
	rest, more := io.Pipe()
	src := session.NewStream(io.MultiReader(bytes.NewReader(content[:2<<20]), rest), int64(len(content)), time.Time{})
	last := make(chan error, 1)
	go func() {
		_, err := src.ReadAt(make([]byte, 1<<20), 2<<20)
		last <- err
	}()
	if _, err := more.Write(content[2<<20 : 2<<20+1]); err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	got := make([]byte, 2<<20)
	go func() {
		_, err := src.ReadAt(got, 0)
		first <- err
	}()
	select {
	case err := <-first:
		if err != nil || !bytes.Equal(got, content[:2<<20]) {
			t.Errorf("what was read before: %v, as it was: %v", err, bytes.Equal(got, content[:2<<20]))
		}
	case <-time.After(time.Minute):
		t.Error("what was read before waits for what comes next")
	}
	more.CloseWithError(errors.New("the tape is torn"))
	if err := <-last; err == nil || !strings.Contains(err.Error(), "the tape is torn") {
		t.Errorf("what comes next: %v", err)
	}
}
