package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// inspection is what info and verify print as JSON.
type inspection struct {
	Type       string       `json:"message_type"`
	Image      string       `json:"image"`
	Format     string       `json:"format"`
	Size       int64        `json:"size"`
	Allocated  int64        `json:"allocated"`
	BlockSize  int          `json:"block_size"`
	Digest     *merkle.Hash `json:"digest"`     // null if it is not known, or there are bad blocks
	Bad        int64        `json:"bad_blocks"` // as far as is known
	State      string       `json:"state"`      // complete, incomplete, damaged, changed (since it was synced), unknown
	Stored     bool         `json:"stored"`     // hashes are stored, and those of the image as it is
	Generation int64        `json:"generation"` // how often it was synced, if stored
	Synced     *time.Time   `json:"synced"`     // when it was last, if stored
	Kept       int64        `json:"kept"`       // bytes of content that an interrupted run has left
	Waiting    int64        `json:"waiting"`    // bytes of a committed update that wait in the journal
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
		`Tells the format of an image, [[user@]host:]path, its sizes, when it was synced,
whether it is whole, and the digest of its content: what was stored when it was synced.
Nothing of the content is read, so if nothing is stored, or the image has changed since,
the digest is not known. The exit status is 1 if the image is incomplete, or known to
have bad blocks.`,
		func(ctx context.Context, arg string) error { return c.inspect(ctx, arg, wire.VerbInfo) })
	cmd.Flags().BoolVar(&a.json, "json", false, "write JSON")
	return cmd
}

func (a *app) verifyCommand() *cobra.Command {
	c := &imageCommand{app: a}
	cmd := c.command("verify IMAGE", "Read all of an image and name what is bad",
		`Reads all of an image, [[user@]host:]path, and names every block that cannot be read
or decoded, or is not what was stored when the image was synced. These are recorded, so
that the next sync fetches them. The exit status is 1 if there are any, or the image is
incomplete, or was changed by something else since.

With --repair-from, an image that is not as it should be is synced at once, and
described again as info does. The exit status is then 0 if it is as it should be now.`,
		func(ctx context.Context, arg string) error { return c.verify(ctx, arg) })
	cmd.Flags().BoolVar(&a.json, "json", false, "write one JSON object a line")
	cmd.Flags().StringVar(&c.repairFrom, "repair-from", "", "if anything is bad, sync the image from this `source` at once")
	return cmd
}

func (a *app) cleanCommand() *cobra.Command {
	c := &imageCommand{app: a}
	return c.command("clean IMAGE", "Drop what interrupted runs have left of an image",
		`Drops what an interrupted run has left beside an image, [[user@]host:]path, which the
next run would go on with. The image itself is not changed, but for an update that was
committed and waits to be put into it.`, c.clean)
}

func (c *imageCommand) clean(ctx context.Context, arg string) error {
	l, err := location(arg)
	if err != nil {
		return err
	}
	var done string
	if l.Remote {
		r, err := c.app.open(ctx, l, wire.Request{Verb: wire.VerbClean, StateDir: c.stateDir})
		if err != nil {
			return err
		}
		defer r.Close()
		done = r.note
	} else {
		place, err := image.Locate(l.Path)
		if err != nil {
			return err
		}
		defer place.Close()
		if done, err = image.Clean(place, c.stateDir); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(c.stdout, "%s: %s\n", arg, harmless(done))
	return err
}

// unsound is the error of an image that is not what it should be.
type unsound struct {
	text     string
	recorded bool // so that the next sync mends it without being told to read all
}

func (e *unsound) Error() string { return e.text }

// judge returns an error if an image is not what it should be, as far as the verb
// finds out.
func judge(arg string, info *wire.Info, verb wire.Verb) error {
	synced := time.Unix(0, info.Synced).Format("2006-01-02 15:04:05")
	switch {
	case info.Bad > 0 && verb == wire.VerbInfo:
		return &unsound{fmt.Sprintf("image %s: %s (diskrsync verify names them)", arg, badCount(info.Bad)), true}
	case info.Bad > 0:
		return &unsound{fmt.Sprintf("image %s: %s", arg, badCount(info.Bad)), info.Note == ""}
	case info.Incomplete:
		return &unsound{fmt.Sprintf("image %s: is incomplete: %s", arg, harmless(info.Note)), true}
	case info.Changed && verb == wire.VerbVerify:
		return &unsound{fmt.Sprintf("image %s: was changed by something else since it was synced at %s: all of it can be read, and what it should be is not known: sync to it again", arg, synced), true}
	}
	return nil
}

func badCount(n int64) string {
	if n == 1 {
		return "1 bad block"
	}
	return fmt.Sprintf("%d bad blocks", n)
}

// verify inspects an image and, if that is wanted, repairs it.
func (c *imageCommand) verify(ctx context.Context, arg string) error {
	if c.repairFrom == "" {
		return c.inspect(ctx, arg, wire.VerbVerify)
	}
	s := &syncRun{app: c.app, format: string(image.Auto), stateDir: c.stateDir}
	if err := s.parse([]string{c.repairFrom, arg}); err != nil {
		return err
	}
	// Reading all of the image may take hours, after which it would be too late to
	// hear that there is no such source.
	if err := s.trySource(ctx); err != nil {
		return err
	}
	err := c.inspect(ctx, arg, wire.VerbVerify)
	bad := (*unsound)(nil)
	if !errors.As(err, &bad) {
		return err
	}
	c.note(err.Error() + ": repairing it from " + c.repairFrom)
	s.checksum = !bad.recorded
	return c.repair(ctx, arg, s)
}

// trySource makes sure that there is a source, and that it is not refused.
func (s *syncRun) trySource(ctx context.Context) error {
	if !s.source.Remote {
		img, err := openLocal(s.source.Path, image.Options{Choice: s.choice, StateDir: s.stateDir})
		if err != nil {
			return err
		}
		return img.Close()
	}
	r, err := s.open(ctx, s.source, wire.Request{Verb: wire.VerbInfo, Format: string(s.choice), StateDir: s.stateDir})
	if err != nil {
		return err
	}
	info, err := session.AwaitInspection(ctx, r.Conn, nil, nil)
	if err != nil {
		return r.explain(err)
	}
	if err := judge(s.source.String(), info, wire.VerbInfo); err != nil {
		return fmt.Errorf("%w as a source: %w", image.ErrRefused, err)
	}
	return nil
}

// repair runs a sync to an image and tells what has become of it.
func (c *imageCommand) repair(ctx context.Context, arg string, s *syncRun) error {
	started := time.Now()
	result, err := s.sync(ctx)
	if err != nil {
		return fmt.Errorf("repairing: %w", err)
	}
	if err := s.summary(result, time.Since(started)); err != nil {
		return err
	}
	info, err := c.describe(ctx, arg, wire.VerbInfo)
	if err != nil {
		return err
	}
	if info.Changed {
		return fmt.Errorf("image %s: was changed by something else since it was repaired", arg)
	}
	return judge(arg, info, wire.VerbInfo)
}

func (c *imageCommand) inspect(ctx context.Context, arg string, verb wire.Verb) error {
	info, err := c.describe(ctx, arg, verb)
	if err != nil {
		return err
	}
	return judge(arg, info, verb)
}

// describe finds out about an image and prints it.
func (c *imageCommand) describe(ctx context.Context, arg string, verb wire.Verb) (*wire.Info, error) {
	img, r, err := c.open(ctx, arg, verb)
	if err != nil {
		return nil, err
	}
	bad := func(b wire.Bad) error { return c.printBad(arg, b) }
	var info *wire.Info
	if r != nil {
		info, err = session.AwaitInspection(ctx, r.Conn, nil, bad)
		err = r.explain(err)
	} else {
		defer img.Close()
		opt := session.InspectOptions{Read: verb == wire.VerbVerify, Record: true}
		if opt.Read {
			opt.Bad = bad
		}
		info, err = session.Inspect(ctx, img, opt)
	}
	if err != nil {
		return nil, err
	}
	if !info.Incomplete { // then it is the error
		c.note(info.Note)
	}
	return info, c.printInfo(arg, info)
}

func (c *imageCommand) printBad(arg string, b wire.Bad) error {
	if c.json {
		return c.emit(badBlock{"bad", arg, b.Index, b.Offset, b.Length, b.Text})
	}
	_, err := fmt.Fprintf(c.stdout, "bad: block %d at offset %d, %d bytes: %s\n", b.Index, b.Offset, b.Length, harmless(b.Text))
	return err
}

func (c *imageCommand) printInfo(arg string, info *wire.Info) error {
	m := inspection{Type: "info", Image: arg, Format: info.Format, Size: info.Size, Allocated: info.Allocated, BlockSize: info.BlockSize,
		Bad: info.Bad, State: info.State(), Stored: info.Stored, Generation: info.Generation, Kept: info.Kept, Waiting: info.Waiting}
	if info.Digest != (merkle.Hash{}) {
		m.Digest = &info.Digest
	}
	if info.Stored || info.Changed {
		synced := time.Unix(0, info.Synced)
		m.Synced = &synced
	}
	if c.json {
		return c.emit(m)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "image\t%s\n", arg)
	fmt.Fprintf(w, "format\t%s\n", m.Format)
	fmt.Fprintf(w, "size\t%d\t(%s)\n", m.Size, size(m.Size))
	fmt.Fprintf(w, "allocated\t%d\t(%s)\n", m.Allocated, size(m.Allocated))
	fmt.Fprintf(w, "block size\t%d\n", m.BlockSize)
	digest, bad := "unknown (diskrsync verify finds it out)", "none known"
	switch {
	case m.Bad > 0:
		digest, bad = "none, as there are bad blocks", fmt.Sprint(m.Bad)
	case m.Digest != nil:
		digest, bad = m.Digest.String(), "0" // the digest depends on the block size
	}
	fmt.Fprintf(w, "digest\t%s\n", digest)
	fmt.Fprintf(w, "bad blocks\t%s\n", bad)
	fmt.Fprintf(w, "state\t%s\n", describeState(m))
	return w.Flush() // which is where all errors of writing show
}

// describeState says in words what the store knows of an image.
func describeState(m inspection) string {
	text := m.State
	switch {
	case m.State == "incomplete":
		text += ": an update of it was cut off half way"
	case m.State == "changed":
		text += fmt.Sprintf(": by something else, since it was synced at %s", m.Synced.Format("2006-01-02 15:04:05"))
	case m.State == "unknown":
		text += ": nothing is stored about it"
	case m.Synced != nil:
		text += fmt.Sprintf(", as synced at %s (generation %d)", m.Synced.Format("2006-01-02 15:04:05"), m.Generation)
	}
	if m.Kept > 0 {
		text += fmt.Sprintf("; about %s of an interrupted run are kept for the next", size(m.Kept))
	}
	if m.Waiting > 0 {
		text += fmt.Sprintf("; a committed update of %s waits in the journal", size(m.Waiting))
	}
	return text
}
