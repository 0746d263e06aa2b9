// Package image reads and writes one disk image in any of three formats: a raw
// file, an spgz file, a block device. What it gives to its callers is always the
// content: the bytes of the disk, holes included, whatever lies on the real one.
//
// An [Image] is open for reading, a [Target] receives a sync. Both are found
// through a [Place], a folder that is held open and a name in it, so that
// nothing that happens to the path in between leads them elsewhere.
//
// # The store
//
// Beside the images of a folder lies the folder ".diskrsync", with what is stored
// about them: the leaves of their trees (the outboard), and what an update needs
// until it is done. FORMAT.md specifies it, and what each crash leaves.
//
// A Target gets what it is given into the image in one of three ways. A new image
// is written as a partial file and put into place, complete and durable, by
// [Target.Commit]. An existing one is changed through a journal, which Commit
// seals and then puts into the image. A device, and whatever is changed in place,
// is marked as incomplete for as long as that takes.
//
//	Put, Punch, Settle ─► recorder ─► journal ─► seal ─► application ─► image, outboard
//	                                     │
//	ReadAt, NextData ◄── overlay ◄───────┤
//	Root, Leaves     ◄── hashes  ◄───────┴────────────── outboard
//
// All three keep a journal of the same kind, so one and the same code resumes what
// was interrupted, and completes what was committed, whoever does it.
//
// Some things are not as one might expect them:
//
//   - The journal can be sealed more than once. While someone reads the image it is
//     not changed: the update waits in the journal, which everyone else reads
//     along with the image, and the next update is appended. No reader keeps a
//     backup from being made, and no backup changes what a reader sees.
//   - A block of the partial file that has been made durable is never written
//     again before the seal: if the source has changed since an interrupted run,
//     the block goes through the journal. Otherwise what is known of the partial
//     file could be wrong after a second interruption.
//   - The outboard needs no checksums of its own. The roots of its regions must
//     hash to the digest in its first page, and leaves to the root of their region.
//     So it is loaded by region, a sync without changes reads nothing but the
//     roots, and all of it lives in one file that grows at its end.
//
// On Linux everything is supported. Elsewhere images are plain files: holes are
// neither found nor made, all of a file is data and zeros are written.
package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
)

// A Format is the way in which content lies on the disk.
type Format string

const (
	Raw    Format = "raw"    // a plain file, the content byte for byte
	Spgz   Format = "spgz"   // a file of compressed slots, see FORMAT.md
	Device Format = "device" // a block device
)

func (f Format) known() bool { return f == Raw || f == Spgz || f == Device }

// A Choice is what the user says about the format of a source.
type Choice string

const (
	Auto   Choice = "auto" // a file is spgz if its header and structure are right
	AsRaw  Choice = "raw"
	AsSpgz Choice = "spgz"
)

// ParseChoice returns the choice that s names. The empty string is Auto.
func ParseChoice(s string) (Choice, error) {
	switch c := Choice(s); c {
	case "":
		return Auto, nil
	case Auto, AsRaw, AsSpgz:
		return c, nil
	}
	return "", fmt.Errorf("source format %q is none of auto, raw and spgz", s)
}

// An Identity tells which file or device of which machine an image is. The zero
// Identity is unknown and equals nothing, itself included.
type Identity [16]byte

// Same reports whether a and b are both known and the same.
func (a Identity) Same(b Identity) bool { return a == b && a != Identity{} }

// A refusal is an error of a kind that a caller acts on. Every refusal also
// matches ErrRefused.
type refusal string

func (r refusal) Error() string { return string(r) }

// Is makes errors.Is find ErrRefused behind every refusal.
func (r refusal) Is(target error) bool { return target == ErrRefused }

const (
	// ErrRefused matches whatever was not even tried, because it would have
	// done harm, and all of the errors below.
	ErrRefused = refusal("refused")

	// ErrTooSmall matches a device that is smaller than the content.
	ErrTooSmall = refusal("device too small")

	// ErrInUse matches an image that another writer has locked, and a device
	// that is mounted or otherwise held.
	ErrInUse = refusal("in use")

	// ErrChanged matches an image that changed under our feet.
	ErrChanged = refusal("changed while in use")

	// ErrIncomplete matches an image of which it is known that its content is
	// not what it should be: an update in place was interrupted, or blocks were
	// found to be bad.
	ErrIncomplete = refusal("incomplete")
)

// What messages say can be done instead, for programs that have names of their own for
// the options that are meant.
const (
	HintForce    = "force that it is read as it is"
	HintRaw      = "ask for none to update it as one"
	HintInPlace  = "do not have it changed in place"
	HintChecksum = "if it believes nothing that is stored"
)

// refused is a refusal in words. The words stand alone: those of its kind are
// for errors.Is and not repeated.
type refused struct {
	kind refusal
	text string
}

func (e *refused) Error() string { return e.text }
func (e *refused) Unwrap() error { return e.kind }

func refuse(kind refusal, format string, args ...any) error {
	return &refused{kind, fmt.Sprintf(format, args...)}
}

// A CorruptError names a block of an spgz image that cannot be decoded. The
// rest of the image can still be read.
type CorruptError struct {
	Block  int64
	Extent merkle.Extent // of the content that is lost
	Err    error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("block %d at offset %d: %v", e.Block, e.Extent.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// An Image is open for reading. All methods but Close may be called by many
// goroutines at once.
type Image interface {
	// Source gives the content. Reading an spgz image may fail with a
	// *CorruptError, any image with ErrChanged if its file has shrunk.
	merkle.Source

	// Size returns the apparent size of the content in bytes.
	Size() int64

	Format() Format

	// Guessed reports whether the format was told from the bytes of the file,
	// which a guest may have written, rather than by the user or the store.
	Guessed() bool

	// BlockSize returns the number of bytes of content in a slot of an spgz
	// image, else the block size in which hashes are stored, else 0.
	BlockSize() int

	// Hashes returns what is known of the content in blocks of a size, without
	// reading it.
	Hashes(blockSize int) Hashes

	Identity() Identity

	// Modified returns when the content was changed last: what the source of
	// the sync said, or else when the file was modified. It is the zero Time
	// for a device.
	Modified() time.Time

	// State tells what the store has about the image.
	State() State

	// Changed returns nil, or an error that matches ErrChanged if the size or
	// the modification time of the file is no longer what it was when it was
	// opened. Devices have neither and never report a change.
	Changed() error

	// RecordBad stores that blocks, of the size that BlockSize returns, are not
	// what they should be, so that the next sync fetches them. It does nothing
	// if no hashes are stored, and fails with ErrInUse while someone writes.
	RecordBad(blocks []int64) error

	// Allocated returns the number of bytes that the image takes on the disk.
	Allocated() (int64, error)

	// Note returns one line that the operator should see, or "".
	Note() string

	Close() error
}

// Hashes are what is known of the tree of an image without reading it.
type Hashes interface {
	// Root returns the root of a region, or false if it is not known.
	Root(region int64) (merkle.Hash, bool)

	// Leaves returns the leaves of a region, nil for zeros, or false if they
	// are not known. They hash to what Root returns, and belong to the caller.
	Leaves(region int64) ([]merkle.Hash, bool)
}

// A State is what the store has about an image. The zero State is that of an
// image without a store.
type State struct {
	Stored     bool        // hashes are stored, and are those of the image as it is
	Digest     merkle.Hash // of the content, if Stored and nothing is bad
	Generation int64       // how often the image was committed, if Stored
	Synced     time.Time   // when that was last, if Stored or Changed
	Changed    bool        // by something else, since it was synced

	Bad        int64  // blocks that are known to be wrong
	Incomplete bool   // an update was cut off half way: the content is a mixture
	Why        string // it is incomplete, and what to do
	Kept       int64  // bytes of content that an interrupted run has left
	Waiting    int64  // bytes of the journal that are yet to be put into the image
}

// content is a format at work. Its size is that of the content as seen by the
// caller: a target's may differ from what its file holds until it is settled.
type content interface {
	merkle.Source
	WriteAt(p []byte, off int64) (int, error)
	Punch(off, length int64) error

	Size() int64
	BlockSize() int

	// resize changes the size that is seen. Nothing changes on the disk.
	resize(size int64)

	// settle gives the file the length that makes it hold Size bytes.
	settle() error
}

// cause strips the system call and the name from an error of package os: our
// messages name the image as the user did, not the name in its folder.
func cause(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	var linkErr *os.LinkError
	if errors.As(err, &linkErr) {
		return linkErr.Err
	}
	return err
}
