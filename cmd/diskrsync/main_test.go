package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

func TestStatus(t *testing.T) {
	refused := fmt.Errorf("device too small: %w", image.ErrRefused)
	for _, tt := range []struct {
		name string
		err  error
		want int
	}{
		{"anything", errors.New("disk on fire"), exitFailed},
		{"end of file", io.ErrUnexpectedEOF, exitFailed},
		{"usage", usageError{errors.New("which one?")}, exitUsage},
		{"usage, wrapped", fmt.Errorf("parsing: %w", usageError{errors.New("which one?")}), exitUsage},
		{"refused", refused, exitRefused},
		{"too small", fmt.Errorf("x: %w", image.ErrTooSmall), exitRefused},
		{"in use", fmt.Errorf("x: %w", image.ErrInUse), exitRefused},
		{"incomplete", fmt.Errorf("x: %w", image.ErrIncomplete), exitRefused},
		{"image changed", fmt.Errorf("x: %w", image.ErrChanged), exitRefused},
		{"source changed", fmt.Errorf("x: %w", session.ErrChanged), exitRefused},
		{"refused far away", fmt.Errorf("nas: %w", &session.PeerError{Code: wire.CodeRefused, Text: "no"}), exitRefused},
		{"changed far away", fmt.Errorf("nas: %w", &session.PeerError{Code: wire.CodeChanged, Text: "no"}), exitRefused},
		{"failed far away", fmt.Errorf("nas: %w", &session.PeerError{Code: wire.CodeFailed, Text: "no"}), exitFailed},
		{"lost", &session.LostError{Err: io.ErrUnexpectedEOF}, exitFailed},
		{"refused among others", errors.Join(io.ErrClosedPipe, refused), exitRefused},
		{"usage before refused", usageError{refused}, exitUsage},
	} {
		if got := status(tt.err); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestOneLine(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errors.New("plain"), "plain"},
		{errors.Join(errors.New("first"), errors.New("second")), "first; second"},
		{errors.New("\r\nwindows\r\nlines\n\n"), "windows; lines"},
		{errors.New("progress\rover progress"), "progress; over progress"},
	} {
		if got := oneLine(tt.err); got != tt.want {
			t.Errorf("%q became %q, want %q", tt.err, got, tt.want)
		}
	}
}

// brokenWriter fails after some bytes.
type brokenWriter struct{ room int }

func (w *brokenWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.room)
	w.room -= n
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

func TestRunWithBrokenOutput(t *testing.T) {
	var stderr bytes.Buffer
	if got := run([]string{"--json", t.TempDir(), "copy"}, &brokenWriter{}, &stderr); got != exitFailed {
		t.Errorf("exit status %d", got)
	}
	if text := stderr.String(); !strings.HasPrefix(text, "diskrsync: writing to standard output: ") || strings.Count(text, "\n") != 1 {
		t.Errorf("standard error is %q", text)
	}
}

func TestNote(t *testing.T) {
	var stderr bytes.Buffer
	a := &app{stderr: &stderr}
	a.note("")
	if stderr.Len() > 0 {
		t.Errorf("nothing worth knowing became %q", &stderr)
	}
	a.note("mind the gap")
	if got := stderr.String(); got != "diskrsync: note: mind the gap\n" {
		t.Errorf("printed %q", got)
	}
}

func TestVersionIsNeverEmpty(t *testing.T) {
	if version() == "" {
		t.Error("--version would print nothing")
	}
}
