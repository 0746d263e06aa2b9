//go:build linux

// Package sync_test drives the built command against real things: an ssh
// server on loopback, file systems, loop devices, and the programs that it
// must stay compatible with. What a test needs and does not find makes it
// skip, or fail where DISKRSYNC_TEST_REAL=1 is set.
package sync_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

const mib = 1 << 20

// tools are built once for all tests, by TestMain.
var tools lab.Tools

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "diskrsync-tools-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if tools, err = lab.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// A bench is a host and the folders that a test uses on both machines, which
// are one in truth.
type bench struct {
	*lab.Host
	here, there string
}

func newBench(t *testing.T, o lab.HostOptions) bench {
	t.Helper()
	return bench{lab.StartHost(t, tools, o), t.TempDir(), t.TempDir()}
}

// run runs the command to its end, however it ends.
func (b bench) run(t *testing.T, args ...string) lab.Result {
	t.Helper()
	return b.start(t, args...).Wait(t)
}

func (b bench) start(t *testing.T, args ...string) *lab.Run {
	t.Helper()
	return lab.Start(t, tools.Diskrsync, b.Args(args...)...)
}

// sync runs a sync that must succeed.
func (b bench) sync(t *testing.T, args ...string) lab.Summary {
	t.Helper()
	return b.run(t, append([]string{"--json"}, args...)...).Summary(t)
}

// alpha names a file in the folder of the other machine.
func (b bench) alpha(name string) string { return "alpha:" + b.farPath(name) }

func (b bench) farPath(name string) string { return filepath.Join(b.there, name) }

func (b bench) nearPath(name string) string { return filepath.Join(b.here, name) }

// image makes an image of the test's own kind on this machine.
func (b bench) image(t *testing.T, name string, seed uint64, size int64) string {
	t.Helper()
	return lab.Image(t, b.nearPath(name), seed, size)
}

// fails checks that a command ended with the status and told why in one line
// that holds all of the words.
func fails(t *testing.T, r lab.Result, code int, words ...string) {
	t.Helper()
	if r.Code != code {
		t.Errorf("%s: exit status %d, want %d\nstderr: %s", r.Line, r.Code, code, r.Stderr)
	}
	message, rest, _ := strings.Cut(r.Stderr, "\n")
	if message == "" || rest != "" {
		t.Errorf("%s: the message is not one line:\n%s", r.Line, r.Stderr)
	}
	for _, word := range words {
		if !strings.Contains(message, word) {
			t.Errorf("%s: the message does not hold %q: %s", r.Line, word, message)
		}
	}
	if i := strings.IndexFunc(message, isControl); i >= 0 {
		t.Errorf("%s: control character in the message: %q", r.Line, message)
	}
}

func isControl(c rune) bool { return c < ' ' || c == 0x7f }

// untouched checks that a command did not change anything in a folder.
func untouched(t *testing.T, dir string, do func()) {
	t.Helper()
	before := lab.Snap(t, dir)
	do()
	before.Unchanged(t, dir)
}

// noStore checks that nothing of ours stayed in a folder of images.
func noStore(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(filepath.Join(dir, ".diskrsync")); err == nil {
		t.Errorf("left behind in %s/.diskrsync: %v", dir, entries)
	}
}
