package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"

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

	// Applied says that the image has it all, and Image how its file was then:
	// if it is not like that any more, someone else has changed it since.
	Applied bool
	Image   fileState
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
	index   batchIndex
	marked  bool      // it may have been begun to put the journal into the image
	paused  fileState // how the image's file was when that was stopped half way; zero if nobody could tell
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
	if string(p[:8]) != journalMagic || binary.LittleEndian.Uint32(p[8:]) != journalVersion || !sealed(p) || at(16) > merkle.MaxBlockSize {
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
	flagApplied
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
		if s.Applied {
			flags |= flagApplied
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
	p = append(p, s.Digest[:]...)
	for _, n := range []uint64{uint64(s.Image.Size), uint64(s.Image.Time), s.Image.Inode} {
		p = binary.LittleEndian.AppendUint64(p, n)
	}
	return sealPage(p, batchHeader)
}

// decodeBatch returns the batch whose header p is at an offset of the file, and
// the checksum of its entries; nil if it is none.
func decodeBatch(p []byte, at int64, id uint64) (*batch, uint32) {
	u32 := func(i int) uint32 { return binary.LittleEndian.Uint32(p[8+4*i:]) }
	i64 := func(i int) int64 { return int64(binary.LittleEndian.Uint64(p[24+8*i:])) }
	if string(p[:8]) != batchMagic || uint64(i64(0)) != id || !sealed(p) {
		return nil, 0
	}
	if u32(2) > maxEntries || u32(3) > maxEntries { // before either becomes an int, which may be of 32 bits
		return nil, 0
	}
	b := &batch{seq: i64(1), size: i64(2), payload: i64(3), first: i64(4), last: i64(5),
		blocks: int(u32(2)), regions: int(u32(3)), entries: at + batchHeader + i64(3)}
	if b.payload < 0 || b.payload > merkle.MaxSize || b.size < 0 {
		return nil, 0
	}
	if u32(0)&flagSealed != 0 {
		b.seal = &seal{Generation: i64(6), Synced: i64(7), Modified: i64(8), Whole: u32(0)&flagWhole != 0, Digest: merkle.Hash(p[96:128]),
			Applied: u32(0)&flagApplied != 0, Image: fileState{i64(13), i64(14), uint64(i64(15))}}
	}
	return b, u32(1)
}
