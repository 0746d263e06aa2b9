//go:build linux

package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// A Meter stands between a host and programs that cannot be made to use a Carrier,
// and counts what crosses the wire: handshakes, encryption and all. It may break a
// connection.
type Meter struct {
	host     *Host
	listener net.Listener
	bytes    atomic.Int64
	left     atomic.Int64 // bytes until a connection is to break, and not above 0 if none is
	passing  sync.WaitGroup
}

// NewMeter returns a meter in front of a host. The client trusts what it leads to as
// it trusts the host.
func NewMeter(t testing.TB, h *Host) *Meter {
	t.Helper()
	m := &Meter{host: h, listener: Must(net.Listen("tcp", "127.0.0.1:0"))(t)}
	known := Must(os.OpenFile(filepath.Join(h.Dir, "known_hosts"), os.O_APPEND|os.O_WRONLY, 0))(t)
	_, err := fmt.Fprintf(known, "[127.0.0.1]:%d %s", m.port(), h.publicKey(t, "host_key"))
	if err := errors.Join(err, known.Close()); err != nil {
		t.Fatal(err)
	}
	m.passing.Go(m.accept)
	t.Cleanup(func() {
		m.listener.Close()
		m.passing.Wait()
	})
	return m
}

func (m *Meter) port() int { return m.listener.Addr().(*net.TCPAddr).Port }

// Remote returns what Host.Remote does, but through the meter.
func (m *Meter) Remote(t testing.TB) []string {
	return append(m.host.Remote(t), fmt.Sprintf("port=%d", m.port()))
}

// Take returns how many bytes have passed in both directions since the last call.
func (m *Meter) Take() int64 { return m.bytes.Swap(0) }

// Break makes a connection break when so many more bytes have passed: the one that the
// last of them comes from.
func (m *Meter) Break(after int64) { m.left.Store(after) }

func (m *Meter) accept() {
	for {
		client, err := m.listener.Accept()
		if err != nil {
			return // closed
		}
		server, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", m.host.port))
		if err != nil {
			client.Close() // who will say so
			continue
		}
		m.passing.Go(func() { m.pass(client, server) })
		m.passing.Go(func() { m.pass(server, client) })
	}
}

// pass copies until one side ends, and ends the other with it.
func (m *Meter) pass(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	// That a connection breaks is seen by those who use it.
	_, _ = io.Copy(to, counted{from, m})
}

// A counted is one direction of a connection.
type counted struct {
	io.Reader
	meter *Meter
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.meter.bytes.Add(int64(n))
	if left := c.meter.left.Add(-int64(n)); left <= 0 && left+int64(n) > 0 {
		return n, errors.New("the connection was to break")
	}
	return n, err
}
