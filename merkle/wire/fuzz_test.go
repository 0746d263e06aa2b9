package wire

import (
	"bytes"
	"io"
	"runtime"
	"testing"

	"github.com/diskrsync/diskrsync/merkle"
)

// FuzzReader reads messages from any bytes. What can be read is written as the
// same bytes again, and what is allocated is in proportion to what arrived, plus
// one frame.
func FuzzReader(f *testing.F) {
	for _, s := range samples() {
		f.Add(frame(f, s.m))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var messages []Message
		in := bytes.NewReader(p)
		r := NewReader(in)
		var ends []int // where each message ends in p
		for {
			m, err := r.Read()
			if err != nil {
				break
			}
			messages, ends = append(messages, m), append(ends, len(p)-in.Len())
		}
		runtime.ReadMemStats(&after)
		// A byte is at most eight indexes of hashes, of 32 bytes each.
		if got, most := after.TotalAlloc-before.TotalAlloc, uint64(2*MaxPayload+300*len(p)); got > most {
			t.Errorf("%d bytes allocated for %d", got, len(p))
		}
		var again []byte
		for i, m := range messages {
			if list := indexes(m); !growing(list) {
				t.Fatalf("%T of the indexes %d", m, list)
			}
			var err error
			if again, err = Append(again, m); err != nil {
				t.Fatalf("%+v was read and cannot be written: %v", m, err)
			}
			if !bytes.Equal(again, p[:ends[i]]) {
				t.Fatalf("%+v has two encodings:\n%x\n%x", m, p[:ends[i]], again)
			}
		}
	})
}

// FuzzPreamble reads a preamble from any bytes, and never far beyond.
func FuzzPreamble(f *testing.F) {
	f.Add([]byte("\x00diskrsync\x01\x00"))
	f.Add([]byte("\x00diskrsync\x02\x00"))
	f.Add([]byte("motd\n\x00diskrsync\x01\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		in := bytes.NewReader(p)
		err := ReadPreamble(in)
		sound := bytes.HasPrefix(p, []byte("\x00diskrsync\x01\x00"))
		if sound != (err == nil) || (err == io.EOF) != (len(p) == 0) {
			t.Errorf("%q: %v", p, err)
		}
		if used := len(p) - in.Len(); used > 5000 || sound && used != 12 {
			t.Errorf("%d bytes read of %d", used, len(p))
		}
		if err != nil && len(err.Error()) > 3000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}

// indexes returns the list of indexes in m, if it has one.
func indexes(m Message) []int64 {
	switch m := m.(type) {
	case *Expand:
		return m.Nodes
	case *Hashes:
		return m.Nodes
	case *Holes:
		return m.Blocks
	case *AskPages:
		return m.Blocks
	case *Pages:
		return m.Blocks
	}
	return nil
}

func growing(list []int64) bool {
	last := int64(-1)
	for _, v := range list {
		if v <= last || v > merkle.MaxSize {
			return false
		}
		last = v
	}
	return true
}
