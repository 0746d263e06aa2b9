package image

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"sort"

	"github.com/diskrsync/diskrsync/merkle"
)

// openJournal opens the journal of an image; nil if there is none. The error
// matches errJournal if what is there cannot be believed.
func openJournal(root folder, name, path string, flag int) (*journal, error) {
	f, err := openRegular(root, name, flag)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: opening its journal: %w", path, cause(err))
	}
	j := &journal{f: f, path: path}
	if err := j.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("image %s: %w", path, err), f.Close())
	}
	return j, nil
}

func (j *journal) load() error {
	info, err := j.f.Stat()
	if err != nil {
		return cause(err)
	}
	p := make([]byte, firstBatch)
	if _, err := j.f.ReadAt(p, 0); err != nil && err != io.EOF {
		return fmt.Errorf("reading its journal: %w", cause(err))
	}
	if j.head, err = decodeJournalHeader(p[:journalPage]); err != nil {
		return err
	}
	if err := j.loadBatches(info.Size()); err != nil {
		return err
	}
	return j.loadMark(p[journalPage:])
}

// content returns about how many bytes of content are in batches, and kept how many
// an interrupted run has left.
func (j *journal) content(batches []batch) int64 {
	var blocks int64
	for i := range batches {
		blocks += int64(batches[i].blocks)
	}
	return blocks * int64(j.head.BlockSize)
}

func (j *journal) kept() int64 { return j.content(j.batches[j.sealedBatches():]) }

// loadMark looks whether it was begun to put the journal into the image. That
// the mark is not all zeros suffices: it is written after a seal, so a mark
// without one was written and then damaged, or the seal was.
func (j *journal) loadMark(page []byte) error {
	j.marked = slices.ContainsFunc(page, func(b byte) bool { return b != 0 })
	if !j.marked {
		return nil
	}
	last := j.sealedBatches() - 1
	if last < 0 || sealed(page) && string(page[:8]) == markMagic && int64(binary.LittleEndian.Uint64(page[8:])) > j.batches[last].seq {
		return errJournal
	}
	if sealed(page) {
		at := func(i int) uint64 { return binary.LittleEndian.Uint64(page[i:]) }
		j.paused = fileState{int64(at(16)), int64(at(24)), at(32)}
	}
	return nil
}

// mark says that the image is about to be changed by what was sealed; or, if it is
// told how the image's file is, that this has been stopped half way for now.
func (j *journal) mark(paused fileState) error {
	last := j.batches[j.sealedBatches()-1].seq
	p := binary.LittleEndian.AppendUint64([]byte(markMagic), uint64(last))
	for _, n := range []uint64{uint64(paused.Size), uint64(paused.Time), paused.Inode} {
		p = binary.LittleEndian.AppendUint64(p, n)
	}
	j.paused = paused
	if _, err := j.f.WriteAt(sealPage(p, journalPage), journalPage); err != nil {
		return j.fail("writing", err)
	}
	j.marked = true
	return j.sync()
}

func (j *journal) loadBatches(size int64) error {
	head := make([]byte, batchHeader)
	for at := int64(firstBatch); at+batchHeader <= size; {
		if _, err := j.f.ReadAt(head, at); err != nil {
			return fmt.Errorf("reading its journal: %w", cause(err))
		}
		b, crc := decodeBatch(head, at, j.head.ID)
		if b == nil || b.seq != int64(len(j.batches)) || b.entries > size || b.end() > size {
			return nil
		}
		table := make([]byte, b.end()-b.entries)
		if _, err := j.f.ReadAt(table, b.entries); err != nil {
			return fmt.Errorf("reading its journal: %w", cause(err))
		}
		g, err := merkle.NewGeometry(b.size, j.head.BlockSize)
		if err != nil || crc32.Checksum(table, castagnoli) != crc || !sound(table, b, g) {
			return nil
		}
		j.index.addBatch(len(j.batches), b, table)
		j.batches = append(j.batches, *b)
		at = b.end()
	}
	return nil
}

// sound checks the entries of a batch, which are about a content of a geometry:
// what follows may rely on them.
func sound(table []byte, b *batch, g merkle.Geometry) bool {
	from := b.entries - b.payload
	for i := range b.blocks + b.regions {
		e := decodeEntry(table[i*entrySize:])
		region := e.kind == entryRegion
		end := g.Blocks()
		if region {
			end = g.Regions()
		}
		switch {
		case e.kind < entryHeld || e.kind > entryRegion || region != (i >= b.blocks) || e.index < 0 || e.index >= end || e.length < 0:
			return false
		case e.kind == entryZeros && (e.length == 0 || e.length > end-e.index):
			return false
		case e.kind != entryZeros && e.kind != entryHeld && (e.length > maxPayload || e.offset < from || e.offset > b.entries-e.length):
			return false
		case region && (e.length > regionLength || e.length%merkle.HashSize != 0):
			return false
		}
	}
	return true
}

// sealedBatches returns how many batches count: those up to the last seal.
func (j *journal) sealedBatches() int {
	n := len(j.batches)
	for n > 0 && j.batches[n-1].seal == nil {
		n--
	}
	return n
}

// lastSeal returns the last seal, or nil.
func (j *journal) lastSeal() *seal {
	if n := j.sealedBatches(); n > 0 {
		return j.batches[n-1].seal
	}
	return nil
}

// applied returns how the image's file was when all that is sealed was in it, or
// nil.
func (j *journal) applied() *fileState {
	if s := j.lastSeal(); s != nil && s.Applied {
		return &s.Image
	}
	return nil
}

// setApplied says, durably, that the image has all that is sealed. What is not
// sealed goes.
func (j *journal) setApplied(image fileState) error {
	sealed := j.batches[:j.sealedBatches()]
	last := &sealed[len(sealed)-1]
	s := *last.seal
	s.Whole, s.Applied, s.Image = false, true, image
	b := batch{seq: int64(len(sealed)), size: last.size, seal: &s, entries: last.end() + batchHeader}
	if _, err := j.f.WriteAt(b.encode(j.head.ID, 0), last.end()); err != nil {
		return j.fail("writing", err)
	}
	j.index.addBatch(len(sealed), &b, nil)
	j.batches = append(sealed, b)
	if err := j.cutTail(); err != nil {
		return err
	}
	return j.sync()
}

// end is where the next batch begins.
func (j *journal) end() int64 {
	if n := len(j.batches); n > 0 {
		return j.batches[n-1].end()
	}
	return firstBatch
}

// cutTail cuts the file behind the last batch.
func (j *journal) cutTail() error {
	if err := j.f.Truncate(j.end()); err != nil {
		return j.fail("cutting it", err)
	}
	return nil
}

// at returns entry i of a batch.
func (j *journal) at(b *batch, i int) (entry, error) {
	var p [entrySize]byte
	if _, err := j.f.ReadAt(p[:], b.entries+int64(i)*entrySize); err != nil {
		return entry{}, j.fail("reading", err)
	}
	return decodeEntry(p[:]), nil
}

// search returns the position of the first entry in b, of blocks or of regions,
// whose end lies behind index.
func (j *journal) search(b *batch, regions bool, index int64) (int, error) {
	from, n := 0, b.blocks
	if regions {
		from, n = b.blocks, b.regions
	}
	var failed error
	i := sort.Search(n, func(i int) bool {
		e, err := j.at(b, from+i)
		failed = cmp.Or(failed, err)
		return e.end() > index
	})
	return from + i, failed
}

// find returns the last entry about a block, or a region, in batches; its kind is
// 0 if there is none.
func (j *journal) find(batches []batch, regions bool, index int64) (entry, error) {
	region := index
	if !regions {
		region = index / merkle.RegionBlocks
	}
	for _, n := range slices.Backward(j.index.about(regions, region)) {
		if int(n) >= len(batches) {
			continue
		}
		b := &batches[n]
		i, err := j.search(b, regions, index)
		if err != nil {
			return entry{}, err
		}
		if last := b.blocks; i == last && !regions || i == last+b.regions {
			continue
		}
		e, err := j.at(b, i)
		if err != nil {
			return entry{}, err
		}
		if e.index <= index {
			e.keep = j.index.keep(batches, int(n))
			return e, nil
		}
	}
	return entry{}, nil
}

// next returns the first block from one on, but in front of another, that an entry
// of batches says more of than that it is zero, or false.
func (j *journal) next(batches []batch, block, limit int64) (at int64, found bool, err error) {
	for region := block / merkle.RegionBlocks; region*merkle.RegionBlocks < limit && !found; region++ {
		end := min(limit, (region+1)*merkle.RegionBlocks)
		for _, n := range j.index.about(false, region) {
			if int(n) >= len(batches) {
				break
			}
			err := j.between(&batches[n], max(block, region*merkle.RegionBlocks), end, func(e *entry) bool {
				if e.kind == entryZeros {
					return true
				}
				if !found || e.index < at {
					at, found = e.index, true
				}
				return false
			})
			if err != nil {
				return 0, false, err
			}
		}
	}
	return at, found, nil
}

// between calls do for the entries of a batch about blocks from first up to end,
// until it returns false.
func (j *journal) between(b *batch, first, end int64, do func(*entry) bool) error {
	i, err := j.search(b, false, first)
	if err != nil {
		return err
	}
	var p [64 * entrySize]byte
	for i < b.blocks {
		part := p[:min(len(p), (b.blocks-i)*entrySize)]
		if _, err := j.f.ReadAt(part, b.entries+int64(i)*entrySize); err != nil {
			return j.fail("reading", err)
		}
		for ; len(part) > 0; part = part[entrySize:] {
			e := decodeEntry(part)
			if e.index >= end || !do(&e) {
				return nil
			}
			i++
		}
	}
	return nil
}

// each calls do for every entry of a batch, in the order in which they are
// stored.
func (j *journal) each(b *batch, do func(entry) error) error {
	const chunk = 1024
	p := make([]byte, chunk*entrySize)
	for i, n := 0, b.blocks+b.regions; i < n; i += chunk {
		part := p[:min(chunk, n-i)*entrySize]
		if _, err := j.f.ReadAt(part, b.entries+int64(i)*entrySize); err != nil {
			return j.fail("reading", err)
		}
		for ; len(part) > 0; part = part[entrySize:] {
			if err := do(decodeEntry(part)); err != nil {
				return err
			}
		}
	}
	return nil
}

// eachRegion calls do once for each of some regions in which batches have blocks.
func (j *journal) eachRegion(batches []batch, regions int64, do func(region int64) error) error {
	done := map[int64]bool{}
	for i := range batches {
		err := j.each(&batches[i], func(e entry) error {
			if e.kind == entryRegion {
				return nil
			}
			first, last := e.index/merkle.RegionBlocks, (e.end()-1)/merkle.RegionBlocks
			for region := first; region <= min(last, regions-1); region++ {
				if done[region] {
					continue
				}
				done[region] = true
				if err := do(region); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// payload reads the payload of an entry into buf, if that is long enough. The
// error matches errJournal if it is not what was written.
func (j *journal) payload(e *entry, buf []byte) ([]byte, error) {
	if int64(cap(buf)) < e.length {
		buf = make([]byte, e.length)
	}
	buf = buf[:e.length]
	if _, err := j.f.ReadAt(buf, e.offset); err != nil {
		return nil, j.fail("reading", err)
	}
	if crc32.Checksum(buf, castagnoli) != e.crc {
		return nil, errJournal
	}
	return buf, nil
}

func (j *journal) sync() error {
	if err := j.f.Sync(); err != nil {
		return j.fail("making it durable", err)
	}
	return nil
}

func (j *journal) fail(doing string, err error) error {
	return fmt.Errorf("image %s: its journal: %s: %w", j.path, doing, spaceError(err))
}

func (j *journal) close() error {
	if j == nil {
		return nil
	}
	return j.f.Close()
}
