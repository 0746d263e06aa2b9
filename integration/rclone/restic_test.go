//go:build linux

package rclone_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// TestResticOfDevice has restic keep the content of a device, which rclone reads.
func TestResticOfDevice(t *testing.T) {
	restic := tools.Restic(t)
	b := newBench(t)
	file := lab.Image(t, b.near("disk"), 1, 16*mib)
	device := lab.LoopDevice(t, file)
	run := b.restic(t, restic, b.far("store"))
	run("init")
	run("backup", "--stdin-filename", "root.img", "--stdin-from-command", "--",
		b.program, "--config", b.config, "cat", "blockdev:"+device)
	run("restore", "latest", "--target", b.far("restored"))
	lab.Same(t, filepath.Join(b.far("restored"), "root.img"), file)
}

// TestResticThroughRclone has restic reach its own store by an sftp remote.
func TestResticThroughRclone(t *testing.T) {
	restic := tools.Restic(t)
	b, _ := newFarBench(t)
	tree := b.near("etc")
	lab.FillTree(t, tree, 1, 4*mib)
	run := b.restic(t, restic, "rclone:nas:"+b.far("restic"))
	run("init")
	run("backup", tree)
	run("check", "--read-data")
	run("restore", "latest:"+tree, "--target", b.near("restored"))
	lab.Do(t, "diff", "--recursive", tree, b.near("restored"))
}

// restic returns what runs restic on a store, with our rclone.
func (b bench) restic(t *testing.T, program, store string) func(args ...string) {
	t.Helper()
	t.Setenv("RCLONE_CONFIG", b.config)
	t.Setenv("RESTIC_PASSWORD", "secret")
	t.Setenv("RESTIC_CACHE_DIR", b.caches)
	if err := os.MkdirAll(b.caches, 0o755); err != nil {
		t.Fatal(err)
	}
	return func(args ...string) {
		t.Helper()
		lab.Start(t, program, append([]string{"-r", store, "-o", "rclone.program=" + b.program}, args...)...).Wait(t).OK(t)
	}
}
