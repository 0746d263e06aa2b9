package sshexec

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rclone/rclone/backend/sftp"
	"github.com/rclone/rclone/fs/config/configmap"
)

// need skips a test for want of a program, or fails it where everything is meant
// to be there. It returns where the program is.
func need(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name) // often not in a user's PATH
	}
	if err == nil {
		return path
	}
	if os.Getenv("DISKRSYNC_TEST_REAL") == "1" {
		t.Fatalf("this test needs %s", name)
	}
	t.Skipf("this test needs %s", name)
	return ""
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	check(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	check(t, err)
	return string(text)
}

// run runs a program that must succeed and returns what it printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(need(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// A server is a real sshd on loopback. Its folder holds host_key, user_key and
// known_hosts, among others.
type server struct {
	dir  string
	port string
}

// startServer starts an sshd that the user of the test can log in to, with
// further lines of configuration.
func startServer(t testing.TB, lines ...string) *server {
	t.Helper()
	sshd := need(t, "sshd")
	s := &server{dir: t.TempDir(), port: freePort(t)}
	if os.Geteuid() == 0 {
		check(t, os.MkdirAll("/run/sshd", 0o755)) // which sshd wants, and only the system's start makes
	}
	s.makeKey(t, "host_key")
	s.makeKey(t, "user_key")
	write(t, s.file("authorized_keys"), read(t, s.file("user_key.pub")))
	write(t, s.file("known_hosts"), s.knownLine(t, "host_key.pub"))
	config := append([]string{
		"Port " + s.port, "ListenAddress 127.0.0.1", "HostKey " + s.file("host_key"),
		"AuthorizedKeysFile " + s.file("authorized_keys"), "PidFile none", "StrictModes no", "UsePAM no",
		"PermitRootLogin yes", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitUserRC no",
		"MaxStartups 100", "AcceptEnv SSHEXEC_*", "Subsystem sftp internal-sftp",
	}, lines...)
	write(t, s.file("sshd_config"), strings.Join(config, "\n")+"\n")
	s.launch(t, sshd)
	return s
}

// launch starts sshd and has it end with the test.
func (s *server) launch(t testing.TB, sshd string) {
	t.Helper()
	cmd := exec.Command(sshd, "-D", "-e", "-f", s.file("sshd_config"))
	log, err := os.Create(s.file("log"))
	check(t, err)
	cmd.Stderr = log
	check(t, cmd.Start())
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is told to end
		close(gone)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have failed before
		<-gone
		log.Close()
		if t.Failed() {
			t.Logf("sshd said:\n%s", read(t, s.file("log")))
		}
	})
	for {
		conn, err := net.Dial("tcp", "127.0.0.1:"+s.port)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-gone:
			t.Fatalf("sshd did not start: %s", read(t, s.file("log")))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	check(t, err)
	return port
}

func (s *server) file(name string) string { return filepath.Join(s.dir, name) }

func (s *server) makeKey(t testing.TB, name string, args ...string) string {
	t.Helper()
	if len(args) == 0 {
		args = []string{"-t", "ed25519", "-N", ""}
	}
	run(t, "ssh-keygen", append([]string{"-q", "-C", "", "-f", s.file(name)}, args...)...)
	return s.file(name)
}

// knownLine returns the line of known_hosts for a public key of this server.
func (s *server) knownLine(t testing.TB, publicKey string) string {
	t.Helper()
	return "[127.0.0.1]:" + s.port + " " + read(t, s.file(publicKey))
}

// settings returns the settings of a remote that works, with some changed. An
// empty value removes one.
func (s *server) settings(changed map[string]string) configmap.Simple {
	m := configmap.Simple{
		"host":             "127.0.0.1",
		"port":             s.port,
		"key_file":         s.file("user_key"),
		"known_hosts_file": s.file("known_hosts"),
	}
	maps.Copy(m, changed)
	for key, value := range changed {
		if value == "" {
			delete(m, key)
		}
	}
	return m
}

// host returns the server as a Host that is closed at the end of the test, when
// nothing of it may be left.
func (s *server) host(t testing.TB, changed map[string]string) *Host {
	t.Helper()
	return newHost(t, s.settings(changed), Options{})
}

func newHost(t testing.TB, m configmap.Simple, o Options) *Host {
	t.Helper()
	h, err := New("nas", m, o)
	check(t, err)
	t.Cleanup(func() {
		check(t, h.Close())
		checkNothingLeft(t)
	})
	return h
}

// checkNothingLeft waits for the goroutines of this package to end.
func checkNothingLeft(t testing.TB) {
	t.Helper()
	ours := regexp.MustCompile(`sshexec\.\(\*(Host|Process|connection|login)\)`)
	var stacks []byte
	for range 500 {
		stacks = make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if !ours.Match(stacks) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("goroutines are left behind:\n%s", stacks)
}

func start(t testing.TB, h *Host, command string) *Process {
	t.Helper()
	p, err := h.Start(context.Background(), command)
	check(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// output runs a command to its end and returns what it wrote.
func output(t testing.TB, h *Host, command string) string {
	t.Helper()
	p := start(t, h, command)
	got, err := io.ReadAll(p)
	check(t, err)
	if err := p.Close(); err != nil {
		t.Fatal(p.Explain(err))
	}
	return string(got)
}

// expect reads exactly what is wanted.
func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v, want %q", got, err, want)
	}
}

// asSFTP makes the sftp backend log in by the same settings.
func asSFTP(t testing.TB, m configmap.Simple) error {
	t.Helper()
	copied := configmap.Simple{"shell_type": "unix", "disable_hashcheck": "true", "subsystem": "sftp", "chunk_size": "32Ki", "concurrency": "4"}
	maps.Copy(copied, m)
	f, err := sftp.NewFs(context.Background(), "nas", t.TempDir(), copied)
	if err != nil {
		return err
	}
	if _, err := f.List(context.Background(), ""); err != nil {
		return fmt.Errorf("listing: %w", err)
	}
	return f.Features().Shutdown(context.Background())
}

// A relay passes connections on to a server and can cut or stall them.
type relay struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	conns    []net.Conn
	made     int           // connections that were made
	passing  int           // directions of connections that are open
	stall    chan struct{} // closed once nothing passes any more
}

func startRelay(t testing.TB, target string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	r := &relay{listener: l, target: target, stall: make(chan struct{})}
	go r.serve()
	t.Cleanup(func() {
		l.Close()
		r.cut()
	})
	return r
}

func (r *relay) port() string {
	_, port, _ := net.SplitHostPort(r.listener.Addr().String())
	return port
}

func (r *relay) serve() {
	for {
		from, err := r.listener.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", r.target)
		if err != nil {
			from.Close()
			continue
		}
		r.mu.Lock()
		r.conns = append(r.conns, from, to)
		r.made++
		r.passing += 2
		r.mu.Unlock()
		go r.pass(from, to)
		go r.pass(to, from)
	}
}

// pass copies until one side is closed. A stalled relay swallows what comes.
func (r *relay) pass(to, from net.Conn) {
	defer func() {
		to.Close()
		r.mu.Lock()
		r.passing--
		r.mu.Unlock()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		select {
		case <-r.stall:
			continue
		default:
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cut ends all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range r.conns {
		conn.Close()
	}
	r.conns = nil
}

// awaitNone waits until no connection is open.
func (r *relay) awaitNone() {
	for {
		r.mu.Lock()
		passing := r.passing
		r.mu.Unlock()
		if passing == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// count returns how many connections were made so far.
func (r *relay) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.made
}

// me returns the name of the user of the test.
func me(t testing.TB) string {
	t.Helper()
	u, err := user.Current()
	check(t, err)
	return u.Username
}
