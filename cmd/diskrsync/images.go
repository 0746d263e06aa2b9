package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// imageCommand is a command that reads one image, here or elsewhere.
type imageCommand struct {
	*app
	format, stateDir string
	force, checksum  bool
	repairFrom       string
	choice           image.Choice
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
	cmd.Flags().StringVar(&c.stateDir, "state-dir", "", "the `folder` where hashes of devices are stored")
	return cmd
}

// localImage is an image of this machine.
type localImage struct {
	image.Image
	place *image.Place
}

func openLocal(path string, o image.Options) (*localImage, error) {
	place, err := image.Locate(path)
	if err != nil {
		return nil, err
	}
	img, err := image.Open(place, o)
	if err != nil {
		return nil, errors.Join(err, place.Close())
	}
	return &localImage{img, place}, nil
}

func (l *localImage) Close() error { return errors.Join(l.Image.Close(), l.place.Close()) }

// open opens the image that arg names: one of the results is not nil.
func (c *imageCommand) open(ctx context.Context, arg string, verb wire.Verb) (*localImage, *remote, error) {
	l, err := location(arg)
	if err != nil {
		return nil, nil, err
	}
	if l.Remote {
		r, err := c.app.open(ctx, l, wire.Request{Verb: verb, Format: string(c.choice), Force: c.force, Checksum: c.checksum, StateDir: c.stateDir})
		if err == nil {
			c.note(r.note)
		}
		return nil, r, err
	}
	img, err := openLocal(l.Path, image.Options{Choice: c.choice, Examine: verb != wire.VerbSource, Force: c.force, Checksum: c.checksum, StateDir: c.stateDir})
	if err == nil {
		c.note(img.Note())
	}
	return img, nil, err
}

func (a *app) catCommand() *cobra.Command {
	c := &imageCommand{app: a}
	cmd := c.command("cat IMAGE", "Write the content of an image to standard output",
		`Writes the content of an image or device, [[user@]host:]path, to standard output,
holes as zeros. The exit status is 0 only if all of it was written, is what was stored
when the image was synced, and did not change meanwhile, which makes it fit for

  restic backup --stdin-from-command -- diskrsync cat IMAGE`, c.cat)
	cmd.Flags().BoolVar(&c.force, "force", false, "read an image that is known to be incomplete or damaged as it is")
	cmd.Flags().BoolVar(&c.checksum, "checksum", false, "do not compare the content with what is stored about it")
	return cmd
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
	if err = catImage(ctx, img, out); errors.Is(err, session.ErrStored) {
		err = fmt.Errorf("image %s: %w", arg, err)
	}
	return err
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
	judge := session.Judge(g, img)
	err = merkle.Scan(ctx, g, img, merkle.ScanOptions{Each: judge}, func(run *merkle.Run) error {
		if run.IsHole() {
			return judge(run) // filled in with what comes next
		}
		return out.write(run.Data, run.First*int64(bs))
	})
	if err != nil {
		return err
	}
	if err := img.Changed(); err != nil {
		return err
	}
	return out.fill(out.size)
}

// A stream is a target that passes on what comes front to back, with zeros in
// between.
type stream struct {
	w    io.Writer
	at   int64
	size int64
	none image.Identity

	blockSize int64
}

// zeros is what holes are filled with.
var zeros [64 << 10]byte

func (s *stream) Format() image.Format                        { return image.Raw }
func (s *stream) BlockSize() int                              { return 0 }
func (s *stream) Preferred() int                              { return 0 }
func (s *stream) Held() int64                                 { return 0 }
func (s *stream) Kept() int64                                 { return 0 }
func (s *stream) Identity() image.Identity                    { return s.none }
func (s *stream) Root(int64) (h merkle.Hash, ok bool)         { return h, false }
func (s *stream) Leaves(int64) ([]merkle.Hash, bool)          { return nil, false }
func (s *stream) ReadAt([]byte, int64) (int, error)           { return 0, errors.ErrUnsupported }
func (s *stream) NextData(int64) (e merkle.Extent, err error) { return e, io.EOF }
func (s *stream) Punch(int64, int64) error                    { return nil } // as it is, if nothing is written
func (s *stream) Remark() string                              { return "" }
func (s *stream) Settle(int64, []merkle.Hash) error           { return nil }

func (s *stream) Begin(size int64, blockSize int) error {
	s.size, s.blockSize = size, int64(blockSize)
	return nil
}

func (s *stream) Put(b image.Block) error { return s.write(b.Data, b.Index*s.blockSize) }

func (s *stream) write(p []byte, off int64) error {
	if off < s.at {
		return fmt.Errorf("the content came out of order (offset %d after %d)", off, s.at)
	}
	if err := s.fill(off); err != nil {
		return err
	}
	n, err := s.w.Write(p)
	s.at += int64(n)
	if err != nil {
		return fmt.Errorf("writing to standard output: %w", err)
	}
	return nil
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

func (s *stream) Commit(merkle.Hash, time.Time) error { return s.fill(s.size) }
