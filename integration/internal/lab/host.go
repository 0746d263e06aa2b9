//go:build linux

package lab

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A Host is an ssh server on loopback that stands for the other machine. It
// has its own keys and configuration, and it answers to the names alpha and
// beta.
type Host struct {
	Dir      string // its folder; every process of a sync with it can be told by this path
	Agent    string // the program at the far side, for --cmd-path
	SSHFlags string // for --ssh-flags, or behind any other ssh
	port     int
	server   *Run
	seen     map[int]Process // that belonged to syncs, and may not be gone
}

// HostOptions are what makes a host unusual. The zero value is an ordinary one.
type HostOptions struct {
	// Login is a shell script that runs in place of the command that was asked
	// for, which it finds in $SSH_ORIGINAL_COMMAND.
	Login string
	// Agent is the program at the far side in place of a copy of diskrsync.
	Agent string
}

// StartHost starts an ssh server that the user of the test can log in to. At
// the end of the test nothing that was started through it may be left.
func StartHost(t testing.TB, tools Tools, o HostOptions) *Host {
	t.Helper()
	NeedPrograms(t, "sshd", "ssh", "ssh-keygen")
	h := &Host{Dir: t.TempDir(), Agent: o.Agent, port: freePort(t), seen: map[int]Process{}}
	h.SSHFlags = "-F " + filepath.Join(h.Dir, "ssh_config")
	if h.Agent == "" {
		h.Agent = filepath.Join(h.Dir, "diskrsync")
		if err := os.Link(tools.Diskrsync, h.Agent); err != nil {
			t.Fatal(err)
		}
	}
	h.makeKeys(t)
	h.configureClient(t)
	sshd := Must(findProgram("sshd"))(t)
	if os.Geteuid() == 0 {
		// The server wants this folder and its package makes it only when the
		// system boots.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.server = Start(t, sshd, "-D", "-e", "-f", h.configureServer(t, o))
	t.Cleanup(func() { h.stop(t) })
	h.awaitServer(t)
	return h
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		Missing(t, "cannot listen on loopback: %v", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (h *Host) makeKeys(t testing.TB) {
	t.Helper()
	for _, key := range []string{"host_key", "user_key"} {
		Do(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", filepath.Join(h.Dir, key))
	}
	Write(t, filepath.Join(h.Dir, "authorized_keys"), h.publicKey(t, "user_key"), 0o600)
	h.Trust(t, h.publicKey(t, "host_key"))
}

func (h *Host) publicKey(t testing.TB, name string) []byte {
	t.Helper()
	return Must(os.ReadFile(filepath.Join(h.Dir, name+".pub")))(t)
}

// Trust makes the client accept this public key of the host and no other.
func (h *Host) Trust(t testing.TB, publicKey []byte) {
	t.Helper()
	names := fmt.Sprintf("alpha,beta,[127.0.0.1]:%d ", h.port)
	Write(t, filepath.Join(h.Dir, "known_hosts"), append([]byte(names), publicKey...), 0o600)
}

func (h *Host) configureServer(t testing.TB, o HostOptions) string {
	t.Helper()
	config := fmt.Sprintf(`Port %d
ListenAddress 127.0.0.1
HostKey %[2]s/host_key
AuthorizedKeysFile %[2]s/authorized_keys
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitUserRC no
MaxStartups 100
Subsystem sftp internal-sftp
`, h.port, h.Dir)
	if o.Login != "" {
		login := Write(t, filepath.Join(h.Dir, "login"), []byte("#!/bin/sh\n"+o.Login+"\n"), 0o755)
		config += "ForceCommand " + login + "\n"
	} else {
		config += "ForceCommand none\n"
	}
	return Write(t, filepath.Join(h.Dir, "sshd_config"), []byte(config), 0o600)
}

// configureClient gives alpha and beta each its own alias for the host key, so
// that known_hosts needs no port.
func (h *Host) configureClient(t testing.TB) {
	t.Helper()
	me := Must(user.Current())(t)
	config := ""
	for _, name := range []string{"alpha", "beta"} {
		config += fmt.Sprintf(`Host %s
HostName 127.0.0.1
HostKeyAlias %[1]s
Port %d
User %s
IdentityFile %[4]s/user_key
UserKnownHostsFile %[4]s/known_hosts
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
IdentitiesOnly yes
BatchMode yes
`, name, h.port, me.Username, h.Dir)
	}
	Write(t, filepath.Join(h.Dir, "ssh_config"), []byte(config), 0o600)
}

func (h *Host) awaitServer(t testing.TB) {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", h.port)
	for h.server.Running() {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("sshd did not start: %s", h.server.Wait(t).Stderr)
}

// Args returns the arguments that make diskrsync reach the host, followed by
// further ones.
func (h *Host) Args(args ...string) []string {
	return append([]string{"--ssh-flags", h.SSHFlags, "--cmd-path", h.Agent}, args...)
}

// Remote returns the settings of an sftp remote of rclone that is the host.
func (h *Host) Remote(t testing.TB) []string {
	t.Helper()
	me := Must(user.Current())(t)
	return []string{"host=127.0.0.1", fmt.Sprintf("port=%d", h.port), "user=" + me.Username,
		"key_file=" + filepath.Join(h.Dir, "user_key"), "known_hosts_file=" + filepath.Join(h.Dir, "known_hosts")}
}

// SSH returns the ssh command line that reaches the host, for other programs.
func (h *Host) SSH() string { return "ssh " + h.SSHFlags }

func (h *Host) stop(t testing.TB) {
	h.AwaitQuiet(t)
	for _, p := range h.left(t) {
		_ = syscall.Kill(p.ID, syscall.SIGKILL) // it may have ended meanwhile
	}
	h.server.Signal(t, syscall.SIGTERM)
	h.server.Wait(t)
}
