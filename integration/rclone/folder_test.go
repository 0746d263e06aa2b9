//go:build linux

package rclone_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// TestBackupDir keeps what a sync replaces and removes, and does so again over what
// was kept before.
func TestBackupDir(t *testing.T) {
	b, meter := newFarBench(t)
	one, two := b.noisy(t, "disks/one.img", 1), b.noisy(t, "disks/two.img", 2)
	source := "blockdev:" + b.near("disks")
	b.ok(t, "sync", source, "disks:vms")
	old := lab.Copy(t, two, b.near("two"))
	if err := os.Remove(two); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(2) {
		before := lab.Copy(t, one, b.near("one"))
		digest := b.command(t, "info", "disks:vms", "one.img").Digest
		change(t, one, seed)
		meter.Take()
		r := b.run(t, "sync", source, "disks:vms", "--backup-dir", "disks:old").OK(t)
		says(t, r, "disks:vms", "--backup-dir", "all of the new one has to be sent")
		if passed := meter.Take(); passed < chainSize {
			t.Errorf("%d bytes went over the wire, and there was no base", passed)
		}
		b.holds(t, "disks:vms/one.img", one)
		b.holds(t, "disks:old/one.img", before)
		if kept := b.command(t, "tree", "disks:old", "one.img"); kept.Digest != digest {
			t.Errorf("the digest was %s, that of what was kept is %s", digest, kept.Digest)
		}
		want := []string{"old/.diskrsync/one.img.tree", "old/.diskrsync/two.img.tree", "vms/.diskrsync/one.img.tree"}
		if beside := files(t, ".tree", b.there); !slices.Equal(beside, want) {
			t.Errorf("stored is %q, want %q", beside, want)
		}
	}
	b.holds(t, "disks:old/two.img", old)
	b.commanded(t, "disks:old", "two.img")
}

// TestBadPaths tries what leads nowhere or where no images belong, by ways on which
// the paths are not those of a remote.
func TestBadPaths(t *testing.T) {
	b, _ := newFarBench(t)
	b.remote(t, "more", "diskrsync", "remote="+b.near("more"))
	disk := b.noisy(t, "disk", 1)
	b.ok(t, "copyto", disk, "disks:vms/root.img")
	b.ok(t, "copyto", disk, "more:vms/root.img")
	b.remote(t, "round", "alias", "remote=circle:y")
	b.remote(t, "circle", "diskrsync", "remote=round:x")
	b.remote(t, "ring", "combine", "upstreams=a=wheel:x")
	b.remote(t, "wheel", "diskrsync", "remote=ring:a/y")
	move := func(remote, to string) []string {
		return []string{"rc", "--loopback", "operations/movefile", "srcFs=" + remote, "srcRemote=vms/root.img", "dstFs=" + remote, "dstRemote=" + to}
	}
	for _, test := range []struct {
		name string
		args []string
		word string
	}{
		{"itself by alias", []string{"copyto", disk, "circle:root.img"}, "itself"},
		{"itself by combine", []string{"lsl", "wheel:"}, "itself"},
		{"list the sidecars", []string{"lsf", "disks:vms/.diskrsync"}, ".diskrsync"},
		{"purge the sidecars", []string{"purge", "disks:vms/.diskrsync"}, ".diskrsync"},
		{"move among the sidecars", []string{"moveto", "disks:vms", "disks:.diskrsync"}, ".diskrsync"},
		{"stream among the sidecars", []string{"touch", "disks:.diskrsync/root.img"}, ".diskrsync"},
		{"describe a sidecar", []string{"backend", "info", "disks:vms", ".diskrsync/root.img.tree"}, ".diskrsync"},
		{"move to dots", []string{"moveto", "disks:vms/root.img", "disks:../root.img"}, ".."},
		{"make dots", []string{"mkdir", "disks:vms/../../other"}, ".."},
		{"clean dots", []string{"backend", "clean", "disks:vms", "../vms/root.img"}, ".."},
		{"far move among the sidecars", move("disks:", "vms/.diskrsync/other.img"), ".diskrsync"},
		{"near move among the sidecars", move("more:", "vms/.diskrsync/other.img"), ".diskrsync"},
		{"make dots inside", []string{"rc", "--loopback", "operations/mkdir", "fs=more:", "remote=../made"}, ".."},
		{"far move to dots inside", move("disks:", "../root.img"), ".."},
		{"near move to dots inside", move("more:", "../root.img"), ".."},
	} {
		t.Run(test.name, func(t *testing.T) {
			there, here := lab.Snap(t, b.there), lab.Snap(t, b.here)
			// What runs in a circle would not end before all memory is gone.
			args := append([]string{"-c", `ulimit -t 5; exec "$@"`, "sh", b.program}, b.args(test.args)...)
			r := calm(t, lab.Start(t, "sh", append(args, "--retries", "1")...).Wait(t))
			fails(t, r, test.word)
			there.Unchanged(t, b.there)
			here.Unchanged(t, b.here)
		})
	}
}

// TestFolder syncs a folder of images, one of which is a device.
func TestFolder(t *testing.T) {
	b, _ := newFarBench(t)
	for i, name := range []string{"disks/one.img", "disks/two.img", "disks/sub/three.img", "disks/notes.txt"} {
		b.noisy(t, name, uint64(i))
	}
	device := lab.LoopDevice(t, b.noisy(t, "behind", 7))
	if err := os.Symlink(device, b.near("disks/device.img")); err != nil {
		t.Fatal(err)
	}
	lab.Write(t, filepath.Join(lab.Must(os.MkdirTemp(b.there, "other"))(t), "file"), []byte("not an image"), 0o644)
	other := lab.Snap(t, b.there)
	args := []string{"sync", "blockdev:" + b.near("disks"), "disks:vms", "--include", "*.img"}
	if said := b.counted(t, args...); said.Transfers != 4 || said.Bytes != 3*chainSize+lab.Size(t, b.near("behind"))/512*512 {
		t.Errorf("the first run is counted as %+v", said)
	}
	// Of a device nobody can know whether it has changed.
	if said := b.counted(t, args...); said.Transfers != 1 {
		t.Errorf("the second run is counted as %+v", said)
	}
	change(t, b.near("disks/sub/three.img"), 1)
	lab.WriteAt(t, device, lab.Noise(3, 4096), 4096)
	if err := os.Remove(b.near("disks/two.img")); err != nil {
		t.Fatal(err)
	}
	if said := b.counted(t, args...); said.Transfers != 2 || said.Deletes != 1 {
		t.Errorf("the third run is counted as %+v", said)
	}
	for object, file := range map[string]string{"one.img": "disks/one.img", "sub/three.img": "disks/sub/three.img", "device.img": "disks/device.img"} {
		b.holds(t, "disks:vms/"+object, b.near(file))
	}
	if left := append(files(t, "two.img", b.there), files(t, "notes", b.there)...); len(left) > 0 {
		t.Errorf("what should not be there: %q", left)
	}
	b.ok(t, "purge", "disks:vms")
	other.Unchanged(t, b.there)
}

// TestPicked copies and moves some images of a folder.
func TestPicked(t *testing.T) {
	b, _ := newFarBench(t)
	for i, name := range []string{"disks/one.img", "disks/two.img", "disks/sub/three.img"} {
		b.noisy(t, name, uint64(i))
	}
	source := b.near("disks")
	list := lab.Write(t, b.near("list"), []byte("one.img\nsub/three.img\n"), 0o644)
	if said := b.counted(t, "copy", "blockdev:"+source, "disks:listed", "--files-from", list); said.Transfers != 2 {
		t.Errorf("copying what is listed is counted as %+v", said)
	}
	change(t, b.near("disks/one.img"), 1)
	if said := b.counted(t, "copy", "--no-traverse", "blockdev:"+source, "disks:listed"); said.Transfers != 2 {
		t.Errorf("copying one that is new and one that has changed is counted as %+v", said)
	}
	b.ok(t, "check", "--download", "blockdev:"+source, "disks:listed")

	before := lab.Snap(t, source)
	fails(t, b.run(t, "move", "blockdev:"+source, "disks:moved", "--retries", "1"), "allow_write")
	before.Unchanged(t, source)
	b.ok(t, "move", "blockdev,allow_write:"+source, "disks:moved")
	if left := files(t, "", source); len(left) > 0 {
		t.Errorf("left at the source: %q", left)
	}
	b.ok(t, "move", "disks:moved", "disks:again")
	b.ok(t, "check", "--download", "disks:listed", "disks:again")
	if left := files(t, "", b.far("moved")); len(left) > 0 {
		t.Errorf("left where it was moved from: %q", left)
	}
	b.commanded(t, "disks:again", "sub/three.img")
}

// TestRotten has rclone find what the disk at the far side has made of an image.
func TestRotten(t *testing.T) {
	b, _ := newFarBench(t, "format=raw")
	disks := []string{b.noisy(t, "disks/one.img", 1), b.noisy(t, "disks/two.img", 2)}
	b.ok(t, "sync", b.near("disks"), "disks:")
	want := ""
	for _, disk := range disks {
		want += lab.SumFile(t, disk) + "  " + filepath.Base(disk) + "\n"
	}
	sums := lab.Write(t, b.near("sums"), []byte(want), 0o644)
	lines := slices.Sorted(strings.Lines(b.ok(t, "hashsum", "sha256", "--download", "disks:")))
	if !slices.Equal(lines, slices.Sorted(strings.Lines(want))) {
		t.Errorf("hashsum tells %q, want %q", lines, want)
	}
	md5 := strings.Fields(lab.Do(t, "md5sum", disks[0]))[0]
	if out := b.ok(t, "md5sum", "--download", "disks:one.img"); strings.Fields(out)[0] != md5 {
		t.Errorf("md5sum tells %s, want %s", out, md5)
	}
	b.ok(t, "checksum", "sha256", sums, "disks:", "--download")
	fails(t, b.run(t, "md5sum", "disks:"), "hash type not supported")
	lab.Rot(t, b.far("one.img"), 5000)
	for _, args := range [][]string{
		{"checksum", "sha256", sums, "disks:", "--download"},
		{"check", "--download", "blockdev:" + b.near("disks"), "disks:"},
	} {
		r := b.run(t, args...)
		fails(t, r, "block 0 at offset 0 is not what was stored of it")
		says(t, r, "one.img", "ERROR")
	}
	r := b.run(t, "backend", "verify", "disks:", "one.img", "two.img")
	fails(t, r, "verify failed for one.img")
	says(t, r, "one.img", "1 bad blocks")
}
