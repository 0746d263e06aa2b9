package session

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
)

const (
	// streamHeld is about how much of a stream is held: that of three regions of
	// the usual size, so that one can be read while another is compared and a
	// third sent.
	streamHeld = 96 << 20

	// streamPiece is the unit in which a stream is held and forgotten.
	streamPiece = 1 << 20
)

// A Stream is a Source that can only be read once, front to back. What has been
// read of it is held in memory until the target has it. Only as many regions are
// in flight as that takes little of, at least one.
type Stream struct {
	size     int64
	modified time.Time

	reading sync.Mutex // held while in is read, which may take any time
	in      io.Reader

	mu     sync.Mutex       // for what follows
	err    error            // what ended in
	read   int64            // bytes that were read of in
	passed int64            // what lies before is forgotten
	pieces map[int64][]byte // what is held, by its position in pieces
	free   [][]byte
}

// NewStream returns a Source of the size bytes that in gives. That there are fewer
// or more of them is an error of the session.
func NewStream(in io.Reader, size int64, modified time.Time) *Stream {
	return &Stream{in: in, size: size, modified: modified, pieces: map[int64][]byte{}}
}

func (s *Stream) Size() int64                  { return s.size }
func (s *Stream) BlockSize() int               { return 0 }
func (s *Stream) Hashes(int) image.Hashes      { return nil }
func (s *Stream) Identity() image.Identity     { return image.Identity{} }
func (s *Stream) Modified() time.Time          { return s.modified }
func (s *Stream) window(region int64) int64    { return max(1, streamHeld/max(1, region)) }
func (s *Stream) piece(off int64) (i, n int64) { return off / streamPiece, off % streamPiece }

// NextData knows nothing of holes.
func (s *Stream) NextData(off int64) (merkle.Extent, error) {
	if off >= s.size {
		return merkle.Extent{}, io.EOF
	}
	return merkle.Extent{Offset: off, Length: s.size - off}, nil
}

// ReadAt reads on as far as that is necessary. What was read before is there at once,
// however long the next byte lets itself be waited for.
func (s *Stream) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.size-int64(len(p)) {
		return 0, io.EOF
	}
	if err := s.reach(off + int64(len(p))); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if off < s.passed {
		return 0, fmt.Errorf("the target asks again for what lies at offset %d, and a stream cannot be read again: sync again", off)
	}
	n := 0
	for n < len(p) {
		i, from := s.piece(off + int64(n))
		n += copy(p[n:], s.pieces[i][from:])
	}
	return n, nil
}

// reach reads in up to an offset at least.
func (s *Stream) reach(end int64) error {
	if done, err := s.reached(end); done || err != nil {
		return err
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	for {
		done, err := s.reached(end)
		if done || err != nil {
			return err
		}
		s.readPiece()
	}
}

// reached reports whether it has been read up to an offset, or why it will not be.
func (s *Stream) reached(end int64) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read >= end {
		return true, nil
	}
	return false, s.err
}

// readPiece reads to the end of a piece. The caller has the lock for reading; nobody
// else looks at what lies behind s.read.
func (s *Stream) readPiece() {
	s.mu.Lock()
	i, from := s.piece(s.read)
	if s.pieces[i] == nil {
		s.pieces[i] = s.take()
	}
	p := s.pieces[i][from:min(streamPiece, from+s.size-s.read)]
	s.mu.Unlock()

	n, err := io.ReadFull(s.in, p)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.read += int64(n)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		s.err = fmt.Errorf("the source ended after %d of %d bytes%w", s.read, s.size, errEnded)
	case err != nil:
		s.err = fmt.Errorf("at offset %d: %w", s.read, err)
	}
}

// take returns a piece of memory.
func (s *Stream) take() []byte {
	if n := len(s.free); n > 0 {
		p := s.free[n-1]
		s.free = s.free[:n-1]
		return p
	}
	return make([]byte, streamPiece)
}

// pass forgets what lies before an offset.
func (s *Stream) pass(off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := s.passed / streamPiece; (i+1)*streamPiece <= off; i++ {
		if p := s.pieces[i]; p != nil {
			s.free = append(s.free, p)
			delete(s.pieces, i)
		}
	}
	s.passed = max(s.passed, off)
}

// Changed reports whether there is more than there should be.
func (s *Stream) Changed() error {
	if done, err := s.reached(s.size); !done || err != nil {
		return nil // whoever reads on is told
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	var more [1]byte
	if n, err := io.ReadFull(s.in, more[:]); n > 0 {
		return fmt.Errorf("the source goes on after the %d bytes that it said it has", s.size)
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
