package merkle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/crypto/blake2b"
)

// someOutboard returns one in which no field is like another.
func someOutboard() Outboard {
	return Outboard{Size: 123456789, BlockSize: 131071, Format: "spgz", Generation: 17, Digest: Hash{1, 2, 3, 31: 4}, Bad: 3,
		Synced: 1767319445000000001, Modified: -1, FileSize: 98765432, FileTime: 1767319446000000002, Inode: 1<<64 - 5}
}

func TestOutboardRoundTrip(t *testing.T) {
	for _, want := range []Outboard{
		someOutboard(),
		{BlockSize: 1},
		{Size: MaxSize, BlockSize: MaxBlockSize, Format: "12345678", Digest: Unknown},
	} {
		page := want.Encode()
		if len(page) != OutboardPage {
			t.Fatalf("the page has %d bytes", len(page))
		}
		got, err := DecodeOutboard(page)
		if err != nil || *got != want {
			t.Errorf("%+v comes back as %+v, %v", want, got, err)
		}
	}
}

// Where the fields are; FORMAT.md of the package image has them, and an example.
func TestOutboardFields(t *testing.T) {
	o := someOutboard()
	page := o.Encode()
	for off, want := range map[int]uint64{
		16: uint64(o.Size), 24: uint64(o.Generation), 32: uint64(o.FileSize), 40: uint64(o.FileTime),
		48: o.Inode, 56: uint64(o.Synced), 64: uint64(o.Modified), 72: uint64(o.Bad),
	} {
		if got := binary.LittleEndian.Uint64(page[off:]); got != want {
			t.Errorf("at %d there is %d, want %d", off, got, want)
		}
	}
	want := append([]byte("DSKRTREE\x01\x00\x00\x00"), binary.LittleEndian.AppendUint32(nil, uint32(o.BlockSize))...)
	if !bytes.Equal(page[:16], want) || !bytes.Equal(page[80:88], []byte("spgz\x00\x00\x00\x00")) || !bytes.Equal(page[88:120], o.Digest[:]) {
		t.Errorf("the page begins with %x", page[:120])
	}
}

// Nothing that is not whole passes for an outboard.
func TestOutboardDamage(t *testing.T) {
	o := someOutboard()
	page := o.Encode()
	for n := range len(page) {
		refused(t, fmt.Sprintf("cut to %d bytes", n), page[:n])
		for bit := range 8 {
			page[n] ^= 1 << bit
			refused(t, fmt.Sprintf("bit %d of byte %d", bit, n), page)
			page[n] ^= 1 << bit
		}
	}
	refused(t, "longer", append(page, 0))
}

// What has the right checksum may still be of another version, or say what cannot
// be.
func TestOutboardOfSomethingElse(t *testing.T) {
	o := someOutboard()
	for name, change := range map[string]func(page []byte){
		"magic":                  func(page []byte) { page[0] = 'd' },
		"version":                func(page []byte) { page[8] = 2 },
		"no block size":          func(page []byte) { clear(page[12:16]) },
		"block size too large":   func(page []byte) { binary.LittleEndian.PutUint32(page[12:], MaxBlockSize+1) },
		"negative size":          func(page []byte) { page[23] = 0xff },
		"size that is too large": func(page []byte) { binary.LittleEndian.PutUint64(page[16:], MaxSize+1) },
	} {
		page := o.Encode()
		change(page)
		refused(t, name, sealOutboard(page))
	}
}

// sealOutboard gives a page the checksum that it has to have.
func sealOutboard(page []byte) []byte {
	body := page[:OutboardPage-blake2b.Size256]
	sum := blake2b.Sum256(body)
	return append(body, sum[:]...)
}

func refused(t *testing.T, what string, page []byte) {
	t.Helper()
	if o, err := DecodeOutboard(page); !errors.Is(err, ErrOutboard) {
		t.Errorf("%s: %+v, %v", what, o, err)
	}
}

// The places of roots and leaves, beside a file that is laid out region by region.
func TestOutboardOffsets(t *testing.T) {
	pos := int64(OutboardPage)
	for group := range int64(3) {
		roots := pos
		pos += OutboardPage
		for i := range int64(GroupRegions) {
			region := group*GroupRegions + i
			if got, want := RootOffset(region), roots+i*HashSize; got != want {
				t.Errorf("the root of region %d is at %d, want %d", region, got, want)
			}
			if got := LeavesOffset(region); got != pos {
				t.Errorf("the leaves of region %d are at %d, want %d", region, got, pos)
			}
			pos += RegionBlocks * HashSize
		}
	}
}

func TestLeavesRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range RegionBlocks + 1 {
		leaves := make([]Hash, n)
		for i := range leaves {
			for k := range leaves[i] {
				leaves[i][k] = byte(r.Uint32())
			}
		}
		flat := EncodeLeaves(leaves)
		if len(flat) != n*HashSize {
			t.Fatalf("%d leaves take %d bytes", n, len(flat))
		}
		if got := DecodeLeaves(flat); len(got) != n || len(Diff(got, leaves)) > 0 {
			t.Errorf("%d leaves do not come back", n)
		}
	}
}

// FuzzDecodeOutboard decodes what begins with head. With the checksum set right
// it gets further than to that.
func FuzzDecodeOutboard(f *testing.F) {
	o := someOutboard()
	f.Add(o.Encode()[:outboardUsed], true)
	f.Add(o.Encode()[:outboardUsed], false)
	f.Add([]byte(outboardMagic), true)
	f.Fuzz(func(t *testing.T, head []byte, seal bool) {
		page := make([]byte, OutboardPage)
		copy(page, head)
		if seal {
			page = sealOutboard(page)
		}
		got, err := DecodeOutboard(page)
		if err != nil {
			if !errors.Is(err, ErrOutboard) {
				t.Fatalf("%v is not ErrOutboard", err)
			}
			return
		}
		if _, err := NewGeometry(got.Size, got.BlockSize); err != nil {
			t.Fatal(err)
		}
		if again, err := DecodeOutboard(got.Encode()); err != nil || *again != *got {
			t.Fatalf("%+v comes back as %+v, %v", got, again, err)
		}
	})
}
