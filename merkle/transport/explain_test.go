package transport

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func TestExplainSSH(t *testing.T) {
	fakeSSH(t)
	const hint = "copy the static binary there"
	tests := []struct {
		name, host, status, text string
		want                     []string
		hinted                   bool
	}{
		{"agent missing", "u@nas", "127", "bash: line 1: diskrsync: command not found",
			[]string{"ssh to u@nas: exit status 127: bash: ", "`scp $(command -v diskrsync) u@nas:/usr/local/bin/`", "--cmd-path"}, true},
		{"agent missing on ipv6", "u@::1", "127", "sh: 1: diskrsync: not found",
			[]string{" u@[::1]:/usr/local/bin/`"}, true},
		{"agent of another system", "nas", "126", "bash: /usr/bin/diskrsync: cannot execute binary file: Exec format error",
			[]string{"exit status 126"}, true},
		{"csh", "nas", "1", "diskrsync: Command not found.", []string{"exit status 1"}, true},
		{"windows", "nas", "1", "'diskrsync' is not recognized as an internal or external command,", nil, true},
		{"no such host", "nas", "255", "ssh: Could not resolve hostname nas: Name or service not known",
			[]string{"exit status 255: ssh: Could not resolve hostname nas"}, false},
		{"missing identity", "nas", "255", "Warning: Identity file diskrsync not accessible: No such file or directory.", nil, false},
		{"proxy missing", "nas", "255", "sh: 1: diskrsync: not found", nil, false},
		{"agent says no such file", "nas", "1", "diskrsync: open /srv/diskrsync: no such file or directory", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Dial(t.Context(), tt.host, Options{SSHFlags: "-fail " + tt.status + " " + Quote(tt.text)})
			if err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("read %d, %v", n, err)
			}
			err = c.Explain(io.ErrUnexpectedEOF)
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v does not wrap the error it explains", err)
			}
			for _, want := range append(tt.want, tt.text) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\ndoes not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), hint) != tt.hinted {
				t.Errorf("%v\nhas a hint: %v, want %v", err, !tt.hinted, tt.hinted)
			}
		})
	}
}

func TestMissesProgram(t *testing.T) {
	tests := []struct {
		line string
		want bool
	}{
		{`OCI runtime exec failed: exec failed: unable to start container process: exec: "diskrsync": executable file not found in $PATH: unknown`, true},
		{`OCI runtime exec failed: exec failed: unable to start container process: exec: "/opt/diskrsync": stat /opt/diskrsync: no such file or directory: unknown`, true},
		{"Error: crun: executable file `diskrsync` not found in $PATH: No such file or directory: OCI runtime attempted to invoke a command that was not found", true},
		{"command terminated with exit code 127", true},
		{"zsh:1: command not found: diskrsync", true},
		{"bash: line 1: /opt/diskrsync: No such file or directory", true},
		{"command terminated with exit code 1", false},
		{"sh: 1: stty: not found", false},
		{"bash: /home/u/.bashrc: line 3: nvm: command not found", false},
		{"diskrsync: image /b/x: no such file or directory", false},
	}
	for _, tt := range tests {
		if got := missesProgram(tt.line, "diskrsync"); got != tt.want {
			t.Errorf("missesProgram(%q) = %v", tt.line, got)
		}
	}
}

func TestExplainCarrierWithoutSSH(t *testing.T) {
	c := dial(t, Options{RSH: carrier("fail", "126", "no such program")})
	err := c.Explain(io.ErrUnexpectedEOF)
	for _, want := range []string{"exit status 126", "no such program", "diskrsync cannot be started", "--cmd-path"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "scp") {
		t.Errorf("%v\nproposes scp for a carrier that is not ssh", err)
	}
}
