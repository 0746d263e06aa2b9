//go:build linux

package rclone_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// TestBadInput holds that what cannot be right is told in one line, and changes
// nothing.
func TestBadInput(t *testing.T) {
	lab.NeedRoot(t)
	b, _ := newFarBench(t)
	disk := lab.Image(t, b.near("disk"), 1, 3*mib)
	b.ok(t, "copyto", "blockdev:"+disk, "disks:root.img")
	lab.WriteAt(t, disk, lab.Noise(2, 5000), mib)
	// Of two times within one second sftp knows but one, and rclone would see no change.
	if err := os.Chtimes(disk, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	b.remote(t, "circle", "diskrsync", "remote=circle:x")
	gone := filepath.Join(t.TempDir(), "gone")
	lab.Do(t, "mknod", gone, "b", "120", "0") // a number that the kernel gives to no device
	for _, test := range []struct {
		name  string
		args  []string
		words []string
	}{
		{"no agent", []string{"copyto", "blockdev:" + disk, "disks,agent_path=/nowhere/diskrsync:root.img"}, []string{"nas", "/nowhere/diskrsync", "install diskrsync on nas or set agent_path"}},
		{"remote is itself", []string{"copyto", "blockdev:" + disk, "circle:root.img"}, []string{"points to itself"}},
		{"path with dots", []string{"copyto", "blockdev:" + disk, "disks:vms/../../root.img"}, []string{"..", "name the"}},
		{"sidecar folder", []string{"copyto", "blockdev:" + disk, "disks:.diskrsync/root.img"}, []string{".diskrsync", "no images"}},
		{"sidecar folder below", []string{"copyto", "blockdev:" + disk, "disks:vms/.diskrsync"}, []string{".diskrsync"}},
		{"remote without a path", []string{"copyto", "blockdev:" + disk, "disks,remote=':memory:bucket':root.img"}, []string{"a path of this machine or to an sftp remote"}},
		{"unknown format", []string{"copyto", "blockdev:" + disk, "disks,format=qcow2:root.img"}, []string{"qcow2", "spgz", "raw"}},
		{"no time to answer", []string{"copyto", "blockdev:" + disk, "disks,keep_alive=1ms:root.img"}, []string{"keep_alive 1ms is less than a second"}},
		{"device that is gone", []string{"copyto", "blockdev:" + gone, "disks:root.img"}, []string{gone}},
		{"no such device", []string{"copyto", "blockdev:/dev/none", "disks:root.img"}, []string{"/dev/none: there is no such device"}},
		{"no such image", []string{"backend", "verify", "disks:", "none.img"}, []string{"verify failed for none.img"}},
		{"no image named", []string{"backend", "verify", "disks:"}, []string{"backend verify disks: root.img"}},
		{"restore without leave", []string{"copyto", "disks:root.img", "blockdev:" + disk}, []string{"allow_write"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			there, here := lab.Snap(t, b.there), lab.Snap(t, b.here)
			fails(t, b.run(t, append(test.args, "--low-level-retries", "1", "--retries", "1")...), test.words...)
			there.Unchanged(t, b.there)
			here.Unchanged(t, b.here)
		})
	}
}

// TestDevices tries what must not be done to devices, and what has become of one.
func TestDevices(t *testing.T) {
	b, _ := newFarBench(t)
	disk := lab.LoopDevice(t, lab.Image(t, b.near("disk"), 1, 3*mib))
	b.ok(t, "copyto", "blockdev:"+disk, "disks:root.img")
	before := lab.SumFile(t, disk)
	for _, flag := range []string{"--size-only", "--checksum", "--ignore-existing", "--update"} {
		fails(t, b.run(t, flag, "copyto", "blockdev:"+disk, "disks:root.img"), disk, "leave out "+flag)
		fails(t, b.run(t, flag, "copyto", "disks:root.img", "blockdev,allow_write:"+disk), disk, "leave out "+flag)
	}
	larger := lab.Image(t, b.near("larger"), 2, 4*mib)
	b.ok(t, "copyto", larger, "disks:larger.img")
	fails(t, b.run(t, "copyto", "disks:larger.img", "blockdev,allow_write:"+disk), disk, "4194304", "3145728")
	fails(t, b.run(t, "deletefile", "blockdev,allow_write:"+disk), disk, "never removed")
	if after := lab.SumFile(t, disk); after != before {
		t.Error("the device was written to")
	}
	r := b.run(t, "sync", "--backup-dir", "disks:old", "blockdev:"+b.here, "disks:new").OK(t)
	says(t, r, "--backup-dir", "all of the new one has to be sent")
}

// TestHostKeys must start nothing on a machine that may be another.
func TestHostKeys(t *testing.T) {
	b := newBench(t)
	h := lab.StartHost(t, tools, lab.HostOptions{})
	disk := lab.Image(t, b.near("disk"), 1, mib)
	b.remote(t, "nas", "sftp", h.Remote(t)...)
	b.remote(t, "disks", "diskrsync", "remote=nas:"+b.there, "agent_path="+h.Agent)
	copyTo := []string{"--low-level-retries", "1", "--retries", "1", "copyto", "blockdev:" + disk, "disks:root.img"}
	there := lab.Snap(t, b.there)

	h.Trust(t, lab.Must(os.ReadFile(filepath.Join(h.Dir, "user_key.pub")))(t))
	fails(t, b.run(t, copyTo...), "key mismatch")
	b.ok(t, "config", "update", "nas", "known_hosts_file=")
	fails(t, b.run(t, copyTo...), "nas", "known_hosts_file", "host_keys")
	there.Unchanged(t, b.there)
	b.ok(t, "config", "update", "disks", "insecure_host_key=true")
	b.ok(t, copyTo...)
	b.holds(t, "disks:root.img", disk)
}

// TestLocked starts a second copy to an image while the first is at work.
func TestLocked(t *testing.T) {
	b, _ := newFarBench(t)
	disk := lab.Write(t, b.near("disk"), lab.Noise(1, 20*mib), 0o644)
	first := b.start(t, "--bwlimit", "1M", "copyto", "blockdev:"+disk, "disks:root.img")
	journal := filepath.Join(b.there, ".diskrsync", "root.img.journal")
	for first.Running() {
		if info, err := os.Stat(journal); err == nil && info.Size() > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	fails(t, b.run(t, "--retries", "1", "copyto", "blockdev:"+disk, "disks:root.img"), "root.img", "being written")
	first.Interrupt(t)
	if r := first.Wait(t); r.Code == 0 {
		t.Errorf("it was not interrupted: %+v", r)
	}
	r := b.run(t, "-v", "copyto", "blockdev:"+disk, "disks:root.img").OK(t)
	says(t, r, "were there from an interrupted run")
	b.holds(t, "disks:root.img", disk)
}
