package transport

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// maxTail bounds how much a Tail keeps, in bytes.
const maxTail = 8 << 10

// A Tail keeps the end of what is written to it, and is bounded. It may be used by
// several goroutines.
type Tail struct {
	mu  sync.Mutex
	buf []byte
	cut bool // whether something before buf was dropped
}

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if drop := len(t.buf) - maxTail; drop > 0 {
		t.buf = append(t.buf[:0], t.buf[drop:]...)
		t.cut = true
	}
	return len(p), nil
}

// Lines returns the kept lines that are not blank, fit to be shown. If the
// beginning is lost, so is the line that it was part of, unless there is no other.
func (t *Tail) Lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := t.buf
	if t.cut {
		if _, rest, ok := bytes.Cut(text, []byte{'\n'}); ok && len(rest) > 0 {
			text = rest
		}
	}
	var lines []string
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			lines = append(lines, escape(string(line)))
		}
	}
	if t.cut {
		lines = append([]string{"..."}, lines...)
	}
	return lines
}

// escape makes s safe to show on a terminal and in a log: whatever does not
// print is written as a Go escape sequence.
func escape(s string) string {
	var out strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == '\t':
			out.WriteByte(' ')
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&out, `\x%02x`, s[0])
		case unicode.IsPrint(r):
			out.WriteRune(r)
		default:
			out.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		s = s[n:]
	}
	return out.String()
}
