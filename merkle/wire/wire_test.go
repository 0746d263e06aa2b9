package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

// A sample is a message with the name of its line in the golden file.
type sample struct {
	name string
	m    Message
}

// fill returns a hash of which no byte is zero.
func fill(b byte) (h merkle.Hash) {
	for i := range h {
		h[i] = b
	}
	return h
}

// samples has every kind at least once, and the edges of what a field can be.
func samples() []sample {
	stats := Stats{Scanned: 1, Read: 2, Hashed: 3, Changed: 4, Patched: 5, Holes: 6, Repaired: 7, Payload: 1 << 40, Kept: 8}
	return []sample{
		{"request", &Request{Verb: VerbTarget, Path: "/mnt/backup/disk", Raw: true, DryRun: true, Timeout: 5 * time.Minute}},
		{"request to inspect", &Request{Verb: VerbVerify, Path: "\xff\n", Format: "spgz", Checksum: true}},
		{"request to write in place", &Request{Verb: VerbTarget, Path: "/dev/vg0/a", InPlace: true, StateDir: "/var/lib/x"}},
		{"request to read what is damaged", &Request{Verb: VerbSource, Path: "a", Force: true}},
		{"request to clean", &Request{Verb: VerbClean, Path: "a"}},
		{"request to remove", &Request{Verb: VerbRemove, Path: "a"}},
		{"request to touch", &Request{Verb: VerbTouch, Path: "a", Modified: 1e18}},
		{"opened", &Opened{Note: "read as raw", Format: "disk", Guessed: true}},
		{"opened, nothing to say", &Opened{}},
		{"hello", &Hello{Size: merkle.MaxSize, BlockSize: merkle.MaxBlockSize, DryRun: true, Identity: [16]byte{0: 1, 15: 2}, Modified: 1e18}},
		{"hello, empty image", &Hello{}},
		{"accept", &Accept{BlockSize: 131071, Held: 300, Slots: true, Key: [16]byte{0: 3, 15: 4}}},
		{"roots", &Roots{First: 128, Hashes: []merkle.Hash{fill(1), {}, fill(2)}}},
		{"roots, all zero", &Roots{Hashes: make([]merkle.Hash, 9)}},
		{"roots, none", &Roots{First: 1, Hashes: []merkle.Hash{}}},
		{"expand", &Expand{Level: 2, Nodes: []int64{0, 1, 1000}}},
		{"hashes", &Hashes{Level: 1, Nodes: []int64{17}, Hashes: []merkle.Hash{{}, merkle.Unknown}}},
		{"holes", &Holes{Blocks: []int64{5, merkle.MaxSize}}},
		{"block", &Block{Index: 300, Leaf: fill(3), Encoding: Slot, Data: []byte{0, 'x'}}},
		{"block, empty", &Block{Leaf: fill(3), Encoding: Zstd, Data: []byte{}}},
		{"ask pages", &AskPages{Blocks: []int64{127, 128, 129}}},
		{"pages", &Pages{Blocks: []int64{127}, Hashes: []merkle.PageHash{{1, 2, 3, 4, 5, 6, 7, 8}, {9}}}},
		{"patch", &Patch{Blocks: []PatchedBlock{{Index: 1, Leaf: fill(4), Pages: []byte{0x81, 1}}, {Index: 200, Leaf: fill(5), Pages: []byte{2}}},
			Encoding: Zstd, Data: []byte("pages")}},
		{"refetch", &Refetch{Index: 1, Leaf: fill(4)}},
		{"advance", &Advance{Through: 2048}},
		{"finish", &Finish{Digest: fill(6), Stats: stats}},
		{"done", &Done{Digest: fill(6), Stats: stats, Note: "waits"}},
		{"progress", &Progress{Stats: stats}},
		{"error", &Error{Code: CodeChanged, Text: "the source changed"}},
		{"info", &Info{Format: "spgz", Size: 10, Allocated: 8192, BlockSize: 131071, Digest: fill(7), Bad: 1, Note: "n"}},
		{"info, stored", &Info{Format: "raw", Size: 10, BlockSize: 4, Digest: fill(7), Stored: true, Generation: 300, Synced: 1e18, Kept: 5, Waiting: 6}},
		{"info, incomplete", &Info{Format: "device", Incomplete: true}},
		{"bad", &Bad{Index: 2, Offset: 262142, Length: 131071, Text: "corrupt"}},
	}
}

func frame(t testing.TB, m Message) []byte {
	t.Helper()
	p, err := Append(nil, m)
	if err != nil {
		t.Fatalf("%+v: %v", m, err)
	}
	return p
}

func read(p []byte) (Message, error) { return NewReader(bytes.NewReader(p)).Read() }

// resized returns the frame p with another payload, and the length of that in
// its header.
func resized(p, payload []byte) []byte {
	out := append(bytes.Clone(p[:headerLen]), payload...)
	binary.LittleEndian.PutUint32(out, uint32(len(payload)))
	return out
}

// The golden file holds the bytes of version 1 for good: NAME: HEX a line. After
// a change of the version, write what the failures print.
func TestGoldenFrames(t *testing.T) {
	raw, err := os.ReadFile("testdata/frames.txt")
	if err != nil {
		t.Fatal(err)
	}
	golden := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		name, digits, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			t.Fatalf("malformed line %q", line)
		}
		golden[name] = digits
	}
	for _, s := range samples() {
		if got := hex.EncodeToString(frame(t, s.m)); got != golden[s.name] {
			t.Errorf("not as in the golden file:\n%s: %s", s.name, got)
		}
		p, err := hex.DecodeString(golden[s.name])
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		if m, err := read(p); err != nil || !reflect.DeepEqual(m, s.m) {
			t.Errorf("%s: read as %+v, %v", s.name, m, err)
		}
	}
	if len(golden) != len(samples()) {
		t.Errorf("%d lines for %d samples", len(golden), len(samples()))
	}
}

func TestSamplesHaveEveryKind(t *testing.T) {
	kinds := map[byte]bool{}
	for _, s := range samples() {
		kinds[frame(t, s.m)[4]] = true
	}
	for kind := range 256 {
		if _, err := read([]byte{0, 0, 0, 0, byte(kind)}); kinds[byte(kind)] == (err != nil && strings.Contains(err.Error(), "unknown")) {
			t.Errorf("kind %d: in the samples %v, read: %v", kind, kinds[byte(kind)], err)
		}
	}
	if len(kinds) != 20 {
		t.Errorf("%d kinds", len(kinds))
	}
}

func TestTruncatedPayload(t *testing.T) {
	for _, s := range samples() {
		p := frame(t, s.m)
		for n := range len(p) - headerLen {
			if m, err := read(resized(p, p[headerLen:][:n])); err == nil {
				t.Errorf("%s, %d of %d bytes: read as %+v", s.name, n, len(p)-headerLen, m)
			}
		}
	}
}

func TestTruncatedStream(t *testing.T) {
	for _, s := range samples() {
		p := frame(t, s.m)
		for n := range len(p) {
			if m, err := read(p[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s, the first %d of %d bytes: %+v, %v", s.name, n, len(p), m, err)
			}
		}
	}
}

func TestByteTooMany(t *testing.T) {
	for _, s := range samples() {
		p := frame(t, s.m)
		for _, b := range []byte{0, 1, 0xff} {
			if m, err := read(resized(p, append(bytes.Clone(p[headerLen:]), b))); err == nil {
				t.Errorf("%s and %#x: read as %+v", s.name, b, m)
			}
		}
	}
}

// uv is a varint.
func uv(v uint64) []byte { return binary.AppendUvarint(nil, v) }

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestMalformed(t *testing.T) {
	h := make([]byte, 32)
	ones := bytes.Repeat([]byte{1}, 32)
	for _, c := range []struct {
		name    string
		kind    byte
		payload []byte
		want    string
	}{
		{"number above 2^62", 14, uv(1<<62 + 1), "out of range"},
		{"number above 64 bits", 14, bytes.Repeat([]byte{0xff}, 11), "out of range"},
		{"number in needless bytes", 14, []byte{0x81, 0}, "needless"},
		{"zero in needless bytes", 14, []byte{0x80, 0}, "needless"},
		{"bool of 2", 3, cat(uv(1), uv(1), uv(2), h[:16]), "at most 1"},
		{"block size above the bound", 3, cat(uv(1), uv(merkle.MaxBlockSize+1), uv(0), h[:16]), "at most"},
		{"time above 2^62", 3, cat(uv(1), uv(1), uv(0), h[:16], uv(1<<62+1)), "out of range"},
		{"verb 0", 1, make([]byte, 11), "verb"},
		{"verb 8", 1, cat(uv(8), make([]byte, 10)), "at most 7"},
		{"path above the bound", 1, cat(uv(1), uv(4097), make([]byte, 4097+8)), "at most 4096"},
		{"in place 2", 1, cat(uv(2), make([]byte, 5), uv(2), make([]byte, 3)), "at most 1"},
		{"force 2", 1, cat(uv(1), make([]byte, 6), uv(2), make([]byte, 2)), "at most 1"},
		{"state folder above the bound", 1, cat(uv(2), make([]byte, 7), uv(4097), make([]byte, 4097), uv(0)), "at most 4096"},
		{"state folder that is not there", 1, cat(uv(2), make([]byte, 7), uv(4096)), "too soon"},
		{"timeout above the bound", 1, cat(uv(1), make([]byte, 8), uv(1<<40), uv(0)), "timeout"},
		{"request without a state folder", 1, make([]byte, 7), "too soon"},
		{"stored 2", 19, cat(make([]byte, 4), h, make([]byte, 2), uv(2), make([]byte, 5)), "at most 1"},
		{"incomplete 2", 19, cat(make([]byte, 4), h, make([]byte, 5), uv(2), make([]byte, 2)), "at most 1"},
		{"waiting above 2^62", 19, cat(make([]byte, 4), h, make([]byte, 7), uv(1<<62+1)), "out of range"},
		{"level 0", 6, cat(uv(0), uv(0)), "no children"},
		{"level 3", 6, cat(uv(3), uv(0)), "at most 2"},
		{"level 0 of hashes", 7, cat(uv(0), uv(0), uv(0)), "no children"},
		{"indexes above the bound", 8, cat(uv(8193), make([]byte, 9000)), "at most 8192"},
		{"indexes that are not there", 8, uv(8192), "too soon"},
		{"an index twice", 8, cat(uv(2), uv(1), uv(0)), "does not grow"},
		{"zero twice", 8, cat(uv(2), uv(0), uv(0)), "does not grow"},
		{"index above 2^62", 8, cat(uv(2), uv(1<<62), uv(1)), "out of range"},
		{"index that overflows", 8, cat(uv(3), uv(1<<62), uv(1<<62), uv(1<<62)), "out of range"},
		{"hashes above the bound", 5, cat(uv(0), uv(8193), make([]byte, 1025)), "at most 8192"},
		{"bitmap that is not there", 5, cat(uv(0), uv(8192)), "too soon"},
		{"hash that is not there", 5, cat(uv(0), uv(1), []byte{1}), "too soon"},
		{"zero hash that is marked", 5, cat(uv(0), uv(1), []byte{1}, h), "zero hash"},
		{"bit behind the bitmap", 5, cat(uv(0), uv(1), []byte{2}, ones), "behind the end"},
		{"encoding 3", 9, cat(uv(0), ones, uv(3), uv(0)), "at most 2"},
		{"slot in a patch", 12, cat(uv(1), uv(0), ones, uv(1), []byte{1}, uv(2), uv(0)), "at most 1"},
		{"patch of nothing", 12, cat(uv(0), uv(0), uv(0)), "no blocks"},
		{"patch of too many", 12, cat(uv(1025), make([]byte, 50000)), "at most 1024"},
		{"bitmap of too many pages", 12, cat(uv(1), uv(0), ones, uv(34), make([]byte, 34), uv(0), uv(0)), "at most 33"},
		{"page hash that is cut off", 11, cat(uv(1), uv(0), uv(9), make([]byte, 9)), "cut off"},
		{"data longer than the frame", 9, cat(uv(0), ones, uv(0), uv(100), make([]byte, 99)), "too soon"},
		{"data above the bound", 9, cat(uv(0), ones, uv(0), uv(MaxPayload+1)), "at most"},
		{"text above the bound", 18, cat(uv(1), uv(4097), make([]byte, 4097)), "at most 4096"},
		{"code above the bound", 18, cat(uv(5), uv(0)), "at most 4"},
	} {
		m, err := read(resized([]byte{0, 0, 0, 0, c.kind}, c.payload))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: read as %+v, %v", c.name, m, err)
		}
	}
}

func TestUnwritable(t *testing.T) {
	var many Patch
	many.Blocks = make([]PatchedBlock, MaxPatches+1)
	for name, m := range map[string]Message{
		"negative number":     &Advance{Through: -1},
		"indexes that fall":   &Holes{Blocks: []int64{2, 1}},
		"an index twice":      &Holes{Blocks: []int64{1, 1}},
		"negative index":      &Holes{Blocks: []int64{-1}},
		"too many hashes":     &Roots{Hashes: make([]merkle.Hash, MaxList+1)},
		"too many patches":    &many,
		"a patch of nothing":  &Patch{},
		"too much data":       &Block{Data: make([]byte, MaxPayload+1)},
		"too long a frame":    &Block{Data: make([]byte, MaxPayload)},
		"too long a path":     &Request{Verb: VerbInfo, Path: strings.Repeat("x", 4097)},
		"too long a folder":   &Request{Verb: VerbTarget, StateDir: strings.Repeat("x", 4097)},
		"no such verb":        &Request{Verb: VerbRemove + 1},
		"time before 1970":    &Hello{Modified: -1},
		"negative generation": &Info{Generation: -1},
		"a request for none":  &Request{},
		"expansion of leaves": &Expand{},
	} {
		var out bytes.Buffer
		if err := NewWriter(&out).Write(m); err == nil || out.Len() > 0 {
			t.Errorf("%s: %v, %d bytes written", name, err, out.Len())
		}
	}
}

// Texts for people are cut rather than refused: an error must get through.
func TestLongTextsAreCut(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, m := range []Message{&Error{Code: CodeFailed, Text: long}, &Opened{Note: long}, &Bad{Text: long}, &Info{Note: long}} {
		got, err := read(frame(t, m))
		if err != nil || !strings.Contains(fmt.Sprintf("%+v", got), long[:4096]) || strings.Contains(fmt.Sprintf("%+v", got), long[:4097]) {
			t.Errorf("%T: %v", m, err)
		}
	}
}

// random fills v, a struct of package wire, with what its fields may hold.
func random(r *rand.Rand, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Field(i)
		switch p := f.Addr().Interface().(type) {
		case *int64:
			*p = r.Int64N(merkle.MaxSize + 1)
			*p >>= r.IntN(63)
		case *string:
			*p = string(randomBytes(r, 16))
		case *bool:
			*p = r.IntN(2) == 0
		case *[]byte:
			*p = randomBytes(r, 33)
		case *[]int64:
			*p = make([]int64, r.IntN(40))
			last := int64(0)
			for j := range *p {
				(*p)[j] = last + r.Int64N(1<<(1+r.IntN(50)))
				last = (*p)[j] + 1
			}
		case *[]merkle.Hash:
			*p = make([]merkle.Hash, r.IntN(40))
			for j := range *p {
				if r.IntN(2) == 0 {
					(*p)[j] = fill(byte(r.Uint32()) | 1)
				}
			}
		case *merkle.Hash:
			*p = fill(byte(r.Uint32()))
		case *[16]byte:
			h := fill(byte(r.Uint32()))
			copy(p[:], h[:])
		case *[]merkle.PageHash:
			*p = make([]merkle.PageHash, r.IntN(40))
			for j := range *p {
				binary.LittleEndian.PutUint64((*p)[j][:], r.Uint64())
			}
		case *[]PatchedBlock:
			*p = make([]PatchedBlock, 1+r.IntN(5))
			for j := range *p {
				random(r, reflect.ValueOf(&(*p)[j]).Elem())
			}
		case *time.Duration:
			*p = time.Duration(r.IntN(1e6)) * time.Millisecond
		case *int: // a level or a block size
			*p = 1 + r.IntN(2)
		case *Verb, *Encoding, *Code:
			f.SetInt(1)
		case *Stats:
			random(r, f)
		default:
			panic(fmt.Sprintf("a field of type %T", p))
		}
	}
}

func randomBytes(r *rand.Rand, limit int) []byte {
	p := make([]byte, r.IntN(limit))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func TestRoundTrips(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var stream bytes.Buffer
	w, rd := NewWriter(&stream), NewReader(&stream)
	for range 300 {
		var sent []Message
		for _, s := range samples() {
			m := reflect.New(reflect.TypeOf(s.m).Elem())
			random(r, m.Elem())
			sent = append(sent, m.Interface().(Message))
		}
		for _, m := range sent {
			if err := w.Write(m); err != nil {
				t.Fatalf("%+v: %v", m, err)
			}
		}
		for _, m := range sent {
			got, err := rd.Read()
			if err != nil || !reflect.DeepEqual(got, m) {
				t.Fatalf("wrote %+v, read %+v, %v", m, got, err)
			}
		}
	}
	if _, err := rd.Read(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("at the end: %v", err)
	}
}

// What was read must stay as it is while more is read.
func TestReadDataBelongsToTheCaller(t *testing.T) {
	var stream bytes.Buffer
	w := NewWriter(&stream)
	for i := range byte(3) {
		if err := w.Write(&Block{Data: bytes.Repeat([]byte{i}, 100)}); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(&stream)
	first, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := r.Read(); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.(*Block).Data, make([]byte, 100)) {
		t.Error("the data of the first message changed")
	}
}

// cost returns the bytes that reading p allocates.
func cost(p []byte) uint64 {
	var before, after runtime.MemStats
	r := NewReader(bytes.NewReader(p))
	runtime.ReadMemStats(&before)
	_, _ = r.Read() // what it returns is for other tests
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestBoundsAreCheckedBeforeAllocation(t *testing.T) {
	short := func(kind byte, payload []byte) []byte { return resized([]byte{0, 0, 0, 0, kind}, payload) }
	for _, c := range []struct {
		name  string
		bytes []byte
		most  uint64
	}{
		{"length above the bound", []byte{0xff, 0xff, 0xff, 0xff, 9}, 16 << 10},
		{"length just above the bound", binary.LittleEndian.AppendUint32(nil, MaxPayload+1), 16 << 10},
		{"unknown kind of the largest length", []byte{0, 0, 16, 0, 77}, 16 << 10},
		{"many indexes that are not there", short(8, uv(8192)), 16 << 10},
		{"many hashes that are not there", short(5, cat(uv(0), uv(8192))), 16 << 10},
		{"much data that is not there", short(9, cat(uv(0), make([]byte, 32), uv(0), uv(MaxPayload))), 16 << 10},
		{"page hashes that are not there", short(11, cat(uv(0), uv(MaxPayload))), 16 << 10},
		{"patches that are not there", short(12, uv(MaxPatches)), 128 << 10},
		{"as many zero hashes as a list may have", short(5, cat(uv(0), uv(8192), make([]byte, 1024))), 300 << 10},
	} {
		if got := cost(c.bytes); got > c.most {
			t.Errorf("%s: %d bytes allocated", c.name, got)
		}
	}
}

func TestPreamble(t *testing.T) {
	var own bytes.Buffer
	if err := WritePreamble(&own); err != nil {
		t.Fatal(err)
	}
	if got := own.String(); got != "\x00diskrsync\x01\x00" {
		t.Errorf("preamble %q", got)
	}
	if err := ReadPreamble(bytes.NewReader(append(own.Bytes(), "rest"...))); err != nil {
		t.Error(err)
	}
	var version *VersionError
	if err := ReadPreamble(strings.NewReader("\x00diskrsync\x02\x01")); !errors.As(err, &version) || version.Theirs != 0x102 {
		t.Errorf("another version: %v", err)
	}
	if err := ReadPreamble(strings.NewReader("")); err != io.EOF {
		t.Errorf("nothing: %v", err)
	}
	for n := 1; n < own.Len(); n++ {
		if err := ReadPreamble(bytes.NewReader(own.Bytes()[:n])); err == nil {
			t.Errorf("%d bytes of a preamble: no error", n)
		}
	}
}

func TestBanner(t *testing.T) {
	for _, c := range []struct{ stream, want string }{
		{"Welcome!\n\x00diskrsync\x01\x00and more", "Welcome!\n"},
		{"bash: diskrsync: command not found\n", "bash: diskrsync: command not found\n"},
		{"x", "x"},
		{strings.Repeat("y", 10_000), strings.Repeat("y", 4096)},
	} {
		err := ReadPreamble(strings.NewReader(c.stream))
		var banner *BannerError
		if !errors.As(err, &banner) || banner.Text != c.want {
			t.Errorf("%.40q: %v", c.stream, err)
		}
	}
	if text := (&BannerError{"\x1b[2J bell\a"}).Error(); strings.ContainsAny(text, "\x1b\a") {
		t.Errorf("control characters in %q", text)
	}
	if text := (&BannerError{strings.Repeat("z", 4000)}).Error(); len(text) > 800 {
		t.Errorf("an error of %d bytes", len(text))
	}
}
