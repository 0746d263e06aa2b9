package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// imageCommand is a command that reads one image, here or elsewhere.
type imageCommand struct {
	*app
	format string
	choice image.Choice
}

func (c *imageCommand) command(use, short, long string, run func(ctx context.Context, arg string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: exactly(1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if c.choice, err = image.ParseChoice(c.format); err != nil {
				return usageError{err}
			}
			return run(cmd.Context(), args[0])
		},
	}
	cmd.Flags().StringVar(&c.format, "source-format", string(image.Auto), "the file is `auto`, raw, or spgz")
	return cmd
}

// open opens the image that arg names: one of the results is not nil.
func (c *imageCommand) open(ctx context.Context, arg string, verb wire.Verb) (image.Image, *remote, error) {
	l, err := location(arg)
	if err != nil {
		return nil, nil, err
	}
	if l.Remote {
		r, err := c.app.open(ctx, l, wire.Request{Verb: verb, Format: string(c.choice)})
		if err == nil {
			c.note(r.note)
		}
		return nil, r, err
	}
	place, err := image.Locate(l.Path)
	if err != nil {
		return nil, nil, err
	}
	defer place.Close()
	open := image.Open
	if verb != wire.VerbSource {
		open = image.OpenDamaged
	}
	img, err := open(place, c.choice)
	if err == nil {
		c.note(img.Note())
	}
	return img, nil, err
}

func (a *app) catCommand() *cobra.Command {
	c := &imageCommand{app: a}
	return c.command("cat IMAGE", "Write the content of an image to standard output",
		`Writes the content of an image or device, [[user@]host:]path, to standard output,
holes as zeros. The exit status is 0 only if all of it was written and the image did
not change meanwhile, which makes it fit for

  restic backup --stdin-from-command -- diskrsync cat IMAGE`, c.cat)
}

func (c *imageCommand) cat(ctx context.Context, arg string) error {
	img, r, err := c.open(ctx, arg, wire.VerbSource)
	if err != nil {
		return err
	}
	out := &stream{w: c.stdout}
	if r != nil {
		_, err = session.Receive(ctx, r.Conn, out, session.Options{Sequential: true})
		return r.explain(err)
	}
	defer img.Close()
	return catImage(ctx, img, out)
}

func catImage(ctx context.Context, img image.Image, out *stream) error {
	bs := img.BlockSize()
	if bs == 0 {
		bs = merkle.DefaultBlockSize
	}
	g, err := merkle.NewGeometry(img.Size(), bs)
	if err != nil {
		return err
	}
	if err := out.Begin(img.Size(), bs); err != nil {
		return err
	}
	err = merkle.Scan(ctx, g, img, merkle.ScanOptions{}, func(run *merkle.Run) error {
		if run.IsHole() {
			return nil // filled in with what comes next
		}
		_, err := out.WriteAt(run.Data, run.First*int64(bs))
		return err
	})
	if err != nil {
		return err
	}
	if err := img.Changed(); err != nil {
		return err
	}
	return out.Commit()
}

// A stream is a target that passes on what comes front to back, with zeros in
// between.
type stream struct {
	w    io.Writer
	at   int64
	size int64
	none image.Identity
}

// zeros is what holes are filled with.
var zeros [64 << 10]byte

func (s *stream) Format() image.Format                        { return image.Raw }
func (s *stream) BlockSize() int                              { return 0 }
func (s *stream) Held() int64                                 { return 0 }
func (s *stream) Identity() image.Identity                    { return s.none }
func (s *stream) ReadAt([]byte, int64) (int, error)           { return 0, errors.ErrUnsupported }
func (s *stream) NextData(int64) (e merkle.Extent, err error) { return e, io.EOF }
func (s *stream) WriteSlot(int64, []byte) error               { return errors.ErrUnsupported }
func (s *stream) Punch(int64, int64) error                    { return nil } // as it is, if nothing is written

func (s *stream) Begin(size int64, _ int) error {
	s.size = size
	return nil
}

func (s *stream) WriteAt(p []byte, off int64) (int, error) {
	if off < s.at {
		return 0, fmt.Errorf("the content came out of order (offset %d after %d)", off, s.at)
	}
	if err := s.fill(off); err != nil {
		return 0, err
	}
	n, err := s.w.Write(p)
	s.at += int64(n)
	if err != nil {
		err = fmt.Errorf("writing to standard output: %w", err)
	}
	return n, err
}

// fill writes zeros up to an offset.
func (s *stream) fill(to int64) error {
	for s.at < to {
		n, err := s.w.Write(zeros[:min(int64(len(zeros)), to-s.at)])
		s.at += int64(n)
		if err != nil {
			return fmt.Errorf("writing to standard output: %w", err)
		}
	}
	return nil
}

func (s *stream) Commit() error { return s.fill(s.size) }

// inspection is what info and verify print as JSON.
type inspection struct {
	Type      string       `json:"message_type"`
	Image     string       `json:"image"`
	Format    string       `json:"format"`
	Size      int64        `json:"size"`
	Allocated int64        `json:"allocated"`
	BlockSize int          `json:"block_size"`
	Digest    *merkle.Hash `json:"digest"` // null if there are bad blocks
	Bad       int64        `json:"bad_blocks"`
}

// badBlock is what verify prints for each.
type badBlock struct {
	Type    string `json:"message_type"`
	Image   string `json:"image"`
	Block   int64  `json:"block"`
	Offset  int64  `json:"offset"`
	Length  int64  `json:"length"`
	Message string `json:"message"`
}

func (a *app) infoCommand() *cobra.Command {
	c := &imageCommand{app: a}
	cmd := c.command("info IMAGE", "Describe an image",
		`Tells the format of an image, [[user@]host:]path, its sizes, and the digest of its
content, for which all of it is read.`,
		func(ctx context.Context, arg string) error { return c.inspect(ctx, arg, wire.VerbInfo) })
	cmd.Flags().BoolVar(&a.json, "json", false, "write JSON")
	return cmd
}

func (a *app) verifyCommand() *cobra.Command {
	c := &imageCommand{app: a}
	cmd := c.command("verify IMAGE", "Read all of an image and name what is bad",
		`Reads all of an image, [[user@]host:]path, and names every block that cannot be read
or decoded. The exit status is 1 if there are any.`,
		func(ctx context.Context, arg string) error { return c.inspect(ctx, arg, wire.VerbVerify) })
	cmd.Flags().BoolVar(&a.json, "json", false, "write one JSON object a line")
	return cmd
}

func (c *imageCommand) inspect(ctx context.Context, arg string, verb wire.Verb) error {
	img, r, err := c.open(ctx, arg, verb)
	if err != nil {
		return err
	}
	bad := func(b wire.Bad) error {
		if verb == wire.VerbInfo {
			return nil
		}
		return c.printBad(arg, b)
	}
	var info *wire.Info
	if r != nil {
		info, err = session.AwaitInspection(ctx, r.Conn, nil, bad)
		err = r.explain(err)
	} else {
		defer img.Close()
		info, err = session.Inspect(ctx, img, nil, bad)
	}
	if err != nil {
		return err
	}
	if err := c.printInfo(arg, info); err != nil {
		return err
	}
	if info.Bad > 0 {
		hint := ""
		if verb == wire.VerbInfo {
			hint = " (diskrsync verify names them)"
		}
		return fmt.Errorf("image %s: %d bad blocks%s", arg, info.Bad, hint)
	}
	return nil
}

func (c *imageCommand) printBad(arg string, b wire.Bad) error {
	if c.json {
		return c.emit(badBlock{"bad", arg, b.Index, b.Offset, b.Length, b.Text})
	}
	_, err := fmt.Fprintf(c.stdout, "bad: block %d at offset %d, %d bytes: %s\n", b.Index, b.Offset, b.Length, harmless(b.Text))
	return err
}

func (c *imageCommand) printInfo(arg string, info *wire.Info) error {
	var digest *merkle.Hash
	shown := "none, as there are bad blocks"
	if info.Bad == 0 {
		digest, shown = &info.Digest, info.Digest.String()
	}
	if c.json {
		return c.emit(inspection{"info", arg, info.Format, info.Size, info.Allocated, info.BlockSize, digest, info.Bad})
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "image\t%s\n", arg)
	fmt.Fprintf(w, "format\t%s\n", info.Format)
	fmt.Fprintf(w, "size\t%d\t(%s)\n", info.Size, size(info.Size))
	fmt.Fprintf(w, "allocated\t%d\t(%s)\n", info.Allocated, size(info.Allocated))
	fmt.Fprintf(w, "block size\t%d\n", info.BlockSize)
	fmt.Fprintf(w, "digest\t%s\n", shown) // it depends on the block size
	fmt.Fprintf(w, "bad blocks\t%d\n", info.Bad)
	return w.Flush() // which is where all errors of writing show
}
