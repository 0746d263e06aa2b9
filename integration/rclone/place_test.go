//go:build linux

package rclone_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// TestOtherPaths has a server on which a path means something else to programs than to
// sftp, as with a chroot. What an agent finds there must not be touched.
func TestOtherPaths(t *testing.T) {
	h := lab.StartHost(t, tools, lab.HostOptions{})
	b, m := newBenchAt(t, h)
	disk := lab.Image(t, b.near("disk"), 1, mib)
	programs, prefix := t.TempDir(), t.TempDir()
	lab.Image(t, filepath.Join(programs, "root.img"), 2, mib)
	lab.Image(t, b.far("root.img"), 3, mib)
	if err := os.MkdirAll(filepath.Dir(prefix+b.there), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(b.there, prefix+b.there); err != nil {
		t.Fatal(err)
	}
	for name, override := range map[string]string{"other": programs, "none": "@/nowhere", "right": "@" + prefix} {
		b.remote(t, name, "sftp", append(m.Remote(t), "path_override="+override)...)
		b.remote(t, name+"disks", "diskrsync", "remote="+name+":"+b.there, "agent_path="+h.Agent)
	}
	for _, remote := range []string{"otherdisks:", "nonedisks:"} {
		for _, args := range [][]string{
			{"copyto", "--ignore-times", "blockdev:" + disk, remote + "root.img"},
			{"copyto", "blockdev:" + disk, remote + "new.img"},
			{"deletefile", remote + "root.img"},
			{"touch", remote + "root.img"},
			{"backend", "clean", remote, "root.img"},
		} {
			there, here := lab.Snap(t, b.there), lab.Snap(t, programs)
			r := b.run(t, append(args, "--retries", "1", "--low-level-retries", "1")...)
			fails(t, r)
			says(t, r, "is not", "to programs on "+strings.TrimSuffix(remote, "disks:"), "set path_override")
			there.Unchanged(t, b.there)
			here.Unchanged(t, programs)
		}
	}
	for _, remote := range []string{"otherdisks:", "nonedisks:"} {
		r := b.run(t, "copyto", "--ignore-times", remote+"root.img", "blockdev,allow_write:"+b.near("copy")).OK(t)
		says(t, r, "is read over sftp", "set path_override")
		lab.Same(t, b.near("copy"), b.far("root.img"))
		fails(t, b.run(t, "backend", "verify", remote, "root.img"))
	}
	fails(t, b.run(t, "lsl", "otherdisks:vms"), "path_override", "is one folder")
	b.ok(t, "copyto", "blockdev:"+disk, "rightdisks:vms/root.img")
	b.holds(t, "disks:vms/root.img", disk)
	b.ok(t, "delete", "rightdisks:vms")
	if left := lab.Must(os.ReadDir(b.far("vms")))(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestWhileWritten holds that nobody takes away an image, or its lock, from who writes it.
func TestWhileWritten(t *testing.T) {
	b, _ := newFarBench(t)
	disk := lab.Write(t, b.near("disk"), lab.Noise(1, 4*mib), 0o644)
	b.ok(t, "copyto", "blockdev:"+disk, "disks:root.img")
	b.ok(t, "copyto", "blockdev:"+disk, "disks:second.img")
	lab.Write(t, disk, lab.Noise(2, 20*mib), 0o644)
	first := b.start(t, "--bwlimit", "1M", "copyto", "blockdev:"+disk, "disks:root.img")
	journal := b.far(".diskrsync/root.img.journal")
	for first.Running() {
		if info, err := os.Stat(journal); err == nil && info.Size() > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, args := range [][]string{
		{"deletefile", "disks:root.img"},
		{"moveto", "disks:root.img", "disks:elsewhere.img"},
		{"moveto", "--ignore-times", "disks:second.img", "disks:root.img"},
		{"touch", "disks:root.img"},
		{"backend", "clean", "disks:", "root.img"},
	} {
		r := b.run(t, append(args, "--retries", "1", "--low-level-retries", "1")...)
		fails(t, r)
		says(t, r, "root.img")
	}
	if !first.Running() {
		t.Error("it was no longer written by then")
	}
	first.Interrupt(t)
	if r := first.Wait(t); r.Code == 0 {
		t.Errorf("it was not interrupted: %+v", r)
	}
	b.ok(t, "copyto", "blockdev:"+disk, "disks:root.img")
	b.holds(t, "disks:root.img", disk)
	b.ok(t, "check", "--download", "--one-way", "disks:", "disks:")
}

// TestLinks plants links in a folder of images, which lead to what rclone does not show
// to be there, and to a device.
func TestLinks(t *testing.T) {
	lab.NeedRoot(t)
	b, _ := newFarBench(t)
	b.remote(t, "here", "diskrsync", "remote="+b.here, "format=raw")
	disk := lab.Image(t, filepath.Join(t.TempDir(), "disk"), 1, mib)
	outside := t.TempDir()
	precious := lab.Write(t, filepath.Join(outside, "precious"), []byte("precious"), 0o600)
	device := lab.LoopDevice(t, lab.Image(t, filepath.Join(t.TempDir(), "device"), 2, 2*mib))
	before := lab.SumFile(t, device)
	for _, dir := range []string{b.here, b.there} {
		for name, target := range map[string]string{"file.img": precious, "folder": outside, "device.img": device} {
			if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, target := range []string{"here:file.img", "here:folder/precious", "here:folder/new.img", "here:device.img", "disks:device.img"} {
		r := b.run(t, "copyto", "blockdev:"+disk, target, "--retries", "1", "--low-level-retries", "1")
		fails(t, r)
	}
	b.ok(t, "deletefile", "disks:file.img") // the link, and nothing else
	if _, err := os.Lstat(b.far("file.img")); err == nil {
		t.Error("the link was not removed")
	}
	if got := lab.Must(os.ReadFile(precious))(t); string(got) != "precious" {
		t.Errorf("a file outside of the folder was written to: %d bytes", len(got))
	}
	if left := lab.Must(os.ReadDir(outside))(t); len(left) != 1 {
		t.Errorf("outside of the folder there are %v", left)
	}
	if lab.SumFile(t, device) != before {
		t.Error("a device was written to by the name of an image")
	}
}

// TestDamage reads images that have rotted, near and far, by all that reads all of them.
func TestDamage(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		b, _ := newFarBench(t, "format="+format)
		b.remote(t, "here", "diskrsync", "remote="+b.there, "format="+format)
		disk := lab.Write(t, b.near("disk"), lab.Noise(1, 3*mib), 0o644)
		b.ok(t, "copyto", disk, "disks:root.img")
		lab.Rot(t, b.far("root.img"), 2*mib)
		for _, remote := range []string{"here:", "disks:"} {
			r := b.run(t, "cat", remote+"root.img")
			fails(t, r, "block")
			fails(t, b.run(t, "copyto", remote+"root.img", b.near("copy"), "--retries", "1"), "block")
		}
		r := b.run(t, "backend", "verify", "disks:", "root.img")
		fails(t, r, "verify failed for root.img")
		says(t, r, "ERROR", "root.img", "block", "offset")
		for _, remote := range []string{"here:", "disks:"} {
			fails(t, b.run(t, "cat", remote+"root.img"), "has 1 bad blocks")
		}
		b.ok(t, "copyto", disk, "disks:root.img", "--ignore-times")
		b.holds(t, "disks:root.img", disk)
		if _, err := os.Stat(b.near("copy")); err == nil {
			t.Error("a copy of damage was left")
		}
	})
}

// TestRelative writes to a folder that is named from where rclone was started.
func TestRelative(t *testing.T) {
	b := newBench(t)
	disk := lab.Image(t, b.near("disk"), 1, mib)
	t.Chdir(b.here)
	where := lab.Must(filepath.Rel(b.here, b.there))(t)
	if !strings.HasPrefix(where, "..") {
		t.Fatalf("%s is not beside %s", b.there, b.here)
	}
	b.remote(t, "beside", "diskrsync", "remote="+where, "format=raw")
	b.ok(t, "copyto", disk, "beside:vms/root.img")
	if got := lab.Must(os.ReadFile(b.far("vms/root.img")))(t); !bytes.Equal(got, lab.Must(os.ReadFile(disk))(t)) {
		t.Error("it is not there, or has other content")
	}
	for _, remote := range []string{"x,remote='" + b.there + "/.diskrsync',format=raw", "y,remote='" + b.there + "/vms/.diskrsync',format=raw"} {
		fails(t, b.run(t, "lsl", ":diskrsync"+remote[1:]+":"), ".diskrsync", "no images")
	}
}
