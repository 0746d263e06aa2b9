// Package merkle computes and compares the Merkle trees of disk images.
//
// An image is cut into blocks of one size, the last one shorter. The hash of a
// block is a leaf (level 0); sixteen leaves make a level-1 node, sixteen of
// those a level-2 node, and so on up to the one node that covers everything.
//
//	level 3                     root
//	                 ┌───────────┴───────────┐
//	level 2       region 0               region 1     256 blocks each
//	             ┌───┴ … ┴───┐             ┌─┴─┐
//	level 1      0   …      15            16  17      16 blocks each
//	           ┌─┴─┐      ┌─┴─┐         ┌─┴─┐  │
//	level 0    0 … 15  240 … 255     256 … 271 272    blocks
//
// The right edge is simply shorter: a node has as many children as there are.
// The root is the only node of the lowest level, from level 2 up, that has just
// one; so an image of up to 256 blocks has its region as its root. All of the
// arithmetic is on integers and depends on nothing but the image's size and
// block size.
//
// # Hashes
//
//	leaf   = BLAKE2b-256(0x00 ‖ block)
//	node   = BLAKE2b-256(0x01 ‖ hashes of the children)
//	digest = BLAKE2b-256(0x02 ‖ size ‖ block size ‖ root)      both as 8 bytes, little endian
//
// The prefixes keep a leaf from posing as a node, as in RFC 6962.
//
// There is one exception: whatever is all zero, block, node or root, has the
// zero [Hash]. One could as well use the hash of so many zero bytes, a constant
// for each level and length, but the zero value is better in every place where
// it shows up. A hole of any length at any level is one comparison with no
// table behind it; a list of leaves that was just allocated describes a hole;
// stored in a file, the leaves of a hole are a hole. Nothing is lost: a block
// that is not zero has the zero hash only if it is a preimage of it, and lengths
// are bound by the digest.
package merkle

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"sync"

	"github.com/dop251/spgz"
	"golang.org/x/crypto/blake2b"
)

// HashSize is the length of a Hash in bytes.
const HashSize = 32

// A Hash identifies the content of a block, of the span under a node, or of an
// image. Hashes are compared with ==. The zero Hash stands for "all zero".
type Hash [HashSize]byte

// Unknown takes the place of the leaf of a block that could not be read. It
// equals no hash of any content, for all that anyone can compute, so a block
// marked with it always differs.
var Unknown = Hash{
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
}

// IsZero reports whether h stands for content that is all zero.
func (h Hash) IsZero() bool { return h == Hash{} }

// String returns h in hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText makes JSON show a Hash the way String does.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (h *Hash) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != HashSize {
		return fmt.Errorf("malformed hash %.80q", text)
	}
	copy(h[:], raw)
	return nil
}

// The first byte of what is hashed tells leaves, nodes and digests apart.
var (
	leafPrefix   = []byte{0x00}
	nodePrefix   = []byte{0x01}
	digestPrefix = []byte{0x02}
)

// hashers keeps the state of BLAKE2b between calls: 400 bytes that would
// otherwise be allocated for each block.
var hashers = sync.Pool{New: func() any {
	h, err := blake2b.New256(nil)
	if err != nil {
		panic("merkle: blake2b without a key: " + err.Error()) // only a key can be wrong
	}
	return h
}}

func sum(prefix, data []byte) (out Hash) {
	h := hashers.Get().(hash.Hash)
	h.Reset()
	h.Write(prefix)
	h.Write(data)
	h.Sum(out[:0])
	hashers.Put(h)
	return out
}

// Leaf returns the hash of a block. A block that is all zero is not hashed.
func Leaf(block []byte) Hash {
	if spgz.IsBlockZero(block) {
		return Hash{}
	}
	return sum(leafPrefix, block)
}

// Node returns the hash of the node above children, which must be the complete
// list of its children's hashes in order, at most FanOut.
func Node(children []Hash) Hash {
	if len(children) > FanOut {
		panic(fmt.Sprintf("merkle: a node of %d children", len(children)))
	}
	if AllZero(children) {
		return Hash{}
	}
	var flat [FanOut * HashSize]byte
	for i := range children {
		copy(flat[i*HashSize:], children[i][:])
	}
	return sum(nodePrefix, flat[:len(children)*HashSize])
}

// AllZero reports whether every one of hashes stands for zeros. It is true of
// an empty list.
func AllZero(hashes []Hash) bool {
	for i := range hashes {
		if !hashes[i].IsZero() {
			return false
		}
	}
	return true
}

// Diff returns the positions at which a and b differ. A nil list is one of
// zeros, as long as the other; otherwise both must have the same length.
func Diff(a, b []Hash) []int {
	n := max(len(a), len(b))
	if (a != nil && len(a) != n) || (b != nil && len(b) != n) {
		panic(fmt.Sprintf("merkle: comparing %d hashes with %d", len(a), len(b)))
	}
	var at []int
	for i := range n {
		if At(a, i) != At(b, i) {
			at = append(at, i)
		}
	}
	return at
}

// At returns hashes[i], or the zero Hash from a nil list.
func At(hashes []Hash, i int) Hash {
	if hashes == nil {
		return Hash{}
	}
	return hashes[i]
}

// Digest returns the hash that identifies an image: its content, its size and
// the block size that the tree was built with.
func (g Geometry) Digest(root Hash) Hash {
	var flat [8 + 8 + HashSize]byte
	binary.LittleEndian.PutUint64(flat[0:], uint64(g.size))
	binary.LittleEndian.PutUint64(flat[8:], uint64(g.blockSize))
	copy(flat[16:], root[:])
	return sum(digestPrefix, flat[:])
}
