package wire

import (
	"bytes"
	"encoding/hex"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/merkle"
)

// A step is a frame of the worked example in PROTOCOL.md.
type step struct {
	from  string
	bytes []byte
}

// workedExample parses the end of PROTOCOL.md. A frame begins on an indented
// line with the name of its sender; every word of two hexadecimal digits up to
// the next frame is a byte of it, the rest says what it means.
func workedExample(t testing.TB) []step {
	t.Helper()
	raw, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(raw), "## Worked example\n")
	if !ok {
		t.Fatal("PROTOCOL.md has no worked example")
	}
	var steps []step
	for line := range strings.Lines(section) {
		words, indented := strings.CutPrefix(line, "    ")
		if !indented {
			continue
		}
		for i, word := range strings.Fields(words) {
			if i == 0 && (word == "source" || word == "target") {
				steps = append(steps, step{from: word})
			} else if b, err := hex.DecodeString(word); err == nil && len(b) == 1 {
				last := &steps[len(steps)-1]
				last.bytes = append(last.bytes, b...)
			}
		}
	}
	return steps
}

// example is what the worked example says, from the definitions.
func example(t testing.TB) []Message {
	t.Helper()
	now, old := []byte("0123456789"), []byte("0123\x00\x00\x00\x00\x00\x00")
	g, err := merkle.NewGeometry(10, 4)
	if err != nil {
		t.Fatal(err)
	}
	leaves := func(p []byte) []merkle.Hash {
		return []merkle.Hash{merkle.Leaf(p[:4]), merkle.Leaf(p[4:8]), merkle.Leaf(p[8:])}
	}
	digest := g.Digest(merkle.RegionRoot(leaves(now)))
	return []Message{
		&Hello{Size: 10, BlockSize: 4, Identity: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}},
		&Accept{BlockSize: 4, Held: 8, Key: [16]byte{16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1}},
		&Roots{Hashes: []merkle.Hash{merkle.RegionRoot(leaves(old))}},
		&Expand{Level: 2, Nodes: []int64{0}},
		&Hashes{Level: 2, Nodes: []int64{0}, Hashes: merkle.Parents(leaves(old))},
		&Expand{Level: 1, Nodes: []int64{0}},
		&Hashes{Level: 1, Nodes: []int64{0}, Hashes: leaves(old)},
		&Block{Index: 1, Leaf: leaves(now)[1], Data: now[4:8]},
		&Block{Index: 2, Leaf: leaves(now)[2], Data: now[8:]},
		&Advance{Through: 1},
		&Finish{Digest: digest, Stats: Stats{Scanned: 10, Read: 16, Hashed: 16, Changed: 2, Payload: 6}},
		&Done{Digest: digest, Stats: Stats{Scanned: 10, Read: 8, Hashed: 10}},
	}
}

func TestWorkedExample(t *testing.T) {
	steps, want := workedExample(t), example(t)
	if len(steps) != len(want) {
		t.Fatalf("%d frames, want %d", len(steps), len(want))
	}
	for i, s := range steps {
		m, err := read(s.bytes)
		if err != nil || !reflect.DeepEqual(m, want[i]) {
			t.Errorf("frame %d is %+v (%v), want %+v", i, m, err, want[i])
		}
		if again := frame(t, want[i]); !bytes.Equal(again, s.bytes) {
			t.Errorf("frame %d is\n% x, want\n% x", i, s.bytes, again)
		}
	}
}
