package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/diskrsync/diskrsync/merkle"
)

// A codec goes over the fields of a message, writing them or reading them. Each
// message names its fields once, for both directions, so that the two cannot
// disagree. The first error sticks; after it nothing happens any more. Writing
// does not touch the message, which others may be reading.
type codec struct {
	buf     []byte // written so far, or what is left to read
	reading bool
	err     error
}

var errShort = errors.New("it ends too soon")

func (c *codec) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// take returns the next n bytes of what is read. They are part of the frame.
func (c *codec) take(n int) []byte {
	if c.err != nil {
		return nil
	}
	if n > len(c.buf) {
		c.fail(errShort)
		return nil
	}
	p := c.buf[:n:n]
	c.buf = c.buf[n:]
	return p
}

func (c *codec) int64(v *int64) {
	if !c.reading {
		if *v < 0 || *v > merkle.MaxSize {
			c.fail(fmt.Errorf("a number out of range: %d", *v))
		}
		c.buf = binary.AppendUvarint(c.buf, uint64(*v))
		return
	}
	if c.err != nil {
		return
	}
	u, n := binary.Uvarint(c.buf)
	switch {
	case n == 0:
		c.fail(errShort)
	case n < 0 || u > merkle.MaxSize:
		c.fail(errors.New("a number out of range"))
	case n > 1 && c.buf[n-1] == 0:
		c.fail(errors.New("a number with needless bytes")) // one encoding for each message
	default:
		*v, c.buf = int64(u), c.buf[n:]
	}
}

func (c *codec) int(v *int, limit int) {
	wide := int64(*v)
	c.int64(&wide)
	if wide > int64(limit) {
		c.fail(fmt.Errorf("%d where at most %d is allowed", wide, limit))
		return
	}
	if c.reading {
		*v = int(wide)
	}
}

func (c *codec) bool(v *bool) {
	n := 0
	if *v {
		n = 1
	}
	c.int(&n, 1)
	if c.reading {
		*v = n == 1
	}
}

func (c *codec) bytes(v *[]byte, limit int) {
	n := len(*v)
	c.int(&n, limit)
	if c.err != nil {
		return
	}
	if c.reading {
		*v = c.take(n)
	} else {
		c.buf = append(c.buf, *v...)
	}
}

func (c *codec) string(v *string, limit int) {
	raw := []byte(*v)
	c.bytes(&raw, limit)
	if c.reading {
		*v = string(raw)
	}
}

// text is a string for people, which is cut where it is too long.
func (c *codec) text(v *string) {
	short := *v
	if len(short) > maxText {
		short = short[:maxText]
	}
	c.string(&short, maxText)
	if c.reading {
		*v = short
	}
}

// fixed goes over an array of bytes.
func (c *codec) fixed(p []byte) {
	if c.reading {
		copy(p, c.take(len(p)))
	} else {
		c.buf = append(c.buf, p...)
	}
}

// hashes goes over a list in which zeros cost a bit.
func (c *codec) hashes(v *[]merkle.Hash) {
	n := len(*v)
	c.int(&n, MaxList)
	if c.err != nil {
		return
	}
	if c.reading {
		c.readHashes(v, n)
		return
	}
	at := len(c.buf)
	c.buf = append(c.buf, make([]byte, bitmapLen(n))...)
	for i, h := range *v {
		if !h.IsZero() {
			c.buf[at+i/8] |= 1 << (i % 8)
			c.buf = append(c.buf, h[:]...)
		}
	}
}

func (c *codec) readHashes(v *[]merkle.Hash, n int) {
	bitmap := c.take(bitmapLen(n))
	set := 0
	for _, b := range bitmap {
		set += bits.OnesCount8(b)
	}
	flat := c.take(set * merkle.HashSize)
	if c.err != nil {
		return
	}
	*v = make([]merkle.Hash, n)
	for i := range n {
		if bitmap[i/8]>>(i%8)&1 == 0 {
			continue
		}
		flat = flat[copy((*v)[i][:], flat):]
		if (*v)[i].IsZero() {
			c.fail(errors.New("a zero hash marked as not zero"))
		}
	}
	if len(flat) > 0 {
		c.fail(errors.New("a bit set behind the end of a bitmap"))
	}
}

// indexes goes over a list of numbers that grow.
func (c *codec) indexes(v *[]int64) {
	n := len(*v)
	c.int(&n, MaxList)
	if c.reading && n > len(c.buf) {
		c.fail(errShort) // each takes a byte or more
	}
	if c.err != nil {
		return
	}
	if c.reading {
		*v = make([]int64, n)
	}
	last := int64(-1)
	for i := range *v {
		// The first as it is, each further one as the difference.
		d := (*v)[i] - max(last, 0)
		c.int64(&d)
		if i > 0 && d == 0 {
			c.fail(errors.New("a list of indexes that does not grow"))
		}
		last = max(last, 0)
		if d > merkle.MaxSize-last {
			c.fail(errors.New("an index out of range"))
		}
		if c.err != nil {
			return
		}
		last += d
		if c.reading {
			(*v)[i] = last
		}
	}
}

func bitmapLen(n int) int { return (n + 7) / 8 }
