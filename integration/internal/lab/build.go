//go:build linux

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/diskrsync/diskrsync"

// Tools are the built programs, by their paths.
type Tools struct {
	Diskrsync string // the command of this project
	Original  string // the original diskrsync
	Spgz      string // the original's tool for its image format
	Root      string // the folder of this project's module
	noPeers   error  // why the last two programs are missing

	// What takes minutes to build where nothing of it was built before, and few
	// tests need.
	rclone, restic func() (string, error)
}

// The modules' names of the programs of others.
const (
	original = "github.com/dop251/diskrsync/diskrsync"
	spgz     = "github.com/dop251/spgz/spgz"
	restic   = "github.com/restic/restic/cmd/restic"
)

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
	tools.Root = strings.TrimSpace(string(root))
	if err := os.Mkdir(filepath.Dir(tools.Spgz), 0o755); err != nil {
		return Tools{}, err
	}
	peers := filepath.Join(tools.Root, "integration", "peers")
	tools.noPeers = goBuild(peers, filepath.Dir(tools.Spgz), original, spgz)
	tools.rclone = sync.OnceValues(func() (string, error) {
		path := filepath.Join(dir, "rclone-diskrsync")
		return path, goBuild(tools.Root, path, module+"/cmd/rclone-diskrsync")
	})
	tools.restic = sync.OnceValues(func() (string, error) {
		path := filepath.Join(dir, "peers", "restic")
		return path, goBuild(peers, path, restic)
	})
	return tools, nil
}

func goBuild(dir, output string, what ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-o", output}, what...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", strings.Join(what, " and "), err, out)
	}
	return nil
}

// RcloneDiskrsync returns the path of rclone with this project's backends in it. The
// first test that asks for it waits until it is built.
func (tools Tools) RcloneDiskrsync(t testing.TB) string {
	t.Helper()
	return Must(tools.rclone())(t)
}

// Restic returns the path of restic, and skips the test if it could not be built.
func (tools Tools) Restic(t testing.TB) string {
	t.Helper()
	path, err := tools.restic()
	if err != nil {
		Missing(t, "restic could not be built: %v", err)
	}
	return path
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
