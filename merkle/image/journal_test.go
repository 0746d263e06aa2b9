package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"github.com/diskrsync/diskrsync/merkle"
)

func TestEntryRoundTrip(t *testing.T) {
	want := entry{kind: entryPages, crc: 0xdeadbeef, index: 1 << 40, length: 77, offset: 1 << 50, hash: merkle.Hash{1, 31: 2}}
	p := want.encode([]byte("before"))
	if len(p) != 6+entrySize {
		t.Fatalf("an entry takes %d bytes", len(p)-6)
	}
	if got := decodeEntry(p[6:]); got != want {
		t.Errorf("%+v comes back as %+v", want, got)
	}
}

// newJournal returns a journal that was just made.
func newJournal(t *testing.T, bs int) *journal {
	t.Helper()
	j := &journal{f: makeFile(t, newCrashFS(), "journal"), path: "disk",
		head: journalHeader{Way: wayRedo, BlockSize: bs, Format: Raw, ID: 77}}
	_, err := j.f.WriteAt(append(j.head.encode(), make([]byte, journalPage)...), 0)
	must(t, err)
	return j
}

// reopened returns a journal as the next run finds it.
func reopened(t *testing.T, j *journal) *journal {
	t.Helper()
	fs := newCrashFS()
	_, err := makeFile(t, fs, "journal").WriteAt(fileOf(t, j.f), 0)
	must(t, err)
	again, err := openJournal(fs, "journal", "disk", os.O_RDWR)
	must(t, err)
	return again
}

// What a recorder finds is what was recorded last, before and after it is made
// durable, and again when the journal is opened.
func TestRecorderFinds(t *testing.T) {
	for seed := range uint64(20) {
		r := newRand(seed)
		j := newJournal(t, 512)
		want := map[int64]entryKind{}
		for range 4 {
			rec := newRecorder(j, 100*512, nil)
			recordSome(t, r, rec, want)
			checkFound(t, rec.find, func(i int64) (int64, bool, error) { return rec.next(i, 100) }, want)
			must(t, rec.flush(nil, (*pending).some))
			checkFound(t, rec.find, func(i int64) (int64, bool, error) { return rec.next(i, 100) }, want)
			j = reopened(t, j)
			checkFound(t, func(i int64) (entry, error) { return j.find(j.batches, false, i) },
				func(i int64) (int64, bool, error) { return j.next(j.batches, i, 100) }, want)
		}
	}
}

// recordSome records some of 100 blocks, each at most once.
func recordSome(t *testing.T, r *rand.Rand, rec *recorder, want map[int64]entryKind) {
	t.Helper()
	for i := int64(0); i < 100; i += 1 + r.Int64N(20) {
		if r.IntN(3) > 0 {
			must(t, rec.add(entry{kind: entryPlain, index: i}, noise(uint64(i), 512)))
			want[i] = entryPlain
			continue
		}
		n := 1 + r.Int64N(min(15, 100-i))
		must(t, rec.zeros(i, n))
		for k := i; k < i+n; k++ {
			want[k] = entryZeros
		}
		i += n - 1
	}
}

func checkFound(t *testing.T, find func(int64) (entry, error), next func(int64) (int64, bool, error), want map[int64]entryKind) {
	t.Helper()
	ahead := int64(-1) // the next block that may hold data
	for i := int64(99); i >= 0; i-- {
		e, err := find(i)
		must(t, err)
		if e.kind != want[i] || e.kind == entryPlain && e.index != i {
			t.Fatalf("block %d: found %+v, want kind %d", i, e, want[i])
		}
		if want[i] == entryPlain {
			ahead = i
		}
		at, found, err := next(i)
		must(t, err)
		// A block that has become zero since may be taken for data, not the
		// other way round.
		if ahead >= 0 && (!found || at > ahead) || found && at < i {
			t.Fatalf("next from block %d is %d, %v; there is data in %d", i, at, found, ahead)
		}
	}
}

// A block may be recorded once in a batch: which of two counts could not be told.
func TestRecorderRefusesABlockTwice(t *testing.T) {
	rec := newRecorder(newJournal(t, 512), 100*512, nil)
	must(t, rec.zeros(3, 5))
	must(t, rec.add(entry{kind: entryPlain, index: 7}, noise(1, 512)))
	wantError(t, rec.flush(nil, (*pending).some), nil, "block 7 was written twice")
}

// A later commit that makes the content shorter cuts what an earlier one has put
// there, for good.
func TestOverlayOfACutContent(t *testing.T) {
	const bs = 512
	j := newJournal(t, bs)
	first, second := newRecorder(j, 4*bs, nil), (*recorder)(nil)
	for i := range int64(4) {
		must(t, first.add(entry{kind: entryPlain, index: i}, noise(uint64(i), bs)))
	}
	must(t, first.flush(&seal{}, nil))
	second = newRecorder(j, bs+100, nil)
	must(t, second.flush(&seal{}, nil))
	want := make([]byte, 4*bs)
	copy(want, noise(0, bs))
	copy(want[bs:], noise(1, bs)[:100])
	compare(t, over(&blank{}, 4*bs, j, j.batches), want)
}

// What of a journal was damaged or lost, from some byte on, was not made durable:
// what is in front of it still counts.
func TestJournalCutAnywhere(t *testing.T) {
	j := newJournal(t, 512)
	ends := []int64{firstBatch}
	for i := range int64(3) {
		rec := newRecorder(j, 100*512, nil)
		must(t, rec.add(entry{kind: entryPlain, index: i}, noise(uint64(i), 512)))
		must(t, rec.flush(nil, (*pending).some))
		ends = append(ends, j.end())
	}
	all := fileOf(t, j.f)
	for n := journalPage; n <= len(all); n++ {
		fs := newCrashFS()
		_, err := makeFile(t, fs, "journal").WriteAt(all[:n], 0)
		must(t, err)
		cut, err := openJournal(fs, "journal", "disk", os.O_RDONLY)
		must(t, err)
		whole := 0
		for whole+1 < len(ends) && ends[whole+1] <= int64(n) {
			whole++
		}
		if len(cut.batches) != whole {
			t.Fatalf("%d bytes have %d batches, want %d", n, len(cut.batches), whole)
		}
	}
}

// Numbers that do not fit into an int of 32 bits, or overflow one when they are added
// or multiplied, are no more than others that are too large.
func TestJournalOfTooManyEntries(t *testing.T) {
	for _, count := range [][2]uint32{
		{1 << 31, 0}, {0, 1 << 31}, {1 << 31, 1 << 31}, {1<<32 - 1, 0}, {1<<32 - 1, 1}, {1, 1<<32 - 1}, {1<<32 - 1, 2},
		{1<<32 - 8, 8}, {1<<31 + 1, 1 << 31}, {1<<31 - 1, 1}, {maxEntries + 1, 0}, {0, maxEntries + 1},
	} {
		j := newJournal(t, 512)
		b := batch{size: 512, entries: firstBatch + batchHeader, seal: &seal{}}
		head := b.encode(j.head.ID, crc32.Checksum(nil, castagnoli))[:batchHeader-sumSize]
		binary.LittleEndian.PutUint32(head[16:], count[0])
		binary.LittleEndian.PutUint32(head[20:], count[1])
		_, err := j.f.WriteAt(append(sealPage(head, batchHeader), make([]byte, 100*entrySize)...), firstBatch)
		must(t, err)
		if got := reopened(t, j).batches; len(got) > 0 {
			t.Errorf("%d entries of blocks and %d of regions: %+v", count[0], count[1], got)
		}
	}
}

func TestJournalOfTooLargeBlocks(t *testing.T) {
	for _, size := range []uint64{0, merkle.MaxBlockSize + 1, 1 << 31, 1<<32 + 512, 1 << 63, 1<<64 - 1} {
		j := newJournal(t, 512)
		head := j.head.encode()[:journalPage-sumSize]
		binary.LittleEndian.PutUint64(head[16:], size)
		if h, err := decodeJournalHeader(sealPage(head, journalPage)); !errors.Is(err, errJournal) {
			t.Errorf("blocks of %d bytes: %+v, %v", size, h, err)
		}
	}
}

func TestPagesOfTooManyExtents(t *testing.T) {
	for _, count := range []uint32{maxExtents + 1, 1 << 29, 1<<29 + 1, 1 << 30, 1<<31 - 1, 1 << 31, 1<<31 + 1, 1<<32 - 1} {
		for _, more := range []int{0, pagesExtent, 5 * pagesExtent} {
			payload := append(binary.LittleEndian.AppendUint32(nil, count), make([]byte, more)...)
			err := eachExtent(payload, func(at int, data []byte) error {
				return fmt.Errorf("%d bytes at %d", len(data), at)
			})
			if !errors.Is(err, errJournal) {
				t.Errorf("%d extents in %d bytes: %v", count, len(payload), err)
			}
		}
	}
}

// FuzzOpenJournal opens whatever may lie in the place of a journal. The checksums
// are set right where there is something to set, so that it gets further than to
// them.
func FuzzOpenJournal(f *testing.F) {
	j := &journal{head: journalHeader{Way: wayRedo, BlockSize: 4, Format: Raw, ID: 9}}
	head := j.head.encode()[:80]
	b := batch{size: 10, payload: 4, blocks: 1, entries: firstBatch + batchHeader + 4, first: 1, last: 2, seal: &seal{Whole: true}}
	e := entry{kind: entryPlain, index: 1, length: 4, offset: firstBatch + batchHeader, crc: crc32.Checksum([]byte("4567"), castagnoli)}
	f.Add(head, []byte{}, b.encode(9, 0)[:128], e.encode([]byte("4567")))
	f.Add(head, []byte(markMagic), b.encode(9, 0)[:128], e.encode([]byte("4567")))
	f.Add([]byte("no journal"), []byte{}, []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, head, mark, batch, rest []byte) {
		if len(head) > journalPage-sumSize || len(mark) > journalPage-sumSize || len(batch) > batchHeader-sumSize || len(rest) > 1<<16 {
			return
		}
		all := fuzzedJournal(head, mark, batch, rest)
		fs := newCrashFS()
		_, err := makeFile(t, fs, "journal").WriteAt(all, 0)
		must(t, err)
		j, err := openWithin(t, fs, uint64(len(all)))
		if err != nil {
			if !errors.Is(err, errJournal) {
				t.Fatalf("%v is not errJournal", err)
			}
			return
		}
		useJournalOf(t, j)
	})
}

// fuzzedJournal puts the parts of a journal together.
func fuzzedJournal(head, mark, batch, rest []byte) []byte {
	all := sealPage(bytes.Clone(head), journalPage)
	if len(mark) > 0 {
		all = append(all, sealPage(bytes.Clone(mark), journalPage)...)
	} else {
		all = append(all, make([]byte, journalPage)...)
	}
	batch = append(bytes.Clone(batch), make([]byte, 128-min(128, len(batch)))...)
	entries := int(binary.LittleEndian.Uint16(batch[16:])) + int(binary.LittleEndian.Uint16(batch[20:]))
	if payload := binary.LittleEndian.Uint64(batch[48:]); payload < uint64(len(rest)) {
		table := rest[payload:]
		table = table[:min(len(table), entries*entrySize)]
		binary.LittleEndian.PutUint32(batch[12:], crc32.Checksum(table, castagnoli))
	}
	return append(append(all, sealPage(batch, batchHeader)...), rest...)
}

// openWithin opens a journal, which must not take much more memory than it has
// bytes.
func openWithin(t *testing.T, fs folder, size uint64) (*journal, error) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	j, err := openJournal(fs, "journal", "disk", os.O_RDONLY)
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 64<<10+4*size {
		t.Fatalf("a journal of %d bytes takes %d bytes of memory", size, took)
	}
	return j, err
}

// useJournalOf looks at everything that a journal has.
func useJournalOf(t *testing.T, j *journal) {
	t.Helper()
	size := int64(0)
	for i := range j.batches {
		b := &j.batches[i]
		size = max(size, b.size)
		must(t, j.each(b, func(e entry) error {
			if e.kind != entryZeros && e.kind != entryHeld {
				if _, err := j.payload(&e, nil); err != nil && !errors.Is(err, errJournal) {
					return fmt.Errorf("entry %+v: %w", e, err)
				}
			}
			return nil
		}))
	}
	content := over(&blank{}, size, j, j.batches)
	g, err := merkle.NewGeometry(size, j.head.BlockSize)
	must(t, err)
	h := newHashes(g, nil, true, j, j.batches)
	p := make([]byte, 3000)
	for _, off := range []int64{0, 1, size / 2, max(0, size-5)} {
		var corrupt *CorruptError
		if _, err := content.ReadAt(p[:min(int64(len(p)), size-min(off, size))], off); err != nil && !errors.As(err, &corrupt) && off < size {
			t.Fatalf("reading at %d of %d: %v", off, size, err)
		}
		if _, err := content.NextData(off); err != nil && err != io.EOF {
			t.Fatalf("looking for data at %d of %d: %v", off, size, err)
		}
		region := off / int64(g.BlockSize()) / merkle.RegionBlocks
		if root, ok := h.Root(region); ok && region < g.Regions() {
			if leaves, ok := h.Leaves(region); ok && merkle.RegionRoot(leaves) != root {
				t.Fatalf("region %d: the leaves do not hash to the root", region)
			}
		}
	}
}

// FuzzEachExtent unfolds what may be the payload of an entry of kind pages.
func FuzzEachExtent(f *testing.F) {
	block := noise(1, 3000)
	f.Add(encodeExtents(block, []merkle.Extent{{Offset: 0, Length: 5}, {Offset: 100, Length: 20}}))
	f.Add(encodeExtents(block, nil))
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, payload []byte) {
		total, n := 0, 0
		err := eachExtent(payload, func(at int, data []byte) error {
			if at < 0 || at > merkle.MaxBlockSize {
				t.Fatalf("an extent at %d", at)
			}
			total += len(data)
			n++
			return nil
		})
		if err != nil && !errors.Is(err, errJournal) {
			t.Fatal(err)
		}
		if used := 4 + n*pagesExtent + total; err == nil && used > len(payload) {
			t.Fatalf("%d extents of %d bytes from %d", n, total, len(payload))
		}
		// Each part of a block can be read through it.
		j := newJournal(t, 512)
		rec := newRecorder(j, 3*512, nil)
		if len(payload) > maxPayload {
			return
		}
		must(t, rec.add(entry{kind: entryPages, index: 1}, payload))
		content := over(&blank{}, 3*512, j, j.batches)
		content.record(rec)
		for _, part := range [][2]int{{0, 1536}, {512, 1024}, {600, 601}, {1000, 1300}} {
			got := make([]byte, part[1]-part[0])
			_, err2 := content.ReadAt(got, int64(part[0]))
			if corrupt := new(CorruptError); (err2 == nil) != (err == nil) || err2 != nil && !errors.As(err2, &corrupt) {
				t.Fatalf("reading through it: %v, unfolding it: %v", err2, err)
			}
		}
	})
}
