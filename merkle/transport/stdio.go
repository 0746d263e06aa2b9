package transport

import (
	"errors"
	"io"
	"os"
)

// Stdio returns the agent's end of the connection: the standard input and output
// of this process. It takes them over, so nothing else may use them, and it is
// to be called once. Close interrupts a Read or Write in progress where they are
// pipes or sockets, except on Windows.
func Stdio() io.ReadWriteCloser {
	return stdio{in: unshared(os.Stdin), out: unshared(os.Stdout)}
}

type stdio struct {
	in, out *os.File
}

func (s stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }

// Close closes the standard files together with their duplicates, for only then
// does the far side see the end.
func (s stdio) Close() error {
	var errs []error
	for _, f := range []*os.File{s.in, s.out, os.Stdin, os.Stdout} {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
