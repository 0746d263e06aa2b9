package sshexec

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/fserrors"

	"github.com/diskrsync/diskrsync/merkle/transport"
)

// maxMessage bounds how much of one line goes into an error, in bytes.
const maxMessage = 500

// Explain closes the process and returns err, the error that ended the
// conversation with it, behind what is known about it: how it ended, and the last
// line that it or the shell wrote to standard error. If the shell did not find the
// program, the error says what to do. A nil error stays nil. The remote is not named:
// who asks may have more to say about it, and puts the name in front of all.
func (p *Process) Explain(err error) error {
	_ = p.Close() // what it says is in what it keeps
	if err == nil {
		return nil
	}
	last := last(&p.messages)
	var said []string
	if p.failure != nil {
		said = append(said, p.failure.Error())
	}
	if last != "" {
		said = append(said, last)
	}
	if len(said) == 0 {
		return err
	}
	all := strings.Join(said, ": ")
	if p.notFound(last) {
		all += fmt.Sprintf("; install diskrsync on %s or set agent_path", p.name)
		err = fserrors.NoRetryError(err)
	}
	return fmt.Errorf("%s (%w)", all, err)
}

// notFound reports whether the shell could not start the program. POSIX has two
// exit statuses for that; csh is known by what it says.
func (p *Process) notFound(last string) bool {
	if !p.hasEnded() {
		return false
	}
	switch p.ending.code {
	case 126, 127:
		return true
	case 1:
		return saysNotFound.MatchString(last)
	}
	return false
}

// saysNotFound matches what csh says, with an exit status that may mean anything.
var saysNotFound = regexp.MustCompile(`^[^ ]+: Command not found\.?$`)

// last returns the last line that the program or the shell has written, or nothing. A
// long one loses its end.
func last(t *transport.Tail) string {
	lines := t.Lines()
	if len(lines) == 0 {
		return ""
	}
	line := lines[len(lines)-1]
	if len(line) > maxMessage {
		line = strings.ToValidUTF8(line[:maxMessage], "") + "..."
	}
	return line
}

// log lets somebody who looks for the reason of something see all the lines.
func log(name string, t *transport.Tail) {
	for _, line := range t.Lines() {
		fs.Debugf(name, "the program says: %s", line)
	}
}
