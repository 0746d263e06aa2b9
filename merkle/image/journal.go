package image

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"sort"

	"golang.org/x/crypto/blake2b"

	"github.com/diskrsync/diskrsync/merkle"
)

// What a journal consists of; FORMAT.md has the bytes.
const (
	journalMagic   = "DSKRJRNL"
	journalVersion = 1
	markMagic      = "DSKRMARK"
	batchMagic     = "DSKRBTCH"

	journalPage  = 4096
	firstBatch   = 2 * journalPage // behind the header and the mark
	batchHeader  = 512
	entrySize    = 64
	maxEntries   = 1 << 16 // of a batch
	maxPayload   = 1<<20 + 64<<10
	sumSize      = blake2b.Size256
	pagesExtent  = 8 // bytes that name an extent in a pages payload
	maxExtents   = merkle.MaxBlockSize/merkle.PageSize + 2
	regionLength = merkle.RegionBlocks * merkle.HashSize
)

// A way is how a sync gets what it brings into the image.
type way uint32

const (
	wayNew     way = 1 + iota // a partial file, put into place at the end
	wayRedo                   // a journal, put into the image at the end
	wayInPlace                // at once; the journal says that the image is incomplete
)

// A journalHeader is the first page of a journal. It never changes.
type journalHeader struct {
	Way       way
	BlockSize int
	Format    Format
	ID        uint64 // random, so that no batch of another journal is taken for one
	Base      fileState
	Content   int64 // size of the content of the base
	Started   int64 // in nanoseconds since 1970
}

// A fileState tells whether a file is as it was.
type fileState struct {
	Size, Time int64
	Inode      uint64
}

// An entryKind says what an entry of a journal is about, and what its payload is.
type entryKind byte

const (
	entryHeld   entryKind = 1 + iota // the block lies in the partial file
	entryPlain                       // the block as it is
	entrySlot                        // the slot of the block
	entryPages                       // extents of the block that differ from the base
	entryZeros                       // blocks of zeros; no payload
	entryRegion                      // the leaves of a region
)

// An entry says what a block, or a region, has become.
type entry struct {
	kind   entryKind
	crc    uint32 // CRC-32C of the payload
	index  int64  // of the block or region
	length int64  // of the payload; the number of blocks for zeros
	offset int64  // of the payload; grows from entry to entry as they are made
	hash   merkle.Hash

	// keep is where a later seal has cut the content: what was behind that is
	// zeros. It is not stored, find sets it.
	keep int64
}

// end returns the first block behind those of the entry.
func (e *entry) end() int64 {
	if e.kind == entryZeros {
		return e.index + e.length
	}
	return e.index + 1
}

func (e *entry) encode(dst []byte) []byte {
	dst = append(dst, byte(e.kind), 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, e.crc)
	for _, n := range []int64{e.index, e.length, e.offset} {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(n))
	}
	return append(dst, e.hash[:]...)
}

func decodeEntry(p []byte) entry {
	at := func(i int) int64 { return int64(binary.LittleEndian.Uint64(p[i:])) }
	return entry{kind: entryKind(p[0]), crc: binary.LittleEndian.Uint32(p[4:]),
		index: at(8), length: at(16), offset: at(24), hash: merkle.Hash(p[32:entrySize])}
}

// A seal is what makes all entries before it count.
type seal struct {
	Digest     merkle.Hash
	Generation int64
	Synced     int64
	Modified   int64
	Whole      bool // the region entries are those of all regions that are not zero
}

// A batch is a number of entries that became durable together.
type batch struct {
	seq     int64
	size    int64 // of the content
	payload int64 // bytes
	blocks  int   // entries of blocks, which come first
	regions int   // entries of regions
	seal    *seal

	entries     int64 // where the entries begin
	first, last int64 // the blocks that the entries are about, the last exclusive
}

// whole reports whether b ends what begins the outboard anew.
func (b batch) whole() bool { return b.seal != nil && b.seal.Whole }

// nextSeal returns how many of batches there are up to the first that is sealed.
func nextSeal(batches []batch) int {
	return slices.IndexFunc(batches, func(b batch) bool { return b.seal != nil }) + 1
}

// end is where the next batch begins.
func (b *batch) end() int64 { return b.entries + int64(b.blocks+b.regions)*entrySize }

// A journal is an open journal. What lies in front of its last batch never
// changes, so it may be read by many goroutines while one appends.
type journal struct {
	f       file
	path    string
	head    journalHeader
	batches []batch
	marked  bool // it may have been begun to put the journal into the image
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errJournal says that a journal cannot be what was once made durable.
var errJournal = errors.New("its journal is damaged")

// sealPage appends its checksum to a page or header of n bytes.
func sealPage(p []byte, n int) []byte {
	p = append(p, make([]byte, n-sumSize-len(p))...)
	sum := blake2b.Sum256(p)
	return append(p, sum[:]...)
}

// sealed reports whether p ends with its checksum.
func sealed(p []byte) bool {
	sum := blake2b.Sum256(p[:len(p)-sumSize])
	return bytes.Equal(sum[:], p[len(p)-sumSize:])
}

func (h *journalHeader) encode() []byte {
	p := append(make([]byte, 0, journalPage), journalMagic...)
	p = binary.LittleEndian.AppendUint32(p, journalVersion)
	p = binary.LittleEndian.AppendUint32(p, uint32(h.Way))
	p = binary.LittleEndian.AppendUint64(p, uint64(h.BlockSize))
	p = append(append(p, h.Format...), make([]byte, 8-len(h.Format))...)
	for _, n := range []uint64{h.ID, uint64(h.Base.Size), uint64(h.Base.Time), h.Base.Inode, uint64(h.Content), uint64(h.Started)} {
		p = binary.LittleEndian.AppendUint64(p, n)
	}
	return sealPage(p, journalPage)
}

func decodeJournalHeader(p []byte) (h journalHeader, err error) {
	at := func(i int) uint64 { return binary.LittleEndian.Uint64(p[i:]) }
	if string(p[:8]) != journalMagic || binary.LittleEndian.Uint32(p[8:]) != journalVersion || !sealed(p) {
		return h, errJournal
	}
	h = journalHeader{Way: way(binary.LittleEndian.Uint32(p[12:])), BlockSize: int(at(16)),
		Format: Format(bytes.TrimRight(p[24:32], "\x00")), ID: at(32),
		Base: fileState{int64(at(40)), int64(at(48)), at(56)}, Content: int64(at(64)), Started: int64(at(72))}
	if _, err := merkle.NewGeometry(0, h.BlockSize); err != nil || h.Way < wayNew || h.Way > wayInPlace || !h.Format.known() {
		return h, errJournal
	}
	return h, nil
}

// The flags of a batch.
const (
	flagSealed = 1 << iota
	flagWhole
)

func (b *batch) encode(id uint64, crc uint32) []byte {
	var flags uint32
	var s seal
	if b.seal != nil {
		s = *b.seal
		flags |= flagSealed
		if s.Whole {
			flags |= flagWhole
		}
	}
	p := append(make([]byte, 0, batchHeader), batchMagic...)
	for _, n := range []uint32{flags, crc, uint32(b.blocks), uint32(b.regions)} {
		p = binary.LittleEndian.AppendUint32(p, n)
	}
	for _, n := range []uint64{id, uint64(b.seq), uint64(b.size), uint64(b.payload), uint64(b.first), uint64(b.last),
		uint64(s.Generation), uint64(s.Synced), uint64(s.Modified)} {
		p = binary.LittleEndian.AppendUint64(p, n)
	}
	return sealPage(append(p, s.Digest[:]...), batchHeader)
}

// decodeBatch returns the batch whose header p is at an offset of the file, and
// the checksum of its entries; nil if it is none.
func decodeBatch(p []byte, at int64, id uint64) (*batch, uint32) {
	u32 := func(i int) uint32 { return binary.LittleEndian.Uint32(p[8+4*i:]) }
	i64 := func(i int) int64 { return int64(binary.LittleEndian.Uint64(p[24+8*i:])) }
	if string(p[:8]) != batchMagic || uint64(i64(0)) != id || !sealed(p) {
		return nil, 0
	}
	b := &batch{seq: i64(1), size: i64(2), payload: i64(3), first: i64(4), last: i64(5),
		blocks: int(u32(2)), regions: int(u32(3)), entries: at + batchHeader + i64(3)}
	if b.blocks > maxEntries || b.regions > maxEntries || b.payload < 0 || b.payload > merkle.MaxSize || b.size < 0 {
		return nil, 0
	}
	if u32(0)&flagSealed != 0 {
		b.seal = &seal{Generation: i64(6), Synced: i64(7), Modified: i64(8), Whole: u32(0)&flagWhole != 0, Digest: merkle.Hash(p[96:128])}
	}
	return b, u32(1)
}

// openJournal opens the journal of an image; nil if there is none. The error
// matches errJournal if what is there cannot be believed.
func openJournal(root folder, name, path string, flag int) (*journal, error) {
	f, err := root.OpenFile(name, flag, 0)
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
	return nil
}

// mark says that the image is about to be changed by what was sealed.
func (j *journal) mark() error {
	last := j.batches[j.sealedBatches()-1].seq
	p := binary.LittleEndian.AppendUint64([]byte(markMagic), uint64(last))
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
	keep := int64(merkle.MaxSize)
	for n := len(batches) - 1; n >= 0; n-- {
		b := &batches[n]
		if b.seal != nil {
			keep = min(keep, b.size)
		}
		last := b.blocks
		if regions {
			last += b.regions
		} else if index < b.first || index >= b.last {
			continue
		}
		i, err := j.search(b, regions, index)
		if err != nil {
			return entry{}, err
		}
		if i == last {
			continue
		}
		e, err := j.at(b, i)
		if err != nil {
			return entry{}, err
		}
		if e.keep = keep; e.index <= index {
			return e, nil
		}
	}
	return entry{}, nil
}

// next returns the first block from one on that an entry of batches says more of
// than that it is zero, or false.
func (j *journal) next(batches []batch, block int64) (at int64, found bool, err error) {
	for n := range batches {
		b := &batches[n]
		if b.last <= block {
			continue
		}
		i, err := j.search(b, false, block)
		if err != nil {
			return 0, false, err
		}
		for ; i < b.blocks; i++ {
			e, err := j.at(b, i)
			if err != nil {
				return 0, false, err
			}
			if e.kind == entryZeros {
				continue
			}
			if !found || e.index < at {
				at, found = e.index, true
			}
			break
		}
	}
	return at, found, nil
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
