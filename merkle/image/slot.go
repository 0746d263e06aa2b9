package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/dop251/spgz"
	"github.com/klauspost/compress/gzip"
)

// The first byte of a slot tells what follows.
const (
	flagRaw  = 0 // the block as it is
	flagGzip = 1 // a gzip member that unfolds to the block
)

// gzipLevel is the level at which slots are compressed. BenchmarkSlotLevels, per
// core and on blocks of 128 KiB, of a program and of a log file:
//
//	level       1      2      3      4      5      6
//	program    81     79     68     60     48     45  MB/s
//	         49.5   48.5   46.6   45.4   44.8   44.1  % left
//	log       220    233    202    146    125    104  MB/s
//	         21.3   20.6   20.4   20.7   19.9   19.5  % left
//
// Images are written once, by a core for each link, and then kept: the space
// counts for more than the time, up to 5. Blocks that do not compress are given up
// early and cost the same at every level.
const gzipLevel = 5

// gzipSaves is how many bytes a gzip member must be shorter than its block to be
// stored: two units of space on the disk, as the original has it.
const gzipSaves = 2 * 4096

// errFull stops the compression of a block as soon as it cannot pay off.
var errFull = errors.New("slot is full")

// slotWriter appends to buf until it would be longer than limit.
type slotWriter struct {
	buf   []byte
	limit int
}

func (w *slotWriter) Write(p []byte) (int, error) {
	if len(w.buf)+len(p) > w.limit {
		return 0, errFull
	}
	w.buf = append(w.buf, p...)
	return len(p), nil
}

// gzipWriters and gzipReaders keep the state of the codec between calls, several
// hundred KiB for a writer.
var (
	gzipWriters = sync.Pool{New: func() any {
		w, err := gzip.NewWriterLevel(nil, gzipLevel)
		if err != nil {
			panic("image: gzip level: " + err.Error()) // the level is a constant
		}
		return w
	}}
	gzipReaders = sync.Pool{New: func() any { return new(gzip.Reader) }}
)

// EncodeSlot appends to dst the slot of an spgz image that holds the block data:
// a flag and either the block or its gzip member. A block that is all zero has
// no slot; for it, and for an empty one, EncodeSlot returns nil.
func EncodeSlot(dst, data []byte) []byte {
	if spgz.IsBlockZero(data) {
		return nil
	}
	start := len(dst)
	// The original keeps a slot of n bytes, flag included, if
	// n+1 < len(data)-gzipSaves.
	w := slotWriter{buf: append(dst, flagGzip), limit: start + len(data) - gzipSaves - 2}
	if w.limit > start && deflate(&w, data) == nil {
		return w.buf
	}
	return append(append(w.buf[:start], flagRaw), data...)
}

// deflate writes the gzip member of data to w. The only error is that of w.
func deflate(w io.Writer, data []byte) error {
	zw := gzipWriters.Get().(*gzip.Writer)
	defer gzipWriters.Put(zw)
	zw.Reset(w)
	if _, err := zw.Write(data); err != nil {
		return err
	}
	return zw.Close()
}

// DecodeSlot appends to dst the block that a slot holds. That may be less than
// a full block, which the caller extends with zeros or takes as the length of
// the last block, but never more than want bytes: what unfolds to more is
// corrupt. Bytes behind the gzip member are ignored, and an empty slot holds
// nothing.
func DecodeSlot(dst, slot []byte, want int) ([]byte, error) {
	dst, _, err := decodeSlot(dst, slot, want)
	return dst, err
}

// decodeSlot is DecodeSlot that also returns how many bytes of slot it used.
func decodeSlot(dst, slot []byte, want int) ([]byte, int, error) {
	if len(slot) == 0 {
		return dst, 0, nil
	}
	switch slot[0] {
	case flagRaw:
		if len(slot)-1 > want {
			return dst, 0, fmt.Errorf("slot holds %d bytes, more than the %d of a block", len(slot)-1, want)
		}
		return append(dst, slot[1:]...), len(slot), nil
	case flagGzip:
		out, n, err := inflate(dst, slot[1:], want)
		if err != nil {
			return dst, 0, fmt.Errorf("corrupt gzip data: %w", err)
		}
		return out, 1 + n, nil
	}
	return dst, 0, fmt.Errorf("unknown slot flag %d", slot[0])
}

// inflate appends to dst what the gzip member at the start of src unfolds to,
// and returns the length of the member.
func inflate(dst, src []byte, want int) ([]byte, int, error) {
	zr := gzipReaders.Get().(*gzip.Reader)
	defer gzipReaders.Put(zr)
	in := bytes.NewReader(src) // read byte by byte as needed, never beyond the member
	if err := zr.Reset(in); err != nil {
		return dst, 0, noEOF(err)
	}
	zr.Multistream(false)
	start, n, err := len(dst), 0, error(nil)
	dst = slices.Grow(dst, want)[:start+want]
	for err == nil && n < want {
		var m int
		m, err = zr.Read(dst[start+n:])
		n += m
	}
	if err == nil {
		var m int
		if m, err = zr.Read(make([]byte, 1)); m > 0 {
			return dst[:start], 0, fmt.Errorf("unfolds to more than the %d bytes of a block", want)
		}
	}
	if err != io.EOF {
		return dst[:start], 0, noEOF(err)
	}
	return dst[:start+n], len(src) - in.Len(), nil
}

// noEOF keeps an end in the wrong place from passing for an orderly one.
func noEOF(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
