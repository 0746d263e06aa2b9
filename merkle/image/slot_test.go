package image

import (
	"bytes"
	stdgzip "compress/gzip"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/klauspost/compress/gzip"
)

const testBlock = 131071

func text(n int) []byte { return bytes.Repeat([]byte("all of it is text. "), n/19+1)[:n] }

func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	fillNoise(newRand(seed), p)
	return p
}

func TestSlotRoundTrip(t *testing.T) {
	for _, n := range []int{1, 2, 8190, 8192, 8194, 8300, 12287, testBlock - 1, testBlock} {
		for name, data := range map[string][]byte{"text": text(n), "noise": noise(1, n)} {
			slot := EncodeSlot([]byte("before"), data)
			if string(slot[:6]) != "before" {
				t.Fatalf("%s of %d bytes: EncodeSlot does not append", name, n)
			}
			got, err := DecodeSlot([]byte("before"), slot[6:], n)
			if err != nil || string(got) != "before"+string(data) {
				t.Errorf("%s of %d bytes does not come back: %v", name, n, err)
			}
		}
	}
}

func TestEncodeSlotKeepsWhatPays(t *testing.T) {
	// A block of noise with a run of zeros: the more zeros, the shorter the
	// member, byte by byte over the limit. The rule is that of the original.
	for zeros := 8000; zeros < 8400; zeros++ {
		data := append(noise(2, 12287-zeros), make([]byte, zeros)...)
		var member bytes.Buffer
		zw, err := gzip.NewWriterLevel(&member, gzipLevel)
		must(t, err)
		zw.Write(data)
		must(t, zw.Close())
		n := 1 + member.Len()
		want := byte(flagRaw)
		if n+1 < len(data)-2*4096 {
			want = flagGzip
		}
		if slot := EncodeSlot(nil, data); slot[0] != want {
			t.Fatalf("%d zeros: flag %d, want %d for a slot of %d bytes", zeros, slot[0], want, n)
		}
	}
}

func TestEncodeSlotOfZeros(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 63, 64, 65, testBlock} {
		if slot := EncodeSlot([]byte("x"), make([]byte, n)); slot != nil {
			t.Errorf("%d zeros have a slot of %d bytes", n, len(slot))
		}
		if n > 0 {
			data := make([]byte, n)
			data[n-1] = 1
			if EncodeSlot(nil, data) == nil {
				t.Errorf("%d bytes of which the last is not zero have no slot", n)
			}
		}
	}
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	zw := stdgzip.NewWriter(&b)
	zw.Write(data)
	zw.Close()
	return b.Bytes()
}

func TestDecodeSlot(t *testing.T) {
	member := gzipped(text(1000))
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	flag := []byte{flagGzip}
	badSum := join(flag, member)
	badSum[len(badSum)-5] ^= 1
	for _, c := range []struct {
		name string
		slot []byte
		want int
		out  []byte
		err  string
	}{
		{"empty", nil, 10, nil, ""},
		{"raw", []byte("\x00abc"), 3, []byte("abc"), ""},
		{"raw, short", []byte("\x00abc"), 10, []byte("abc"), ""},
		{"raw, flag alone", []byte{0}, 10, nil, ""},
		{"raw, too long", []byte("\x00abc"), 2, nil, "more than the 2 of a block"},
		{"unknown flag", []byte{2, 1}, 2, nil, "unknown slot flag 2"},
		{"member", join(flag, member), 1000, text(1000), ""},
		{"member of less", join(flag, member), 5000, text(1000), ""},
		{"member of more", join(flag, member), 999, nil, "unfolds to more than the 999"},
		{"member and rubbish", join(flag, member, []byte("rubbish")), 1000, text(1000), ""},
		{"two members", join(flag, member, member), 5000, text(1000), ""},
		{"empty member", join(flag, gzipped(nil)), 1000, nil, ""},
		{"flag alone", flag, 1000, nil, "corrupt gzip data: unexpected EOF"},
		{"not gzip", []byte("\x01not gzip, not at all"), 1000, nil, "corrupt gzip data"},
		{"wrong checksum", badSum, 1000, nil, "corrupt gzip data"},
	} {
		out, err := DecodeSlot(nil, c.slot, c.want)
		if c.err != "" {
			wantError(t, err, nil, c.err)
			if len(out) != 0 {
				t.Errorf("%s: returns %d bytes with an error", c.name, len(out))
			}
		} else if err != nil || !bytes.Equal(out, c.out) {
			t.Errorf("%s: %d bytes, %v", c.name, len(out), err)
		}
	}
}

func TestDecodeSlotCutAnywhere(t *testing.T) {
	slot := EncodeSlot(nil, append(text(12000), noise(3, 200)...))
	if slot[0] != flagGzip {
		t.Fatal("the block was not compressed")
	}
	for n := 1; n < len(slot); n++ {
		if _, err := DecodeSlot(nil, slot[:n], 12287); err == nil {
			t.Fatalf("cut to %d of %d bytes, it still decodes", n, len(slot))
		}
	}
}

// The original reads members with the standard library.
func TestSlotIsPlainGzip(t *testing.T) {
	data := append(text(60000), noise(4, 20000)...)
	slot := EncodeSlot(nil, data)
	zr, err := stdgzip.NewReader(bytes.NewReader(slot[1:]))
	must(t, err)
	got, err := io.ReadAll(zr)
	must(t, err)
	same(t, "the member", got, data)
}

func FuzzDecodeSlot(f *testing.F) {
	f.Add([]byte("\x00raw"), 3)
	f.Add(append([]byte{flagGzip}, gzipped(text(300))...), 300)
	f.Add(append([]byte{flagGzip}, gzipped(text(300))...), 299)
	f.Add(append([]byte{flagGzip}, gzipped(nil)...), 0)
	f.Add([]byte{flagGzip, 0x1f, 0x8b, 8}, 100)
	f.Add([]byte{7, 7}, 1)
	f.Fuzz(func(t *testing.T, slot []byte, want int) {
		if want < 0 || want > 1<<16 {
			return
		}
		data, err := DecodeSlot(nil, slot, want)
		if len(data) > want {
			t.Fatalf("%d bytes, at most %d were wanted", len(data), want)
		}
		if err != nil {
			if len(data) > 0 {
				t.Fatal("data with an error")
			}
			return
		}
		again := EncodeSlot(nil, data)
		back, err := DecodeSlot(nil, again, want)
		if err != nil || again != nil && !bytes.Equal(back, data) {
			t.Fatalf("what was decoded does not survive: %v", err)
		}
		if len(slot) == 0 || slot[0] != flagGzip {
			return
		}
		zr, err := stdgzip.NewReader(bytes.NewReader(slot[1:]))
		must(t, err)
		zr.Multistream(false)
		ref, err := io.ReadAll(zr)
		if err != nil || !bytes.Equal(ref, data) {
			t.Fatalf("the standard library reads %d bytes, we %d: %v", len(ref), len(data), err)
		}
	})
}

// benchData returns blocks of what disks hold: programs and libraries of this
// machine, and text.
func benchData(b *testing.B) map[string][][]byte {
	data := map[string][][]byte{"text": nil}
	for i := range 16 {
		var block bytes.Buffer
		for n := 0; block.Len() < testBlock; n++ {
			fmt.Fprintf(&block, "Nov %d 12:%02d:%02d host service[%d]: request %x took %d ms\n",
				i+1, n/60%60, n%60, 300+n%7, uint32(n*i)*2654435761, n*n%977)
		}
		data["text"] = append(data["text"], block.Bytes()[:testBlock])
	}
	name, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	program, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	for off := 0; off+testBlock <= len(program); off += testBlock {
		data["program"] = append(data["program"], program[off:off+testBlock])
	}
	data["noise"] = [][]byte{noise(5, testBlock)}
	return data
}

func BenchmarkSlotEncode(b *testing.B) {
	for name, blocks := range benchData(b) {
		b.Run(name, func(b *testing.B) {
			dst := make([]byte, 0, testBlock+1)
			b.SetBytes(testBlock)
			var in, out int64
			for i := 0; b.Loop(); i++ {
				block := blocks[i%len(blocks)]
				in += int64(len(block))
				out += int64(len(EncodeSlot(dst, block)))
			}
			b.ReportMetric(100*float64(out)/float64(in), "%size")
		})
	}
}

// BenchmarkSlotLevels is what gzipLevel was chosen by.
func BenchmarkSlotLevels(b *testing.B) {
	data := benchData(b)
	for _, name := range []string{"program", "text", "noise"} {
		for level := 1; level <= 6; level++ {
			b.Run(fmt.Sprintf("%s/%d", name, level), func(b *testing.B) {
				zw, err := gzip.NewWriterLevel(nil, level)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(testBlock)
				var in, out int64
				for i := 0; b.Loop(); i++ {
					block := data[name][i%len(data[name])]
					w := slotWriter{limit: 2 * testBlock}
					zw.Reset(&w)
					zw.Write(block)
					zw.Close()
					in += int64(len(block))
					out += int64(len(w.buf))
				}
				b.ReportMetric(100*float64(out)/float64(in), "%size")
			})
		}
	}
}

func BenchmarkSlotDecode(b *testing.B) {
	for name, blocks := range benchData(b) {
		b.Run(name, func(b *testing.B) {
			var encoded [][]byte
			for _, block := range blocks {
				encoded = append(encoded, EncodeSlot(nil, block))
			}
			dst := make([]byte, 0, testBlock)
			b.SetBytes(testBlock)
			for i := 0; b.Loop(); i++ {
				if _, err := DecodeSlot(dst, encoded[i%len(encoded)], testBlock); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
