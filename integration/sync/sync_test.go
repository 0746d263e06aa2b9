//go:build linux

// Package sync_test drives the built command against real things: an ssh
// server on loopback, file systems, loop devices, and the programs that it
// must stay compatible with. What a test needs and does not find makes it
// skip, or fail where DISKRSYNC_TEST_REAL=1 is set.
package sync_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
	r.Fails(t, code, words...)
}

// untouched checks that a command did not change anything in a folder.
func untouched(t *testing.T, dir string, do func()) {
	t.Helper()
	before := lab.Snap(t, dir)
	do()
	before.Unchanged(t, dir)
}

// leftOver returns the names of what stayed in the store of a folder of images,
// but for what is stored of those that were synced to the end.
func leftOver(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, ".diskrsync"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".tree" {
			names = append(names, e.Name())
		}
	}
	return names
}

// nothingLeft checks that no sync into a folder of images stopped half way.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if names := leftOver(t, dir); len(names) > 0 {
		t.Errorf("left behind in %s/.diskrsync: %v", dir, names)
	}
}

// halfLeft checks that of an image that did not come into being there is what the
// next sync goes on with, and nothing else.
func halfLeft(t *testing.T, dir, name string) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half an image was put in place: %v", err)
	}
	if names := leftOver(t, dir); !slices.Equal(names, []string{name + ".journal", name + ".partial"}) {
		t.Errorf("left behind in %s/.diskrsync: %v", dir, names)
	}
}
