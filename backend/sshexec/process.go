package sshexec

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/diskrsync/diskrsync/merkle/transport"
)

const (
	// grace is how long a program may take to end after its input was closed,
	// and again after each attempt to make it end.
	grace = 2 * time.Second

	// lastWords is how long is waited for what is known to be on its way: the
	// rest of what an ended program wrote, which somebody else may hold open for
	// ever; and the reason why a connection was lost.
	lastWords = time.Second
)

// A program runs on the machine, over a connection or behind an external ssh.
type program struct {
	stdin          io.WriteCloser
	stdout, stderr io.ReadCloser

	wait    func() ending    // returns when the program has ended; called once
	stops   []func()         // make it end, each more surely than the one before; none waits
	release func(ended bool) // is called when nobody needs the program any more; may be nil
}

// ending is how a program has ended. The zero value is success.
type ending struct {
	code int // exit status; -1 if there is none
	text string
}

// A Process is a program on the machine. Read takes what it writes to its standard
// output, and Write gives it what it reads. All methods may be called at any time
// by any goroutine, each of Read and Write by one at a time.
type Process struct {
	ctx  context.Context // the starter's; once it has ended, it is the reason of every error
	name string          // of the remote
	prog program

	// Between the caller and the program stands a pipe in each direction, that
	// Close can close at once whatever the server does.
	in       *io.PipeWriter
	inEnd    *io.PipeReader
	out      *io.PipeReader
	outEnd   *io.PipeWriter
	messages transport.Tail

	ended  chan struct{} // closed once the program has ended; guards ending
	ending ending
	quiet  chan struct{} // closed at the end of both of its outputs

	forget   func()        // takes the process off the host's list
	closing  chan struct{} // closed as Close begins
	once     sync.Once
	failure  error // how it ended, if not well
	closeErr error // the same, with the remote's name
}

var _ io.ReadWriteCloser = (*Process)(nil)

func newProcess(ctx context.Context, name string, prog program) *Process {
	p := &Process{ctx: ctx, name: name, prog: prog, ended: make(chan struct{}), quiet: make(chan struct{}), closing: make(chan struct{})}
	p.inEnd, p.in = io.Pipe()
	p.out, p.outEnd = io.Pipe()
	return p
}

// begin has the bytes flow.
func (p *Process) begin() {
	go func() {
		p.ending = p.prog.wait()
		close(p.ended)
	}()
	var outputs sync.WaitGroup
	outputs.Go(p.takeOutput)
	outputs.Go(p.takeMessages)
	go func() {
		outputs.Wait()
		close(p.quiet)
	}()
	go p.giveInput()
	go p.watch()
}

// watch closes the process when the context ends.
func (p *Process) watch() {
	select {
	case <-p.ctx.Done():
		_ = p.Close() // whoever closes it again is told
	case <-p.closing:
	}
}

// giveInput hands on what is written, and ends the program's input when Close says
// so or nobody reads it.
func (p *Process) giveInput() {
	_, err := io.Copy(p.prog.stdin, p.inEnd)
	closeErr := p.prog.stdin.Close()
	p.inEnd.CloseWithError(cmp.Or(err, closeErr, io.ErrClosedPipe))
}

// takeOutput hands on what the program writes. What nobody wants any more is taken
// as well, for else the program would wait and not see that its input has ended.
func (p *Process) takeOutput() {
	_, err := io.Copy(p.outEnd, p.prog.stdout)
	p.outEnd.CloseWithError(cmp.Or(err, io.EOF))
	if errors.Is(err, io.ErrClosedPipe) {
		_, _ = io.Copy(io.Discard, p.prog.stdout) // to its end, whatever that is
	}
}

// takeMessages keeps the last of what the program and the shell have to say. They
// share their room on the connection with the output, which must not wait for it.
func (p *Process) takeMessages() {
	_, _ = io.Copy(&p.messages, p.prog.stderr) // to its end, whatever that is
}

// Read reads what the program wrote to its standard output. It returns io.EOF at
// the end of it, which says nothing about why: see Explain.
func (p *Process) Read(b []byte) (int, error) {
	n, err := p.out.Read(b)
	return n, p.reason(err)
}

// Write gives b to the program. It returns when all but the last 32 KiB are on
// their way.
func (p *Process) Write(b []byte) (int, error) {
	n, err := p.in.Write(b)
	return n, p.reason(err)
}

// reason replaces an error that comes after the context has ended, which is why
// it comes.
func (p *Process) reason(err error) error {
	if cause := context.Cause(p.ctx); cause != nil && err != nil {
		return cause
	}
	return err
}

// Close ends the input of the program, behind all that was written before, and
// waits for the program to end: by itself, or else made to after two seconds. Read
// and Write return at once. It returns an error if the program failed or had to be
// made to end. Closing again returns the same.
func (p *Process) Close() error {
	p.once.Do(p.shut)
	return p.closeErr
}

func (p *Process) shut() {
	defer p.forget()
	close(p.closing)
	p.out.Close() // always nil, and so is the other
	p.in.Close()
	if p.failure = p.end(); p.failure != nil {
		p.closeErr = fmt.Errorf("remote %s: %w", p.name, p.failure)
	}
	within(lastWords, p.quiet)
	// The outputs have ended, or are nobody's who has anything to say.
	p.prog.stdout.Close()
	p.prog.stderr.Close()
	log(p.name, &p.messages)
	if p.prog.release != nil {
		p.prog.release(p.hasEnded())
	}
}

// end waits for the program to end, and sees to it that it does.
func (p *Process) end() error {
	made := false
	for _, stop := range p.prog.stops {
		if within(grace, p.ended) {
			break
		}
		stop()
		made = true
	}
	switch {
	case !within(grace, p.ended):
		return errors.New("the program still runs after its input was closed")
	case made:
		return errors.New("the program did not end with its input, and was made to")
	case p.ending != ending{}:
		return errors.New(p.ending.text)
	}
	return nil
}

func (p *Process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
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
