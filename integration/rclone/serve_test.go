//go:build linux

package rclone_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// TestMount mounts images, and the file system in one of them.
func TestMount(t *testing.T) {
	lab.NeedRoot(t)
	lab.NeedPrograms(t, "fusermount3", "fsck.ext4")
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		lab.Missing(t, "file systems in user space cannot be mounted here: %v", err)
	} else {
		f.Close()
	}
	b, _ := newFarBench(t)
	disk := lab.Mkfs(t, "ext4", b.near("disk"), 64*mib)
	lab.Mounted(t, disk, func(dir string) { lab.FillTree(t, dir, 1, 8*mib) })
	b.ok(t, "copyto", "blockdev:"+disk, "disks:root.img")
	b.mounted(t, "disks:", func(dir string) {
		image := filepath.Join(dir, "root.img")
		lab.Same(t, image, disk)
		lab.Do(t, "fsck.ext4", "-f", "-n", image)
		lab.MountedWith(t, image, "loop,ro", func(inner string) {
			lab.Mounted(t, disk, func(original string) { lab.Do(t, "diff", "--recursive", original, inner) })
		})
	})
}

// mounted calls do with a folder on which a remote is mounted.
func (b bench) mounted(t *testing.T, remote string, do func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	outside := lab.Must(os.Stat(dir))(t).Sys().(*syscall.Stat_t).Dev
	r := b.start(t, "mount", "--read-only", remote, dir)
	defer func() {
		lab.Do(t, "fusermount3", "-u", dir)
		r.Wait(t).OK(t)
	}()
	await(t, r, func() bool {
		info, err := os.Stat(dir)
		return err == nil && info.Sys().(*syscall.Stat_t).Dev != outside
	})
	do(dir)
}

// await waits until something is so, as long as a server runs.
func await(t *testing.T, r *lab.Run, so func() bool) {
	t.Helper()
	for !so() {
		if !r.Running() {
			t.Fatalf("the server has ended: %+v", r.Wait(t))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// serve has rclone serve a remote at an address of loopback, until the end of the
// test, and returns the port.
func (b bench) serve(t *testing.T, protocol, remote string, flags ...string) string {
	t.Helper()
	address := freeAddress(t)
	b.daemon(t, address, append([]string{"serve", protocol, "--addr", address, remote}, flags...)...)
	return address[strings.LastIndexByte(address, ':')+1:]
}

// freeAddress returns an address of loopback that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l := lab.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	return l.Addr().String()
}

// daemon runs rclone until the end of the test, and returns when it listens at the
// address that the arguments give it.
func (b bench) daemon(t *testing.T, address string, args ...string) *lab.Run {
	t.Helper()
	r := b.start(t, args...)
	t.Cleanup(func() {
		r.Signal(t, syscall.SIGTERM)
		r.Wait(t)
	})
	await(t, r, func() bool {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
	return r
}

// TestServe reads images by the programs that other people have.
func TestServe(t *testing.T) {
	b, _ := newFarBench(t)
	disk := lab.Image(t, b.near("disk"), 1, 9*mib+5)
	b.ok(t, "copyto", "blockdev:"+disk, "disks:root.img")
	t.Run("sftp", func(t *testing.T) {
		lab.NeedPrograms(t, "sftp", "ssh-keygen")
		key := filepath.Join(t.TempDir(), "key")
		lab.Do(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key)
		port := b.serve(t, "sftp", "disks:", "--read-only", "--user", "me", "--authorized-keys", key+".pub")
		got := filepath.Join(t.TempDir(), "got")
		lab.Do(t, "sftp", "-q", "-i", key, "-P", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "IdentitiesOnly=yes", "me@127.0.0.1:root.img", got)
		lab.Same(t, got, disk)
	})
	t.Run("webdav", func(t *testing.T) {
		lab.NeedPrograms(t, "curl")
		port := b.serve(t, "webdav", "disks:", "--read-only")
		url := fmt.Sprintf("http://127.0.0.1:%s/root.img", port)
		got := filepath.Join(t.TempDir(), "got")
		lab.Do(t, "curl", "--fail", "--silent", "--show-error", "--output", got, url)
		lab.Same(t, got, disk)
		lab.Do(t, "curl", "--fail", "--silent", "--show-error", "--output", got, "--range", "5000000-5000099", url)
		part := lab.Write(t, got+"-part", lab.Must(os.ReadFile(disk))(t)[5000000:5000100], 0o644)
		lab.Same(t, got, part)
	})
}

// TestS3 reads images from a store that can do nothing but give parts of files, and
// has no agent.
func TestS3(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		b := newBench(t)
		disk := lab.Image(t, b.near("disk"), 1, 9*mib+5)
		b.remote(t, "made", "diskrsync", "remote="+b.far("bucket"), "format="+format)
		b.ok(t, "copyto", disk, "made:vms/root.img")
		port := b.serve(t, "s3", b.there, "--auth-key", "someone,secret", "--vfs-cache-mode", "full")
		b.remote(t, "store", "s3", "provider=Rclone", "endpoint=http://127.0.0.1:"+port, "access_key_id=someone", "secret_access_key=secret",
			"use_multipart_uploads=false")
		b.remote(t, "disks", "diskrsync", "remote=store:bucket", "format="+format)
		if lines := b.list(t, "disks:"); len(lines) != 1 || !strings.HasPrefix(lines[0], fmt.Sprint(9*mib+5, " ")) {
			t.Errorf("lsl tells %q", lines)
		}
		b.holds(t, "disks:vms/root.img", disk)
		part := b.ok(t, "cat", "--offset", "5000000", "--count", "100", "disks:vms/root.img")
		if part != string(lab.Must(os.ReadFile(disk))(t)[5000000:5000100]) {
			t.Error("a part in the middle is another")
		}
		b.ok(t, "copyto", "disks:vms/root.img", b.near("got"))
		lab.Same(t, b.near("got"), disk)
		there := lab.Snap(t, b.there)
		fails(t, b.run(t, "--retries", "1", "copyto", "blockdev:"+disk, "disks:new.img"), "a path of this machine or to an sftp remote")
		there.Unchanged(t, b.there)
	})
}

// TestInfo has rclone find out what names and lengths a remote takes. These are
// thousands of images, too many to start an agent for each.
func TestInfo(t *testing.T) {
	b := newBench(t)
	b.remote(t, "disks", "diskrsync", "remote="+b.there)
	r := b.run(t, "test", "info", "--all", "disks:info").OK(t)
	for _, line := range []string{
		"maxFileLength = 247 // for 1 byte", // and 8 for what is stored beside it
		"canWriteUnnormalized = true", "canStream = true", "base32768isOK = true",
	} {
		if !strings.Contains(r.Stdout, line) {
			t.Errorf("%q is not said:\n%s", line, r.Stdout)
		}
	}
}
