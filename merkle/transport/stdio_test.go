package transport

import (
	"io"
	"strings"
	"testing"
)

func TestStdio(t *testing.T) {
	c := dial(t, Options{RSH: carrier("stdio-echo")})
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "hello")
	if err := c.Close(); err != nil {
		t.Fatal(c.Explain(err))
	}
}

func TestStdioCloseInterruptsRead(t *testing.T) {
	c := dial(t, Options{RSH: carrier("stdio-close")})
	expect(t, c, "ready")
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read %d, %v, want the end of what the agent closed", n, err)
	}
	if msg := c.Explain(io.EOF).Error(); !strings.Contains(msg, "read failed: read /dev/stdin: file already closed") {
		t.Error(msg)
	}
}

// TestStdioBrokenPipe holds that an agent whose peer is gone learns so by an
// error, in time to clean up, and is not ended by a signal.
func TestStdioBrokenPipe(t *testing.T) {
	c := dial(t, Options{RSH: carrier("stdio-broken")})
	expect(t, c, "\x00")
	if msg := c.Explain(io.EOF).Error(); !strings.Contains(msg, "write failed: write /dev/stdout: broken pipe") {
		t.Error(msg)
	}
}
