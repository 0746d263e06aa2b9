package sshexec

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/rclone/rclone/fs"
)

const (
	// maxMessages bounds how much of a program's error output is kept, in bytes.
	maxMessages = 4 << 10

	// maxMessage bounds how much of one line goes into an error, in bytes.
	maxMessage = 500
)

// Explain closes the process and returns err, the error that ended the
// conversation with it, behind what is known about it: how it ended, and the last
// line that it or the shell wrote to standard error. If the shell did not find the
// program, the error says what to do. A nil error stays nil.
func (p *Process) Explain(err error) error {
	closeErr := p.Close()
	if err == nil {
		return nil
	}
	last := p.messages.last()
	var said []string
	if closeErr != nil {
		said = append(said, closeErr.Error())
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

// tail keeps the end of what is written to it. It may be used by several
// goroutines.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

// Write never fails.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if drop := len(t.buf) - maxMessages; drop > 0 {
		t.buf = append(t.buf[:0], t.buf[drop:]...)
	}
	return len(b), nil
}

// lines returns the kept lines that are not blank, fit to be shown.
func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range bytes.Lines(t.buf) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			lines = append(lines, printable(line))
		}
	}
	return lines
}

// last returns the last line, or nothing.
func (t *tail) last() string {
	lines := t.lines()
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}

// log lets somebody who looks for the reason of something see all the lines.
func (t *tail) log(name string) {
	for _, line := range t.lines() {
		fs.Debugf(name, "the program says: %s", line)
	}
}

// printable makes a line safe for terminals and logs: what does not print is
// written as in a string of Go. A long line loses its end.
func printable(line []byte) string {
	more := ""
	if len(line) > maxMessage {
		line, more = line[:maxMessage], "..."
	}
	quoted := strconv.Quote(strings.ReplaceAll(string(line), "\t", " "))
	plain := strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(quoted[1 : len(quoted)-1])
	return plain + more
}
