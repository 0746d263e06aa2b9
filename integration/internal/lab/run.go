//go:build linux

package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
)

// patience is how long a command may take before it counts as hanging. It is
// far above what any of them needs, so that no slow machine fails a test.
const patience = 5 * time.Minute

// A Run is a command at work.
type Run struct {
	Process *os.Process
	line    string
	cmd     *exec.Cmd
	dir     string // where its output goes
	ended   chan struct{}
	result  Result
}

// A Result is what a command left.
type Result struct {
	Line   string // the command line, for messages
	Code   int    // exit status; -1 if a signal ended it
	Stdout string
	Stderr string
}

// Start starts a program in a process group of its own, as a terminal would.
// Its output goes to files: a pipe would be held open by whatever it leaves
// behind, and hide that.
func Start(t testing.TB, program string, args ...string) *Run {
	t.Helper()
	dir := t.TempDir()
	return start(t, dir, Must(os.Create(filepath.Join(dir, "stdout")))(t), program, args)
}

// StartPiped is Start but for standard output, which comes out of the pipe that
// it returns, and waits for whoever reads it. The caller closes the pipe.
func StartPiped(t testing.TB, program string, args ...string) (*Run, *os.File) {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	Write(t, filepath.Join(dir, "stdout"), nil, 0o644)
	return start(t, dir, in, program, args), out
}

// start closes stdout, which is the program's from then on.
func start(t testing.TB, dir string, stdout *os.File, program string, args []string) *Run {
	t.Helper()
	defer stdout.Close()
	r := &Run{dir: dir, ended: make(chan struct{})}
	r.line = filepath.Base(program) + " " + strings.Join(args, " ")
	r.cmd = exec.Command(program, args...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr := Must(os.Create(filepath.Join(r.dir, "stderr")))(t)
	defer stderr.Close()
	r.cmd.Stdout, r.cmd.Stderr = stdout, stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Process = r.cmd.Process
	go r.wait()
	t.Cleanup(func() { r.stop(t) })
	return r
}

func (r *Run) wait() {
	defer close(r.ended)
	r.result = Result{Line: r.line}
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.result.Stderr = err.Error()
		r.result.Code = -1
		return
	}
	r.result.Code = r.cmd.ProcessState.ExitCode()
	r.result.Stdout = readAll(filepath.Join(r.dir, "stdout"))
	r.result.Stderr = readAll(filepath.Join(r.dir, "stderr"))
}

func readAll(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// stop ends what a failed test left running.
func (r *Run) stop(t testing.TB) {
	select {
	case <-r.ended:
	default:
		t.Errorf("still running at the end of the test: %s", r.line)
		_ = r.Process.Kill() // it may have ended meanwhile
		<-r.ended
	}
}

// Signal sends a signal to the command alone.
func (r *Run) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := r.Process.Signal(s); err != nil {
		t.Fatalf("%s: sending %v: %v", r.line, s, err)
	}
}

// Interrupt does what Ctrl-C does: the terminal sends the signal to the whole
// process group, ssh included.
func (r *Run) Interrupt(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(-r.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatalf("%s: interrupting: %v", r.line, err)
	}
}

// Wait waits for the command to end.
func (r *Run) Wait(t testing.TB) Result {
	t.Helper()
	return r.WaitFor(t, patience)
}

// WaitFor waits for the command to end within the given time, which must be
// generous: it stands for "stops by itself", not for a speed.
func (r *Run) WaitFor(t testing.TB, limit time.Duration) Result {
	t.Helper()
	select {
	case <-r.ended:
		return r.result
	case <-time.After(limit):
	}
	r.dump(t)
	t.Fatalf("%s: still running after %v\nstdout: %s\nstderr: %s", r.line, limit,
		readAll(filepath.Join(r.dir, "stdout")), readAll(filepath.Join(r.dir, "stderr")))
	panic("not reached")
}

// dump makes a hanging Go program write its stacks to its standard error.
func (r *Run) dump(t testing.TB) {
	if err := r.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Logf("asking %s for its stacks: %v", r.line, err)
	}
	select {
	case <-r.ended:
	case <-time.After(5 * time.Second):
	}
}

// Output returns what the command has written to standard output so far.
func (r *Run) Output() string { return readAll(filepath.Join(r.dir, "stdout")) }

// Running reports whether the command has not ended yet.
func (r *Run) Running() bool {
	select {
	case <-r.ended:
		return false
	default:
		return true
	}
}

// OK ends the test unless the command succeeded.
func (r Result) OK(t testing.TB) Result {
	t.Helper()
	if r.Code != 0 {
		t.Fatalf("%s: exit status %d\nstdout: %s\nstderr: %s", r.Line, r.Code, tail(r.Stdout), tail(r.Stderr))
	}
	return r
}

// Fails checks that the command ended with the status and told why in one line
// that holds all of the words. Notes may come before it. It returns the line.
func (r Result) Fails(t testing.TB, code int, words ...string) string {
	t.Helper()
	if r.Code != code {
		t.Errorf("%s: exit status %d, want %d\nstderr: %s", r.Line, r.Code, code, tail(r.Stderr))
	}
	said := slices.DeleteFunc(slices.Collect(strings.Lines(r.Stderr)), func(line string) bool {
		return strings.HasPrefix(line, "diskrsync: note: ")
	})
	message := strings.TrimSuffix(strings.Join(said, ""), "\n")
	if len(said) != 1 {
		t.Errorf("%s: the message is not one line:\n%s", r.Line, tail(r.Stderr))
	}
	for _, word := range words {
		if !strings.Contains(message, word) {
			t.Errorf("%s: the message does not hold %q: %s", r.Line, word, message)
		}
	}
	if strings.ContainsFunc(message, unicode.IsControl) {
		t.Errorf("%s: control character in the message: %q", r.Line, message)
	}
	return message
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// A Summary is what diskrsync --json says at the end of a sync. Bytes are
// counted as they are read from images and as they pass over the wire.
type Summary struct {
	Type          string `json:"message_type"`
	Source        Work   `json:"source"`
	Target        Work   `json:"target"`
	BytesRead     int64  `json:"bytes_read"`
	BytesHashed   int64  `json:"bytes_hashed"`
	BytesSent     int64  `json:"bytes_sent"`
	BytesReceived int64  `json:"bytes_received"`
	Changed       int64  `json:"blocks_changed"`
	Patched       int64  `json:"blocks_patched"`
	Holes         int64  `json:"blocks_holes"`
	Kept          int64  `json:"kept"` // bytes that an interrupted run had brought
	Digest        string `json:"digest"`
	ImageSize     int64  `json:"image_size"`
	BlockSize     int64  `json:"block_size"`
}

// Work is what one side of a sync did.
type Work struct {
	BytesRead   int64 `json:"bytes_read"`
	BytesHashed int64 `json:"bytes_hashed"`
}

// Summary returns the last line of the output of a successful sync.
func (r Result) Summary(t testing.TB) Summary {
	t.Helper()
	r.OK(t)
	lines := bytes.Split(bytes.TrimSpace([]byte(r.Stdout)), []byte("\n"))
	var s Summary
	if err := json.Unmarshal(lines[len(lines)-1], &s); err != nil {
		t.Fatalf("%s: last line of output: %v\n%s", r.Line, err, tail(r.Stdout))
	}
	if s.Type != "summary" {
		t.Fatalf("%s: the last line is no summary:\n%s", r.Line, tail(r.Stdout))
	}
	return s
}
