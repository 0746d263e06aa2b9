package sshexec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"

	"github.com/rclone/rclone/fs/config"
	"github.com/rclone/rclone/lib/env"
	sshagent "github.com/xanzy/ssh-agent"
	"golang.org/x/crypto/ssh"
)

// login is how the user is known to the server. It is made for one dial.
type login struct {
	methods []ssh.AuthMethod
	agent   net.Conn // to be closed once logged in; nil if no agent is asked
}

func (l *login) close() {
	if l.agent != nil {
		_ = l.agent.Close() // nothing was written that could be lost
	}
}

// login returns the ways to log in, in the order in which the sftp backend tries
// them: the agent, the key, the password.
func (h *Host) login() (*login, error) {
	l := new(login)
	s := &h.settings
	keyFile := env.ShellExpand(s.KeyFile)
	given := s.Pass != "" || keyFile != "" || s.KeyPem != "" || s.AskPassword
	if !given || s.KeyUseAgent {
		if err := l.addAgent(keyFile); err != nil {
			l.close()
			return nil, fmt.Errorf("ssh agent: %w", err)
		}
	}
	if s.KeyPem != "" || keyFile != "" && !s.KeyUseAgent {
		signer, err := h.keySigner()
		if err != nil {
			l.close()
			return nil, err
		}
		l.methods = append(l.methods, ssh.PublicKeys(signer))
	}
	if err := h.addPassword(l); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// addAgent adds the keys of the agent, or of these only the one whose public half
// is in a file: file.pub, or file itself.
func (l *login) addAgent(file string) error {
	client, conn, err := sshagent.New()
	if err != nil {
		return err
	}
	l.agent = conn
	signers, err := client.Signers()
	if err != nil {
		return fmt.Errorf("reading its keys: %w", err)
	}
	if file == "" {
		l.methods = append(l.methods, ssh.PublicKeys(signers...))
		return nil
	}
	want, err := readPublicKey(file)
	if err != nil {
		return err
	}
	for _, s := range signers {
		if bytes.Equal(s.PublicKey().Marshal(), want.Marshal()) {
			l.methods = append(l.methods, ssh.PublicKeys(s))
			return nil
		}
	}
	return fmt.Errorf("it does not have the key of %s", file)
}

func readPublicKey(file string) (ssh.PublicKey, error) {
	text, err := os.ReadFile(file + ".pub")
	if errors.Is(err, fs.ErrNotExist) {
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, fmt.Errorf("public key of %s: %w", file, err)
	}
	return key, nil
}

// keySigner returns the private key of the settings, with its certificate if
// there is one.
func (h *Host) keySigner() (ssh.Signer, error) {
	name, text, err := h.privateKey()
	if err != nil {
		return nil, err
	}
	pass, err := reveal("key_file_pass", h.settings.KeyFilePass)
	if err != nil {
		return nil, err
	}
	var signer ssh.Signer
	if pass == "" {
		signer, err = ssh.ParsePrivateKey(text)
	} else {
		signer, err = ssh.ParsePrivateKeyWithPassphrase(text, []byte(pass))
	}
	var missing *ssh.PassphraseMissingError
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("%s: the key has a passphrase: set key_file_pass, or use an ssh agent", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return h.certify(signer)
}

// privateKey returns the text of the private key and where it is from.
func (h *Host) privateKey() (name string, text []byte, err error) {
	if pem := h.settings.KeyPem; pem != "" {
		// It is one line with "\n" in it, as in a string of Go. The error of
		// Unquote says nothing of the text.
		clear, err := strconv.Unquote(`"` + pem + `"`)
		if err != nil {
			return "", nil, fmt.Errorf("key_pem is not one line with \\n for the end of each: %w", err)
		}
		return "key_pem", []byte(clear), nil
	}
	file := env.ShellExpand(h.settings.KeyFile)
	text, err = os.ReadFile(file)
	if err != nil {
		return "", nil, fmt.Errorf("key_file: %w", err)
	}
	return "key_file " + file, text, nil
}

// certify gives a key the certificate of the settings.
func (h *Host) certify(signer ssh.Signer) (ssh.Signer, error) {
	name, text := "pubkey", []byte(h.settings.PubKey)
	if file := env.ShellExpand(h.settings.PubKeyFile); len(text) == 0 {
		if file == "" {
			return signer, nil
		}
		var err error
		if text, err = os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("pubkey_file: %w", err)
		}
		name = "pubkey_file " + file
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, fmt.Errorf("%s: it is not a certificate", name)
	}
	certified, err := ssh.NewCertSigner(cert, signer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return certified, nil
}

// addPassword adds the password of the settings, or asks for one if the server
// comes to want it. Every question that the server may have is answered with it.
func (h *Host) addPassword(l *login) error {
	s := &h.settings
	get := h.askPassword
	switch {
	case s.Pass != "":
		pass, err := reveal("pass", s.Pass)
		if err != nil {
			return err
		}
		get = func() (string, error) { return pass, nil }
	case !s.AskPassword:
		return nil
	}
	l.methods = append(l.methods,
		ssh.PasswordCallback(get),
		ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
			if len(questions) == 0 {
				return nil, nil
			}
			pass, err := get()
			answers := make([]string, len(questions))
			for i := range answers {
				answers[i] = pass
			}
			return answers, err
		}),
	)
	return nil
}

// askPassword asks the user once, as the sftp backend does. It asks on its own
// account: what that backend was told stays there.
func (h *Host) askPassword() (string, error) {
	h.mu.Lock()
	pass := h.password
	h.mu.Unlock()
	if pass != "" {
		return pass, nil
	}
	fmt.Fprintf(os.Stderr, "Enter SSH password for %s: ", h.name)
	pass = config.ReadPassword()
	if pass == "" {
		return "", errors.New("no password was given")
	}
	h.mu.Lock()
	h.password = pass
	h.mu.Unlock()
	return pass, nil
}
