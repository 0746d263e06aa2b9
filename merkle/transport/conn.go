package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

const (
	// grace is how long a carrier may take to end after its input was closed,
	// and again after it was told to end.
	grace = 2 * time.Second

	// lastWords is how long the error output of a carrier that has ended is
	// waited for. Somebody else may hold it open for ever: the master that ssh
	// leaves behind with ControlPersist does.
	lastWords = time.Second
)

// Conn is a connection to an agent, by way of a carrier: a process that copies
// its input to the agent and the agent's output to its own. Read and Write may
// be called at the same time as each other and as any other method.
type Conn struct {
	ctx     context.Context // the dialler's; once it has ended, it is the reason of every error
	host    string
	program string // the agent's
	carrier string // the carrier's program, as it was typed
	viaSSH  bool

	process *os.Process
	stdin   io.WriteCloser
	stdout  io.ReadCloser
	stderr  io.ReadCloser
	tail    Tail

	exited chan struct{} // closed once the carrier has ended; guards state and waitErr
	quiet  chan struct{} // closed at the end of the carrier's error output

	state   *os.ProcessState
	waitErr error

	once     sync.Once
	closing  chan struct{} // closed as Close begins
	closeErr error
}

// Dial starts the carrier that leads to host and the agent behind it. It returns
// as soon as the carrier runs; what keeps the carrier from reaching the agent is
// seen as the end of the stream, and is told by Explain. The connection is
// closed when ctx ends.
//
// The carrier stays in the process group and on the terminal of this process, so
// that ssh can ask for a passphrase there.
func Dial(ctx context.Context, host string, o Options) (*Conn, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("connecting to %q: %w", host, err)
	}
	words, err := o.command(host)
	if err != nil {
		return nil, fmt.Errorf("connecting to %q: %w", host, err)
	}
	c := &Conn{
		ctx:     ctx,
		host:    host,
		program: o.program(),
		carrier: words[0],
		viaSSH:  o.RSH == "" && !o.Local,
		exited:  make(chan struct{}),
		quiet:   make(chan struct{}),
		closing: make(chan struct{}),
	}
	if err := c.start(exec.Command(words[0], words[1:]...)); err != nil {
		return nil, fmt.Errorf("connecting to %q: starting %s: %w", host, words[0], err)
	}
	go c.listen(o.Stderr)
	go c.watch()
	return c, nil
}

// start connects the three pipes and starts the carrier.
func (c *Conn) start(cmd *exec.Cmd) error {
	var inErr, outErr, errErr error
	c.stdin, inErr = cmd.StdinPipe()
	c.stdout, outErr = cmd.StdoutPipe()
	c.stderr, errErr = cmd.StderrPipe()
	if err := cmp.Or(inErr, outErr, errErr); err != nil {
		return err
	}
	cmd.SysProcAttr = childAttr()
	started := make(chan error, 1)
	go c.run(cmd, started)
	return <-started
}

// run starts the carrier, and waits for it to end. All of that is done on one
// thread, which is kept from ending: on Linux a child that is to be told when its
// parent is gone is told so when the thread that started it is.
//
// It waits for the process alone. cmd.Wait would close the pipes as well, and
// lose what the carrier wrote last and nobody has read yet.
func (c *Conn) run(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	c.process = cmd.Process
	started <- err
	if err == nil {
		c.state, c.waitErr = cmd.Process.Wait()
		close(c.exited)
	}
}

// listen keeps the tail of the carrier's error output, and copies all of it.
func (c *Conn) listen(copyTo io.Writer) {
	defer close(c.quiet)
	buf := make([]byte, 4<<10)
	for {
		n, err := c.stderr.Read(buf)
		_, _ = c.tail.Write(buf[:n]) // never fails
		if copyTo != nil && n > 0 {
			if _, werr := copyTo.Write(buf[:n]); werr != nil {
				copyTo = nil // the carrier must not stand still for a broken log
			}
		}
		if err != nil {
			return
		}
	}
}

// watch closes the connection when the context ends.
func (c *Conn) watch() {
	select {
	case <-c.ctx.Done():
		c.Close()
	case <-c.closing:
	}
}

// Read reads what the agent wrote. It returns io.EOF when the carrier has closed
// its output, which says nothing about why: see Explain.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.stdout.Read(p)
	return n, c.reason(err)
}

// Write sends p to the agent.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.stdin.Write(p)
	return n, c.reason(err)
}

// reason replaces an error that comes after the context ended: the pipe was
// closed for it, or the carrier ended for it.
func (c *Conn) reason(err error) error {
	if cause := context.Cause(c.ctx); cause != nil && err != nil {
		return cause
	}
	return err
}

// CloseWrite tells the agent that nothing more will come. Reading goes on.
func (c *Conn) CloseWrite() error {
	err := c.stdin.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Close ends the connection in both directions and waits for the carrier to end:
// by itself as its input ends, or else made to after two seconds, and killed
// after two more. It returns an error if the carrier failed or had to be made to
// end. Closing again returns the same.
func (c *Conn) Close() error {
	c.once.Do(c.shut)
	return c.closeErr
}

func (c *Conn) shut() {
	close(c.closing)
	inErr, outErr := c.CloseWrite(), c.stdout.Close()
	endErr := c.end()
	within(lastWords, c.quiet)
	errErr := c.stderr.Close()
	<-c.quiet
	c.closeErr = cmp.Or(endErr, inErr, outErr, errErr)
}

// end waits for the carrier to end, and sees to it that it does. It returns an
// error unless that went well.
func (c *Conn) end() error {
	if !within(grace, c.exited) {
		return c.stop()
	}
	switch {
	case c.waitErr != nil:
		return fmt.Errorf("%s: waiting for it to end: %w", c.name(), c.waitErr)
	case c.state.Success(), brokenPipe(c.state):
		return nil
	}
	return fmt.Errorf("%s: %s", c.name(), c.state)
}

// stop makes the carrier end. How it ends is then no news: it was made to.
func (c *Conn) stop() error {
	// A signal fails where there are none (on Windows), and if the carrier has
	// just ended, when killing it does nothing.
	if c.process.Signal(syscall.SIGTERM) != nil || !within(grace, c.exited) {
		if err := c.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			// Not ours to kill: it runs as another user, as sudo does. Waiting
			// for it might take for ever.
			return fmt.Errorf("%s: still runs after its input was closed: %w", c.name(), err)
		}
		<-c.exited
	}
	return fmt.Errorf("%s: did not end with its input, and was made to", c.name())
}

// name is what the carrier is called in messages.
func (c *Conn) name() string {
	if c.host == "" {
		return c.carrier
	}
	return c.carrier + " to " + c.host
}

// brokenPipe reports whether a carrier was ended by writing to us after we had
// stopped reading, which is no failure of its own.
func brokenPipe(state *os.ProcessState) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGPIPE
}

// within reports whether done was closed within d.
func within(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
