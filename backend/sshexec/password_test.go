package sshexec

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	pkgsftp "github.com/pkg/sftp"
	"github.com/rclone/rclone/fs/config"
	"github.com/rclone/rclone/fs/config/configmap"
	"github.com/rclone/rclone/fs/config/obscure"
	"golang.org/x/crypto/ssh"
)

const password = "pässword 1"

// startPasswordServer starts an ssh server of our own, because sshd takes
// passwords of the system's users only. It returns the settings of a remote that
// lack the password.
func startPasswordServer(t *testing.T, configure func(*ssh.ServerConfig)) configmap.Simple {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	check(t, err)
	server := &ssh.ServerConfig{MaxAuthTries: 6}
	server.AddHostKey(signer)
	configure(server)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { serveSSH(conn, server) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait() // for ever, if a client stays
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	check(t, err)
	public := signer.PublicKey()
	return configmap.Simple{"host": "127.0.0.1", "port": port, "user": "me", "host_keys": strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))}
}

func serveSSH(wire net.Conn, server *ssh.ServerConfig) {
	defer wire.Close()
	conn, channels, requests, err := ssh.NewServerConn(wire, server)
	if err != nil {
		return
	}
	defer conn.Close()
	go ssh.DiscardRequests(requests)
	for open := range channels {
		channel, requests, err := open.Accept()
		if err != nil {
			return
		}
		go serveSession(channel, requests)
	}
}

// serveSession runs one command, or serves files.
func serveSession(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	for req := range requests {
		var payload struct{ Text string }
		bad := ssh.Unmarshal(req.Payload, &payload) != nil
		switch {
		case bad || req.Type != "exec" && req.Type != "subsystem":
			req.Reply(false, nil)
			continue
		case req.Type == "exec":
			req.Reply(true, nil)
			cmd := exec.Command("sh", "-c", payload.Text) // which reads nothing here
			cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
			status := struct{ Status uint32 }{0}
			if cmd.Run() != nil {
				status.Status = 1
			}
			channel.SendRequest("exit-status", false, ssh.Marshal(status))
		default:
			req.Reply(true, nil)
			if files, err := pkgsftp.NewServer(channel); err == nil {
				files.Serve()
			}
		}
		return
	}
}

func byPassword(c *ssh.ServerConfig) {
	c.PasswordCallback = func(_ ssh.ConnMetadata, got []byte) (*ssh.Permissions, error) {
		if string(got) != password {
			return nil, errors.New("wrong password")
		}
		return nil, nil
	}
}

// byQuestions asks the password twice, and then nothing, as some servers do.
func byQuestions(c *ssh.ServerConfig) {
	c.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
		answers, err := ask("", "", []string{"Password: ", "Again: "}, []bool{false, false})
		if err != nil || len(answers) != 2 || answers[0] != password || answers[1] != password {
			return nil, errors.New("wrong answers")
		}
		_, err = ask("", "Welcome.", nil, nil)
		return nil, err
	}
}

func TestPasswords(t *testing.T) {
	need(t, "sh")
	for name, configure := range map[string]func(*ssh.ServerConfig){"password": byPassword, "questions": byQuestions} {
		t.Run(name+" right", func(t *testing.T) {
			m := startPasswordServer(t, configure)
			m["pass"] = obscure.MustObscure(password)
			greet(t, newHost(t, m, Options{}))
			check(t, asSFTP(t, m))
		})
		t.Run(name+" wrong", func(t *testing.T) {
			m := startPasswordServer(t, configure)
			m["pass"] = obscure.MustObscure("another")
			_, err := newHost(t, m, Options{}).Start(t.Context(), "true")
			oneLine(t, err, "connecting to me@127.0.0.1", "unable to authenticate")
		})
	}
}

// TestAskPassword answers at the place of a terminal, once for two connections.
func TestAskPassword(t *testing.T) {
	need(t, "sh")
	for name, configure := range map[string]func(*ssh.ServerConfig){"password": byPassword, "questions": byQuestions} {
		t.Run(name, func(t *testing.T) {
			asked := answer(t, password)
			m := startPasswordServer(t, configure)
			m["ask_password"] = "true"
			h := newHost(t, m, Options{})
			greet(t, h)
			check(t, h.Close())
			greet(t, h)
			if n := asked(); n != 1 {
				t.Errorf("the user was asked %d times", n)
			}
		})
	}
	t.Run("no answer", func(t *testing.T) {
		answer(t, "")
		m := startPasswordServer(t, byPassword)
		m["ask_password"] = "true"
		_, err := newHost(t, m, Options{}).Start(t.Context(), "true")
		oneLine(t, err, "no password was given")
	})
}

// answer has rclone read a line in the place of asking the user, and counts how
// often it does.
func answer(t *testing.T, line string) func() int {
	t.Helper()
	// It only does where there is no terminal.
	in, err := os.Open(os.DevNull)
	check(t, err)
	out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	check(t, err)
	oldIn, oldErr, oldLine := os.Stdin, os.Stderr, config.ReadLine
	os.Stdin, os.Stderr = in, out
	var mu sync.Mutex
	asked := 0
	config.ReadLine = func(string) string {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return line
	}
	t.Cleanup(func() {
		os.Stdin, os.Stderr, config.ReadLine = oldIn, oldErr, oldLine
		in.Close()
		out.Close()
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return asked
	}
}
