//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMain makes this binary fit to be a carrier, as Main does for others.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == carrierWord {
		os.Exit(carry(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// TestCarrier sends bytes to an agent that sends them back.
func TestCarrier(t *testing.T) {
	const size = 100_000
	for _, test := range []struct{ cutAfter, passed int64 }{{0, 2 * size}, {1, 1}, {60_000, 60_000}, {2*size + 1, 2 * size}} {
		carrier := NewCarrier(t)
		rsh := carrier.Args(t, "", test.cutAfter)[1]
		r := Start(t, "/bin/sh", "-c", fmt.Sprintf("head -c %d /dev/zero | %s cat", size, rsh)).Wait(t)
		to, from := carrier.Sent(t)
		if to+from != test.passed || from != int64(len(r.Stdout)) || to < from {
			t.Errorf("cut after %d: %d bytes there, %d back, %d came out; want %d in all", test.cutAfter, to, from, len(r.Stdout), test.passed)
		}
	}
}

// TestStartPiped reads the output of a program that has to wait for that.
func TestStartPiped(t *testing.T) {
	r, out := StartPiped(t, "/bin/sh", "-c", "head -c 1000000 /dev/zero; echo here >&2")
	defer out.Close()
	got := Sum(t, out)
	if r := r.Wait(t).OK(t); r.Stderr != "here\n" || r.Stdout != "" {
		t.Errorf("it left %+v", r)
	}
	zeros := SparseFile(t, filepath.Join(t.TempDir(), "zeros"), 1_000_000)
	if want := SumFile(t, zeros); got != want {
		t.Errorf("the output has the sum %s, want %s", got, want)
	}
}

func TestRot(t *testing.T) {
	path := Write(t, filepath.Join(t.TempDir(), "file"), Noise(1, 10_000), 0o644)
	before := Must(os.Stat(path))(t)
	Rot(t, path, 5000)
	after := Must(os.Stat(path))(t)
	if !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size() {
		t.Errorf("it shows: %v, before %v", after, before)
	}
	got, want := Must(os.ReadFile(path))(t), Noise(1, 10_000)
	if differ := differsAt(got, want); differ != 5000 {
		t.Errorf("the first difference is at %d, want 5000", differ)
	}
}

func TestFill(t *testing.T) {
	NeedRoot(t)
	dir := MountUntilEnd(t, Mkfs(t, "ext4", filepath.Join(t.TempDir(), "system"), 16<<20), "loop")
	Fill(t, filepath.Join(dir, "filler"), 1<<20)
	if err := os.WriteFile(filepath.Join(dir, "file"), Noise(1, 2<<20), 0o644); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("writing 2 MiB where 1 MiB is free: %v", err)
	}
	Write(t, filepath.Join(dir, "file"), Noise(1, 1<<19), 0o644)
}

// TestHost logs in and looks at the processes of a session, which the tests of
// other packages rely on to tell what is left of a sync.
func TestHost(t *testing.T) {
	agent := Write(t, filepath.Join(t.TempDir(), "agent"), []byte("#!/bin/sh\necho here; read line\n"), 0o755)
	h := StartHost(t, Tools{}, HostOptions{Agent: agent})
	ssh := Must(findProgram("ssh"))(t)
	keepOpen := filepath.Join(t.TempDir(), "fifo")
	Do(t, "mkfifo", keepOpen)
	r := Start(t, "/bin/sh", "-c", ssh+" "+h.SSHFlags+" -- beta "+agent+" <"+keepOpen)
	writer := Must(os.OpenFile(keepOpen, os.O_WRONLY, 0))(t)
	for !strings.Contains(readAll(filepath.Join(r.dir, "stdout")), "here") {
		if !r.Running() {
			t.Fatalf("could not log in: %+v", r.Wait(t))
		}
	}
	if n := len(h.Carriers(t)); n != 1 {
		t.Errorf("%d ssh clients are running, want 1: %v", n, h.Processes(t))
	}
	if n := len(h.Sessions(t)); n != 1 {
		t.Errorf("%d sessions are running, want 1: %v", n, h.Processes(t))
	}
	if _, err := writer.WriteString("bye\n"); err != nil {
		t.Fatal(err)
	}
	r.Wait(t).OK(t)
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	h.AwaitQuiet(t)
}

// TestFirstDifference changes single bytes, in data and in holes, and must be
// told about each.
func TestFirstDifference(t *testing.T) {
	dir := t.TempDir()
	const size = 5<<20 + 77
	original := Image(t, filepath.Join(dir, "original"), 1, size)
	for _, off := range []int64{0, 1, 1<<20 - 1, 1 << 20, 3<<20 + 5, size - 1} {
		changed := Copy(t, original, filepath.Join(dir, "changed"))
		a, b := openSized(t, original), openSized(t, changed)
		if at, err := firstDifference(a, b); at != -1 || err != nil {
			t.Errorf("a copy differs at %d, %v", at, err)
		}
		old := make([]byte, 1)
		if _, err := a.ReadAt(old, off); err != nil {
			t.Fatal(err)
		}
		WriteAt(t, changed, []byte{old[0] + 1}, off)
		if at, err := firstDifference(a, b); at != off || err != nil {
			t.Errorf("changed at %d, but it differs at %d, %v", off, at, err)
		}
		a.Close()
		b.Close()
	}
}

// TestGeneratorsRepeat holds what makes a failure repeatable.
func TestGeneratorsRepeat(t *testing.T) {
	dir := t.TempDir()
	one := Image(t, filepath.Join(dir, "one"), 5, 3<<20)
	two := Image(t, filepath.Join(dir, "two"), 5, 3<<20)
	Scatter(t, one, 6, 10)
	Scatter(t, two, 6, 10)
	Same(t, one, two)
	if other := Image(t, filepath.Join(dir, "other"), 6, 3<<20); Do(t, "sha256sum", "-z", other)[:64] == Do(t, "sha256sum", "-z", one)[:64] {
		t.Error("another seed made the same image")
	}
}

func TestBlockDevice(t *testing.T) {
	device := BlankDevice(t, 4<<20)
	image := Image(t, filepath.Join(t.TempDir(), "image"), 1, 3<<20)
	WriteAt(t, device, Must(os.ReadFile(image))(t), 0)
	Same(t, device, image)
	file := Mkfs(t, "ext4", filepath.Join(t.TempDir(), "system"), 8<<20)
	Mounted(t, file, func(dir string) { FillTree(t, dir, 1, 1<<20) })
	Mounted(t, file, func(dir string) {
		if files := Must(filepath.Glob(dir + "/folder-*/file-*"))(t); len(files) == 0 {
			t.Error("the files are gone")
		}
	})
}
