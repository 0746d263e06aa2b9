package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
)

// What the demo makes: a disk of this size, with so much data on it, of which so
// many pages change.
const (
	demoSize    = 256 << 20
	demoData    = 96 << 20
	demoChanges = 400
)

func (a *app) demoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show a backup, a second one, and a restore, on a disk image of its own",
		Long: `Makes a disk image in a temporary folder, backs it up through an agent process,
changes pages all over it, backs it up again, restores the backup, and compares. All
of it is removed at the end.`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			dir, err := os.MkdirTemp("", "diskrsync-demo-")
			if err != nil {
				return fmt.Errorf("making a folder for the demo: %w", err)
			}
			defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("finding this program: %w", err)
			}
			d := &demo{app: a, dir: dir, exe: exe, table: tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', tabwriter.AlignRight)}
			return d.run(cmd.Context())
		},
	}
}

type demo struct {
	*app
	dir, exe string
	table    *tabwriter.Writer
}

func (d *demo) run(ctx context.Context) error {
	disk, backup, restored := filepath.Join(d.dir, "disk.img"), filepath.Join(d.dir, "backup.spgz"), filepath.Join(d.dir, "restored.img")
	what, err := makeDisk(ctx, disk)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.stdout, "A disk image of %s (%s), backed up through an agent process.\n\n", size(demoSize), what)
	fmt.Fprintln(d.table, "step\tseconds\tread\tsent\treceived\twhole blocks\tpatched\t")
	if err := d.step(ctx, "first backup", disk, backup, (*syncRun).push); err != nil {
		return err
	}
	if err := changePages(disk); err != nil {
		return err
	}
	if err := d.step(ctx, fmt.Sprintf("after %d page writes", demoChanges), disk, backup, (*syncRun).push); err != nil {
		return err
	}
	if err := d.step(ctx, "nothing changed", disk, backup, (*syncRun).push); err != nil {
		return err
	}
	if err := d.step(ctx, "restore", backup, restored, (*syncRun).pull); err != nil {
		return err
	}
	if err := d.table.Flush(); err != nil {
		return err
	}
	if err := sameContent(disk, restored); err != nil {
		return err
	}
	info, err := os.Stat(backup)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(d.stdout, "\nThe restored image equals the disk, byte for byte. The backup is one file (%s apparent);\n`spgz -x` and `diskrsync cat` read it.\n", size(info.Size()))
	return err
}

// step syncs from one file to another, one of which the agent has, and adds a
// line to the table.
func (d *demo) step(ctx context.Context, name, from, to string, way func(*syncRun, context.Context) (session.Result, error)) error {
	options := transport.Options{Local: true, CmdPath: d.exe}
	s := &syncRun{
		app:        &app{stdout: d.stdout, stderr: d.stderr, reach: reach{Options: options, timeout: session.DefaultTimeout}},
		source:     transport.Location{Host: "agent", Path: from},
		target:     transport.Location{Host: "agent", Path: to},
		choice:     image.AsRaw,
		noCompress: filepath.Ext(to) == ".img",
	}
	if filepath.Ext(from) == ".spgz" {
		s.choice = image.AsSpgz
	}
	started := time.Now()
	r, err := way(s, ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = fmt.Fprintf(d.table, "%s\t%.2f\t%s\t%s\t%s\t%d\t%d\t\n", name, time.Since(started).Seconds(),
		size(r.Source.Read+r.Target.Read), size(r.Sent), size(r.Received), r.Source.Changed, r.Source.Patched)
	return err
}

// makeDisk makes the image: a file system with files on it where mkfs.ext4 is at
// hand, else something of the same texture. It returns what it made.
func makeDisk(ctx context.Context, path string) (string, error) {
	f, err := os.Create(path)
	if err != nil {
		return "", fmt.Errorf("making the disk: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(demoSize); err != nil {
		return "", fmt.Errorf("making the disk: %w", err)
	}
	mkfs, err := lookAlsoInSbin("mkfs.ext4")
	if err != nil {
		err = writeText(f, demoData)
		return "generated, as there is no mkfs.ext4 here", errors.Join(err, f.Close())
	}
	tree := path + ".tree"
	if err := os.Mkdir(tree, 0o700); err != nil {
		return "", fmt.Errorf("making files for the disk: %w", err)
	}
	defer os.RemoveAll(tree)
	for i := range 12 {
		if err := writeFile(filepath.Join(tree, fmt.Sprintf("file%02d", i)), demoData/12); err != nil {
			return "", err
		}
	}
	out, err := exec.CommandContext(ctx, mkfs, "-q", "-F", "-d", tree, path).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	return "ext4", nil
}

// lookAlsoInSbin finds a program that belongs to the administrator, whose
// folders are not in everyone's PATH.
func lookAlsoInSbin(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	return path, err
}

func writeFile(path string, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("making files for the disk: %w", err)
	}
	return errors.Join(writeText(f, n), f.Close())
}

// writeText writes about n bytes that compress about as well as what people have
// on their disks.
func writeText(w io.Writer, n int) error {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	var buf bytes.Buffer
	for buf.Len() < n {
		fmt.Fprintf(&buf, "record %d: name=%x value=%d state=%d\n", buf.Len(), r.Uint64(), r.IntN(1000), r.IntN(3))
	}
	if _, err := w.Write(buf.Bytes()); err != nil {
		return fmt.Errorf("writing data for the disk: %w", err)
	}
	return nil
}

// changePages overwrites pages at random places, as a database would.
func changePages(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := rand.New(rand.NewPCG(2, 2))
	for range demoChanges {
		page := make([]byte, 4096)
		copy(page, fmt.Sprintf("page %x", r.Uint64()))
		if _, err := f.WriteAt(page, r.Int64N(demoData/4096)*4096); err != nil {
			return fmt.Errorf("changing the disk: %w", err)
		}
	}
	return nil
}

// sameContent compares two files.
func sameContent(a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	pa, pb := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		na, erra := io.ReadFull(fa, pa)
		nb, errb := io.ReadFull(fb, pb)
		if !bytes.Equal(pa[:na], pb[:nb]) {
			return fmt.Errorf("%s and %s differ", a, b)
		}
		ended := errors.Is(erra, io.EOF) || errors.Is(erra, io.ErrUnexpectedEOF)
		if erra != nil || errb != nil {
			if ended && errb != nil && errb.Error() == erra.Error() {
				return nil
			}
			return errors.Join(erra, errb)
		}
	}
}
