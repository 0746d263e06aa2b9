package sshexec

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/rclone/rclone/fs/config/configmap"
	"github.com/rclone/rclone/fs/config/configstruct"
	"github.com/rclone/rclone/fs/config/obscure"
	"github.com/rclone/rclone/lib/env"
	"golang.org/x/crypto/ssh"
)

// configure reads the settings and checks what can be checked without looking
// anywhere else.
func (h *Host) configure(m configmap.Mapper) error {
	s := &h.settings
	if err := configstruct.Set(m, s); err != nil {
		return err
	}
	s.User = cmp.Or(s.User, env.CurrentUser())
	s.Port = cmp.Or(s.Port, "22")
	if err := checkShell(s.ShellType); err != nil {
		return err
	}
	for _, v := range s.SetEnv {
		if !strings.Contains(v, "=") {
			return fmt.Errorf("set_env: no = in %q", v)
		}
	}
	if h.external() {
		if len(s.SetEnv) > 0 {
			return errors.New("set_env cannot be used together with ssh: set the variables there")
		}
		return nil // the rest is that ssh's affair
	}
	return cmp.Or(h.checkLogin(), h.checkProxies(), h.configureHostKeys())
}

// external reports whether the user's own ssh makes the connection.
func (h *Host) external() bool { return len(h.settings.SSH) > 0 }

// checkShell refuses shells that transport.Quote does not quote for. PowerShell besides
// changes the bytes that pass through it.
func checkShell(kind string) error {
	switch kind {
	case "", "unix":
		return nil
	case "none":
		return errors.New("shell_type is none: without a shell no program can be started there")
	}
	return fmt.Errorf("shell_type is %s: programs can only be started by a Unix shell (if the machine has one after all, set shell_type=unix)", kind)
}

func (h *Host) checkLogin() error {
	s := &h.settings
	if s.Host == "" {
		return errors.New("host is not set")
	}
	if s.UseInsecureCipher && (s.Ciphers != nil || s.KeyExchange != nil) {
		return errors.New("use_insecure_cipher must be false if ciphers or key_exchange are set")
	}
	for name, value := range map[string]string{"pass": s.Pass, "key_file_pass": s.KeyFilePass} {
		if _, err := reveal(name, value); err != nil {
			return err
		}
	}
	return nil
}

// checkProxies does not tell what url.Parse says, because there may be a password
// in it.
func (h *Host) checkProxies() error {
	if h.settings.HTTPProxy == "" {
		return nil
	}
	proxy, err := url.Parse(h.settings.HTTPProxy)
	if err != nil || proxy.Host == "" {
		return errors.New("http_proxy is not a URL such as http://host:port")
	}
	h.proxy = proxy
	return nil
}

// reveal returns a password as it is to be used.
func reveal(name, obscured string) (string, error) {
	if obscured == "" {
		return "", nil
	}
	clear, err := obscure.Reveal(obscured)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return clear, nil
}

// algorithms returns what the settings say about how the connection is protected.
func (h *Host) algorithms() ssh.Config {
	var c ssh.Config
	c.SetDefaults()
	s := &h.settings
	if s.UseInsecureCipher {
		c.Ciphers = append(c.Ciphers, ssh.InsecureCipherAES128CBC, "aes192-cbc", "aes256-cbc", ssh.InsecureCipherTripleDESCBC)
		c.KeyExchanges = append(c.KeyExchanges, ssh.InsecureKeyExchangeDHGEXSHA1, ssh.KeyExchangeDHGEXSHA256)
	}
	if s.Ciphers != nil {
		c.Ciphers = s.Ciphers
	}
	if s.KeyExchange != nil {
		c.KeyExchanges = s.KeyExchange
	}
	if s.MACs != nil {
		c.MACs = s.MACs
	}
	return c
}
