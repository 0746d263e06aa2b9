package sshexec

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/rclone/rclone/fs/config/configmap"

	"github.com/diskrsync/diskrsync/merkle/transport"
)

// eachWay runs a test over a connection of this package and by way of an external
// ssh.
func eachWay(t *testing.T, test func(t *testing.T, h *Host)) {
	s := startServer(t)
	t.Run("internal", func(t *testing.T) { test(t, s.host(t, nil)) })
	t.Run("external", func(t *testing.T) { test(t, newHost(t, s.external(t), Options{})) })
}

// external returns the settings of a remote that is reached by ssh.
func (s *server) external(t testing.TB) configmap.Simple {
	t.Helper()
	need(t, "ssh")
	config := write(t, s.file("ssh_config"), "Host 127.0.0.1\nPort "+s.port+"\nIdentityFile "+s.file("user_key")+
		"\nUserKnownHostsFile "+s.file("known_hosts")+"\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nIdentitiesOnly yes\nBatchMode yes\n")
	return configmap.Simple{"ssh": "ssh -F " + config + " 127.0.0.1"}
}

func TestBothWays(t *testing.T) {
	eachWay(t, func(t *testing.T, h *Host) {
		p := start(t, h, "cat")
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
		wrote := make(chan error, 1)
		go func() {
			_, err := p.Write(sent)
			wrote <- err
		}()
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(p, got); err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("read %v, and not what was sent", err)
		}
		check(t, <-wrote)
		check(t, p.Close())
		check(t, p.Close())
		check(t, p.Explain(nil))
		if err := p.Explain(io.ErrUnexpectedEOF); err != io.ErrUnexpectedEOF {
			t.Errorf("explained as %v, although the program did well", err)
		}
	})
}

func TestExternalSFTP(t *testing.T) {
	s := startServer(t)
	check(t, asSFTP(t, s.external(t)))
}

// TestExternalHostKey leaves the host key to ssh.
func TestExternalHostKey(t *testing.T) {
	s := startServer(t)
	m := s.external(t)
	write(t, s.file("known_hosts"), "")
	p := start(t, newHost(t, m, Options{}), "echo hello")
	if _, err := io.ReadFull(p, make([]byte, 1)); err != io.EOF {
		t.Errorf("reading ends with %v", err)
	}
	oneLine(t, p.Explain(io.EOF), "ssh: exit status 255", "Host key verification failed")
}

func TestExternalMissing(t *testing.T) {
	h := newHost(t, configmap.Simple{"ssh": "/nowhere/ssh nas"}, Options{})
	_, err := h.Start(t.Context(), "true")
	oneLine(t, err, "remote nas", "/nowhere/ssh")
}

func TestExplain(t *testing.T) {
	eachWay(t, func(t *testing.T, h *Host) {
		tests := []struct {
			name, command string
			want          []string
			hint          bool
		}{
			{"missing", "diskrsync serve --stdio", []string{"exit status 127", "diskrsync: ", "not found"}, true},
			{"not a program", "/etc/passwd", []string{"exit status 126"}, true},
			{"missing to csh", "echo 'diskrsync: Command not found.' >&2; exit 1", []string{"exit status 1"}, true},
			{"other program missing", "echo 'diskrsync: qemu-nbd: Command not found.' >&2; exit 1", nil, false},
			{"no such file", "cat /no/such/image", []string{"exit status 1", "cat: /no/such/image"}, false},
			{"status", "exit 3", []string{"exit status 3"}, false},
			{"last of several lines", "echo one >&2; echo two >&2; echo >&2; exit 1", []string{": two ("}, false},
			{"control characters", `printf 'a\033[31mb\tc\007\r\n' >&2; exit 1`, []string{`a\x1b[31mb c\a (`}, false},
			{"success and a word", "echo oh >&2", []string{"oh ("}, false},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				p := start(t, h, tt.command)
				if _, err := io.ReadFull(p, make([]byte, 1)); err != io.EOF {
					t.Fatalf("reading ends with %v", err)
				}
				err := p.Explain(io.ErrUnexpectedEOF)
				oneLine(t, err, tt.want...)
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%v does not wrap the error it explains", err)
				}
				if got := strings.Contains(err.Error(), "; install diskrsync on nas or set agent_path"); got != tt.hint {
					t.Errorf("%v: the hint is there: %v, want %v", err, got, tt.hint)
				}
			})
		}
	})
}

func TestProgramDies(t *testing.T) {
	eachWay(t, func(t *testing.T, h *Host) {
		p := start(t, h, "echo ready; read x; echo 'out of memory' >&2; kill -KILL $$")
		expect(t, p, "ready\n")
		_, err := p.Write([]byte("go\n"))
		check(t, err)
		if _, err := io.ReadFull(p, make([]byte, 1)); err != io.EOF {
			t.Fatalf("reading ends with %v", err)
		}
		oneLine(t, p.Explain(io.ErrUnexpectedEOF), "out of memory (unexpected EOF)")
		if err := p.Close(); err == nil || !strings.HasPrefix(err.Error(), "remote nas: ") {
			t.Errorf("closing gives %v", err)
		}
		if _, err := p.Write([]byte("x")); err == nil {
			t.Error("writing to a dead program succeeds")
		}
	})
}

func TestSignal(t *testing.T) {
	h := startServer(t).host(t, nil)
	p := start(t, h, "kill -KILL $$")
	oneLine(t, p.Explain(io.EOF), "ended by signal KILL (EOF)")
}

// TestFlood holds that errors without end neither stop the output nor fill the
// memory, nor the error.
func TestFlood(t *testing.T) {
	eachWay(t, func(t *testing.T, h *Host) {
		p := start(t, h, "head -c 8000000 /dev/zero | tr '\\0' x >&2; echo done; exit 1")
		expect(t, p, "done\n")
		err := p.Explain(io.ErrUnexpectedEOF)
		if len(err.Error()) > 1000 || !strings.Contains(err.Error(), "xxx") {
			t.Errorf("the error has %d bytes: %.100s", len(err.Error()), err)
		}
		if held := len(strings.Join(p.messages.Lines(), "")); held > 10_000 {
			t.Errorf("%d bytes are kept", held)
		}
	})
}

// TestCloseDelivers holds that what was written before arrives, however much and
// however slowly it is read.
func TestCloseDelivers(t *testing.T) {
	eachWay(t, func(t *testing.T, h *Host) {
		file := t.TempDir() + "/got"
		p := start(t, h, "sleep 1; cat > "+transport.Quote(file))
		sent := strings.Repeat("0123456789abcdef", 1<<16)
		_, err := p.Write([]byte(sent))
		check(t, err)
		check(t, p.Close())
		if got := read(t, file); got != sent {
			t.Errorf("%d bytes have arrived, %d were sent", len(got), len(sent))
		}
	})
}

// TestCloseWhileInUse closes while a Read waits for bytes and a Write for room,
// of a program that does neither. That it is made to end is up to the server, and
// sshd does not do that for root.
func TestCloseWhileInUse(t *testing.T) {
	eachWay(t, func(t *testing.T, h *Host) {
		p := start(t, h, "echo ready; exec sleep 20")
		expect(t, p, "ready\n")
		failed := make(chan error, 2)
		go func() {
			_, err := p.Read(make([]byte, 1))
			failed <- err
		}()
		go func() {
			_, err := p.Write(make([]byte, 64<<20))
			failed <- err
		}()
		closed := make(chan error, 2)
		for range cap(closed) {
			go func() { closed <- p.Close() }()
		}
		for range cap(failed) {
			if err := <-failed; !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("a call in progress ended with %v", err)
			}
		}
		a, b := <-closed, <-closed
		oneLine(t, a, "nas")
		if a != b {
			t.Errorf("closing twice gives %v and %v", a, b)
		}
	})
}

// TestCloseTakesWhatNobodyReads has a program that sees the end of its input only
// after it has written more than fits anywhere.
func TestCloseTakesWhatNobodyReads(t *testing.T) {
	eachWay(t, func(t *testing.T, h *Host) {
		file := t.TempDir() + "/end"
		p := start(t, h, "head -c 50000000 /dev/zero; cat > "+transport.Quote(file))
		expect(t, p, "\x00")
		_, err := p.Write([]byte("bye"))
		check(t, err)
		check(t, p.Close())
		if got := read(t, file); got != "bye" {
			t.Errorf("the program read %q", got)
		}
	})
}

func TestContextClosesProcess(t *testing.T) {
	eachWay(t, func(t *testing.T, h *Host) {
		ctx, cancel := context.WithCancelCause(t.Context())
		p, err := h.Start(ctx, "cat")
		check(t, err)
		reason := errors.New("interrupted")
		cancel(reason)
		if _, err := io.ReadFull(p, make([]byte, 1)); !errors.Is(err, reason) {
			t.Errorf("reading ends with %v", err)
		}
		check(t, p.Close())
		if _, err := p.Write([]byte("x")); !errors.Is(err, reason) {
			t.Errorf("writing ends with %v", err)
		}
		if _, err := h.Start(ctx, "cat"); !errors.Is(err, reason) {
			t.Errorf("starting ends with %v", err)
		}
	})
}

func TestHostCloseEndsAll(t *testing.T) {
	eachWay(t, func(t *testing.T, h *Host) {
		var running []*Process
		for range 3 {
			p := start(t, h, "echo ready; cat")
			expect(t, p, "ready\n")
			running = append(running, p)
		}
		check(t, h.Close())
		for _, p := range running {
			if _, err := p.Read(make([]byte, 1)); err == nil {
				t.Error("a program still runs")
			}
		}
		checkNothingLeft(t)
		if got := output(t, h, "echo again"); got != "again\n" {
			t.Errorf("read %q", got)
		}
	})
}

// TestQuote has a shell take apart what was quoted.
func TestLast(t *testing.T) {
	long := strings.Repeat("y", 10_000)
	tests := []struct {
		name  string
		parts []string
		want  string
	}{
		{"nothing", nil, ""},
		{"blank lines", []string{"a\n", " \r\n\n"}, "a"},
		{"pieces of a line", []string{"a\nb", "c", "d"}, "bcd"},
		{"long line", []string{long}, strings.Repeat("y", maxMessage) + "..."},
		{"behind a long line", []string{long + "\nx\n"}, "x"},
		{"not UTF-8", []string{"\xff\u202e\"\\n"}, `\xff\u202e"\n`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var l transport.Tail
			for _, part := range tt.parts {
				_, err := l.Write([]byte(part))
				check(t, err)
			}
			if got := last(&l); got != tt.want {
				t.Errorf("the last line is %q, want %q", got, tt.want)
			}
		})
	}
}
