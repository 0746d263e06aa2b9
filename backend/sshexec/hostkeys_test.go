package sshexec

import (
	"os"
	"strings"
	"testing"
)

func TestHostKeysAreChecked(t *testing.T) {
	s := startServer(t)
	s.makeKey(t, "other_host_key")
	known := func(name, text string) string { return write(t, s.file(name), text) }
	right, wrong := s.knownLine(t, "host_key.pub"), s.knownLine(t, "other_host_key.pub")
	pin := func(name string) string { return strings.TrimSpace(read(t, s.file(name))) }
	where := "the host key of 127.0.0.1:" + s.port
	tests := []struct {
		name    string
		changed map[string]string
		want    []string
	}{
		{"wrong", map[string]string{"known_hosts_file": known("wrong", "# note\n"+wrong)},
			[]string{where, "ssh-ed25519 SHA256:", s.file("wrong") + ":2", "someone may be in between"}},
		{"unknown", map[string]string{"known_hosts_file": known("empty", "")}, []string{where, "is not in " + s.file("empty")}},
		{"other port", map[string]string{"known_hosts_file": known("port", "127.0.0.1 "+pin("host_key.pub")+"\n")}, []string{where, "is not in"}},
		{"revoked", map[string]string{"known_hosts_file": known("revoked", right+"@revoked * "+pin("host_key.pub")+"\n")},
			[]string{where, "is revoked by " + s.file("revoked") + ":2"}},
		{"no file", map[string]string{"known_hosts_file": s.file("none")}, []string{"known_hosts_file", s.file("none")}},
		{"no such lines", map[string]string{"known_hosts_file": known("garbage", "what is this\n")}, []string{"known_hosts_file", s.file("garbage") + ":1"}},
		{"pinned", map[string]string{"known_hosts_file": "", "host_keys": pin("other_host_key.pub")}, []string{where, "host_keys"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// That any key would do is not what a remote says that has some.
			h := newHost(t, s.settings(tt.changed), Options{InsecureHostKey: true})
			_, err := h.Start(t.Context(), "echo hello")
			oneLine(t, err, append(tt.want, "nas", "connecting to")...)
			if asSFTP(t, s.settings(tt.changed)) == nil {
				t.Error("the sftp backend accepts it")
			}
		})
	}
}

func TestInsecureHostKey(t *testing.T) {
	s := startServer(t)
	for _, value := range []string{"", "none"} {
		t.Run("file "+value, func(t *testing.T) {
			m := s.settings(map[string]string{"known_hosts_file": value})
			_, err := New("nas", m, Options{})
			oneLine(t, err, "remote nas", "known_hosts_file=~/.ssh/known_hosts", "insecure_host_key")
			greet(t, newHost(t, m, Options{InsecureHostKey: true}))
		})
	}
}

// TestOneOfSeveralHostKeys has a server with three keys of which the user knows
// one, whichever the server would like best.
func TestOneOfSeveralHostKeys(t *testing.T) {
	keys := &server{dir: t.TempDir()}
	keys.makeKey(t, "ecdsa", "-t", "ecdsa", "-N", "")
	keys.makeKey(t, "rsa", "-t", "rsa", "-b", "2048", "-N", "")
	s := startServer(t, "HostKey "+keys.file("ecdsa"), "HostKey "+keys.file("rsa"))
	check(t, os.Link(s.file("host_key.pub"), keys.file("ed25519.pub")))
	for _, kind := range []string{"ecdsa", "rsa", "ed25519"} {
		key := read(t, keys.file(kind+".pub"))
		file := write(t, s.file("known_"+kind), "[127.0.0.1]:"+s.port+" "+key)
		for name, changed := range map[string]map[string]string{
			"known":       {"known_hosts_file": file},
			"pinned":      {"known_hosts_file": "", "host_keys": strings.TrimSpace(key)},
			"only pinned": {"known_hosts_file": "none", "host_keys": strings.TrimSpace(key)},
		} {
			t.Run(kind+" "+name, func(t *testing.T) { greet(t, s.host(t, changed)) })
		}
	}
}

// TestHostCertificate has a server that shows a certificate of an authority that
// the user trusts.
func TestHostCertificate(t *testing.T) {
	ca := &server{dir: t.TempDir()}
	ca.makeKey(t, "ca")
	ca.makeKey(t, "key")
	run(t, "ssh-keygen", "-q", "-s", ca.file("ca"), "-I", "test", "-h", "-n", "127.0.0.1", ca.file("key.pub"))
	s := startServer(t, "HostKey "+ca.file("key"), "HostCertificate "+ca.file("key-cert.pub"))
	trusted := "@cert-authority [127.0.0.1]:" + s.port + " " + read(t, ca.file("ca.pub"))
	t.Run("authority", func(t *testing.T) {
		tryLogin(t, s, map[string]string{"known_hosts_file": write(t, s.file("authority"), trusted)}, "")
	})
	t.Run("plain key", func(t *testing.T) { greet(t, s.host(t, nil)) })
}

// greet has a program run on a host.
func greet(t *testing.T, h *Host) {
	t.Helper()
	if got := output(t, h, "echo hello"); got != "hello\n" {
		t.Errorf("read %q", got)
	}
}

func TestParsePinned(t *testing.T) {
	s := &server{dir: t.TempDir()}
	for _, kind := range []string{"rsa", "ed25519"} {
		s.makeKey(t, kind, "-t", kind, "-N", "")
	}
	s.makeKey(t, "ca")
	run(t, "ssh-keygen", "-q", "-s", s.file("ca"), "-I", "test", "-h", s.file("ed25519.pub"))
	rsa := strings.TrimSpace(read(t, s.file("rsa.pub")))
	ed25519 := strings.TrimSpace(read(t, s.file("ed25519.pub")))
	tests := []struct {
		name    string
		entries []string
		keys    int
		want    string
	}{
		{"none", nil, 0, ""},
		{"blank", []string{" ", ""}, 0, ""},
		{"two", []string{rsa, " " + ed25519 + "\n"}, 2, ""},
		{"one word", []string{rsa, strings.Fields(ed25519)[1]}, 0, "entry 2"},
		{"host in front", []string{"nas " + rsa}, 0, "entry 1"},
		{"fingerprint", []string{"ssh-ed25519 SHA256:abc"}, 0, "entry 1"},
		{"no key", []string{"ssh-ed25519 AAAA"}, 0, "entry 1"},
		{"name of a signature", []string{strings.Replace(rsa, "ssh-rsa", "rsa-sha2-256", 1)}, 0, "type ssh-rsa, not rsa-sha2-256"},
		{"certificate", []string{strings.Join(strings.Fields(read(t, s.file("ed25519-cert.pub")))[:2], " ")}, 0, "entry 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			keys, err := parsePinned(tt.entries)
			if len(keys) != tt.keys {
				t.Errorf("%d keys, want %d", len(keys), tt.keys)
			}
			if tt.want != "" {
				oneLine(t, err, "host_keys", tt.want)
			} else {
				check(t, err)
			}
		})
	}
}
