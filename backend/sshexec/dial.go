package sshexec

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/fshttp"
	"github.com/rclone/rclone/lib/proxy"
	"golang.org/x/crypto/ssh"
)

// usualKeepAlive is Options.KeepAlive where nothing is said.
const usualKeepAlive = 30 * time.Second

// dial makes a connection, of which the caller is the first user.
func (h *Host) dial(ctx context.Context) (*connection, error) {
	address := h.settings.Host + ":" + h.settings.Port
	c, err := h.logIn(ctx, address)
	if cause := context.Cause(ctx); cause != nil {
		if err == nil {
			c.hangUp()
		}
		err = cause
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to %s@%s: %w", h.settings.User, address, err)
	}
	fs.Debugf(h.name, "new ssh connection to %s, %s", address, c.client.ServerVersion())
	go h.watch(c)
	go c.keepAlive(keepAliveInterval(h.alive, time.Duration(fs.GetConfig(ctx).Timeout)))
	return c, nil
}

// logIn connects to the server and logs in. All of that ends when ctx does.
func (h *Host) logIn(ctx context.Context, address string) (*connection, error) {
	known, err := h.hostKeys(address)
	if err != nil {
		return nil, err
	}
	login, err := h.login()
	if err != nil {
		return nil, err
	}
	defer login.close()
	config := &ssh.ClientConfig{
		Config:            h.algorithms(),
		User:              h.settings.User,
		Auth:              login.methods,
		HostKeyAlgorithms: known.algorithms,
		HostKeyCallback: func(host string, remote net.Addr, key ssh.PublicKey) error {
			if err := known.check(host, remote, key); err != nil {
				return &hostKeyError{err}
			}
			return nil
		},
		ClientVersion: "SSH-2.0-" + fs.GetConfig(ctx).UserAgent,
	}
	wire, err := h.connect(ctx, address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { wire.Close() })
	defer stop()
	conn, channels, requests, err := ssh.NewClientConn(wire, address, config)
	if err != nil {
		wire.Close()
		var unknown *hostKeyError
		if errors.As(err, &unknown) {
			return nil, unknown.error // without the handshake that failed for it
		}
		return nil, err
	}
	client := ssh.NewClient(conn, channels, requests)
	return &connection{client: client, wire: wire, ended: make(chan struct{}), users: 1}, nil
}

// connect makes the network connection, directly or by way of a proxy.
func (h *Host) connect(ctx context.Context, address string) (net.Conn, error) {
	d := &dialer{ctx: ctx, inner: fshttp.NewDialer(ctx), unbind: func() bool { return true }}
	defer func() { d.unbind() }()
	switch {
	case h.settings.SocksProxy != "":
		return proxy.SOCKS5Dial("tcp", address, h.settings.SocksProxy, d)
	case h.proxy != nil:
		return proxy.HTTPConnectDial("tcp", address, h.proxy, d)
	}
	return d.Dial("tcp", address)
}

// dialer makes rclone's dialler, and what a proxy does with its connection, end
// with a context, which the functions for proxies do not know.
type dialer struct {
	ctx    context.Context
	inner  *fshttp.Dialer
	unbind func() bool
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := d.inner.DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.unbind = context.AfterFunc(d.ctx, func() { conn.Close() })
	return conn, nil
}

// keepAliveInterval returns how often the server is asked: as wanted, but so that a
// connection on which nothing moves for timeout is one whose server does not answer.
// Two answers may be late.
func keepAliveInterval(wanted, timeout time.Duration) time.Duration {
	if timeout <= 0 {
		return wanted
	}
	return min(wanted, max(timeout/3, time.Millisecond))
}

// keepAlive asks the server for a sign of life again and again. It asks no more
// before it has got one: its own questions must not keep up a connection to a
// server that is gone.
func (c *connection) keepAlive(interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			// What the server answers does not matter, and what it costs to
			// have no answer is seen by watch.
			if _, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil); err != nil {
				return
			}
		case <-c.ended:
			return
		}
	}
}
