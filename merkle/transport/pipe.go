package transport

import (
	"io"
	"sync"
)

// pipeBuffer is what each direction of a Pipe holds, in bytes: as much as a pipe
// of the usual operating systems, so that what does not stall over one of these
// does not stall over the other.
const pipeBuffer = 64 << 10

// Pipe returns the two ends of a connection within this process. Each direction
// holds 64 KiB; a Write that does not fit waits for a Read at the other end.
//
// After Close of one end, that end gives io.ErrClosedPipe. The other end reads
// what had been written before and then io.EOF, and its writing gives
// io.ErrClosedPipe. All methods may be called at any time by any goroutine.
func Pipe() (a, b io.ReadWriteCloser) {
	there, back := newStream(), newStream()
	return pipeEnd{in: back, out: there}, pipeEnd{in: there, out: back}
}

type pipeEnd struct {
	in, out *stream
}

func (e pipeEnd) Read(p []byte) (int, error)  { return e.in.read(p) }
func (e pipeEnd) Write(p []byte) (int, error) { return e.out.write(p) }

func (e pipeEnd) Close() error {
	e.in.endReading()
	e.out.endWriting()
	return nil
}

// stream is one direction of a Pipe: a ring of bytes.
type stream struct {
	mu      sync.Mutex
	changed sync.Cond

	ring        [pipeBuffer]byte
	start, held int // ring[start] is the first of held bytes

	unread    bool // the reading end is closed
	unwritten bool // the writing end is closed
}

func newStream() *stream {
	s := new(stream)
	s.changed.L = &s.mu
	return s
}

func (s *stream) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.held == 0 && len(p) > 0 && !s.unread && !s.unwritten {
		s.changed.Wait()
	}
	switch {
	case s.unread:
		return 0, io.ErrClosedPipe
	case s.held == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return s.take(p), nil
}

func (s *stream) write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	written := 0
	for {
		for s.held == pipeBuffer && written < len(p) && !s.unread && !s.unwritten {
			s.changed.Wait()
		}
		if s.unread || s.unwritten {
			return written, io.ErrClosedPipe
		}
		written += s.put(p[written:])
		if written == len(p) {
			return written, nil
		}
	}
}

// take moves bytes from the ring to p, as many as there are.
func (s *stream) take(p []byte) int {
	n := 0
	for n < len(p) && s.held > 0 {
		end := min(s.start+s.held, pipeBuffer)
		m := copy(p[n:], s.ring[s.start:end])
		s.start = (s.start + m) % pipeBuffer
		s.held -= m
		n += m
	}
	s.changed.Broadcast()
	return n
}

// put moves bytes from p to the ring, as many as fit.
func (s *stream) put(p []byte) int {
	n := 0
	for n < len(p) && s.held < pipeBuffer {
		from := (s.start + s.held) % pipeBuffer
		end := min(from+pipeBuffer-s.held, pipeBuffer)
		m := copy(s.ring[from:end], p[n:])
		s.held += m
		n += m
	}
	s.changed.Broadcast()
	return n
}

func (s *stream) endReading() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unread = true
	s.changed.Broadcast()
}

func (s *stream) endWriting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unwritten = true
	s.changed.Broadcast()
}
