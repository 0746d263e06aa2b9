package sshexec

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/rclone/rclone/lib/env"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// hostKeys is how the server is known to us. It is made for one dial.
type hostKeys struct {
	check      ssh.HostKeyCallback
	algorithms []string // to negotiate, the best first; nil leaves that open
}

// knownHostsFile returns the file that host keys are looked up in, or "". The
// value "none" switches that off for the sftp backend.
func (h *Host) knownHostsFile() string {
	if h.settings.KnownHostsFile == "none" {
		return ""
	}
	return env.ShellExpand(h.settings.KnownHostsFile)
}

// configureHostKeys refuses settings by which nobody would know which machine it
// is that a program is started on.
func (h *Host) configureHostKeys() error {
	if h.knownHostsFile() != "" {
		return nil
	}
	var err error
	if h.pinned, err = parsePinned(h.settings.HostKeys); err != nil {
		return err
	}
	switch {
	case len(h.pinned) > 0 || h.insecure:
		return nil
	case h.settings.PinHostKey:
		return errors.New("no host key is pinned yet: connect once as in `rclone lsd " + h.name + ": --sftp-pin-host-key`")
	}
	return errors.New("host keys are not checked: set known_hosts_file=~/.ssh/known_hosts or host_keys for the sftp remote, " +
		"or insecure_host_key=true if you know that nobody can be in between")
}

// parsePinned parses host_keys, whose entries are the last two fields of a line
// of known_hosts each.
func parsePinned(entries []string) ([]ssh.PublicKey, error) {
	var keys []ssh.PublicKey
	for i, entry := range entries {
		fields := strings.Fields(entry)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("host_keys: entry %d is not a type and a key in base64", i+1)
		}
		blob, err := base64.StdEncoding.DecodeString(fields[1])
		if err != nil {
			return nil, fmt.Errorf("host_keys: entry %d: %w", i+1, err)
		}
		key, err := ssh.ParsePublicKey(blob)
		if err != nil {
			return nil, fmt.Errorf("host_keys: entry %d: %w", i+1, err)
		}
		if _, ok := key.(*ssh.Certificate); ok || key.Type() != fields[0] {
			return nil, fmt.Errorf("host_keys: entry %d is a key of type %s, not %s", i+1, key.Type(), fields[0])
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// hostKeys returns how the keys of the server at address are checked.
func (h *Host) hostKeys(address string) (hostKeys, error) {
	var k hostKeys
	file := h.knownHostsFile()
	switch {
	case file != "":
		check, err := knownhosts.New(file)
		if err != nil {
			return k, fmt.Errorf("known_hosts_file: %w", err)
		}
		k.check = func(host string, remote net.Addr, key ssh.PublicKey) error {
			return explainHostKey(check(host, remote, key), host, key, file)
		}
		if k.algorithms, err = knownAlgorithms(check, address, file); err != nil {
			return k, err
		}
	case len(h.pinned) > 0:
		k.check = h.checkPinned
		k.algorithms = signatures(h.pinned)
	default: // configureHostKeys has seen to it that this is wanted
		k.check = ssh.InsecureIgnoreHostKey()
	}
	if len(h.settings.HostKeyAlgorithms) > 0 {
		k.algorithms = h.settings.HostKeyAlgorithms
	}
	return k, nil
}

func (h *Host) checkPinned(host string, _ net.Addr, key ssh.PublicKey) error {
	for _, p := range h.pinned {
		if bytes.Equal(p.Marshal(), key.Marshal()) {
			return nil
		}
	}
	return fmt.Errorf("%s is not among host_keys of the remote: someone may be in between, or the machine has a new key", describe(host, key))
}

// knownAlgorithms returns the host key algorithms for an address, those first
// whose keys the file has. Without it the server would choose, and might choose a
// key that it has besides, which then looks like a wrong one.
//
// A key of an authority is on its file's lines like any other, but is not the
// host's. Where the file has such lines the choice is left open.
func knownAlgorithms(check ssh.HostKeyCallback, address, file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("known_hosts_file: %w", err)
	}
	if bytes.Contains(text, []byte("@cert-authority")) {
		return nil, nil
	}
	// Nobody has this key, so that the answer tells all that would be right.
	probe, err := ssh.NewPublicKey(make(ed25519.PublicKey, ed25519.PublicKeySize))
	if err != nil {
		return nil, err
	}
	var wrong *knownhosts.KeyError
	if err := check(address, &net.TCPAddr{IP: net.IPv4zero}, probe); !errors.As(err, &wrong) || len(wrong.Want) == 0 {
		return nil, nil
	}
	keys := make([]ssh.PublicKey, len(wrong.Want))
	for i, known := range wrong.Want {
		keys[i] = known.Key
	}
	first := signatures(keys)
	rest := slices.DeleteFunc(ssh.SupportedAlgorithms().HostKeys, func(a string) bool { return slices.Contains(first, a) })
	return append(first, rest...), nil
}

// signatures returns the algorithms by which a server can show that it has one of
// the keys. An RSA key has several, and the one that is called as the key is, is
// refused by most servers.
func signatures(keys []ssh.PublicKey) []string {
	var algorithms []string
	for _, key := range keys {
		if key.Type() == ssh.KeyAlgoRSA {
			algorithms = append(algorithms, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		}
		algorithms = append(algorithms, key.Type())
	}
	slices.Sort(algorithms)
	return slices.Compact(algorithms)
}

// hostKeyError marks what is wrong with a host key among the errors of a handshake.
type hostKeyError struct{ error }

// explainHostKey says in one line what is wrong with a host key.
func explainHostKey(err error, host string, key ssh.PublicKey, file string) error {
	var wrong *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &revoked):
		return fmt.Errorf("%s is revoked by %s:%d: %w", describe(host, key), revoked.Revoked.Filename, revoked.Revoked.Line, err)
	case !errors.As(err, &wrong):
		return fmt.Errorf("%s: %w", describe(host, key), err)
	case len(wrong.Want) == 0:
		return fmt.Errorf("%s is not in %s: if it is the right one, put it there, as ssh does when it first connects: %w", describe(host, key), file, err)
	}
	return fmt.Errorf("%s is not the one of %s:%d: someone may be in between, or the machine has a new key: %w",
		describe(host, key), wrong.Want[0].Filename, wrong.Want[0].Line, err)
}

func describe(host string, key ssh.PublicKey) string {
	return fmt.Sprintf("the host key of %s (%s %s)", host, key.Type(), ssh.FingerprintSHA256(key))
}
