package wire

import (
	"errors"
	"fmt"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

// A Message is one of the types below, a pointer to it.
type Message interface {
	kind() kind
	fields(*codec)
}

type kind byte

const (
	kindRequest kind = 1 + iota
	kindOpened
	kindHello
	kindAccept
	kindRoots
	kindExpand
	kindHashes
	kindHoles
	kindBlock
	kindAskPages
	kindPages
	kindPatch
	kindRefetch
	kindAdvance
	kindFinish
	kindDone
	kindProgress
	kindError
	kindInfo
	kindBad
)

// new returns an empty message, nil for a kind that does not exist.
func (k kind) new() Message {
	switch k {
	case kindRequest:
		return new(Request)
	case kindOpened:
		return new(Opened)
	case kindHello:
		return new(Hello)
	case kindAccept:
		return new(Accept)
	case kindRoots:
		return new(Roots)
	case kindExpand:
		return new(Expand)
	case kindHashes:
		return new(Hashes)
	case kindHoles:
		return new(Holes)
	case kindBlock:
		return new(Block)
	case kindAskPages:
		return new(AskPages)
	case kindPages:
		return new(Pages)
	case kindPatch:
		return new(Patch)
	case kindRefetch:
		return new(Refetch)
	case kindAdvance:
		return new(Advance)
	case kindFinish:
		return new(Finish)
	case kindDone:
		return new(Done)
	case kindProgress:
		return new(Progress)
	case kindError:
		return new(Error)
	case kindInfo:
		return new(Info)
	case kindBad:
		return new(Bad)
	}
	return nil
}

// Verb is what a client asks of an agent.
type Verb int

// The verbs.
const (
	VerbSource Verb = 1 + iota
	VerbTarget
	VerbInfo
	VerbVerify
	VerbClean
	VerbTouch
	VerbRemove
)

// Request is the client's first message to an agent.
type Request struct {
	Verb     Verb
	Path     string
	Format   string        // of a source: auto, raw, spgz
	Raw      bool          // a new target is made raw
	DryRun   bool          // change nothing
	Checksum bool          // believe no stored hashes
	InPlace  bool          // change an existing target where it is
	Force    bool          // read an image that is known to be incomplete or damaged
	StateDir string        // for what is stored about devices
	Timeout  time.Duration // how long to wait for a silent peer; to the millisecond
	Modified int64         // of the verb touch: as in Hello; of the verb source: what it says there, if not 0
}

func (*Request) kind() kind { return kindRequest }
func (m *Request) fields(c *codec) {
	verb, ms := int(m.Verb), m.Timeout.Milliseconds()
	c.int(&verb, int(VerbRemove))
	c.string(&m.Path, maxText)
	c.string(&m.Format, 16)
	c.bool(&m.Raw)
	c.bool(&m.DryRun)
	c.bool(&m.Checksum)
	c.bool(&m.InPlace)
	c.bool(&m.Force)
	c.string(&m.StateDir, maxText)
	c.int64(&ms)
	c.int64(&m.Modified)
	if verb == 0 || ms > int64(1000*time.Hour/time.Millisecond) {
		c.fail(errors.New("a request without verb, or with an absurd timeout"))
	}
	if c.reading {
		m.Verb, m.Timeout = Verb(verb), time.Duration(ms)*time.Millisecond
	}
}

// Opened is the agent's answer: the image is open.
type Opened struct {
	Note    string // for the operator, may be empty
	Format  string // of the image
	Guessed bool   // the format was told from the image's bytes
}

func (*Opened) kind() kind { return kindOpened }
func (m *Opened) fields(c *codec) {
	c.text(&m.Note)
	c.string(&m.Format, 16)
	c.bool(&m.Guessed)
}

// Hello is the source's first message of a session.
type Hello struct {
	Size      int64
	BlockSize int // that the source prefers, 0 for any
	DryRun    bool
	Identity  [16]byte
	Modified  int64 // when the content was changed last, in nanoseconds since 1970; 0 if not known
}

func (*Hello) kind() kind { return kindHello }
func (m *Hello) fields(c *codec) {
	c.int64(&m.Size)
	c.int(&m.BlockSize, merkle.MaxBlockSize)
	c.bool(&m.DryRun)
	c.fixed(m.Identity[:])
	c.int64(&m.Modified)
}

// Accept is the target's answer to Hello.
type Accept struct {
	BlockSize int
	Held      int64 // bytes of content that exist; behind them all is zero
	Slots     bool  // blocks may come as spgz slots
	Key       [merkle.PageKeySize]byte
}

func (*Accept) kind() kind { return kindAccept }
func (m *Accept) fields(c *codec) {
	c.int(&m.BlockSize, merkle.MaxBlockSize)
	c.int64(&m.Held)
	c.bool(&m.Slots)
	c.fixed(m.Key[:])
}

// Roots are the hashes of consecutive regions of the target.
type Roots struct {
	First  int64
	Hashes []merkle.Hash
}

func (*Roots) kind() kind { return kindRoots }
func (m *Roots) fields(c *codec) {
	c.int64(&m.First)
	c.hashes(&m.Hashes)
}

// Expand asks for the hashes of the children of nodes.
type Expand struct {
	Level int
	Nodes []int64
}

func (*Expand) kind() kind { return kindExpand }
func (m *Expand) fields(c *codec) {
	c.int(&m.Level, merkle.RegionLevel)
	c.indexes(&m.Nodes)
	if m.Level < 1 {
		c.fail(errors.New("leaves have no children"))
	}
}

// Hashes answers Expand: the hashes of the children of all nodes, joined.
type Hashes struct {
	Level  int // of the nodes, as in Expand
	Nodes  []int64
	Hashes []merkle.Hash
}

func (*Hashes) kind() kind { return kindHashes }
func (m *Hashes) fields(c *codec) {
	c.int(&m.Level, merkle.RegionLevel)
	c.indexes(&m.Nodes)
	c.hashes(&m.Hashes)
	if m.Level < 1 {
		c.fail(errors.New("leaves have no children"))
	}
}

// Holes lists blocks that are zero at the source.
type Holes struct{ Blocks []int64 }

func (*Holes) kind() kind        { return kindHoles }
func (m *Holes) fields(c *codec) { c.indexes(&m.Blocks) }

// Encoding says how Data is packed.
type Encoding int

// The encodings.
const (
	Plain Encoding = iota
	Zstd
	Slot // an spgz slot, flag byte first
)

func (e *Encoding) field(c *codec, last Encoding) {
	n := int(*e)
	c.int(&n, int(last))
	if c.reading {
		*e = Encoding(n)
	}
}

// Block is the content of a block.
type Block struct {
	Index    int64
	Leaf     merkle.Hash
	Encoding Encoding
	Data     []byte
}

func (*Block) kind() kind { return kindBlock }
func (m *Block) fields(c *codec) {
	c.int64(&m.Index)
	c.fixed(m.Leaf[:])
	m.Encoding.field(c, Slot)
	c.bytes(&m.Data, MaxPayload)
}

// AskPages asks for the page hashes of blocks.
type AskPages struct{ Blocks []int64 }

func (*AskPages) kind() kind        { return kindAskPages }
func (m *AskPages) fields(c *codec) { c.indexes(&m.Blocks) }

// Pages answers AskPages: the hashes of all pages of all blocks, joined.
type Pages struct {
	Blocks []int64
	Hashes []merkle.PageHash
}

func (*Pages) kind() kind { return kindPages }
func (m *Pages) fields(c *codec) {
	c.indexes(&m.Blocks)
	const size = len(merkle.PageHash{})
	var flat []byte
	if !c.reading {
		flat = make([]byte, 0, len(m.Hashes)*size)
		for i := range m.Hashes {
			flat = append(flat, m.Hashes[i][:]...)
		}
	}
	c.bytes(&flat, MaxPayload)
	if !c.reading || c.err != nil {
		return
	}
	if len(flat)%size != 0 {
		c.fail(errors.New("page hashes that are cut off"))
		return
	}
	m.Hashes = make([]merkle.PageHash, len(flat)/size)
	for i := range m.Hashes {
		copy(m.Hashes[i][:], flat[i*size:])
	}
}

// Patch carries the changed pages of one or more blocks.
type Patch struct {
	Blocks   []PatchedBlock
	Encoding Encoding // Plain or Zstd
	Data     []byte   // the pages of all blocks, joined
}

// PatchedBlock says which pages of a block a Patch carries, and what the block
// must be with them.
type PatchedBlock struct {
	Index int64
	Leaf  merkle.Hash
	Pages []byte // a bitmap
}

func (*Patch) kind() kind { return kindPatch }
func (m *Patch) fields(c *codec) {
	n := len(m.Blocks)
	c.int(&n, MaxPatches)
	if n == 0 {
		c.fail(errors.New("a patch of no blocks"))
	}
	if c.reading && c.err == nil {
		m.Blocks = make([]PatchedBlock, n)
	}
	for i := range m.Blocks {
		b := &m.Blocks[i]
		c.int64(&b.Index)
		c.fixed(b.Leaf[:])
		c.bytes(&b.Pages, bitmapLen(merkle.MaxBlockSize/merkle.PageSize+1))
	}
	m.Encoding.field(c, Zstd)
	c.bytes(&m.Data, MaxPayload)
}

// Refetch asks for a block once more, whole: patched, it was not what Leaf says.
type Refetch struct {
	Index int64
	Leaf  merkle.Hash
}

func (*Refetch) kind() kind { return kindRefetch }
func (m *Refetch) fields(c *codec) {
	c.int64(&m.Index)
	c.fixed(m.Leaf[:])
}

// Advance says that everything for the regions below Through has been sent.
type Advance struct{ Through int64 }

func (*Advance) kind() kind        { return kindAdvance }
func (m *Advance) fields(c *codec) { c.int64(&m.Through) }

// Stats count the work of one side.
type Stats struct {
	Scanned  int64 // bytes of the image that were read or skipped as holes
	Read     int64 // bytes
	Hashed   int64 // bytes
	Changed  int64 // blocks sent whole
	Patched  int64 // blocks
	Holes    int64 // blocks that became holes
	Repaired int64 // blocks of the target that could not be read and were rewritten
	Payload  int64 // bytes of blocks and patches, as encoded
	Kept     int64 // bytes of content that an interrupted run had left at the target
}

func (s *Stats) fields(c *codec) {
	for _, v := range []*int64{&s.Scanned, &s.Read, &s.Hashed, &s.Changed, &s.Patched, &s.Holes, &s.Repaired, &s.Payload, &s.Kept} {
		c.int64(v)
	}
}

// Finish ends what the source has to say.
type Finish struct {
	Digest merkle.Hash
	Stats  Stats
}

func (*Finish) kind() kind { return kindFinish }
func (m *Finish) fields(c *codec) {
	c.fixed(m.Digest[:])
	m.Stats.fields(c)
}

// Done confirms that the target's content is durable and has the digest.
type Done struct {
	Digest merkle.Hash
	Stats  Stats
	Note   string // for the operator, may be empty
}

func (*Done) kind() kind { return kindDone }
func (m *Done) fields(c *codec) {
	c.fixed(m.Digest[:])
	m.Stats.fields(c)
	c.text(&m.Note)
}

// Progress tells how far a side is, and that it is alive.
type Progress struct{ Stats Stats }

func (*Progress) kind() kind        { return kindProgress }
func (m *Progress) fields(c *codec) { m.Stats.fields(c) }

// Code classifies an Error.
type Code int

// The codes.
const (
	CodeFailed  Code = 1
	CodeRefused Code = 3
	CodeChanged Code = 4
)

// Error ends the conversation.
type Error struct {
	Code Code
	Text string
}

func (*Error) kind() kind { return kindError }
func (m *Error) fields(c *codec) {
	code := int(m.Code)
	c.int(&code, int(CodeChanged))
	c.text(&m.Text)
	if code != int(CodeFailed) && code != int(CodeRefused) && code != int(CodeChanged) {
		c.fail(fmt.Errorf("unknown error code %d", code))
	}
	if c.reading {
		m.Code = Code(code)
	}
}

// Info describes an image.
type Info struct {
	Format    string
	Size      int64 // apparent
	Allocated int64
	BlockSize int
	Digest    merkle.Hash // zero if it is not known, or blocks are bad
	Bad       int64       // blocks that could not be read, or are not what they were
	Note      string

	Stored     bool  // the hashes are those that were stored when it was synced
	Generation int64 // how often the image was synced, if Stored
	Synced     int64 // when that was last, in nanoseconds since 1970, if Stored or Changed
	Changed    bool  // by something else, since it was synced
	Incomplete bool  // an update was cut off half way
	Kept       int64 // bytes of content that an interrupted run has left
	Waiting    int64 // bytes of a committed update that are yet to be put into the image
}

// State names the state of the image: complete, incomplete, damaged, changed (since
// it was synced), or unknown.
func (m *Info) State() string {
	switch {
	case m.Incomplete:
		return "incomplete"
	case m.Bad > 0:
		return "damaged"
	case m.Changed:
		return "changed"
	case m.Stored:
		return "complete"
	}
	return "unknown"
}

func (*Info) kind() kind { return kindInfo }
func (m *Info) fields(c *codec) {
	c.string(&m.Format, 16)
	c.int64(&m.Size)
	c.int64(&m.Allocated)
	c.int(&m.BlockSize, merkle.MaxBlockSize)
	c.fixed(m.Digest[:])
	c.int64(&m.Bad)
	c.text(&m.Note)
	c.bool(&m.Stored)
	c.int64(&m.Generation)
	c.int64(&m.Synced)
	c.bool(&m.Changed)
	c.bool(&m.Incomplete)
	c.int64(&m.Kept)
	c.int64(&m.Waiting)
}

// Bad names a block that could not be read, or is not what it was.
type Bad struct {
	Index, Offset, Length int64
	Text                  string
}

func (*Bad) kind() kind { return kindBad }
func (m *Bad) fields(c *codec) {
	c.int64(&m.Index)
	c.int64(&m.Offset)
	c.int64(&m.Length)
	c.text(&m.Text)
}
