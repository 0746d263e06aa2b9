package sshexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/rclone/rclone/fs"
	"golang.org/x/crypto/ssh"
)

// A connection carries programs for a Host, whose lock guards the last two
// fields.
type connection struct {
	client *ssh.Client
	wire   net.Conn      // below it
	ended  chan struct{} // closed once the connection has ended; guards err
	err    error

	users int         // programs, and attempts to start one
	idle  *time.Timer // hangs up; runs while there are no users
}

// startInternal starts a program over the current connection, or over a new one
// if there is none or it does not work. That it is broken may not be known yet;
// and servers differ in how many programs they take on one.
func (h *Host) startInternal(ctx context.Context, command string) (program, error) {
	if prog, err := h.startOnCurrent(ctx, command); err == nil {
		return prog, nil
	}
	// Whoever comes while a connection is being made waits for it, and for the
	// first program on it: only then it is known to work.
	select {
	case h.opening <- struct{}{}:
		defer func() { <-h.opening }()
	case <-ctx.Done():
		return program{}, context.Cause(ctx)
	}
	if prog, err := h.startOnCurrent(ctx, command); err == nil {
		return prog, nil
	}
	c, err := h.dial(ctx)
	if err != nil {
		return program{}, err
	}
	prog, err := h.startOn(ctx, c, command)
	if err != nil {
		h.drop(c)
		return program{}, err
	}
	h.keep(c)
	return prog, nil
}

// errNotConnected is the state of a Host at first, and never seen from outside.
var errNotConnected = errors.New("not connected")

// startOnCurrent tries the current connection, and gives it up if that fails.
func (h *Host) startOnCurrent(ctx context.Context, command string) (program, error) {
	c := h.use()
	if c == nil {
		return program{}, errNotConnected
	}
	prog, err := h.startOn(ctx, c, command)
	if err != nil && ctx.Err() == nil {
		fs.Debugf(h.name, "ssh connection is given up: %v", err)
		h.drop(c)
	}
	return prog, err
}

// startOn starts a program over a connection of which the caller is a user. The
// program becomes the user in its place.
func (h *Host) startOn(ctx context.Context, c *connection, command string) (program, error) {
	type outcome struct {
		prog program
		err  error
	}
	done := make(chan outcome, 1)
	go func() { // a server that is gone does not answer, for which nobody shall wait
		prog, err := c.start(h.settings.SetEnv, command)
		done <- outcome{prog, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			h.release(c)
			return program{}, o.err
		}
		o.prog.release = func(ended bool) {
			if !ended { // its place on the connection is not free again
				h.drop(c)
			}
			h.release(c)
		}
		return o.prog, nil
	case <-ctx.Done():
		go func() {
			defer h.release(c)
			if o := <-done; o.err == nil {
				o.prog.stops[len(o.prog.stops)-1]()
			}
		}()
		return program{}, context.Cause(ctx)
	}
}

// start opens a session and starts the command in it.
func (c *connection) start(environment []string, command string) (program, error) {
	session, err := c.client.NewSession()
	if err != nil {
		return program{}, c.reason(fmt.Errorf("opening an ssh session: %w", err))
	}
	prog, err := c.startIn(session, environment, command)
	if err != nil {
		_ = session.Close() // the error is the news
		return program{}, c.reason(err)
	}
	return prog, nil
}

func (c *connection) startIn(session *ssh.Session, environment []string, command string) (program, error) {
	for _, v := range environment {
		name, value, _ := strings.Cut(v, "=")
		if err := session.Setenv(name, value); err != nil {
			return program{}, fmt.Errorf("set_env: the server does not take %q (AcceptEnv): %w", name, err)
		}
	}
	stdin, inErr := session.StdinPipe()
	stdout, outErr := session.StdoutPipe()
	stderr, errErr := session.StderrPipe()
	if err := errors.Join(inErr, outErr, errErr); err != nil {
		return program{}, err
	}
	if err := session.Start(command); err != nil {
		return program{}, fmt.Errorf("the server does not start programs: %w", err)
	}
	return program{
		stdin:  stdin,
		stdout: io.NopCloser(stdout),
		stderr: io.NopCloser(stderr),
		wait:   func() ending { return c.ending(session.Wait()) },
		// Each sends messages, behind others that the server may not take yet.
		// Not every server knows signals, or allows them. What comes of it all
		// is seen by wait.
		stops: []func(){
			func() { go session.Signal(ssh.SIGTERM) },
			func() {
				go func() {
					_ = session.Signal(ssh.SIGKILL)
					_ = session.Close()
				}()
			},
		},
	}, nil
}

// reason puts the reason why the connection has ended in the place of the mere
// end of it.
func (c *connection) reason(err error) error {
	if errors.Is(err, io.EOF) && within(lastWords, c.ended) {
		return c.lost()
	}
	return err
}

func (c *connection) lost() error { return fmt.Errorf("the ssh connection was lost: %w", c.err) }

// ending tells how a program has ended of which the session says err.
func (c *connection) ending(err error) ending {
	var exit *ssh.ExitError
	var missing *ssh.ExitMissingError
	switch {
	case err == nil:
		return ending{}
	case errors.As(err, &exit) && exit.Signal() != "":
		return ending{code: -1, text: "ended by signal " + exit.Signal()}
	case errors.As(err, &exit):
		return ending{code: exit.ExitStatus(), text: fmt.Sprintf("exit status %d", exit.ExitStatus())}
	case errors.As(err, &missing) && within(lastWords, c.ended):
		return ending{code: -1, text: c.lost().Error()}
	}
	return ending{code: -1, text: err.Error()}
}

// watch waits for the end of a connection and has nobody use it any more.
func (h *Host) watch(c *connection) {
	c.err = c.client.Wait()
	close(c.ended)
	h.drop(c)
}

// hangUp ends a connection. It closes what is below ssh, which waits for nobody,
// and whose errors nothing depends on: the connection has ended in any case.
func (c *connection) hangUp() { _ = c.wire.Close() }

// use makes the caller a user of the current connection, if there is one.
func (h *Host) use() *connection {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.current
	if c == nil {
		return nil
	}
	c.users++
	if c.idle != nil {
		c.idle.Stop()
	}
	return c
}

// keep makes a connection the current one.
func (h *Host) keep(c *connection) {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-c.ended:
	default:
		h.current = c
	}
}

// drop has no more programs started over a connection. It ends with its last
// user.
func (h *Host) drop(c *connection) {
	h.mu.Lock()
	if h.current == c {
		h.current = nil
	}
	unused := c.users == 0
	h.mu.Unlock()
	if unused {
		c.hangUp()
	}
}

// release ends somebody's use of a connection.
func (h *Host) release(c *connection) {
	h.mu.Lock()
	c.users--
	unused, current := c.users == 0, h.current == c
	if wait := time.Duration(h.settings.IdleTimeout); unused && current && wait > 0 {
		c.idle = time.AfterFunc(wait, func() { h.expire(c) })
	}
	h.mu.Unlock()
	if unused && !current {
		c.hangUp()
	}
}

// expire drops a connection that is idle, unless it is just being used again.
func (h *Host) expire(c *connection) {
	h.mu.Lock()
	used := c.users > 0
	h.mu.Unlock()
	if !used {
		h.drop(c)
	}
}
