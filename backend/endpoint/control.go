package endpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// Inspect describes an image. With verify it reads all of it, where it lies, and
// returns its bad blocks as well, which are recorded for the next sync to fetch.
func Inspect(ctx context.Context, src Source, verify bool) (*wire.Info, []wire.Bad, error) {
	var bad []wire.Bad
	add := func(b wire.Bad) error {
		bad = append(bad, b)
		return nil
	}
	var info *wire.Info
	var err error
	if src.here() {
		info, err = src.inspectHere(ctx, verify, add)
	} else {
		info, err = src.inspectThere(ctx, verify, add)
	}
	slices.SortFunc(bad, func(a, b wire.Bad) int { return int(a.Index - b.Index) })
	return info, bad, Classify(err)
}

func (s Source) inspectHere(ctx context.Context, verify bool, bad func(wire.Bad) error) (info *wire.Info, err error) {
	place, err := s.Locate()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, place.Close()) }()
	look := s.options()
	look.Examine = true
	img, err := image.Open(place, look)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	opt := session.InspectOptions{Read: verify, Record: true}
	if verify {
		opt.Bad = bad
	}
	return session.Inspect(ctx, img, opt)
}

func (s Source) inspectThere(ctx context.Context, verify bool, bad func(wire.Bad) error) (*wire.Info, error) {
	verb := wire.VerbInfo
	if verify {
		verb = wire.VerbVerify
	}
	a, err := s.open(ctx, wire.Request{Verb: verb, Format: string(s.Format), Checksum: s.Checksum, StateDir: s.StateDir})
	if err != nil {
		return nil, err
	}
	defer a.carrier.Close() // what matters of it is in err
	info, err := session.AwaitInspection(ctx, a.Conn, nil, bad)
	return info, a.explain(err)
}

// Clean drops what interrupted syncs have left of an image, and says what it did.
func Clean(ctx context.Context, t Target) (string, error) {
	if t.here() {
		place, err := t.Locate()
		if err != nil {
			return "", err
		}
		done, err := image.Clean(place, t.StateDir)
		return done, Classify(errors.Join(err, place.Close()))
	}
	a, err := t.open(ctx, wire.Request{Verb: wire.VerbClean, StateDir: t.StateDir})
	if err != nil {
		return "", Classify(err)
	}
	defer a.carrier.Close() // it has said all there is
	return a.opened.Note, nil
}

// SetModified sets when an image was modified.
func SetModified(ctx context.Context, p Place, modified time.Time) error {
	if p.here() {
		place, err := p.Locate()
		if err != nil {
			return err
		}
		return Classify(errors.Join(image.SetModified(place, modified), place.Close()))
	}
	a, err := p.open(ctx, wire.Request{Verb: wire.VerbTouch, Modified: modified.UnixNano()})
	if err != nil {
		return Classify(err)
	}
	return a.carrier.Close()
}

// Remove removes an image with what is stored about it. If nothing but that is there,
// the error matches fs.ErrNotExist, on this machine. Of a symbolic link nothing is
// removed but the link.
func Remove(ctx context.Context, p Place) error {
	if !p.here() {
		a, err := p.open(ctx, wire.Request{Verb: wire.VerbRemove})
		if err != nil {
			return Classify(err)
		}
		return a.carrier.Close()
	}
	if p.Root == "" {
		return Classify(image.RemoveAt(nil, p.Path))
	}
	root, err := os.OpenRoot(p.Root)
	if err != nil {
		return fmt.Errorf("opening the folder of images: %w", err)
	}
	return Classify(errors.Join(image.RemoveAt(root, p.Path), root.Close()))
}
