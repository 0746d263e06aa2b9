// Package session carries out a sync: it plays the source or the target, over
// any pair of byte streams, as merkle/wire/PROTOCOL.md lays down.
//
// # How the work is divided
//
// Both roles scan their image region by region and talk while they scan. In
// each, one goroutine reads the connection, one writes it, and a few work on
// blocks in between.
//
//	source                                         target
//	scan ──► events ──► coordinator ──► jobs       scan ──► regions table
//	           ▲             │           │                      ▲ │
//	 reader ───┘      Expand, AskPages   │ Block, Patch   reader┘ └──► Roots, Hashes
//	                         ▼           ▼                  │
//	                        writer ◄── workers              └──► jobs ──► workers ──► image
//
// The source's reader only puts messages on a list, so it never waits; what the
// list can hold is bounded by what the source asked for. The target's reader may
// wait for its workers, which is how a slow disk slows the source down. As the
// source always reads, everything the target wants to say gets out, so no cycle
// of waiting can close, however small the buffers in between.
//
// A side whose image has stored hashes does not read it to find out its roots, and
// loads the leaves of a region only if its root differs. Where hashes are not
// stored, or damaged, it reads. Whatever of a source is read to be sent is compared
// with what is stored of it, so damage does not travel.
//
// What a side holds of a region it drops once the region is settled, and no more
// than [window] regions are unsettled at any time: memory does not grow with the
// image.
package session

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// window is the number of regions that may be in flight: 64 GiB of an image in
// blocks of the usual size. The hashes of that many take 18 MiB.
const window = 2048

// DefaultTimeout is how long a silent peer is waited for.
const DefaultTimeout = 5 * time.Minute

// ErrChanged says that the source was written to while it was read.
var ErrChanged = errors.New("the source changed while it was read")

// changed says where ErrChanged was noticed, and what to do.
func changed(where string) error {
	return fmt.Errorf("%w%s: sync from a snapshot, or stop what writes to it", ErrChanged, where)
}

// A refusal is an error that matches image.ErrRefused.
type refusal string

func (r refusal) Error() string        { return string(r) }
func (r refusal) Is(target error) bool { return target == image.ErrRefused }

// ended is io.ErrUnexpectedEOF without words: to an operator "unexpected EOF"
// says nothing that the sentence around it does not say.
type ended struct{}

func (ended) Error() string { return "" }
func (ended) Unwrap() error { return io.ErrUnexpectedEOF }

var errEnded error = ended{}

// A PeerError is an error that the other side found and told.
type PeerError struct {
	Code wire.Code
	Text string
	From string // "source" or "target", from a relay; else it is clear whose it is
}

func (e *PeerError) Error() string { return e.Text }

// Is makes errors.Is see the same kinds of errors on both sides.
func (e *PeerError) Is(target error) bool {
	switch target {
	case ErrChanged:
		return e.Code == wire.CodeChanged
	case image.ErrRefused:
		return e.Code == wire.CodeRefused
	}
	return false
}

// A LostError says that the conversation ended without a reason that either side
// gave: the connection broke, the far side died or fell silent, or what was at
// the far side is no agent. Whoever made the connection may know more.
type LostError struct{ Err error }

func (e *LostError) Error() string { return e.Err.Error() }

// Unwrap returns what happened.
func (e *LostError) Unwrap() error { return e.Err }

func lost(format string, args ...any) error { return &LostError{fmt.Errorf(format, args...)} }

// code is the inverse of PeerError.Is.
func code(err error) wire.Code {
	switch {
	case errors.Is(err, ErrChanged), errors.Is(err, image.ErrChanged):
		return wire.CodeChanged
	case errors.Is(err, image.ErrRefused):
		return wire.CodeRefused
	}
	return wire.CodeFailed
}

// Options say how to play a role. The zero value is right for most.
type Options struct {
	// DryRun, of a source, makes a session that changes nothing.
	DryRun bool

	// Plain, of a source, saves the work of compressing what crosses no wire.
	Plain bool

	// Sequential, of a target, writes blocks one after the other in the order
	// in which they come; a target that holds nothing gets them front to back.
	Sequential bool

	// Monitor, if set, is kept up to date while the session runs.
	Monitor *Monitor
}

// A Result is what a session did. It is complete only if there was no error.
type Result struct {
	Digest         merkle.Hash
	Size           int64
	BlockSize      int
	Source, Target wire.Stats
	Sent, Received int64  // bytes on the wire, from the source to the target and back
	Note           string // what the operator should know of the target, or ""
}

// A Monitor shows a session at work. Its methods may be called at any time.
type Monitor struct {
	size, sent, received atomic.Int64
	source, target       counters
	note                 atomic.Pointer[string]
}

// Snapshot returns the state of things: the size of the image, 0 while it is
// not known, and what was done so far. What a peer did arrives once a second.
func (m *Monitor) Snapshot() Result {
	r := Result{Size: m.size.Load(), Source: m.source.load(), Target: m.target.load(), Sent: m.sent.Load(), Received: m.received.Load()}
	if note := m.note.Load(); note != nil {
		r.Note = *note
	}
	return r
}

// counters are wire.Stats that many goroutines count.
type counters struct {
	scanned, read, hashed, changed, patched, holes, repaired, payload, kept atomic.Int64
}

func (c *counters) load() wire.Stats {
	return wire.Stats{
		Scanned: c.scanned.Load(), Read: c.read.Load(), Hashed: c.hashed.Load(), Changed: c.changed.Load(),
		Patched: c.patched.Load(), Holes: c.holes.Load(), Repaired: c.repaired.Load(), Payload: c.payload.Load(), Kept: c.kept.Load(),
	}
}

func (c *counters) store(s wire.Stats) {
	c.scanned.Store(s.Scanned)
	c.read.Store(s.Read)
	c.hashed.Store(s.Hashed)
	c.changed.Store(s.Changed)
	c.patched.Store(s.Patched)
	c.holes.Store(s.Holes)
	c.repaired.Store(s.Repaired)
	c.payload.Store(s.Payload)
	c.kept.Store(s.Kept)
}

// region counts what it took to know a region of g.
func (c *counters) region(g merkle.Geometry, r merkle.Region) {
	first := r.Index * merkle.RegionBlocks
	c.scanned.Add(g.Span(first, merkle.RegionBlocks).Length)
	c.read.Add(r.Read)
	c.hashed.Add(r.Hashed)
}

// A Source is an image that is sent. image.Image is one.
type Source interface {
	merkle.Source
	Size() int64

	// BlockSize returns the size of the blocks that the format has, or that
	// hashes are stored of, or 0.
	BlockSize() int

	// Hashes returns what is stored of the tree with blocks of a size.
	Hashes(blockSize int) image.Hashes

	Identity() image.Identity
	Modified() time.Time // when the content was changed last; zero if that is not known
	Changed() error      // whether it was written to since it was opened
}

// A Target receives an image. *image.Target is one, and has more about the
// order of the calls. Reads see the content it has, through the size given to
// Begin. Calls for distinct blocks come from many goroutines at once.
type Target interface {
	merkle.Source
	image.Hashes // what is stored of the content, once it has begun

	Format() image.Format
	BlockSize() int // of the blocks that it must be written in, 0 for any
	Preferred() int // of the blocks that hashes are stored of, or 0
	Held() int64    // bytes of content that exist
	Kept() int64    // bytes of them that an interrupted run has left
	Identity() image.Identity
	Begin(size int64, blockSize int) error
	Put(image.Block) error
	Punch(first, count int64) error                  // blocks
	Settle(region int64, leaves []merkle.Hash) error // that was read, or written to
	Commit(digest merkle.Hash, modified time.Time) error
	Remark() string // what the operator should know after the Commit, or ""
}

// agree returns the block size of a session: that of an spgz target, so that a
// changed block is a slot of the file, rewritten whole; else the one that the
// source has its own blocks or hashes in; else that of the target's hashes; else
// the default. That the source comes first makes a pair of images settle on one
// size, however often they are synced back and forth.
func agree(img Target, preferred int) (int, error) {
	bs := preferred
	switch {
	case img.BlockSize() > 0:
		bs = img.BlockSize()
	case img.Format() == image.Spgz && !isSlot(preferred):
		bs = defaultSlot
	case bs == 0 && img.Preferred() > 0:
		bs = img.Preferred()
	case bs == 0:
		bs = merkle.DefaultBlockSize
	}
	if bs > merkle.MaxBlockSize {
		return 0, fmt.Errorf("a block size of %d bytes is not supported (at most %d)", bs, merkle.MaxBlockSize)
	}
	return bs, nil
}

// heldRegions returns the number of regions in which a target that holds so many
// bytes has any content. Roots are sent for those, by agreement of both sides.
func heldRegions(g merkle.Geometry, held int64) int64 {
	region := int64(g.BlockSize()) * merkle.RegionBlocks
	return (min(held, g.Size()) + region - 1) / region
}

// defaultSlot is the block size of the spgz library: 128 KiB with the flag byte.
const defaultSlot = 128<<10 - 1

// isSlot reports whether slots of an spgz image can have n bytes of data: three
// or more times 4 KiB with the flag byte.
func isSlot(n int) bool { return n%(4<<10) == 4<<10-1 && n >= 3*4<<10-1 }
