package sshexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"github.com/rclone/rclone/fs/accounting"
)

// startExternal starts a program by way of the user's own ssh, which gets the
// command as its last argument.
func (h *Host) startExternal(_ context.Context, command string) (program, error) {
	words := h.settings.SSH
	cmd := exec.Command(words[0], append(slices.Clone(words[1:]), command)...)
	stdin, inErr := cmd.StdinPipe()
	stdout, outErr := cmd.StdoutPipe()
	stderr, errErr := cmd.StderrPipe()
	if err := errors.Join(inErr, outErr, errErr); err != nil {
		return program{}, fmt.Errorf("starting %s: %w", words[0], err)
	}
	if err := cmd.Start(); err != nil {
		return program{}, fmt.Errorf("starting %s: %w", words[0], err)
	}
	return program{
		stdin:  limitedWriter{stdin},
		stdout: limitedReader{stdout},
		stderr: stderr,
		// cmd.Wait would close the outputs, and lose what nobody has read yet.
		wait: func() ending { return externalEnding(words[0], cmd.Process) },
		// Both fail if it has just ended, and the first where there are no
		// signals.
		stops: []func(){
			func() { _ = cmd.Process.Signal(syscall.SIGTERM) },
			func() { _ = cmd.Process.Kill() },
		},
	}, nil
}

// sshFailed is the exit status of ssh where it is not the program's.
const sshFailed = 255

func externalEnding(name string, p *os.Process) ending {
	state, err := p.Wait()
	switch {
	case err != nil:
		return ending{code: -1, text: fmt.Sprintf("%s: %v", name, err)}
	case state.Success():
		return ending{}
	case state.ExitCode() == sshFailed:
		return ending{code: -1, text: fmt.Sprintf("%s: %s", name, state)}
	}
	return ending{code: state.ExitCode(), text: state.String()}
}

// limitedWriter and limitedReader keep to --bwlimit in the place of a connection
// of rclone's own. They are used in portions of 32 KiB, of which any limit takes
// one at a time.
type limitedWriter struct{ io.WriteCloser }

func (w limitedWriter) Write(b []byte) (int, error) {
	accounting.TokenBucket.LimitBandwidth(accounting.TokenBucketSlotTransportTx, len(b))
	return w.WriteCloser.Write(b)
}

type limitedReader struct{ io.ReadCloser }

func (r limitedReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	accounting.TokenBucket.LimitBandwidth(accounting.TokenBucketSlotTransportRx, n)
	return n, err
}
