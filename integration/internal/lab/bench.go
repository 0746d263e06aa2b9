//go:build linux

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Main is the TestMain of a package of tests: it builds the programs into tools,
// runs the tests and returns the exit status. It also makes the test's own binary
// fit to be the program of a Carrier.
func Main(m *testing.M, tools *Tools) int {
	if len(os.Args) > 1 && os.Args[1] == carrierWord {
		return carry(os.Args[2:])
	}
	dir, err := os.MkdirTemp("", "diskrsync-tools-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if *tools, err = Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// A Bench is what most tests work with: a host that stands for the other
// machine, and a folder on either machine, which are one in truth.
type Bench struct {
	*Host
	Tools
	Here, There string
}

// NewBench starts a host and makes the folders.
func NewBench(t testing.TB, tools Tools, o HostOptions) Bench {
	t.Helper()
	return Bench{StartHost(t, tools, o), tools, t.TempDir(), t.TempDir()}
}

// Near returns the path of a file on this machine.
func (b Bench) Near(name string) string { return filepath.Join(b.Here, name) }

// Far returns the path of a file on the other machine.
func (b Bench) Far(name string) string { return filepath.Join(b.There, name) }

// Alpha returns what the command calls a file on the other machine.
func (b Bench) Alpha(name string) string { return "alpha:" + b.Far(name) }

// Start starts the command so that it finds the host.
func (b Bench) Start(t testing.TB, args ...string) *Run {
	t.Helper()
	return Start(t, b.Diskrsync, b.Args(args...)...)
}

// Run runs the command to its end, however it ends.
func (b Bench) Run(t testing.TB, args ...string) Result {
	t.Helper()
	return b.Start(t, args...).Wait(t)
}

// Sync runs a sync that must succeed.
func (b Bench) Sync(t testing.TB, args ...string) Summary {
	t.Helper()
	return b.Run(t, append([]string{"--json"}, args...)...).Summary(t)
}
