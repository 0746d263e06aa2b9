package merkle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/blake2b"
)

// An Outboard describes the leaves of an image that are stored in a file of
// their own: its first page. What follows are groups of [GroupRegions] regions,
// the roots of all of them in a page and then their leaves, each region at a place
// that depends on nothing but its index:
//
//	page │ roots │ leaves of region 0 │ 1 │ … │ 127 │ roots │ leaves of region 128 │ …
//
// So an image that grows only makes the file longer, an image of zeros leaves a
// hole, and who wants the roots alone reads one page for each 4 GiB. Nothing in
// there needs a checksum: leaves must hash to the root of their region, and the
// roots to the digest in the first page.
type Outboard struct {
	Size       int64 // of the content
	BlockSize  int
	Format     string // of the image
	Generation int64  // counts what was committed to the image
	Digest     Hash   // of the leaves that are stored
	Bad        int64  // blocks whose leaf is Unknown: what they have is wrong
	Synced     int64  // when, in nanoseconds since 1970
	Modified   int64  // when the source was changed last; 0 if that is not known

	// The file that the leaves are those of, as long as it is as it was.
	FileSize int64
	FileTime int64 // of its modification, in nanoseconds since 1970
	Inode    uint64
}

const (
	// OutboardPage is the length of the first page, and of that with the roots
	// of a group.
	OutboardPage = 4096

	// GroupRegions is the number of regions whose roots fill a page.
	GroupRegions = OutboardPage / HashSize

	leavesBytes = RegionBlocks * HashSize
	groupBytes  = OutboardPage + GroupRegions*leavesBytes

	outboardMagic   = "DSKRTREE"
	outboardVersion = 1
	outboardUsed    = 120 // bytes of the first page, without its checksum
	maxFormat       = 8
)

// ErrOutboard says that a file is no outboard of a version that is known.
var ErrOutboard = errors.New("is no outboard of this version, or damaged")

// RootOffset returns where the root of a region is stored.
func RootOffset(region int64) int64 {
	return OutboardPage + region/GroupRegions*groupBytes + region%GroupRegions*HashSize
}

// LeavesOffset returns where the leaves of a region are stored.
func LeavesOffset(region int64) int64 {
	return OutboardPage + region/GroupRegions*groupBytes + OutboardPage + region%GroupRegions*leavesBytes
}

// OutboardSize returns how long the file is with the leaves of an image.
func OutboardSize(g Geometry) int64 {
	n := g.Regions()
	if n == 0 {
		return OutboardPage
	}
	return LeavesOffset(n-1) + int64(g.RegionLen(n-1))*HashSize
}

// Encode returns the first page.
func (o *Outboard) Encode() []byte {
	page := make([]byte, 0, OutboardPage)
	page = append(page, outboardMagic...)
	page = binary.LittleEndian.AppendUint32(page, outboardVersion)
	page = binary.LittleEndian.AppendUint32(page, uint32(o.BlockSize))
	for _, n := range []int64{o.Size, o.Generation, o.FileSize, o.FileTime, int64(o.Inode), o.Synced, o.Modified, o.Bad} {
		page = binary.LittleEndian.AppendUint64(page, uint64(n))
	}
	page = append(page, o.Format...)[:outboardUsed-HashSize] // the rest was made as zeros
	page = append(page, o.Digest[:]...)[:OutboardPage-blake2b.Size256]
	sum := blake2b.Sum256(page)
	return append(page, sum[:]...)
}

// DecodeOutboard is the inverse of Encode. The error matches ErrOutboard.
func DecodeOutboard(page []byte) (*Outboard, error) {
	if len(page) != OutboardPage || string(page[:8]) != outboardMagic || binary.LittleEndian.Uint32(page[8:]) != outboardVersion {
		return nil, ErrOutboard
	}
	body := page[:OutboardPage-blake2b.Size256]
	if sum := blake2b.Sum256(body); !bytes.Equal(sum[:], page[len(body):]) {
		return nil, ErrOutboard
	}
	at := func(i int) int64 { return int64(binary.LittleEndian.Uint64(page[16+8*i:])) }
	o := &Outboard{
		BlockSize: int(binary.LittleEndian.Uint32(page[12:])), Size: at(0), Generation: at(1),
		FileSize: at(2), FileTime: at(3), Inode: uint64(at(4)), Synced: at(5), Modified: at(6), Bad: at(7),
		Format: string(bytes.TrimRight(page[80:80+maxFormat], "\x00")), Digest: Hash(page[88:outboardUsed]),
	}
	if _, err := NewGeometry(o.Size, o.BlockSize); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOutboard, err)
	}
	return o, nil
}

// EncodeLeaves returns leaves as they are stored.
func EncodeLeaves(leaves []Hash) []byte {
	flat := make([]byte, 0, len(leaves)*HashSize)
	for i := range leaves {
		flat = append(flat, leaves[i][:]...)
	}
	return flat
}

// DecodeLeaves is the inverse of EncodeLeaves.
func DecodeLeaves(flat []byte) []Hash {
	leaves := make([]Hash, len(flat)/HashSize)
	for i := range leaves {
		copy(leaves[i][:], flat[i*HashSize:])
	}
	return leaves
}
