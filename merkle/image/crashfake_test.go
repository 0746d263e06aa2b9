package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The fake behaves as a real file system does, but for crashes.
func TestCrashFSIsAFileSystem(t *testing.T) {
	for seed := range uint64(30) {
		root, err := os.OpenRoot(t.TempDir())
		must(t, err)
		fake, real := newCrashFS(), osFolder{root}
		r := newRand(seed)
		for step := range 120 {
			action := r.Uint64()
			a, b := fsAction(fake, newRand(action)), fsAction(real, newRand(action))
			if a != b {
				t.Fatalf("seed %d, step %d: the fake says\n%s\nand the real one\n%s", seed, step, a, b)
			}
		}
		must(t, root.Close())
		// With all kept, a crash is not noticed.
		if a, b := fsPicture(fake), fsPicture(fake.reboot()); a != b {
			t.Fatalf("seed %d: before the crash\n%s\nand after it\n%s", seed, a, b)
		}
	}
}

// fsAction does something with a folder and returns in words what came of it.
func fsAction(f folder, r *rand.Rand) string {
	names := []string{"a", "b", "sub", "sub/a", "sub/b"}
	pick := func() string { return names[r.IntN(len(names))] }
	say := func(what string, err error) string {
		return fmt.Sprintf("%s: %v\n%s", what, cause(err), fsPicture(f))
	}
	switch name := pick(); r.IntN(8) {
	case 0:
		return say("mkdir", f.Mkdir("sub", 0o700))
	case 1:
		return say("remove "+name, f.Remove(name))
	case 2:
		// The folder takes no part: what is said then depends on the system.
		if to := pick(); name != "sub" && to != "sub" {
			return say("link", f.Link(name, to))
		}
	case 3:
		if to := pick(); name != "sub" && to != "sub" {
			return say("rename", f.Rename(name, to))
		}
	case 4:
		return say("sync "+path.Dir(name), f.Sync(path.Dir(name)))
	default:
		if name == "sub" {
			break
		}
		flag := os.O_RDWR | []int{0, os.O_CREATE, os.O_CREATE | os.O_EXCL, os.O_CREATE | os.O_TRUNC}[r.IntN(4)]
		g, err := f.OpenFile(name, flag, 0o600)
		if err != nil {
			return say("open "+name, err)
		}
		return say("change "+name, errors.Join(fileAction(g, r), g.Close()))
	}
	return ""
}

func fileAction(f file, r *rand.Rand) error {
	var errs []error
	for range r.IntN(5) {
		off, n := r.Int64N(40_000), r.IntN(20_000)
		switch r.IntN(4) {
		case 0:
			errs = append(errs, f.Truncate(off))
		case 1:
			errs = append(errs, f.Zero(off/crashPage*crashPage, (off+int64(n)+crashPage)/crashPage*crashPage))
		case 2:
			errs = append(errs, f.Sync(), f.SetModified(time.Unix(off, 12_000)))
		case 3:
			_, err := f.WriteAt(noise(uint64(off), n), off)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// fsPicture describes all that is in a folder.
func fsPicture(f folder) string {
	var out strings.Builder
	for _, name := range []string{"a", "b", "sub", "sub/a", "sub/b"} {
		info, err := f.Lstat(name)
		if err != nil || info.IsDir() {
			fmt.Fprintln(&out, name, err == nil)
			continue
		}
		g, err := f.OpenFile(name, os.O_RDONLY, 0)
		if err != nil {
			fmt.Fprintln(&out, name, cause(err))
			continue
		}
		all := make([]byte, 70_000)
		n, err := g.ReadAt(all, 0)
		fmt.Fprintf(&out, "%s: %d bytes, %v, %x\n", name, n, err, sha256.Sum256(all[:n]))
		for off := int64(0); ; {
			e, err := g.NextData(off)
			if err != nil {
				break
			}
			off = e.End()
			fmt.Fprintf(&out, "  %+v", e)
		}
		fmt.Fprintln(&out, g.Close())
	}
	return out.String()
}

// leftAfter collects what crashes at the end of a run leave of a file, "-" if it
// is not there.
func leftAfter(c *crashFS, name string, fates ...fate) map[string]bool {
	seen := map[string]bool{}
	for _, f := range fates {
		left := c.crash(len(c.log), f)
		inode, ok := left.now.names[name]
		if !ok {
			seen["-"] = true
			continue
		}
		n := left.now.nodes[inode]
		all := make([]byte, n.size)
		n.read(all, 0)
		short := ""
		for at := 0; at < len(all); at += crashSector {
			short += string(rune('0' + all[at]))
		}
		seen[short] = true
	}
	return seen
}

// sectorsOf returns a sector of each value.
func sectorsOf(values []byte) (out []byte) {
	for _, v := range values {
		out = append(out, bytes.Repeat([]byte{v}, crashSector)...)
	}
	return out
}

func TestCrashFSLosesWhatWasNotSynced(t *testing.T) {
	write := func(f file, off int64, values ...byte) {
		_, err := f.WriteAt(sectorsOf(values), off*crashSector)
		must(t, err)
	}
	for _, c := range []struct {
		name string
		do   func(c *crashFS, f file)
		want []string // every state that may be left
	}{
		{"nothing", func(*crashFS, file) {}, []string{"11"}},
		{"write", func(_ *crashFS, f file) { write(f, 0, 2, 2) }, []string{"11", "12", "21", "22"}},
		{"synced write", func(_ *crashFS, f file) { write(f, 0, 2, 2); must(t, f.Sync()) }, []string{"22"}},
		{"failed sync", func(c *crashFS, f file) {
			write(f, 0, 2)
			c.inject(diskFault{kinds: opSync, n: 1, err: syscall.EIO})
			if err := f.Sync(); !errors.Is(err, syscall.EIO) {
				t.Error(err)
			}
			must(t, f.Sync())
		}, []string{"11", "21"}},
		{"twice", func(_ *crashFS, f file) { write(f, 0, 2); write(f, 0, 3) }, []string{"11", "21", "31"}},
		{"longer", func(_ *crashFS, f file) { write(f, 2, 2) }, []string{"11", "110", "112"}},
		{"shorter", func(_ *crashFS, f file) { must(t, f.Truncate(crashSector)) }, []string{"11", "1"}},
		{"shorter and longer", func(_ *crashFS, f file) {
			must(t, errors.Join(f.Truncate(crashSector), f.Truncate(2*crashSector)))
		}, []string{"11", "1", "10"}},
		{"punch", func(_ *crashFS, f file) { must(t, f.Zero(0, crashPage)) }, []string{"11", "01", "10", "00"}},
		{"remove", func(c *crashFS, _ file) { must(t, c.Remove("f")) }, []string{"11", "-"}},
		{"synced remove", func(c *crashFS, _ file) { must(t, errors.Join(c.Remove("f"), c.Sync("."))) }, []string{"-"}},
		{"rename", func(c *crashFS, _ file) { must(t, c.Rename("f", "g")) }, []string{"11", "-"}},
		{"replace", func(c *crashFS, _ file) {
			g, err := c.OpenFile("g", os.O_RDWR|os.O_CREATE, 0o600)
			must(t, err)
			write(g, 0, 5)
			must(t, errors.Join(g.Sync(), c.Rename("g", "f")))
		}, []string{"11", "5"}},
		{"in a folder that is lost", func(c *crashFS, _ file) {
			must(t, errors.Join(c.Mkdir("d", 0o700), c.Rename("f", "d/f"), c.Sync("d")))
		}, []string{"-"}},
	} {
		fs := newCrashFS()
		f, err := fs.OpenFile("f", os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		write(f, 0, 1, 1)
		must(t, errors.Join(f.Sync(), fs.Sync(".")))
		c.do(fs, f)
		fates := []fate{keepNone, keepAll}
		for seed := range uint64(200) {
			fates = append(fates, keepAtRandom(newRand(seed)))
		}
		got := slices.Sorted(maps.Keys(leftAfter(fs, "f", fates...)))
		if want := slices.Sorted(slices.Values(c.want)); !slices.Equal(got, want) {
			t.Errorf("%s: a crash leaves %q, want %q", c.name, got, want)
		}
	}
}

func TestCrashFSLocks(t *testing.T) {
	c := newCrashFS()
	open := func(name string) file {
		f, err := c.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		return f
	}
	one, two, other := open("f"), open("f"), open("g")
	must(t, c.Link("f", "h"))
	three := open("h")
	for i, step := range []struct {
		f    file
		how  lockMode
		want bool
	}{
		{one, shared, true}, {two, shared, true}, {three, exclusive, false}, {other, exclusive, true},
		{one, exclusive, false}, {two, exclusive, true}, {one, shared, false}, {two, shared, true},
		{one, shared, true}, {two, unlocked, true}, {one, exclusive, true}, {three, shared, false},
	} {
		if got, err := step.f.Lock(step.how); got != step.want || err != nil {
			t.Errorf("step %d: %v, %v; want %v", i, got, err, step.want)
		}
	}
	must(t, one.Close())
	if got, err := three.Lock(exclusive); !got || err != nil {
		t.Errorf("the lock of a closed file stays: %v, %v", got, err)
	}
}

func TestCrashFSRunsFull(t *testing.T) {
	c := newCrashFS()
	c.space = 3 * crashPage
	f, err := c.OpenFile("f", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	if n, err := f.WriteAt(make([]byte, 4*crashPage), 100); n != 3*crashPage-100 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
	_, err = f.WriteAt([]byte{1}, 5)
	must(t, err)
	must(t, f.Zero(0, crashPage))
	if free, err := c.Free(); free != crashPage || err != nil {
		t.Errorf("%d bytes free, %v", free, err)
	}
	must(t, errors.Join(c.Remove("f"), f.Close()))
	if free, err := c.Free(); free != 3*crashPage || err != nil {
		t.Errorf("%d bytes free, %v", free, err)
	}
}
