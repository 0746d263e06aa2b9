// Diskrsync keeps disk images and block devices up to date, here and over ssh.
//
// Usage: diskrsync [flags] SRC DST, where both are [[user@]host:]path. The same
// program is the agent at the far end of the connection. See README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
)

// Exit statuses.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3 // the source changed, the target is too small, in use, …
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main with what it needs from the world. It returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	// What is held in memory hardly depends on the image; left alone, the
	// garbage collector would let as much again pile up.
	debug.SetGCPercent(50)

	ctx, stop := interruptible()
	defer stop()
	// Writing to a far side that is gone is an error like any other, after
	// which there is something to clean up.
	signal.Ignore(syscall.SIGPIPE)

	app := &app{stdout: stdout, stderr: stderr}
	root := app.command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	app.fail(err)
	return status(err)
}

// interruptible returns a context that ends with a signal to end. One that is
// ignored from the start stays so, as nohup wants it. A second signal ends the
// program at once, as if nobody listened.
func interruptible() (context.Context, func()) {
	var signals []os.Signal
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			signals = append(signals, sig)
		}
	}
	if len(signals) == 0 { // which would mean all
		return context.WithCancel(context.Background())
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// A usageError is a mistake on the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func status(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, image.ErrRefused), errors.Is(err, image.ErrChanged), errors.Is(err, session.ErrChanged):
		return exitRefused
	}
	return exitFailed
}

// app is what all commands share.
type app struct {
	stdout, stderr io.Writer
	reach          reach
	json           bool
}

// fail tells the user what went wrong, in one line.
func (a *app) fail(err error) {
	text := oneLine(err)
	var usage usageError
	if errors.As(err, &usage) {
		text += " (diskrsync --help says how)"
	}
	fmt.Fprintln(a.stderr, "diskrsync: "+text)
	if a.json {
		// If not even that can be written, the exit status has to do.
		_ = a.emit(map[string]any{"message_type": "error", "exit_status": status(err), "message": oneLine(err)})
	}
}

// oneLine joins the lines of an error, such as errors.Join makes.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	return harmless(strings.Join(lines, "; "))
}

// inFlags names our flags where a message says what can be done.
var inFlags = strings.NewReplacer(
	image.HintForce, "read it as it is with --force",
	image.HintRaw, "leave out --no-compress to update it as one",
	image.HintInPlace, "leave out --inplace",
	image.HintChecksum, "with --checksum",
)

// harmless makes text that another machine may have chosen fit for a terminal, and for
// who uses this command.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, inFlags.Replace(text))
}

// note tells the user something worth knowing that is no error.
func (a *app) note(text string) {
	if text != "" {
		fmt.Fprintln(a.stderr, "diskrsync: note: "+harmless(text))
	}
}

func (a *app) command() *cobra.Command {
	sync := &syncRun{app: a}
	root := &cobra.Command{
		Use:   "diskrsync [flags] SRC DST",
		Short: "rsync for block devices and disk images",
		Long: `Brings DST up to date with SRC: a disk image or a block device, here or on
another machine. Both are [[user@]host:]path; a path that ends with "/" gets the
name of the source. The other machine is reached by ssh and needs diskrsync, too.

A new image at the target is compressed and sparse (spgz) unless --no-compress
is given; an existing image keeps its format, and only what differs is written.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused (the source changed, or
the target is too small or in use).`,
		Example: `  diskrsync /dev/vg00/lv_snap ruser@backuphost:/mnt/backup/disk
  diskrsync --no-compress --ssh-flags="-i id_file -p 2222" disk.img ruser@backuphost:/mnt/backup/
  diskrsync backuphost:/mnt/backup/disk /dev/vg00/lv`,
		Args:              exactly(2, "a source and a target"),
		RunE:              sync.run,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Version:           version(),
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	sync.flags(root.Flags())
	a.reach.flags(root.PersistentFlags())
	root.AddCommand(a.serveCommand(), a.catCommand(), a.infoCommand(), a.verifyCommand(), a.cleanCommand(), a.demoCommand())
	return root
}

func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%s needs %s, and got %d", cmd.CommandPath(), what, len(args))}
		}
		return nil
	}
}

// version tells what was built.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown)"
	}
	return info.Main.Version
}
