package image

import (
	"errors"
	"fmt"
	"io"

	"github.com/dop251/spgz"
)

// detectSamples is how many slots are looked at to tell an spgz image from a
// file that only begins like one.
const detectSamples = 64

// gzipMagic begins every gzip member; the last byte is the only method there is.
const gzipMagic = "\x1f\x8b\x08"

// detect decides what a regular file is, with a note on what is surprising.
func detect(d *disk, c Choice) (Format, string, error) {
	if c == AsRaw {
		return Raw, "", nil
	}
	note := fmt.Sprintf("image %s: begins like an spgz image but is none: read as raw", d.path)
	blockSize, err := readHeader(d)
	switch {
	case c == AsSpgz:
		return Spgz, "", err
	case errors.Is(err, errNotSpgz):
		return Raw, "", nil
	case errors.Is(err, errBadHeader):
		return Raw, note, nil
	case err != nil:
		return "", "", err
	}
	likely, err := sampleSlots(&slots{disk: d, blockSize: blockSize})
	if err != nil {
		return "", "", err
	}
	if !likely {
		return Raw, note, nil
	}
	return Spgz, "", nil
}

// sampleSlots looks at the beginnings of slots all over the file. Most of those
// that say anything must be legal; some may not be, so that a damaged image
// keeps its format and the damage is reported.
//
// A slot that begins with a unit of zeros says nothing. An spgz image has few of
// them, but a disk that someone has given an spgz header may have many, and each
// would pass for a legal raw slot.
func sampleSlots(s *slots) (bool, error) {
	count := s.slotAt(s.held-1) + 1
	legal, seen := 0, 0
	begin := make([]byte, unit)
	for n, next := int64(0), int64(0); n < detectSamples; n++ {
		// Two factors, so that the product does not overflow.
		at := max(next, count/detectSamples*n+count%detectSamples*n/detectSamples)
		e, err := s.nextData(s.slot(at))
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, err
		}
		i := s.slotAt(e.Offset)
		next = i + 1
		part := begin[:max(0, min(unit, s.held-s.slot(i)))]
		if err := s.readFull(part, s.slot(i)); err != nil {
			return false, err
		}
		if spgz.IsBlockZero(part) {
			continue
		}
		seen++
		if legalSlot(part) {
			legal++
		}
	}
	return seen == 0 || 2*legal > seen, nil
}

// legalSlot reports whether a slot may begin like this.
func legalSlot(begin []byte) bool {
	switch begin[0] {
	case flagRaw:
		return true
	case flagGzip:
		rest := begin[1:]
		return len(rest) >= len(gzipMagic) && string(rest[:len(gzipMagic)]) == gzipMagic
	}
	return false
}
