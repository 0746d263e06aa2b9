package transport

import (
	"fmt"
	"path"
	"strings"
)

// Explain closes the connection and returns err, the error that ended the
// conversation, behind what is known about the other side: how the carrier ended,
// and the last that it and the agent printed, in one line with control characters
// escaped. If the far side could not find the agent, the error says how to get
// it there. A nil error stays nil.
func (c *Conn) Explain(err error) error {
	closeErr := c.Close()
	if err == nil {
		return nil
	}
	lines := c.tail.Lines()
	said := make([]string, 0, 2)
	if closeErr != nil {
		said = append(said, closeErr.Error())
	}
	if len(lines) > 0 {
		said = append(said, strings.Join(lines, " | "))
	}
	if len(said) == 0 {
		return err
	}
	all := strings.Join(said, ": ")
	if c.agentMissing(lines) {
		all += "; " + c.hint()
	}
	return fmt.Errorf("%s (%w)", all, err)
}

// agentMissing reports whether the far side could not start the agent.
func (c *Conn) agentMissing(lines []string) bool {
	code := c.exitCode()
	if c.viaSSH && code == 255 {
		return false // ssh itself failed and has not come as far as the agent
	}
	if code == 126 || code == 127 {
		return true
	}
	for _, line := range lines {
		if missesProgram(line, path.Base(c.program)) {
			return true
		}
	}
	return false
}

// exitCode returns the carrier's exit status, or -1 where a signal ended it or
// it still runs.
func (c *Conn) exitCode() int {
	select {
	case <-c.exited:
		return c.state.ExitCode()
	default:
		return -1
	}
}

// missesProgram reports whether a line is somebody's way of saying that there is
// no such program. Most carriers pass on a shell's exit status of 126 or 127, but
// csh and Windows have others, and containers differ. The program has to be named
// in the very words: ssh says "No such file or directory" about files of its own,
// and the agent may say it about an image.
func missesProgram(line, program string) bool {
	for _, words := range []string{
		program + ": command not found",                  // bash
		program + ": Command not found",                  // csh
		"command not found: " + program,                  // zsh
		program + ": not found",                          // dash, busybox
		program + ": No such file or directory",          // bash and csh, about a path
		program + `": executable file not found`,         // docker, kubectl
		program + "` not found in",                       // podman
		program + ": no such file or directory: unknown", // docker, about a path
		program + "' is not recognized as",               // cmd.exe, PowerShell
		"terminated with exit code 126",                  // kubectl
		"terminated with exit code 127",
	} {
		if strings.Contains(line, words) {
			return true
		}
	}
	return false
}

// hint says how to get the agent to where it was not found, or not in a form
// that runs there.
func (c *Conn) hint() string {
	if !c.viaSSH {
		return fmt.Sprintf("%s cannot be started at the far side: copy the static binary there, or say where it is with --cmd-path", c.program)
	}
	return fmt.Sprintf("%s cannot be started on %s: copy the static binary there, as with `scp $(command -v %s) %s:/usr/local/bin/`, or say where it is with --cmd-path",
		c.program, c.host, agentName, bracketed(c.host))
}
