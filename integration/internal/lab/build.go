//go:build linux

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/diskrsync/diskrsync"

// Tools are the built programs, by their paths.
type Tools struct {
	Diskrsync string // the command of this project
	Original  string // the original diskrsync
	Spgz      string // the original's tool for its image format
	noPeers   error  // why the last two are missing
}

// Build builds the programs into dir, the command the way it is released. That
// the others cannot be had, for want of a network, is no error yet: see
// NeedPeers.
func Build(dir string) (Tools, error) {
	tools := Tools{
		Diskrsync: filepath.Join(dir, "diskrsync"),
		Original:  filepath.Join(dir, "peers", "diskrsync"),
		Spgz:      filepath.Join(dir, "peers", "spgz"),
	}
	if err := goBuild("", tools.Diskrsync, module+"/cmd/diskrsync"); err != nil {
		return Tools{}, err
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return Tools{}, fmt.Errorf("finding the module: %w", err)
	}
	peers := filepath.Join(strings.TrimSpace(string(root)), "integration", "peers")
	if err := os.Mkdir(filepath.Dir(tools.Spgz), 0o755); err != nil {
		return Tools{}, err
	}
	tools.noPeers = goBuild(peers, filepath.Dir(tools.Spgz), "tool")
	return tools, nil
}

func goBuild(dir, output, what string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", output, what)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", what, err, out)
	}
	return nil
}

// NeedPeers skips the test if the original programs could not be built.
func (tools Tools) NeedPeers(t testing.TB) {
	t.Helper()
	if tools.noPeers != nil {
		Missing(t, "the original programs could not be built: %v", tools.noPeers)
	}
}

// Extract unpacks an spgz image with the original's tool into a new file and
// returns its path.
func (tools Tools) Extract(t testing.TB, image string) string {
	t.Helper()
	tools.NeedPeers(t)
	out := filepath.Join(t.TempDir(), "extracted")
	Do(t, tools.Spgz, "-x", image, out)
	return out
}
