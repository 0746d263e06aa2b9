// Package wire puts the messages of a sync on a byte stream and takes them off
// again. PROTOCOL.md in this folder says what every byte means and in which
// order messages come; this package knows the first, package session the second.
//
// Everything that is read is checked before it is believed: lengths and counts
// against their bounds before anything is allocated, values against their ranges.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Version is the version of the protocol. Both sides must have the same.
const Version = 1

const magic = "\x00diskrsync"

// preamble is what each side sends first. It begins with a byte that no login
// script prints.
func preamble() []byte { return binary.LittleEndian.AppendUint16([]byte(magic), Version) }

// WritePreamble begins a conversation.
func WritePreamble(w io.Writer) error {
	_, err := w.Write(preamble())
	return err
}

// A BannerError says that something else was on the stream where the protocol
// should have begun.
type BannerError struct {
	Text string // what came, up to a few kilobytes, unescaped
}

func (e *BannerError) Error() string {
	text := strings.TrimSpace(e.Text)
	if len(text) > 300 {
		text = text[:300] + " …"
	}
	return fmt.Sprintf("the far side printed %q before the protocol began: nothing on it may print when the agent is started "+
		"(a login script, perhaps: let it print only to a terminal)", text)
}

// A VersionError says that the other side speaks another version.
type VersionError struct{ Theirs int }

func (e *VersionError) Error() string {
	return fmt.Sprintf("the far side speaks version %d of the protocol, this side version %d: install the same diskrsync on both", e.Theirs, Version)
}

// maxBanner bounds what is kept of something that is not the protocol.
const maxBanner = 4 << 10

// ReadPreamble reads what the other side sends first. It returns io.EOF if
// nothing came at all, a *BannerError if something else came.
func ReadPreamble(r io.Reader) error {
	got := make([]byte, len(magic)+2)
	n, err := io.ReadFull(r, got)
	if n == 0 && err != nil {
		return err
	}
	if err != nil && strings.HasPrefix(magic, string(got[:n])) {
		return err // the far side went in the middle of it
	}
	if n < len(magic) || string(got[:len(magic)]) != magic {
		return banner(r, got[:n], err)
	}
	if err != nil {
		return err
	}
	if v := binary.LittleEndian.Uint16(got[len(magic):]); v != Version {
		return &VersionError{int(v)}
	}
	return nil
}

// banner collects the text up to the preamble or to the end of the stream, so
// that the error can show what it was.
func banner(r io.Reader, text []byte, err error) error {
	one := make([]byte, 1)
	for err == nil && len(text) < maxBanner && !strings.Contains(string(text), magic) {
		if _, err = io.ReadFull(r, one); err == nil {
			text = append(text, one...)
		}
	}
	shown, _, _ := strings.Cut(string(text), magic)
	return &BannerError{shown}
}

const (
	// MaxPayload bounds a frame: a block of the largest size, and what comes
	// with it.
	MaxPayload = 1<<20 + 128<<10

	// MaxList bounds the lists in a message.
	MaxList = 8192

	// MaxPatches bounds the blocks of a Patch.
	MaxPatches = 1024

	// maxText bounds paths and the texts of errors and notes.
	maxText = 4096

	headerLen = 5
)

// A Writer writes messages. It must not be used by two goroutines at once.
type Writer struct {
	w   io.Writer
	buf []byte
}

// NewWriter returns a Writer that makes one Write of every frame.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write writes m as a frame.
func (w *Writer) Write(m Message) error {
	frame, err := Append(w.buf[:0], m)
	if err != nil {
		return err
	}
	w.buf = frame
	_, err = w.w.Write(frame)
	return err
}

// Append appends the frame of m to dst.
func Append(dst []byte, m Message) ([]byte, error) {
	at := len(dst)
	c := codec{buf: append(dst, 0, 0, 0, 0, byte(m.kind()))}
	m.fields(&c)
	n := len(c.buf) - at - headerLen
	if c.err == nil && n > MaxPayload {
		c.fail(fmt.Errorf("a payload of %d bytes where at most %d is allowed", n, MaxPayload))
	}
	if c.err != nil {
		return nil, fmt.Errorf("writing a message %T: %w", m, c.err)
	}
	binary.LittleEndian.PutUint32(c.buf[at:], uint32(n))
	return c.buf, nil
}

// A Reader reads messages. It must not be used by two goroutines at once.
type Reader struct {
	r      io.Reader
	header [headerLen]byte
}

// NewReader returns a Reader of r, which had better be buffered.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Read reads the next message. The bytes in it belong to the caller. At the end
// of the stream it returns io.ErrUnexpectedEOF: a conversation ends by a
// message, not by silence.
func (r *Reader) Read() (Message, error) {
	if _, err := io.ReadFull(r.r, r.header[:]); err != nil {
		return nil, unexpected(err)
	}
	n := binary.LittleEndian.Uint32(r.header[:])
	k := kind(r.header[4])
	m := k.new()
	if m == nil {
		return nil, fmt.Errorf("message of unknown kind %d", k)
	}
	if n > MaxPayload {
		return nil, fmt.Errorf("message of kind %d: %d bytes where at most %d are allowed", k, n, MaxPayload)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r.r, payload); err != nil {
		return nil, unexpected(err)
	}
	if err := decode(m, payload); err != nil {
		return nil, err
	}
	return m, nil
}

func decode(m Message, payload []byte) error {
	c := codec{buf: payload, reading: true}
	m.fields(&c)
	if c.err == nil && len(c.buf) > 0 {
		c.fail(fmt.Errorf("%d bytes too many", len(c.buf)))
	}
	if c.err != nil {
		return fmt.Errorf("malformed message of kind %d: %w", m.kind(), c.err)
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
