package transport

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/google/shlex"
)

// Options say how an agent is reached. The zero value is ssh with the user's own
// settings and an agent that the far side finds by its name.
type Options struct {
	// SSHFlags are further arguments for ssh, split the way a shell would.
	SSHFlags string

	// RSH is a command that carries two pipes to the far side, in place of
	// ssh, split the same way: "kubectl exec -i pod --", "docker exec -i c".
	// "%h" in a word becomes the host, "%%" a percent sign; where there is no
	// "%h" the host is only a label. The agent's command follows as separate
	// words, so nothing is quoted for it and no shell sees it.
	RSH string

	// CmdPath is the agent's program at the far side; empty is "diskrsync". By
	// way of ssh a leading "~/" is the home folder there.
	CmdPath string

	// Local starts the agent on this machine, as a child of this process, with
	// no carrier in between. The host is only a label.
	Local bool

	// Stderr receives what the carrier and the agent print, as it comes and
	// with whatever control characters it holds. It must not block for long,
	// and is written no more after its first error. It may be nil.
	Stderr io.Writer
}

// The agent's program where no CmdPath is given, and the words that make it an
// agent. Paths of the far side are not among them: they travel inside the
// protocol, where no shell takes them apart.
const (
	agentName  = "diskrsync"
	agentServe = "serve"
	agentStdio = "--stdio"
)

func (o Options) program() string {
	if o.CmdPath == "" {
		return agentName
	}
	return o.CmdPath
}

// command returns the carrier's program and arguments.
func (o Options) command(host string) ([]string, error) {
	if err := checkHost(host); err != nil {
		return nil, err
	}
	switch {
	case o.Local:
		return []string{o.program(), agentServe, agentStdio}, nil
	case o.RSH != "":
		return o.rshCommand(host)
	}
	if host == "" {
		return nil, errors.New("no host to connect to (only a carrier of your own, --rsh, does without)")
	}
	flags, err := shlex.Split(o.SSHFlags)
	if err != nil {
		return nil, fmt.Errorf("ssh flags %q: %w", o.SSHFlags, err)
	}
	remote := Quote(o.program()) + " " + agentServe + " " + agentStdio
	words := append([]string{"ssh"}, flags...)
	return append(words, "--", host, remote), nil
}

func (o Options) rshCommand(host string) ([]string, error) {
	words, err := shlex.Split(o.RSH)
	if err != nil {
		return nil, fmt.Errorf("carrier %q: %w", o.RSH, err)
	}
	if len(words) == 0 {
		return nil, fmt.Errorf("carrier %q: no program in it", o.RSH)
	}
	for i, word := range words {
		if host == "" && asksForHost(word) {
			return nil, fmt.Errorf("carrier %q: asks for a host (%%h), but none is given", o.RSH)
		}
		words[i] = expandHost(word, host)
	}
	return append(words, o.program(), agentServe, agentStdio), nil
}

// expandHost puts host in the place of each "%h" of word, and a percent sign in
// that of each "%%". Any other percent sign stays as it is.
func expandHost(word, host string) string {
	return strings.NewReplacer("%%", "%", "%h", host).Replace(word)
}

// asksForHost reports whether there is a "%h" in word.
func asksForHost(word string) bool {
	return expandHost(word, "") != expandHost(word, "h")
}

// Quote quotes word for a POSIX shell, so that the shell sees one word that
// equals it. A leading "~/" stays bare, for the shell to expand.
func Quote(word string) string {
	if rest, ok := strings.CutPrefix(word, "~/"); ok {
		if rest == "" {
			return word
		}
		return "~/" + Quote(rest)
	}
	if word != "" && strings.Trim(word, plainChars) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// plainChars mean themselves in every shell and at every place of a word. "=" is
// not among them (a first word with it is an assignment), nor "%" (a job), nor
// "~" (a home folder).
const plainChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-+:,"
