// Package image reads and writes one disk image in any of three formats: a raw
// file, an spgz file, a block device. What it gives to its callers is always the
// content: the bytes of the disk, holes included, whatever lies on the real one.
//
// An [Image] is open for reading, a [Target] receives a sync. Both are found
// through a [Place], a folder that is held open and a name in it, so that
// nothing that happens to the path in between leads them elsewhere.
//
// A new image is written as a partial file in the folder ".diskrsync" beside it
// and put into place, complete and durable, by [Target.Commit]. An existing
// image and a device are changed where they are. FORMAT.md specifies what lies
// on the disk.
//
// On Linux everything is supported. Elsewhere images are plain files: holes are
// neither found nor made, all of a file is data and zeros are written.
package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/diskrsync/diskrsync/merkle"
)

// A Format is the way in which content lies on the disk.
type Format string

const (
	Raw    Format = "raw"    // a plain file, the content byte for byte
	Spgz   Format = "spgz"   // a file of compressed slots, see FORMAT.md
	Device Format = "device" // a block device
)

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

	// BlockSize returns the number of bytes of content in a slot of an spgz
	// image, 0 for other formats.
	BlockSize() int

	Identity() Identity

	// Changed returns nil, or an error that matches ErrChanged if the size or
	// the modification time of the file is no longer what it was when it was
	// opened. Devices have neither and never report a change.
	Changed() error

	// Allocated returns the number of bytes that the image takes on the disk.
	Allocated() (int64, error)

	// Note returns one line that the operator should see, or "".
	Note() string

	Close() error
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

// Open opens the image at p for reading. The caller closes the image; p may be
// closed before.
func Open(p *Place, c Choice) (Image, error) { return openImage(p, c, openSlots) }

// OpenDamaged is Open for an image that is to be examined. An spgz image whose
// last block cannot be decoded, and whose size is therefore not known, opens as
// if that block were full; reading it fails with a *CorruptError.
func OpenDamaged(p *Place, c Choice) (Image, error) { return openImage(p, c, openAnySlots) }

func openImage(p *Place, c Choice, slots func(*disk) (*slots, error)) (Image, error) {
	info, err := p.stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("image %s: is a folder, not an image", p.path)
	}
	if c == AsSpgz && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("image %s: is not a regular file and so no spgz image", p.path)
	}
	d, err := p.open(os.O_RDONLY, info)
	if err != nil {
		return nil, err
	}
	im, err := readImage(d, c, slots)
	if err != nil {
		return nil, errors.Join(err, d.f.Close())
	}
	return im, nil
}

func readImage(d *disk, c Choice, slots func(*disk) (*slots, error)) (Image, error) {
	im := &reader{disk: d, format: Device}
	if d.device {
		im.content = &flat{disk: d, length: d.held}
		return im, nil
	}
	var err error
	if im.format, im.note, err = detect(d, c); err != nil {
		return nil, err
	}
	if im.format == Raw {
		im.content = &flat{disk: d, length: d.held}
		return im, nil
	}
	s, err := slots(d)
	if err != nil {
		return nil, err
	}
	im.content = s
	return im, nil
}

// reader implements Image.
type reader struct {
	content
	disk   *disk
	format Format
	note   string
}

func (r *reader) Format() Format            { return r.format }
func (r *reader) Identity() Identity        { return r.disk.identity() }
func (r *reader) Note() string              { return r.note }
func (r *reader) Allocated() (int64, error) { return r.disk.allocated() }
func (r *reader) Close() error              { return r.disk.f.Close() }

func (r *reader) Changed() error {
	if r.disk.device {
		return nil
	}
	then := r.disk.info
	now, err := r.disk.f.Stat()
	if err != nil {
		return fmt.Errorf("image %s: looking for changes: %w", r.disk.path, cause(err))
	}
	if now.Size() != then.Size() {
		return refuse(ErrChanged, "image %s: changed while it was read: its file had %d bytes and has %d now",
			r.disk.path, then.Size(), now.Size())
	}
	if !now.ModTime().Equal(then.ModTime()) {
		return refuse(ErrChanged, "image %s: changed while it was read: it was modified at %s",
			r.disk.path, now.ModTime().Format("2006-01-02 15:04:05.000000000"))
	}
	return nil
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
