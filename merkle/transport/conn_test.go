package transport

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func dial(t *testing.T, o Options) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), "", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// expect reads exactly what is wanted.
func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v, want %q", got, err, want)
	}
}

func TestDialEchoesBothWays(t *testing.T) {
	c := dial(t, Options{RSH: carrier("echo")})
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- errors.Join(err, c.CloseWrite(), c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("read %d bytes, %v, want the %d that were sent", len(got), err, len(sent))
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatalf("closing again: %v", err)
	}
	if err := c.Explain(nil); err != nil {
		t.Fatalf("explaining success: %v", err)
	}
	if err := c.Explain(io.ErrUnexpectedEOF); err != io.ErrUnexpectedEOF {
		t.Fatalf("explained as %v, although the carrier did well", err)
	}
}

func TestDialHandsOnWords(t *testing.T) {
	c, err := Dial(t.Context(), "u@nas", Options{RSH: carrier("args", "to %h", ""), CmdPath: "/opt/a b"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := json.NewDecoder(c).Decode(&got); err != nil {
		t.Fatal(c.Explain(err))
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"to u@nas", "", "/opt/a b", "serve", "--stdio"}; !slices.Equal(got, want) {
		t.Errorf("the carrier got %q, want %q", got, want)
	}
}

// fakeSSH makes this test binary the only program in PATH, as ssh.
func fakeSSH(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" {
		missing(t, "symbolic links without an extension")
	}
	dir := t.TempDir()
	if err := os.Symlink(program(t), filepath.Join(dir, "ssh")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
}

func TestDialRunsSSH(t *testing.T) {
	fakeSSH(t)
	c, err := Dial(t.Context(), "u@::1", Options{SSHFlags: "-i 'a b' -p 2222", CmdPath: "~/my bin/d"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := json.NewDecoder(c).Decode(&got); err != nil {
		t.Fatal(c.Explain(err))
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"ssh", "-i", "a b", "-p", "2222", "--", "u@::1", "~/'my bin/d' serve --stdio"}
	if !slices.Equal(got, want) {
		t.Errorf("ssh got %q, want %q", got, want)
	}
}

func TestDialRefuses(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	ended, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	cancel(reason)
	tests := []struct {
		name string
		ctx  context.Context
		host string
		want error
		text string
	}{
		{"ssh missing", t.Context(), "nas", exec.ErrNotFound, "ssh"},
		{"no host", t.Context(), "", nil, "no host"},
		{"option as host", t.Context(), "-x", nil, "dash"},
		{"context ended", ended, "nas", reason, "nas"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Dial(tt.ctx, tt.host, Options{})
			if err == nil {
				t.Fatal("dialled", c.Close())
			}
			if tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
	checkNothingLeft(t)
}

func TestCarrierDiesMidConversation(t *testing.T) {
	c := dial(t, Options{RSH: carrier("die", "\x1b[31mout of\tmemory\x07\r\nand more\u202e\n\n")})
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 100)); err != io.EOF {
		t.Fatalf("reading ended with %v, want io.EOF", err)
	}
	err := c.Explain(io.ErrUnexpectedEOF)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v does not wrap the error it explains", err)
	}
	if want := `exit status 3: \x1b[31mout of memory\a | and more\u202e (unexpected EOF)`; !strings.HasSuffix(err.Error(), want) {
		t.Errorf("explained as %q, want it to end in %q", err, want)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("writing to a closed connection succeeds")
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("reading a closed connection ends with %v", err)
	}
}

func TestCarrierThatPrintsMuch(t *testing.T) {
	var all bytes.Buffer
	c := dial(t, Options{RSH: carrier("chatter"), Stderr: &all})
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Fatal(err)
	}
	msg := c.Explain(io.ErrUnexpectedEOF).Error()
	last := "line " + strconv.Itoa(chatterLines-1) + " of many (unexpected EOF)"
	if !strings.HasSuffix(msg, last) || !strings.HasPrefix(msg, "... | line ") {
		t.Errorf("explained as %.60q ... %q", msg, msg[max(0, len(msg)-60):])
	}
	if len(msg) > 2*maxTail {
		t.Errorf("the error is %d bytes long", len(msg))
	}
	if lines := bytes.Count(all.Bytes(), []byte("\n")); lines != chatterLines {
		t.Errorf("%d lines were copied, want %d", lines, chatterLines)
	}
}

type brokenWriter struct{ writes int }

func (w *brokenWriter) Write([]byte) (int, error) {
	w.writes++
	return 0, io.ErrShortWrite
}

func TestBrokenLogDoesNotStallCarrier(t *testing.T) {
	var log brokenWriter
	c := dial(t, Options{RSH: carrier("chatter"), Stderr: &log})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if log.writes != 1 {
		t.Errorf("the log was written %d times", log.writes)
	}
}

func TestCloseEndsCarrier(t *testing.T) {
	tests := []struct {
		part string
		want syscall.Signal
	}{
		{"linger", syscall.SIGTERM},
		{"deaf", syscall.SIGKILL},
	}
	for _, tt := range tests {
		t.Run(tt.part, func(t *testing.T) {
			t.Parallel()
			c := dial(t, Options{RSH: carrier(tt.part)})
			expect(t, c, "ready")
			if err := c.Close(); err == nil || !strings.Contains(err.Error(), "made to") {
				t.Errorf("closing gives %v", err)
			}
			if err := c.process.Signal(syscall.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("the carrier is still there (%v)", err)
			}
			if status, ok := c.state.Sys().(syscall.WaitStatus); runtime.GOOS != "windows" && (!ok || status.Signal() != tt.want) {
				t.Errorf("the carrier ended with %v, want %v", c.state, tt.want)
			}
		})
	}
}

// TestCloseWhileInUse closes while a Read waits for bytes and a Write for room.
func TestCloseWhileInUse(t *testing.T) {
	c := dial(t, Options{RSH: carrier("linger")})
	expect(t, c, "ready")
	failed := make(chan error, 2)
	go func() {
		_, err := c.Read(make([]byte, 1))
		failed <- err
	}()
	go func() {
		_, err := c.Write(make([]byte, 1<<20))
		failed <- err
	}()
	closed := make(chan error, 2)
	for range cap(closed) {
		go func() { closed <- c.Close() }()
	}
	for range cap(failed) {
		if err := <-failed; !errors.Is(err, os.ErrClosed) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("a call in progress ended with %v", err)
		}
	}
	if a, b := <-closed, <-closed; a != b {
		t.Errorf("closing twice gives %v and %v", a, b)
	}
}

// TestCloseDoesNotWaitForUnreadBytes holds that a carrier that writes without end
// is ended by nobody reading, and that this is not taken for a failure.
func TestCloseDoesNotWaitForUnreadBytes(t *testing.T) {
	c := dial(t, Options{RSH: carrier("flood")})
	expect(t, c, "\x00")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestContextClosesConnection(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	c, err := Dial(ctx, "", Options{RSH: carrier("echo")})
	if err != nil {
		t.Fatal(err)
	}
	reason := errors.New("interrupted")
	cancel(reason)
	if _, err := io.ReadFull(c, make([]byte, 1)); !errors.Is(err, reason) {
		t.Errorf("reading ends with %v, want the reason of the context's end", err)
	}
	c.Close()
	if _, err := c.Write([]byte("x")); !errors.Is(err, reason) {
		t.Errorf("writing ends with %v, want the reason of the context's end", err)
	}
	checkNothingLeft(t)
}

// TestErrorOutputHeldOpen has a carrier that ends and leaves a process behind
// which keeps its error output open, as ssh does with ControlPersist.
func TestErrorOutputHeldOpen(t *testing.T) {
	c := dial(t, Options{RSH: carrier("leave")})
	pid, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.FindProcess(n)
	if err != nil {
		t.Fatal(err)
	}
	defer left.Kill()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t)
}

func TestNothingLeftBehind(t *testing.T) {
	before := openFiles(t)
	for _, part := range [][]string{{"echo"}, {"die", "x"}, {"fail", "1", "x"}, {"flood"}, {"chatter"}} {
		for range 5 {
			c := dial(t, Options{RSH: carrier(part[0], part[1:]...)})
			if _, err := c.Write([]byte("hello")); err != nil && !errors.Is(err, syscall.EPIPE) {
				t.Fatal(err)
			}
			if err := c.Explain(io.ErrUnexpectedEOF); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
		}
	}
	checkNothingLeft(t)
	if after := openFiles(t); after > before {
		t.Errorf("%d files are open, %d were before", after, before)
	}
}

// openFiles counts the files this process has open, or returns 0 where the
// system does not tell.
func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil && runtime.GOOS == "linux" {
		t.Fatal(err)
	}
	return len(files)
}

// TestCarrierEndsWithParent kills the process that dialled. Its carrier does not
// read, so only the system can tell it.
func TestCarrierEndsWithParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a process that its parent is gone")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	parent := exec.Command(os.Args[0], asCarrier, "parent", listener.Addr().String())
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	defer parent.Wait()
	defer parent.Process.Kill()
	held, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	expect(t, held, "held")
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := held.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := held.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the carrier outlives its parent (%v)", err)
	}
}
