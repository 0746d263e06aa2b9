//go:build linux

package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// carrierWord makes the test's own binary, see Main, the program of a Carrier.
const carrierWord = "be-a-carrier"

// A Carrier connects the command with an agent on this machine over two pipes,
// counts the bytes and cuts the connection after so many of them. What passed
// before the cut arrives; nothing behind it does.
type Carrier struct{ counts string }

// NewCarrier returns a carrier for one run of the command.
func NewCarrier(t testing.TB) Carrier {
	t.Helper()
	return Carrier{filepath.Join(t.TempDir(), "counts")}
}

// Args returns the arguments that make the command use the carrier and the
// agent, followed by further ones. The connection is cut after so many bytes of
// both directions together; 0 never cuts it.
func (c Carrier) Args(t testing.TB, agent string, cutAfter int64, args ...string) []string {
	t.Helper()
	self := Must(os.Executable())(t)
	rsh := fmt.Sprintf("%s %s %s %d", self, carrierWord, c.counts, cutAfter)
	return append([]string{"--rsh", rsh, "--cmd-path", agent}, args...)
}

// Sent waits for the agent to end and returns how many bytes went to it, and how
// many came back. An agent that has lost its client must not stay.
func (c Carrier) Sent(t testing.TB) (to, from int64) {
	t.Helper()
	for deadline := time.Now().Add(endWithin); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(c.counts)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if _, err := fmt.Sscan(string(text), &to, &from); err != nil {
			t.Fatalf("reading the counts %q of a carrier: %v", text, err)
		}
		return to, from
	}
	t.Fatalf("the agent did not end within %v", endWithin)
	return 0, 0
}

// carry is the program of a Carrier: the file for the counts, where to cut, and
// the agent's command line. It returns the exit status.
func carry(args []string) int {
	// Either pipe may lose its other end at any time.
	signal.Ignore(syscall.SIGPIPE)
	limit, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	w, err := newWire(limit, args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status := w.run()
	// Written under another name first, so that whoever waits for it finds all
	// of it.
	counts := fmt.Sprintf("%d %d\n", w.to.Load(), w.from.Load())
	err = os.WriteFile(args[0]+".new", []byte(counts), 0o644)
	if err := errors.Join(err, os.Rename(args[0]+".new", args[0])); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

// A wire is a connection that may be cut.
type wire struct {
	agent    *exec.Cmd
	in       io.WriteCloser // the agent's standard input
	out      io.ReadCloser  // the agent's standard output
	limit    int64
	to, from atomic.Int64

	passing sync.Mutex // held while bytes pass, so that no more than limit do
	once    sync.Once
}

func newWire(limit int64, command []string) (*wire, error) {
	w := &wire{agent: exec.Command(command[0], command[1:]...), limit: limit}
	w.agent.Stderr = os.Stderr
	var err error
	if w.in, err = w.agent.StdinPipe(); err != nil {
		return nil, err
	}
	if w.out, err = w.agent.StdoutPipe(); err != nil {
		return nil, err
	}
	return w, w.agent.Start()
}

// run passes bytes until the agent has ended.
func (w *wire) run() int {
	go func() {
		w.pass(w.in, os.Stdin, &w.to)
		w.in.Close() // the client has no more to say
	}()
	w.pass(os.Stdout, w.out, &w.from)
	if err := w.agent.Wait(); err != nil {
		return 1
	}
	return 0
}

// pass copies until either side ends or the wire is cut.
func (w *wire) pass(to io.Writer, from io.Reader, count *atomic.Int64) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !w.forward(to, buf[:n], count) || err != nil {
			return
		}
	}
}

// forward returns false where there is no way on. The lock is not held while
// writing: either direction may have to wait for the other.
func (w *wire) forward(to io.Writer, p []byte, count *atomic.Int64) bool {
	w.passing.Lock()
	cut := false
	if w.limit > 0 {
		left := max(0, w.limit-w.to.Load()-w.from.Load())
		cut = int64(len(p)) >= left
		p = p[:min(int64(len(p)), left)]
	}
	count.Add(int64(len(p)))
	w.passing.Unlock()
	_, err := to.Write(p)
	if cut {
		w.once.Do(w.cut)
	}
	return err == nil && !cut
}

// cut takes the connection away from both sides.
func (w *wire) cut() {
	for _, end := range []io.Closer{w.in, w.out, os.Stdout, os.Stdin} {
		_ = end.Close() // that side may be gone already
	}
}
