// Package sshexec starts programs on the machine of an rclone sftp remote, by
// the settings of that remote and no others: where rclone's sftp backend logs in,
// so does this package, with the same user, keys, agent, certificates, password,
// algorithms, proxies and environment, or by the same external ssh.
//
// It differs from that backend in what a program needs and files do not:
//
//   - Host keys are checked. The sftp backend accepts any unless it is told
//     otherwise; here known_hosts_file or host_keys must be set, or the user must
//     have said that it does not matter. Where a remote has either, it is obeyed in
//     any case. Nothing is pinned on first use: that is left to the sftp backend.
//   - Of a host with several keys, one is asked for that known_hosts_file has.
//   - The shell at the far side must be one of Unix: shell_type may be empty or
//     "unix". Whether it is true is not tried out.
//   - Settings are checked by New, but keys, certificates and known hosts are read
//     at each dial, so that ones renewed meanwhile count.
//
// server_command and subsystem concern sftp alone and mean nothing here.
//
// # The wire
//
// What crosses the wire is limited by --bwlimit, once: a connection of rclone's
// own dialler is limited by that, and the pipes to an external ssh are limited
// here. Nobody above has to do it again.
//
// Such a dialler also gives up a connection on which nothing has moved for
// --timeout. Requests that the server has to answer keep that from happening
// while both sides are busy with their disks, and only while the server answers.
// An external ssh sees to itself (ServerAliveInterval).
package sshexec

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/rclone/rclone/backend/sftp"
	"github.com/rclone/rclone/fs/config/configmap"
	"golang.org/x/crypto/ssh"
)

// Options are what the settings of the sftp remote do not say. The zero value is
// the safe one.
type Options struct {
	// InsecureHostKey accepts any host key if the remote has neither
	// known_hosts_file nor host_keys.
	InsecureHostKey bool

	// KeepAlive is how long a connection stays without a request that the server
	// has to answer, where --timeout does not ask for less; 0 is 30 seconds. An
	// external ssh has settings of its own for that.
	KeepAlive time.Duration
}

// A Host is the machine of an sftp remote. It holds an ssh connection that is
// made when it is first needed, and over which all programs run. There is another
// one only where the server refuses so many programs on one. A connection that
// nothing has run over for the remote's idle_timeout is closed, and one that is
// broken is no longer used; the next Start dials anew.
//
// All methods may be called at any time by any goroutine.
type Host struct {
	name     string // of the remote
	settings sftp.Options
	insecure bool
	alive    time.Duration
	pinned   []ssh.PublicKey // of host_keys
	proxy    *url.URL        // of http_proxy

	opening chan struct{} // holds an element while somebody dials

	mu        sync.Mutex
	password  string      // that was asked for
	current   *connection // on which programs are started; nil if one has to be made
	processes map[*Process]struct{}
}

// New returns the machine of the sftp remote of the given name and settings. It
// refuses settings that can never lead to a program, and uses no network.
func New(name string, m configmap.Mapper, opt Options) (*Host, error) {
	h := &Host{
		name:      name,
		insecure:  opt.InsecureHostKey,
		alive:     cmp.Or(opt.KeepAlive, usualKeepAlive),
		opening:   make(chan struct{}, 1),
		processes: make(map[*Process]struct{}),
	}
	if err := h.configure(m); err != nil {
		return nil, fmt.Errorf("remote %s: %w", name, err)
	}
	return h, nil
}

// Start starts a program. The command is given to the shell at the far side as
// it is; see transport.Quote. The process is closed when ctx ends. If ctx ends before the
// program has started, Start returns.
//
// That the shell does not find the program is no error of Start, but is seen as
// the end of what it writes; see Process.Explain.
func (h *Host) Start(ctx context.Context, command string) (*Process, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("remote %s: %w", h.name, err)
	}
	start := h.startInternal
	if h.external() {
		start = h.startExternal
	}
	prog, err := start(ctx, command)
	if err != nil {
		return nil, fmt.Errorf("remote %s: %w", h.name, err)
	}
	return h.attend(ctx, prog), nil
}

// Close ends the connection and all that runs over it, and waits for it to end.
// A later Start dials anew.
func (h *Host) Close() error {
	h.mu.Lock()
	c := h.current
	h.current = nil
	running := make([]*Process, 0, len(h.processes))
	for p := range h.processes {
		running = append(running, p)
	}
	h.mu.Unlock()

	if c != nil {
		c.hangUp()
	}
	var wg sync.WaitGroup
	for _, p := range running {
		// How a program ends that is cut off is no news.
		wg.Go(func() { _ = p.Close() })
	}
	wg.Wait()
	return nil
}

// attend makes a process of a program that has started, and keeps it on the list
// until it is closed.
func (h *Host) attend(ctx context.Context, prog program) *Process {
	p := newProcess(ctx, h.name, prog)
	p.forget = func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.processes, p)
	}
	h.mu.Lock()
	h.processes[p] = struct{}{}
	h.mu.Unlock()
	p.begin()
	return p
}
