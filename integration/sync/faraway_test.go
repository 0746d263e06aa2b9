//go:build linux

package sync_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// TestNoConnection tries a host that nobody answers for.
func TestNoConnection(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 3*mib)
	flags := b.SSHFlags + " -p 1"
	r := lab.Start(t, tools.Diskrsync, "--ssh-flags", flags, "--cmd-path", b.Agent, disk, b.alpha("new")).Wait(t)
	fails(t, r, failed, "alpha", "Connection refused")
	nothingLeft(t, b.there)
}

// TestHostKeyRefused must not reach a host that has another key than it should.
func TestHostKeyRefused(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 3*mib)
	b.Trust(t, lab.Must(os.ReadFile(filepath.Join(b.Dir, "user_key.pub")))(t))
	untouched(t, b.there, func() {
		fails(t, b.run(t, disk, b.alpha("new")), failed, "alpha", "Host key verification failed")
	})
}

// TestNoAgent must tell how the program gets to the other machine.
func TestNoAgent(t *testing.T) {
	for name, agent := range map[string]string{
		"no such program": "diskrsync-that-is-not-there",
		"no such path":    "/nowhere/diskrsync",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, lab.HostOptions{Agent: agent})
			disk := b.image(t, "disk", 1, 3*mib)
			fails(t, b.run(t, disk, b.alpha("new")), failed, "alpha", agent, "scp", "--cmd-path")
			fails(t, b.run(t, b.alpha("new"), disk), failed, "alpha", agent, "scp", "--cmd-path")
		})
	}
}

// TestBanner logs in to an account that greets: the message must show what was
// said in place of the protocol, and do no harm to a terminal.
func TestBanner(t *testing.T) {
	b := newBench(t, lab.HostOptions{Login: `printf '\033[2JWelcome to alpha!\n'; exec $SSH_ORIGINAL_COMMAND`})
	disk := b.image(t, "disk", 1, 3*mib)
	untouched(t, b.there, func() {
		fails(t, b.run(t, disk, b.alpha("new")), failed, "alpha", "Welcome to alpha!")
	})
}

// TestGreetingOnStderr is no error: standard error is for people.
func TestGreetingOnStderr(t *testing.T) {
	b := newBench(t, lab.HostOptions{Login: `echo 'Welcome to alpha!' >&2; exec $SSH_ORIGINAL_COMMAND`})
	disk := b.image(t, "disk", 1, 3*mib)
	newTarget(t, b, "spgz").update(t, disk)
}

// TestLoginRefused tries an account that has no use for a program.
func TestLoginRefused(t *testing.T) {
	b := newBench(t, lab.HostOptions{Login: `echo 'This account is currently not available.'; exit 1`})
	disk := b.image(t, "disk", 1, 3*mib)
	fails(t, b.run(t, disk, b.alpha("new")), failed, "alpha", "not available")
}

// TestSilentPeer connects to something that never says a word.
func TestSilentPeer(t *testing.T) {
	b := newBench(t, lab.HostOptions{Login: "exec sleep 120"})
	disk := b.image(t, "disk", 1, 3*mib)
	fails(t, b.run(t, "--timeout", "3s", disk, b.alpha("new")), failed, "alpha", "3s")
	fails(t, b.run(t, "--timeout", "3s", b.alpha("new"), disk), failed, "alpha", "3s")
	b.AwaitQuiet(t)
}

// TestStoppedPeer freezes an agent in the middle of a sync.
func TestStoppedPeer(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	r := b.startSlowly(t, b.slowImage(t), "--timeout", "3s")
	for _, agent := range b.Agents(t) {
		if err := syscall.Kill(agent.ID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer syscall.Kill(agent.ID, syscall.SIGCONT) // it has ended by then if all went well
	}
	fails(t, r.Wait(t), failed, "alpha", "3s")
	for _, agent := range b.Agents(t) {
		if err := syscall.Kill(agent.ID, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	b.AwaitQuiet(t)
	halfLeft(t, b.there, "disk")
	b.laterSync(t)
}

// TestStrangePeers connects to programs that speak another version, or something
// else altogether.
func TestStrangePeers(t *testing.T) {
	for _, test := range []struct {
		name, program string
		words         []string
	}{
		{"another version", `printf '\000diskrsync\011\000'; exec sleep 60`, []string{"version 9"}},
		{"noise", `exec head -c 1000000 /dev/urandom`, nil},
		{"echo", `exec cat`, nil},
		{"noise behind the preamble", `printf '\000diskrsync\001\000'; exec head -c 1000000 /dev/urandom`, nil},
		{"zeros behind the preamble", `printf '\000diskrsync\001\000'; exec head -c 1000000 /dev/zero`, nil},
		{"end behind the preamble", `printf '\000diskrsync\001\000'`, nil},
		{"end at once", `exit 0`, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t, lab.HostOptions{Login: test.program})
			disk := b.image(t, "disk", 1, 3*mib)
			untouched(t, b.here, func() {
				fails(t, b.run(t, disk, b.alpha("new")), failed, append(test.words, "alpha")...)
				fails(t, b.run(t, b.alpha("old"), disk), failed, append(test.words, "alpha")...)
			})
			b.AwaitQuiet(t)
		})
	}
}

// TestOtherCarrier reaches the agent without ssh.
func TestOtherCarrier(t *testing.T) {
	b := newBench(t, lab.HostOptions{})
	disk := b.image(t, "disk", 1, 3*mib)
	carrier := lab.Write(t, b.nearPath("carrier"), []byte("#!/bin/sh\nshift\nexec \"$@\"\n"), 0o755)
	b.sync(t, "--rsh", carrier+" %h", "--no-compress", disk, b.alpha("disk"))
	lab.Same(t, b.farPath("disk"), disk)
}

// TestLockedAgent logs in with a key that can do nothing but reach one folder.
func TestLockedAgent(t *testing.T) {
	there := t.TempDir()
	b := newBench(t, lab.HostOptions{Login: `exec "$(dirname "$0")/diskrsync" serve --stdio --root ` + there})
	disk := b.image(t, "disk", 1, 3*mib)
	outside := lab.Write(t, b.farPath("outside"), []byte("secret"), 0o644)
	b.sync(t, "--no-compress", disk, "alpha:disk")
	lab.Same(t, filepath.Join(there, "disk"), disk)
	if r := b.run(t, disk, "alpha:../"+filepath.Base(b.there)+"/outside"); r.Code == 0 {
		t.Errorf("wrote outside of the folder: %+v", r)
	}
	if r := b.run(t, "cat", "alpha:"+outside); r.Code == 0 {
		t.Errorf("read outside of the folder: %+v", r)
	}
	if got := lab.Do(t, "cat", outside); got != "secret" {
		t.Errorf("a file outside of the folder was changed to %q", got)
	}
}
