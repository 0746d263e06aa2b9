package sshexec

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/rclone/rclone/fs/config/configmap"
	"github.com/rclone/rclone/fs/config/obscure"
)

func TestNewRefuses(t *testing.T) {
	base := configmap.Simple{"host": "nas", "known_hosts_file": "/nowhere"}
	tests := []struct {
		changed configmap.Simple
		want    string
	}{
		{configmap.Simple{"host": ""}, "host is not set"},
		{configmap.Simple{"known_hosts_file": ""}, "host keys are not checked"},
		{configmap.Simple{"known_hosts_file": "", "pin_host_key": "true"}, "no host key is pinned yet"},
		{configmap.Simple{"known_hosts_file": "", "host_keys": "ssh-ed25519"}, "host_keys"},
		{configmap.Simple{"shell_type": "none"}, "shell_type is none"},
		{configmap.Simple{"shell_type": "powershell"}, "shell_type is powershell"},
		{configmap.Simple{"shell_type": "cmd"}, "set shell_type=unix"},
		{configmap.Simple{"shell_type": "cmd", "ssh": "ssh nas"}, "set shell_type=unix"},
		{configmap.Simple{"pass": "not obscured"}, "pass: "},
		{configmap.Simple{"key_file_pass": "x"}, "key_file_pass: "},
		{configmap.Simple{"use_insecure_cipher": "true", "ciphers": "aes128-ctr"}, "use_insecure_cipher"},
		{configmap.Simple{"set_env": "A"}, `no = in "A"`},
		{configmap.Simple{"set_env": "A=b", "ssh": "ssh nas"}, "set_env"},
		{configmap.Simple{"http_proxy": "http://u:secret@bad host"}, "http_proxy"},
		{configmap.Simple{"http_proxy": "proxy:8080"}, "http_proxy"},
		{configmap.Simple{"key_use_agent": "perhaps"}, "key_use_agent"},
	}
	for _, tt := range tests {
		m := configmap.Simple{}
		for _, from := range []configmap.Simple{base, tt.changed} {
			for key, value := range from {
				m[key] = value
			}
		}
		h, err := New("nas", m, Options{})
		if h != nil {
			t.Errorf("%v is accepted", tt.changed)
			continue
		}
		oneLine(t, err, "remote nas: ", tt.want)
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("a password is told: %v", err)
		}
	}
	if _, err := New("nas", base, Options{}); err != nil {
		t.Error(err)
	}
}

// behind returns a server and a relay in front of it, with a host that knows only
// the relay.
func behind(t *testing.T, changed map[string]string, lines ...string) (*relay, *Host) {
	t.Helper()
	s := startServer(t, lines...)
	r := startRelay(t, "127.0.0.1:"+s.port)
	m := s.settings(changed)
	m["port"] = r.port()
	m["known_hosts_file"] = write(t, s.file("known_relay"), "[127.0.0.1]:"+r.port()+" "+read(t, s.file("host_key.pub")))
	return r, newHost(t, m, Options{})
}

func TestOneConnection(t *testing.T) {
	r, h := behind(t, nil)
	if r.count() != 0 {
		t.Error("there is a connection before the first program")
	}
	p := start(t, h, "cat")
	for range 3 {
		greet(t, h)
	}
	check(t, p.Close())
	greet(t, h)
	if n := r.count(); n != 1 {
		t.Errorf("%d connections were made", n)
	}
}

// TestManyAtOnce starts more programs at once than a server takes on one
// connection, and has them all run at the same time.
func TestManyAtOnce(t *testing.T) {
	for _, sessions := range []int{1, 4, 10} {
		t.Run(strconv.Itoa(sessions), func(t *testing.T) {
			const programs = 12
			r, h := behind(t, nil, "MaxSessions "+strconv.Itoa(sessions))
			var running sync.WaitGroup
			all := make(chan *Process, programs)
			for range programs {
				running.Go(func() {
					p, err := h.Start(t.Context(), "echo ready; cat")
					if err != nil {
						t.Error(err)
						return
					}
					all <- p
				})
			}
			running.Wait()
			close(all)
			var processes []*Process
			for p := range all {
				expect(t, p, "ready\n")
				processes = append(processes, p)
			}
			want := (programs + sessions - 1) / sessions
			if n := r.count(); n != want {
				t.Errorf("%d connections were made, want %d", n, want)
			}
			for _, p := range processes {
				running.Go(func() {
					if err := p.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			running.Wait()
		})
	}
}

func TestNoSessions(t *testing.T) {
	_, h := behind(t, nil, "MaxSessions 0")
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			if _, err := h.Start(t.Context(), "true"); err == nil || !strings.Contains(err.Error(), "opening an ssh session") {
				t.Errorf("starting ends with %v", err)
			}
		})
	}
	running.Wait()
}

func TestBrokenConnection(t *testing.T) {
	r, h := behind(t, nil)
	p := start(t, h, "echo ready; cat")
	expect(t, p, "ready\n")
	r.cut()
	if _, err := io.ReadFull(p, make([]byte, 1)); err != io.EOF {
		t.Errorf("reading ends with %v", err)
	}
	oneLine(t, p.Explain(io.ErrUnexpectedEOF), "the ssh connection was lost: ", "(unexpected EOF)")
	greet(t, h)
	r.cut() // while it is idle
	greet(t, h)
	if n := r.count(); n != 3 {
		t.Errorf("%d connections were made, want 3", n)
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	r, h := behind(t, map[string]string{"idle_timeout": "20ms"})
	p := start(t, h, "sleep 0.2; echo hello")
	expect(t, p, "hello\n")
	check(t, p.Close())
	r.awaitNone() // for ever, if the connection stays
	greet(t, h)
	if n := r.count(); n != 2 {
		t.Errorf("%d connections were made, want 2", n)
	}
}

// impatient returns a context in which connections are given up on which nothing
// moves for d.
func impatient(t *testing.T, d time.Duration) context.Context {
	ctx, config := fs.AddConfig(t.Context())
	config.Timeout = fs.Duration(d)
	return ctx
}

// TestSilenceIsKeptUp has a program that is silent for much longer than rclone
// waits for a connection that is silent.
func TestSilenceIsKeptUp(t *testing.T) {
	s := startServer(t)
	h := s.host(t, nil)
	p, err := h.Start(impatient(t, 1500*time.Millisecond), "sleep 5; echo done; cat")
	check(t, err)
	expect(t, p, "done\n")
	if err := p.Close(); err != nil {
		t.Error(p.Explain(err))
	}
}

// TestDeadServer has a server that falls silent itself: our own requests must not
// pass for its signs of life.
func TestDeadServer(t *testing.T) {
	r, h := behind(t, nil)
	p, err := h.Start(impatient(t, time.Second), "echo ready; cat")
	check(t, err)
	expect(t, p, "ready\n")
	close(r.stall)
	if _, err := io.ReadFull(p, make([]byte, 1)); err != io.EOF {
		t.Errorf("reading ends with %v", err)
	}
	oneLine(t, p.Explain(io.ErrUnexpectedEOF), "the ssh connection was lost", "timeout")
}

func TestKeepAliveInterval(t *testing.T) {
	const wanted = 40 * time.Second
	for timeout, want := range map[time.Duration]time.Duration{
		0: wanted, 5 * time.Minute: wanted, time.Minute: 20 * time.Second, 1: time.Millisecond,
	} {
		if got := keepAliveInterval(wanted, timeout); got != want {
			t.Errorf("at a timeout of %v: %v, want %v", timeout, got, want)
		}
	}
}

// TestContextEndsDial dials a server that accepts and says nothing, directly and
// by way of proxies that do the same.
func TestContextEndsDial(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	silent := l.Addr().String()
	_, port, err := net.SplitHostPort(silent)
	check(t, err)
	for name, changed := range map[string]configmap.Simple{
		"direct": {},
		"socks":  {"socks_proxy": silent},
		"http":   {"http_proxy": "http://" + silent},
	} {
		t.Run(name, func(t *testing.T) {
			m := configmap.Simple{"host": "127.0.0.1", "port": port, "pass": obscure.MustObscure("x")}
			for key, value := range changed {
				m[key] = value
			}
			h := newHost(t, m, Options{InsecureHostKey: true})
			ctx, cancel := context.WithCancelCause(t.Context())
			reason := errors.New("enough")
			failed := make(chan error, 2)
			for range cap(failed) { // one dials, one waits for it
				go func() {
					_, err := h.Start(ctx, "true")
					failed <- err
				}()
			}
			conn, err := l.Accept()
			check(t, err)
			defer conn.Close()
			cancel(reason)
			for range cap(failed) {
				if err := <-failed; !errors.Is(err, reason) {
					t.Errorf("dialling ends with %v", err)
				}
			}
		})
	}
}

// TestContextOfAnother has the context of the one end who dials. Whoever waits
// for that dials in its place.
func TestContextOfAnother(t *testing.T) {
	r, h := behind(t, nil)
	h.opening <- struct{}{}
	first, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := h.Start(first, "true")
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("waiting ends with %v", err)
	}
	<-h.opening
	greet(t, h)
	if n := r.count(); n != 1 {
		t.Errorf("%d connections were made", n)
	}
}

// TestContextEndsStart has a server that falls silent before a further program is
// started. The connection, which may be good, is not given up for it.
func TestContextEndsStart(t *testing.T) {
	r, h := behind(t, nil)
	greet(t, h)
	close(r.stall)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Start(ctx, "true"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("starting ends with %v", err)
	}
	if n := r.count(); n != 1 {
		t.Errorf("%d connections were made", n)
	}
}

// TestProxies goes through proxies that want a password.
func TestProxies(t *testing.T) {
	s := startServer(t)
	socks, web := startSOCKS(t), startHTTPProxy(t)
	for name, changed := range map[string]map[string]string{
		"socks": {"socks_proxy": "me:p:w@" + socks.addr()},
		"http":  {"http_proxy": "http://me:p%3Aw@" + web.addr()},
	} {
		t.Run(name, func(t *testing.T) {
			greet(t, s.host(t, changed))
			check(t, asSFTP(t, s.settings(changed)))
		})
	}
	for name, changed := range map[string]map[string]string{
		"socks refuses": {"socks_proxy": "me:no@" + socks.addr()},
		"http refuses":  {"http_proxy": "http://me:no@" + web.addr()},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.host(t, changed).Start(t.Context(), "true")
			oneLine(t, err, "nas", "connecting to")
			if strings.Contains(err.Error(), ":no@") {
				t.Errorf("a password is told: %v", err)
			}
		})
	}
	if socks.served() == 0 || web.served() == 0 {
		t.Error("a proxy was passed by")
	}
}

// A proxy takes one connection after the other to where its protocol says. The
// user is me, and the password p:w.
type proxyServer struct {
	listener net.Listener
	mu       sync.Mutex
	passed   int
}

func (p *proxyServer) addr() string { return p.listener.Addr().String() }

func (p *proxyServer) served() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passed
}

func startProxy(t *testing.T, greet func(*bufio.Reader, io.Writer) (string, error)) *proxyServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { l.Close() })
	p := &proxyServer{listener: l}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn, greet)
		}
	}()
	return p
}

func (p *proxyServer) serve(conn net.Conn, greet func(*bufio.Reader, io.Writer) (string, error)) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	target, err := greet(in, conn)
	if err != nil {
		return
	}
	to, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer to.Close()
	p.mu.Lock()
	p.passed++
	p.mu.Unlock()
	go func() {
		io.Copy(to, in)
		to.Close()
	}()
	io.Copy(conn, to)
}

func startHTTPProxy(t *testing.T) *proxyServer {
	return startProxy(t, func(in *bufio.Reader, out io.Writer) (string, error) {
		req, err := http.ReadRequest(in)
		if err != nil {
			return "", err
		}
		req.Header.Set("Authorization", req.Header.Get("Proxy-Authorization"))
		if user, pass, _ := req.BasicAuth(); req.Method != "CONNECT" || user != "me" || pass != "p:w" {
			io.WriteString(out, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
			return "", errors.New("refused")
		}
		_, err = io.WriteString(out, "HTTP/1.1 200 OK\r\n\r\n")
		return req.Host, err
	})
}

// startSOCKS starts a proxy that speaks as much of SOCKS 5 (RFC 1928, RFC 1929) as
// it takes to connect to an IPv4 address.
func startSOCKS(t *testing.T) *proxyServer {
	return startProxy(t, func(in *bufio.Reader, out io.Writer) (string, error) {
		take := func(n int) []byte {
			b := make([]byte, n)
			io.ReadFull(in, b) // what is missing reads as zeros, which are refused
			return b
		}
		take(int(take(2)[1]))   // the methods that are offered
		out.Write([]byte{5, 2}) // user and password
		user := string(take(int(take(2)[1])))
		pass := string(take(int(take(1)[0])))
		if user != "me" || pass != "p:w" {
			out.Write([]byte{1, 1})
			return "", errors.New("refused")
		}
		out.Write([]byte{1, 0})
		req := take(10)
		if req[1] != 1 || req[3] != 1 {
			return "", errors.New("not a connection to an IPv4 address")
		}
		_, err := out.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		return net.JoinHostPort(net.IP(req[4:8]).String(), strconv.Itoa(int(req[8])<<8|int(req[9]))), err
	})
}

// TestBandwidthLimit holds that what crosses the wire in either direction takes
// the time that --bwlimit wants, whoever makes the connection.
func TestBandwidthLimit(t *testing.T) {
	const size, perSecond = 3 << 20, 2 << 20
	eachWay(t, func(t *testing.T, h *Host) {
		for name, limit := range map[string]fs.BwPair{"sending": {Tx: perSecond}, "receiving": {Rx: perSecond}} {
			t.Run(name, func(t *testing.T) {
				p := start(t, h, "cat")
				accounting.TokenBucket.SetBwLimit(limit)
				defer accounting.TokenBucket.SetBwLimit(fs.BwPair{Tx: -1, Rx: -1})
				began := time.Now()
				go p.Write(make([]byte, size))
				if _, err := io.ReadFull(p, make([]byte, size)); err != nil {
					t.Fatal(p.Explain(err))
				}
				if took := time.Since(began); took < time.Second {
					t.Errorf("%d bytes took %v", size, took)
				}
			})
		}
	})
}
