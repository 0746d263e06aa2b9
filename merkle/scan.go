package merkle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// A Source is the content that a tree is built over. Its methods may be called
// by many goroutines at once.
type Source interface {
	// ReadAt fills p with the content at off, zeros where there is a hole. It
	// either fills all of p or returns an error.
	io.ReaderAt

	// NextData returns the first extent at or behind off that may hold
	// anything but zeros, cut at off if it begins before. Everything between
	// off and the extent reads as zeros. It returns io.EOF when there is no
	// more data. A Source that knows nothing of holes returns the rest of the
	// content.
	NextData(off int64) (Extent, error)
}

// A Run is a stretch of consecutive blocks that Scan handles as one: either
// blocks of data that were read at once, or a hole of any length.
type Run struct {
	First int64  // the first block
	Count int64  // the number of blocks
	Data  []byte // their content; nil for a hole

	// Unreadable holds the positions within the run of the blocks that
	// ScanOptions.Unreadable let pass. Their part of Data is zeros.
	Unreadable []int

	// Leaves are the leaves of the blocks of data. Build sets them, Scan does
	// not.
	Leaves []Hash

	// Value is for ScanOptions.Each to hand on what it made of Data.
	Value any
}

// IsHole reports whether the run was known to be zeros without reading it.
func (r *Run) IsHole() bool { return r.Data == nil }

// ScanOptions says what to scan and what to do on the way. The zero value scans
// everything, on all cores, and stops at the first error.
type ScanOptions struct {
	// First and End bound the blocks that are scanned; an End of 0 is the end
	// of the image.
	First, End int64

	// Each is called for every run of data, by many goroutines at once and in
	// no order. What it does runs in parallel; what emit does does not.
	Each func(*Run) error

	// Unreadable is called for each block that cannot be read. If it returns
	// nil, the scan goes on and the block is listed in Run.Unreadable.
	Unreadable func(block int64, err error) error
}

const (
	// maxRunBytes is the length of a read. Beyond a megabyte or two, longer
	// reads are no faster on any device, and each takes a buffer.
	maxRunBytes = FanOut * DefaultBlockSize

	// maxScanBytes bounds the buffers of a scan on machines of many cores.
	maxScanBytes = 24 << 20
)

// Scan reads src front to back with large reads, on all cores, and calls emit
// with its runs in order, from one goroutine. The run and its Data belong to
// emit only until it returns. A run of data never crosses the boundary of a
// level-1 node. Scan stops at the first error, its own, of src or of a callback,
// and returns it once nothing that it started is left running.
func Scan(ctx context.Context, g Geometry, src Source, opt ScanOptions, emit func(*Run) error) error {
	if opt.End <= 0 || opt.End > g.Blocks() {
		opt.End = g.Blocks()
	}
	runBlocks := int64(FanOut)
	for runBlocks > 1 && runBlocks*int64(g.blockSize) > maxRunBytes {
		runBlocks /= 2
	}
	runBytes := runBlocks * int64(g.blockSize)
	// Twice as many as there are cores, so that some wait for the disk while
	// the others compute.
	workers := int(max(1, min(int64(2*runtime.GOMAXPROCS(0)), maxScanBytes/runBytes-2)))

	s := &scanner{g: g, src: src, opt: opt, runBlocks: runBlocks,
		order: make(chan *ticket, workers+2),
		work:  make(chan *ticket, workers+2),
		free:  make(chan []byte, workers+2),
	}
	for range cap(s.free) {
		s.free <- nil // made when first used, so that a small image costs little
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.plan(ctx) })
	for range workers {
		group.Go(func() error { return s.read(ctx) })
	}
	group.Go(func() error { return s.deliver(ctx, emit) })
	return group.Wait()
}

// A scanner is a pipeline: plan cuts the image into runs and hands each out
// twice, to the workers through work and, in order, to deliver through order.
// The free list of buffers is what bounds it.
type scanner struct {
	g         Geometry
	src       Source
	opt       ScanOptions
	runBlocks int64

	order, work chan *ticket
	free        chan []byte
}

// A ticket is a run on its way; done is closed when a worker is through with it.
type ticket struct {
	Run
	buf  []byte
	done chan struct{}
}

func (s *scanner) plan(ctx context.Context) error {
	defer close(s.work)
	defer close(s.order)
	var data Extent
	for pos := s.opt.First; pos < s.opt.End; {
		t := &ticket{Run: Run{First: pos}}
		hole, err := s.next(pos, &data, &t.Run)
		if err != nil {
			return err
		}
		pos += t.Count
		if !hole {
			t.done = make(chan struct{})
			if t.buf, err = receive(ctx, s.free); err != nil {
				return err
			}
			if err := send(ctx, s.work, t); err != nil {
				return err
			}
		}
		if err := send(ctx, s.order, t); err != nil {
			return err
		}
	}
	return nil
}

// next sets run.Count and tells whether the run is a hole. *data is the extent
// of data found last, kept between calls.
func (s *scanner) next(pos int64, data *Extent, run *Run) (hole bool, err error) {
	bs := int64(s.g.blockSize)
	if off := pos * bs; data.End() <= off {
		*data, err = s.src.NextData(off)
		switch {
		case errors.Is(err, io.EOF):
			*data = Extent{MaxSize, bs} // beyond everything
		case err != nil:
			return false, fmt.Errorf("looking for data behind offset %d: %w", off, err)
		case data.Length <= 0 || data.Offset < off:
			return false, fmt.Errorf("looking for data behind offset %d: got %d bytes at %d", off, data.Length, data.Offset)
		}
	}
	if from := data.Offset / bs; from > pos {
		run.Count = min(from, s.opt.End) - pos
		return true, nil
	}
	boundary := (pos/s.runBlocks + 1) * s.runBlocks
	run.Count = min(ceilDiv(data.End(), bs), boundary, s.opt.End) - pos
	return false, nil
}

// read is a worker.
func (s *scanner) read(ctx context.Context) error {
	for t := range s.work {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.fill(t); err != nil {
			return err
		}
		if s.opt.Each != nil {
			if err := s.opt.Each(&t.Run); err != nil {
				return err
			}
		}
		close(t.done)
	}
	return nil
}

func (s *scanner) fill(t *ticket) error {
	span := s.g.Span(t.First, t.Count)
	if t.buf == nil {
		t.buf = make([]byte, s.runBlocks*int64(s.g.blockSize))
	}
	t.Data = t.buf[:span.Length]
	_, err := s.src.ReadAt(t.Data, span.Offset)
	if err == nil || s.opt.Unreadable == nil {
		return err
	}
	// Something in the run is bad: find out what.
	for i := range int(t.Count) {
		e := s.g.Block(t.First + int64(i))
		block := t.Data[e.Offset-span.Offset:][:e.Length]
		if _, err := s.src.ReadAt(block, e.Offset); err != nil {
			if err := s.opt.Unreadable(t.First+int64(i), err); err != nil {
				return err
			}
			clear(block)
			t.Unreadable = append(t.Unreadable, i)
		}
	}
	return nil
}

func (s *scanner) deliver(ctx context.Context, emit func(*Run) error) error {
	for {
		// Cancelled, the order may be closed with runs missing at its end.
		t, err := receive(ctx, s.order)
		if err != nil || t == nil {
			return err
		}
		if t.done != nil {
			if _, err := receive(ctx, t.done); err != nil {
				return err
			}
		}
		if err := emit(&t.Run); err != nil {
			return err
		}
		if t.done != nil {
			s.free <- t.buf
		}
	}
}

// receive is <-ch that a cancelled context interrupts; from a closed channel it
// returns the zero value.
func receive[T any](ctx context.Context, ch <-chan T) (T, error) {
	select {
	case v := <-ch:
		return v, ctx.Err()
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

func send[T any](ctx context.Context, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
