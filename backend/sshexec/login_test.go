package sshexec

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/rclone/rclone/fs/config/configmap"
	"github.com/rclone/rclone/fs/config/obscure"
)

// TestLogins logs in by every kind of settings, and has the sftp backend do the
// same: what works here must work there.
func TestLogins(t *testing.T) {
	s := startServer(t)
	s.makeKey(t, "secret_key", "-t", "ed25519", "-N", "open sesame")
	s.makeKey(t, "old_key", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "open sesame")
	write(t, s.file("authorized_keys"), read(t, s.file("user_key.pub"))+read(t, s.file("secret_key.pub"))+read(t, s.file("old_key.pub")))
	write(t, s.file("hashed"), s.knownLine(t, "host_key.pub"))
	run(t, "ssh-keygen", "-q", "-H", "-f", s.file("hashed"))
	if strings.Contains(read(t, s.file("hashed")), "127.0.0.1") {
		t.Fatal("the file of known hosts is not hashed")
	}
	t.Setenv("SSHEXEC_DIR", s.dir)
	t.Setenv("HOME", s.dir)
	pass := obscure.MustObscure("open sesame")
	oneLine := strings.ReplaceAll(read(t, s.file("user_key")), "\n", `\n`)
	hostKey := strings.TrimSpace(read(t, s.file("host_key.pub")))
	tests := []struct {
		name    string
		changed map[string]string
	}{
		{"key file", nil},
		{"user", map[string]string{"user": me(t)}},
		{"key in the settings", map[string]string{"key_file": "", "key_pem": oneLine}},
		{"passphrase", map[string]string{"key_file": s.file("secret_key"), "key_file_pass": pass}},
		{"passphrase of old", map[string]string{"key_file": s.file("old_key"), "key_file_pass": pass}},
		{"paths to expand", map[string]string{"key_file": "${SSHEXEC_DIR}/user_key", "known_hosts_file": "$SSHEXEC_DIR/known_hosts"}},
		{"hashed known hosts", map[string]string{"known_hosts_file": s.file("hashed")}},
		{"pinned host key", map[string]string{"known_hosts_file": "", "host_keys": hostKey}},
		{"algorithms", map[string]string{"ciphers": "aes256-ctr", "key_exchange": "curve25519-sha256", "macs": "hmac-sha2-512", "host_key_algorithms": "ssh-ed25519"}},
		{"insecure cipher", map[string]string{"use_insecure_cipher": "true"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			greet(t, s.host(t, tt.changed))
			check(t, asSFTP(t, s.settings(tt.changed)))
		})
	}
}

// startAgent starts an ssh-agent with some keys and points the environment to it.
func startAgent(t *testing.T, s *server, keys ...string) {
	t.Helper()
	socket := s.file("agent")
	cmd := exec.Command(need(t, "ssh-agent"), "-D", "-a", socket)
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have failed
		_ = cmd.Wait()
	})
	for { // it has begun once the socket is there
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			break
		}
		if cmd.ProcessState != nil {
			t.Fatal("ssh-agent did not start")
		}
	}
	t.Setenv("SSH_AUTH_SOCK", socket)
	for _, key := range keys {
		run(t, "ssh-add", "-q", s.file(key))
	}
}

func TestAgent(t *testing.T) {
	s := startServer(t)
	s.makeKey(t, "other_key")
	s.makeKey(t, "third_key")
	startAgent(t, s, "other_key", "user_key")
	check(t, os.Remove(s.file("user_key"))) // only the agent has it
	tests := []struct {
		name    string
		changed map[string]string
		want    string // in the error
	}{
		{"any key", map[string]string{"key_file": ""}, ""},
		{"one key", map[string]string{"key_use_agent": "true"}, ""},
		{"one key by its public half", map[string]string{"key_use_agent": "true", "key_file": s.file("user_key.pub")}, ""},
		{"wrong key", map[string]string{"key_use_agent": "true", "key_file": s.file("other_key")}, "unable to authenticate"},
		{"key that is not there", map[string]string{"key_use_agent": "true", "key_file": s.file("third_key")}, "ssh agent: it does not have the key of " + s.file("third_key")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tryLogin(t, s, tt.changed, tt.want) })
	}
	t.Setenv("SSH_AUTH_SOCK", "")
	tryLogin(t, s, map[string]string{"key_file": ""}, "ssh agent: ")
}

// tryLogin logs in, or fails with an error that holds want; and so must the sftp
// backend.
func tryLogin(t *testing.T, s *server, changed map[string]string, want string) {
	t.Helper()
	h := s.host(t, changed)
	p, err := h.Start(t.Context(), "true")
	sftpErr := asSFTP(t, s.settings(changed))
	if want == "" {
		check(t, err)
		check(t, p.Close())
		check(t, sftpErr)
		return
	}
	oneLine(t, err, want, "nas")
	if sftpErr == nil {
		t.Error("the sftp backend logs in")
	}
}

// oneLine checks that an error is one line that holds all of the words.
func oneLine(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", words)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not in the error: %v", word, err)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\r\x1b") {
		t.Errorf("the error is more than one line: %q", err)
	}
}

// TestCertificates has a server that knows no key of the user, but an authority.
func TestCertificates(t *testing.T) {
	ca := &server{dir: t.TempDir()}
	ca.makeKey(t, "ca")
	ca.makeKey(t, "other_ca")
	s := startServer(t, "TrustedUserCAKeys "+ca.file("ca.pub"))
	write(t, s.file("authorized_keys"), "")
	for name, signer := range map[string]string{"good": "ca", "bad": "other_ca"} {
		s.makeKey(t, name)
		run(t, "ssh-keygen", "-q", "-s", ca.file(signer), "-I", "test", "-n", me(t), s.file(name+".pub"))
	}
	tests := []struct {
		name    string
		changed map[string]string
		want    string
	}{
		{"file", map[string]string{"key_file": s.file("good"), "pubkey_file": s.file("good-cert.pub")}, ""},
		{"in the settings", map[string]string{"key_file": s.file("good"), "pubkey": read(t, s.file("good-cert.pub"))}, ""},
		{"none", map[string]string{"key_file": s.file("good")}, "unable to authenticate"},
		{"other authority", map[string]string{"key_file": s.file("bad"), "pubkey_file": s.file("bad-cert.pub")}, "unable to authenticate"},
		{"mere key", map[string]string{"key_file": s.file("good"), "pubkey_file": s.file("good.pub")}, "it is not a certificate"},
		{"of another key", map[string]string{"key_file": s.file("good"), "pubkey_file": s.file("bad-cert.pub")}, s.file("bad-cert.pub")},
		{"missing", map[string]string{"key_file": s.file("good"), "pubkey_file": s.file("none")}, s.file("none")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tryLogin(t, s, tt.changed, tt.want) })
	}
}

func TestLoginRefused(t *testing.T) {
	s := startServer(t)
	s.makeKey(t, "secret_key", "-t", "ed25519", "-N", "open sesame")
	s.makeKey(t, "other_key")
	tests := []struct {
		name    string
		changed map[string]string
		want    string
	}{
		{"unknown key", map[string]string{"key_file": s.file("other_key")}, "unable to authenticate"},
		{"no key file", map[string]string{"key_file": s.file("none")}, s.file("none")},
		{"no key", map[string]string{"key_file": s.file("log")}, "key_file " + s.file("log")},
		{"no passphrase", map[string]string{"key_file": s.file("secret_key")}, "set key_file_pass"},
		{"wrong passphrase", map[string]string{"key_file": s.file("secret_key"), "key_file_pass": obscure.MustObscure("x")}, s.file("secret_key")},
		{"key in many lines", map[string]string{"key_pem": read(t, s.file("user_key"))}, "key_pem is not one line"},
		{"no common cipher", map[string]string{"ciphers": "arcfour"}, "no common algorithm"},
		{"set_env not accepted", map[string]string{"set_env": "FOO=bar"}, `the server does not take "FOO"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tryLogin(t, s, tt.changed, tt.want) })
	}
}

func TestEnvironment(t *testing.T) {
	s := startServer(t)
	changed := map[string]string{"set_env": `SSHEXEC_A=1 "SSHEXEC_B=two = 2"`}
	h := s.host(t, changed)
	if got := output(t, h, `echo "$SSHEXEC_A,$SSHEXEC_B"`); got != "1,two = 2\n" {
		t.Errorf("the environment is %q", got)
	}
	check(t, asSFTP(t, s.settings(changed)))
}

func TestNobodyListens(t *testing.T) {
	h := newHost(t, configmap.Simple{"host": "127.0.0.1", "port": freePort(t), "pass": obscure.MustObscure("x")}, Options{InsecureHostKey: true})
	_, err := h.Start(t.Context(), "true")
	oneLine(t, err, "remote nas: connecting to "+me(t)+"@127.0.0.1:", "connection refused")
}
