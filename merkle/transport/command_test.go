package transport

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSSHCommand(t *testing.T) {
	tests := []struct {
		name string
		host string
		o    Options
		want []string
	}{
		{"zero value", "nas", Options{}, []string{"ssh", "--", "nas", "diskrsync serve --stdio"}},
		{"flags", "u@nas", Options{SSHFlags: `-i 'id file' -p 2222 -o "User Known"`},
			[]string{"ssh", "-i", "id file", "-p", "2222", "-o", "User Known", "--", "u@nas", "diskrsync serve --stdio"}},
		{"ipv6", "::1", Options{}, []string{"ssh", "--", "::1", "diskrsync serve --stdio"}},
		{"path", "nas", Options{CmdPath: "/opt/disk-rsync_1.0/diskrsync"},
			[]string{"ssh", "--", "nas", "/opt/disk-rsync_1.0/diskrsync serve --stdio"}},
		{"path to quote", "nas", Options{CmdPath: "/opt/a b; reboot"},
			[]string{"ssh", "--", "nas", "'/opt/a b; reboot' serve --stdio"}},
		{"home folder", "nas", Options{CmdPath: "~/bin/diskrsync"},
			[]string{"ssh", "--", "nas", "~/bin/diskrsync serve --stdio"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.o.command(tt.host)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestCommandWithoutSSH(t *testing.T) {
	tests := []struct {
		name string
		host string
		o    Options
		want []string
	}{
		{"label", "pod", Options{RSH: "kubectl exec -i pod --"},
			[]string{"kubectl", "exec", "-i", "pod", "--", "diskrsync", "serve", "--stdio"}},
		{"no host", "", Options{RSH: "docker exec -i c"},
			[]string{"docker", "exec", "-i", "c", "diskrsync", "serve", "--stdio"}},
		{"host in a word", "u@nas", Options{RSH: "x --to=%h/%h 100%% %d %%h"},
			[]string{"x", "--to=u@nas/u@nas", "100%", "%d", "%h", "diskrsync", "serve", "--stdio"}},
		{"host stays one word", "a b", Options{RSH: "x %h"},
			[]string{"x", "a b", "diskrsync", "serve", "--stdio"}},
		{"host is not expanded again", "%h%%", Options{RSH: "x %h"},
			[]string{"x", "%h%%", "diskrsync", "serve", "--stdio"}},
		{"path is not quoted", "c", Options{RSH: "x", CmdPath: "/opt/a b"},
			[]string{"x", "/opt/a b", "serve", "--stdio"}},
		{"agent on this machine", "", Options{Local: true, CmdPath: "/opt/a b"},
			[]string{"/opt/a b", "serve", "--stdio"}},
		{"ssh flags are for ssh", "c", Options{RSH: "x", SSHFlags: "-p 1"},
			[]string{"x", "diskrsync", "serve", "--stdio"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.o.command(tt.host)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestCommandRefuses(t *testing.T) {
	tests := []struct {
		name string
		host string
		o    Options
		want string
	}{
		{"no host", "", Options{}, "no host"},
		{"option as host", "-oProxyCommand=reboot", Options{}, "dash"},
		{"option behind user", "u@-oProxyCommand=reboot", Options{}, "dash"},
		{"option as host of a carrier", "-x", Options{RSH: "x %h"}, "dash"},
		{"newline", "a\nb", Options{}, "control"},
		{"open quote in flags", "nas", Options{SSHFlags: "-i 'x"}, "ssh flags"},
		{"open quote in carrier", "nas", Options{RSH: `x "`}, "carrier"},
		{"blank carrier", "nas", Options{RSH: "  "}, "no program"},
		{"carrier asks for a host", "", Options{RSH: "x %h"}, "none is given"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.o.command(tt.host)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, %v, want an error with %q", got, err, tt.want)
			}
		})
	}
}

// shell runs a command line in the system's own shell, with dir as home folder.
func shell(t *testing.T, dir, line string) string {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		missing(t, "a POSIX shell")
	}
	cmd := exec.Command(sh, "-c", line)
	cmd.Env = append(os.Environ(), "HOME="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sh -c %q: %v\n%s", line, err, out)
	}
	return string(out)
}

func TestQuoteInShell(t *testing.T) {
	home := t.TempDir()
	tests := []struct{ word, want string }{
		{"", ""},
		{"plain", "plain"},
		{"a b", "a b"},
		{"it's", "it's"},
		{"'", "'"},
		{`"$HOME" $(echo x) \ * ? [a] {a,b} ; & | < > # !`, `"$HOME" $(echo x) \ * ? [a] {a,b} ; & | < > # !`},
		{"a\nb\tc", "a\nb\tc"},
		{"-n", "-n"},
		{"~", "~"},
		{"~root/x", "~root/x"},
		{"a=b", "a=b"},
		{"größe", "größe"},
		{"~/", home + "/"},
		{"~/bin/x", home + "/bin/x"},
		{"~/a b/it's", home + "/a b/it's"},
		{"~/~/x", home + "/~/x"},
	}
	for _, tt := range tests {
		if got := shell(t, home, "printf %s "+Quote(tt.word)); got != tt.want {
			t.Errorf("Quote(%q) = %s, which the shell reads as %q", tt.word, Quote(tt.word), got)
		}
	}
}

// oddName begins the name of a program that only correct quoting finds.
const oddName = "odd"

// TestAgentCommandInShell runs the words that ssh hands to the shell of the far
// side, for an agent whose path is full of traps.
func TestAgentCommandInShell(t *testing.T) {
	home := t.TempDir()
	name := oddName + ` 'name' $(false) "x" A=b`
	if err := os.Symlink(program(t), filepath.Join(home, name)); err != nil {
		missing(t, "symbolic links")
	}
	for _, path := range []string{filepath.Join(home, name), "~/" + name} {
		words, err := Options{CmdPath: path}.command("nas")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if err := json.Unmarshal([]byte(shell(t, home, words[len(words)-1])), &got); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, []string{"serve", "--stdio"}) {
			t.Errorf("the agent at %q was started with %q", path, got)
		}
	}
}
