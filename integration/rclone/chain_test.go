//go:build linux

package rclone_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// chainSize is how large the images of these tests are. They are noise, so that what
// is sent of them cannot be less than what has changed.
const chainSize = 4*mib + 333

// noisy makes an image that cannot be compressed.
func (b bench) noisy(t *testing.T, name string, seed uint64) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(b.near(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	return lab.Write(t, b.near(name), lab.Noise(seed, chainSize), 0o644)
}

// change changes a page in a hundred of an image. Of two times within one second sftp
// knows but one, so it sets one of its own for every seed, with a part of a second.
func change(t *testing.T, path string, seed uint64) {
	t.Helper()
	lab.Scatter(t, path, seed, chainSize/4096/100)
	if err := os.Chtimes(path, time.Time{}, time.Unix(1_700_000_000+int64(seed), 123_456_789)); err != nil {
		t.Fatal(err)
	}
}

// calm fails the test if rclone did not end by itself.
func calm(t *testing.T, r lab.Result) lab.Result {
	t.Helper()
	if r.Code < 0 || strings.Contains(r.Stderr, "\ngoroutine ") {
		t.Fatalf("%s: exit status %d\n%s", r.Line, r.Code, r.Stderr[:min(len(r.Stderr), 2000)])
	}
	return r
}

// totals are what rclone says at the end that it has done.
type totals struct{ Bytes, Transfers, Errors, Deletes int64 }

// counted runs a command that must succeed, and returns its totals.
func (b bench) counted(t *testing.T, args ...string) totals {
	t.Helper()
	r := b.run(t, append([]string{"--use-json-log", "-v", "--stats", "1h"}, args...)...).OK(t)
	var last *totals
	for line := range strings.Lines(r.Stderr) {
		var said struct{ Stats *totals }
		if err := json.Unmarshal([]byte(line), &said); err != nil {
			t.Fatalf("%s: %v: %s", r.Line, err, line)
		}
		if said.Stats != nil {
			last = said.Stats
		}
	}
	if last == nil {
		t.Fatalf("%s: tells no totals:\n%s", r.Line, r.Stderr)
	}
	return *last
}

// files returns the names of all files below folders that contain a word.
func files(t *testing.T, word string, dirs ...string) []string {
	t.Helper()
	var found []string
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
			if err == nil && !entry.IsDir() && strings.Contains(entry.Name(), word) {
				found = append(found, strings.TrimPrefix(path, dir+"/"))
			}
			return err
		})
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return found
}

// TestWrapped puts other remotes on top of disks.
func TestWrapped(t *testing.T) {
	b, meter := newFarBench(t)
	b.remote(t, "more", "diskrsync", "remote="+b.near("more"))
	b.remote(t, "aliased", "alias", "remote=disks:a")
	b.remote(t, "combined", "combine", "upstreams=sub=disks:c other=more:c")
	b.remote(t, "united", "union", "upstreams=disks: more:")
	b.remote(t, "hashed", "hasher", "remote=disks:h")
	for i, image := range []string{"aliased:vms/root.img", "combined:sub/root.img", "united:root.img", "hashed:root.img"} {
		t.Run(image[:strings.IndexByte(image, ':')], func(t *testing.T) {
			disk := b.noisy(t, fmt.Sprint("disk-", i), uint64(i))
			change(t, disk, 1)
			if passed := b.copied(t, meter, disk, image); passed < chainSize {
				t.Errorf("%d bytes went over the wire for an image of %d", passed, chainSize)
			}
			b.holds(t, image, disk)
			change(t, disk, 2)
			if passed := b.copied(t, meter, "blockdev:"+disk, image); passed > chainSize/4 {
				t.Errorf("%d bytes went over the wire for a few pages", passed)
			}
			b.holds(t, image, disk)
			lines := b.list(t, image)
			if len(lines) != 1 || !strings.HasPrefix(lines[0], fmt.Sprint(chainSize, " ")) || !strings.HasSuffix(lines[0], " root.img") {
				t.Errorf("lsl tells %q", lines)
			}
			b.ok(t, "deletefile", image)
			if left := files(t, "root.img", b.there, b.near("more")); len(left) > 0 {
				t.Errorf("what is left: %q", left)
			}
		})
	}
	t.Run("commands", func(t *testing.T) {
		disk := b.noisy(t, "disk", 9)
		b.ok(t, "copyto", disk, "aliased:vms/root.img")
		b.commanded(t, "aliased:vms", "root.img")
		fails(t, b.run(t, "backend", "info", "combined:", "sub/root.img"), "combine", "doesn't support backend commands")
		fails(t, b.run(t, "backend", "info", "hashed:", "root.img"), "try the underlying remote")
	})
}

// copied copies an image, checks what rclone says of that, and returns how many bytes
// went over the wire.
func (b bench) copied(t *testing.T, m *lab.Meter, source, image string) int64 {
	t.Helper()
	m.Take()
	if said := b.counted(t, "copyto", source, image); said.Bytes != chainSize || said.Transfers != 1 {
		t.Errorf("copying %s to %s is counted as %+v, and it has %d bytes", source, image, said, chainSize)
	}
	return m.Take()
}

// commanded runs each command of the backend, and checks that they agree.
func (b bench) commanded(t *testing.T, remote, image string) {
	t.Helper()
	info := b.command(t, "info", remote, image)
	if info.State != "complete" || info.Size != chainSize || info.Digest == "" {
		t.Errorf("info tells %+v", info)
	}
	for _, name := range []string{"verify", "tree"} {
		if other := b.command(t, name, remote, image); other.Digest != info.Digest {
			t.Errorf("%s tells %+v, info %+v", name, other, info)
		}
	}
	if b.command(t, "clean", remote, image).Done == "" {
		t.Error("clean does not say what it did")
	}
}

// TestUnion updates an image that two remotes have: both are to get it, of one stream
// that a union gives to both of them.
func TestUnion(t *testing.T) {
	b, _ := newFarBench(t)
	b.remote(t, "more", "diskrsync", "remote="+b.near("more"), "format=raw")
	b.remote(t, "united", "union", "upstreams=disks: more:")
	disk := b.noisy(t, "disk", 1)
	for i, source := range []string{disk, "blockdev:" + disk} {
		t.Run(fmt.Sprint("source ", i), func(t *testing.T) {
			b.ok(t, "copyto", disk, "disks:root.img")
			b.ok(t, "copyto", disk, "more:root.img")
			change(t, disk, uint64(i))
			b.start(t, "copyto", source, "united:root.img").WaitFor(t, time.Minute).OK(t)
			b.holds(t, "disks:root.img", disk)
			b.holds(t, "more:root.img", disk)
		})
	}
}

// TestBehind reaches the folder of the images by way of other remotes.
func TestBehind(t *testing.T) {
	b, meter := newFarBench(t)
	b.remote(t, "folder", "alias", "remote=nas:"+b.there)
	b.remote(t, "tree", "combine", fmt.Sprintf(`upstreams=far=folder:in "two words=folder:some where" near=%s`, b.near("images")))
	b.remote(t, "again", "alias", "remote=tree:far/deeper")
	for i, test := range []struct {
		remote, file string
		far          bool
	}{
		{"again:x", b.far("in/deeper/x/root.img"), true},
		{"tree:two words", b.far("some where/root.img"), true},
		{"tree:near/x", b.near("images/x/root.img"), false},
	} {
		t.Run(test.remote, func(t *testing.T) {
			disk := b.noisy(t, fmt.Sprint("disk-", i), uint64(i))
			set := fmt.Sprintf("disks,remote='%s'", test.remote)
			if !test.far {
				set += ",agent_path=/nowhere/diskrsync"
			}
			b.ok(t, "copyto", disk, set+":root.img")
			if _, err := os.Stat(test.file); err != nil {
				t.Error(err)
			}
			change(t, disk, 1)
			meter.Take()
			r := b.run(t, "-v", "copyto", "blockdev:"+disk, set+":root.img").OK(t)
			says(t, r, "root.img", "went over the wire", " 0 blocks whole")
			if passed := meter.Take(); passed > chainSize/4 {
				t.Errorf("%d bytes went over the wire for a few pages", passed)
			}
			b.holds(t, set+":root.img", disk)
		})
	}
	b.commanded(t, "disks,remote='again:x':", "root.img")
}

// TestCrypt puts crypt on top of disks, which works and is not what anyone wants.
func TestCrypt(t *testing.T) {
	b, meter := newFarBench(t)
	b.remote(t, "aliased", "alias", "remote=disks:")
	b.remote(t, "vault", "crypt", "remote=aliased:secret", "password=secret")
	disk := b.noisy(t, "disk", 1)
	for seed := range uint64(2) {
		change(t, disk, seed)
		meter.Take()
		r := b.run(t, "copyto", "blockdev:"+disk, "vault:root.img").OK(t)
		if n := strings.Count(r.Stderr, "nothing will ever match"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, r.Stderr)
		}
		if passed := meter.Take(); passed < chainSize {
			t.Errorf("%d bytes went over the wire: what was encrypted anew cannot match", passed)
		}
		b.holds(t, "vault:root.img", disk)
	}
	b.ok(t, "deletefile", "vault:root.img")
	if left := files(t, "", b.there); len(left) > 0 {
		t.Errorf("what is left: %q", left)
	}
}

// TestOnward copies content to where no agent is, and the files of images, which can
// be read there.
func TestOnward(t *testing.T) {
	b, _ := newFarBench(t)
	disk := b.noisy(t, "disk", 1)
	b.ok(t, "copyto", disk, "disks:vms/root.img")
	port := b.serve(t, "s3", ":memory:", "--auth-key", "someone,secret", "--vfs-cache-mode", "full")
	b.remote(t, "store", "s3", "provider=Rclone", "endpoint=http://127.0.0.1:"+port, "access_key_id=someone", "secret_access_key=secret",
		"use_multipart_uploads=false")
	for _, to := range []string{"store:content/root.img", b.near("got/root.img"), ":memory:bucket/root.img"} {
		if said := b.counted(t, "copyto", "disks:vms/root.img", to); said.Bytes != chainSize || said.Transfers != 1 {
			t.Errorf("copying to %s is counted as %+v", to, said)
		}
	}
	b.holds(t, "store:content/root.img", disk)
	lab.Same(t, b.near("got/root.img"), disk)

	b.ok(t, "copy", "nas:"+b.there, "store:files")
	b.remote(t, "there", "diskrsync", "remote=store:files")
	if lines := b.list(t, "there:"); len(lines) != 1 || !strings.HasPrefix(lines[0], fmt.Sprint(chainSize, " ")) {
		t.Errorf("lsl tells %q", lines)
	}
	b.holds(t, "there:vms/root.img", disk)
	change(t, disk, 1)
	fails(t, b.run(t, "--retries", "1", "copyto", disk, "there:vms/root.img"), "a path of this machine or to an sftp remote")
	fails(t, b.run(t, "check", "--download", "--one-way", filepath.Dir(disk), "there:vms", "--include", "disk"), "1 differences found")
	b.ok(t, "copyto", "there:vms/root.img", "disks:back.img")
	b.ok(t, "check", "--download", "disks:vms", "there:vms")
	b.holds(t, "there:vms/root.img", b.near("got/root.img"))
	b.holds(t, "disks:back.img", b.near("got/root.img"))
}

// TestReadOnce holds that an image is not read again and again to read it once.
func TestReadOnce(t *testing.T) {
	const size = 16 * mib
	eachFormat(t, func(t *testing.T, format string) {
		b, meter := newFarBench(t, "format="+format)
		disk := lab.Write(t, b.near("disk"), lab.Noise(1, size), 0o644)
		b.ok(t, "copyto", disk, "disks:root.img")
		meter.Take()
		b.holds(t, "disks:root.img", disk)
		// What sftp reads ahead is for nothing at the end of each part.
		if passed := meter.Take(); passed > size/2*3 {
			t.Errorf("%d bytes went over the wire for an image of %d", passed, size)
		}
	})
}

// patterns is a stream of 1 MiB zeros and noise by turns.
type patterns struct {
	noise      []byte
	pos, limit int64
}

func (p *patterns) Read(buf []byte) (int, error) {
	if p.pos == p.limit {
		return 0, io.EOF
	}
	n := min(len(buf), int(p.limit-p.pos), int(mib-p.pos%mib))
	if clear(buf[:n]); p.pos/mib%4 == 1 {
		copy(buf[:n], p.noise[p.pos%mib:])
		buf[0] ^= byte(p.pos / mib) // no two of them are the same
	}
	p.pos += int64(n)
	return n, nil
}

// TestStream has rclone take a stream of which nobody knows how long it is. Were all
// of it in memory, it would need more than is allowed here.
func TestStream(t *testing.T) {
	const size, most = 512 * mib, 384 * mib
	b, _ := newFarBench(t)
	b.remote(t, "tree", "combine", "upstreams=sub=disks:vms")
	noise := lab.Noise(1, mib)
	temporary := t.TempDir()
	cmd := exec.Command(b.program, b.args([]string{"rcat", "tree:sub/root.img", "--temp-dir", temporary})...)
	cmd.Stdin = &patterns{noise: noise, limit: size}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	if t.Logf("it took %d bytes of memory", peak); peak > most {
		t.Error("that is too much")
	}
	if left := files(t, "", temporary); len(left) > 0 {
		t.Errorf("it left %q", left)
	}
	b.remote(t, "near", "diskrsync", "remote="+b.far("vms"))
	r, out := lab.StartPiped(t, b.program, b.args([]string{"cat", "near:root.img"})...)
	defer out.Close()
	if got, want := lab.Sum(t, out), lab.Sum(t, &patterns{noise: noise, limit: size}); got != want {
		t.Errorf("the content is %s, the stream was %s", got, want)
	}
	r.Wait(t).OK(t)
}

// TestBisync keeps two remotes equal, of which one knows times less exactly. Each has
// to keep the time that rclone has found at the other, or it takes every image for
// changed.
func TestBisync(t *testing.T) {
	b, _ := newFarBench(t)
	b.remote(t, "more", "diskrsync", "remote="+b.near("more"))
	one, two := b.noisy(t, "one", 1), b.noisy(t, "two", 2)
	change(t, one, 1)
	change(t, two, 2)
	b.ok(t, "copyto", one, "disks:one.img")
	b.ok(t, "copyto", two, "disks:two.img")
	b.ok(t, "mkdir", "more:")
	bisync := []string{"-v", "bisync", "disks:", "more:", "--workdir", b.caches}
	b.ok(t, append(bisync, "--resync")...)
	says(t, b.run(t, bisync...).OK(t), "No changes found")
	change(t, one, 3)
	b.ok(t, "copyto", one, "disks:one.img")
	b.ok(t, bisync...)
	b.holds(t, "more:one.img", one)
	change(t, two, 4)
	b.ok(t, "copyto", two, "more:two.img")
	b.ok(t, bisync...)
	b.holds(t, "disks:two.img", two)
}

// TestOtherCommands runs what rclone has besides: it works, or says why not.
func TestOtherCommands(t *testing.T) {
	b, _ := newFarBench(t)
	disk := b.noisy(t, "disk", 1)
	b.ok(t, "copyto", disk, "disks:vms/root.img")
	b.ok(t, "mkdir", "disks:empty/folder")
	for _, test := range []struct{ args, says string }{
		{"size disks:", fmt.Sprintf("(%d Byte)", chainSize)},
		{"about disks:", "Free:"},
		{"tree disks:", "root.img"},
		{"lsjson --recursive disks:", `"Name":"root.img"`},
		{"lsf --recursive disks:", "empty/folder/\n"},
		{"touch --timestamp 2020-02-03T04:05:06 disks:vms/root.img", ""},
		{"lsl disks:", fmt.Sprint(chainSize, " 2020-02-03 04:05:06.000000000 vms/root.img")},
		{"dedupe disks:", ""},
		{"rmdirs disks:", ""},
		{"lsf --recursive --dirs-only disks:", "vms/"},
	} {
		if out := b.ok(t, strings.Fields(test.args)...); !strings.Contains(out, test.says) {
			t.Errorf("%s tells %q, and not %q", test.args, out, test.says)
		}
	}
	b.commanded(t, "disks:vms", "root.img")
	before := lab.Snap(t, b.there)
	for _, test := range []struct{ args, says string }{
		{"cleanup disks:", "doesn't support cleanup"},
		{"settier COLD disks:vms/root.img", "does not support settier"},
		{"link disks:vms/root.img", "doesn't support public links"},
		{"cryptcheck disks: disks:", "is not a crypt remote"},
		{"backend nothing disks:", "command not found"},
		{"rmdir disks:vms", "directory not empty"},
		{"deletefile disks:vms", "is a directory or doesn't exist"},
		{"lsl disks:nothing", "directory not found"},
		{"copyto " + disk + " disks:vms", "is a directory not a file"},
	} {
		fails(t, calm(t, b.run(t, append(strings.Fields(test.args), "--retries", "1")...)), test.says)
	}
	before.Unchanged(t, b.there)
	b.holds(t, "disks:vms/root.img", disk)
}
