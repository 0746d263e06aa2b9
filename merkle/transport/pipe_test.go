package transport

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
)

// TestPipeHoldsBuffer has both ends write all that the pipe holds before either
// reads, which must not block; and one byte more, which must.
func TestPipeHoldsBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe()
		full := bytes.Repeat([]byte{7}, pipeBuffer)
		for _, end := range []io.Writer{a, b} {
			if n, err := end.Write(full); n != pipeBuffer || err != nil {
				t.Fatalf("wrote %d, %v", n, err)
			}
		}
		wrote := make(chan error, 1)
		go func() {
			_, err := a.Write([]byte{8})
			wrote <- err
		}()
		synctest.Wait()
		select {
		case err := <-wrote:
			t.Fatalf("a full pipe took one byte more (%v)", err)
		default:
		}
		for _, end := range []io.Reader{a, b} {
			if _, err := io.ReadFull(end, make([]byte, pipeBuffer)); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		expect(t, b, "\x08")
	})
}

func TestPipeClose(t *testing.T) {
	a, b := Pipe()
	for _, end := range []io.Writer{a, b} {
		if _, err := io.WriteString(end, "last words"); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p := make([]byte, 4)
	if n, err := a.Read(p); n != 0 || err != io.ErrClosedPipe {
		t.Errorf("the closed end reads %d, %v", n, err)
	}
	if n, err := a.Write(p); n != 0 || err != io.ErrClosedPipe {
		t.Errorf("the closed end writes %d, %v", n, err)
	}
	if n, err := b.Write(p); n != 0 || err != io.ErrClosedPipe {
		t.Errorf("the other end writes %d, %v", n, err)
	}
	if got, err := io.ReadAll(b); string(got) != "last words" || err != nil {
		t.Errorf("the other end reads %q, %v", got, err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Read(p); n != 0 || err != io.ErrClosedPipe {
		t.Errorf("closed as well, the other end reads %d, %v", n, err)
	}
}

// TestPipeCloseInterrupts closes an end while calls wait at both.
func TestPipeCloseInterrupts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, closed := range []string{"this", "other"} {
			a, b := Pipe()
			var readErr, writeErr error
			var wrote int
			var calls sync.WaitGroup
			calls.Go(func() { _, readErr = a.Read(make([]byte, 1)) })
			calls.Go(func() { wrote, writeErr = a.Write(make([]byte, pipeBuffer+1)) })
			synctest.Wait()
			wantRead := io.ErrClosedPipe
			if closed == "other" {
				a, b, wantRead = b, a, io.EOF
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			calls.Wait()
			if readErr != wantRead || writeErr != io.ErrClosedPipe || wrote != pipeBuffer {
				t.Errorf("closing the %s end: read %v, wrote %d, %v", closed, readErr, wrote, writeErr)
			}
			b.Close()
		}
	})
}

func TestPipeOfNothing(t *testing.T) {
	a, _ := Pipe()
	if n, err := a.Read(nil); n != 0 || err != nil {
		t.Errorf("reading into nothing gives %d, %v", n, err)
	}
	if n, err := a.Write(nil); n != 0 || err != nil {
		t.Errorf("writing nothing gives %d, %v", n, err)
	}
}

// TestPipeAgainstBuffer compares a stream with a plain list of bytes, over random
// reads and writes that never have to wait.
func TestPipeAgainstBuffer(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		content := rand.NewChaCha8([32]byte{byte(seed)})
		a, b := Pipe()
		var model []byte
		for range 200 {
			if rng.IntN(2) == 0 {
				p := make([]byte, rng.IntN(pipeBuffer-len(model)+1))
				content.Read(p)
				if n, err := a.Write(p); n != len(p) || err != nil {
					t.Fatalf("seed %d: wrote %d of %d, %v", seed, n, len(p), err)
				}
				model = append(model, p...)
			} else if len(model) > 0 {
				p := make([]byte, 1+rng.IntN(pipeBuffer))
				n, err := b.Read(p)
				if want := min(len(p), len(model)); n != want || err != nil || !bytes.Equal(p[:n], model[:n]) {
					t.Fatalf("seed %d: read %d bytes, %v, want %d", seed, n, err, want)
				}
				model = model[n:]
			}
		}
	}
}

// TestPipeBothWays sends much in both directions at once, from several
// goroutines, and counts what arrives.
func TestPipeBothWays(t *testing.T) {
	a, b := Pipe()
	const writers, each = 4, 1 << 20
	var calls sync.WaitGroup
	for _, end := range []io.ReadWriteCloser{a, b} {
		for range writers {
			calls.Go(func() {
				if _, err := end.Write(make([]byte, each)); err != nil {
					t.Error(err)
				}
			})
		}
		calls.Go(func() {
			if n, err := io.CopyN(io.Discard, end, writers*each); err != nil {
				t.Errorf("%d bytes arrived, %v", n, err)
			}
		})
	}
	calls.Wait()
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
}
