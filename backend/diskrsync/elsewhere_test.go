package diskrsync_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/object"
	"github.com/rclone/rclone/fs/operations"
)

// TestMemory reads images from a remote that has no agent: they were made here, and
// then their files were uploaded.
func TestMemory(t *testing.T) {
	for _, format := range []string{"spgz", "raw"} {
		for _, what := range []string{"with what is stored about it", "alone"} {
			t.Run(format+" "+what, func(t *testing.T) {
				content := content(1<<20 + 777)
				dir := t.TempDir()
				here := makeFs(t, fmt.Sprintf(":diskrsync,remote='%s',format=%s:", dir, format))
				put(t, here, "vms/root.img", content)
				if what == "alone" {
					remove(t, filepath.Join(dir, "vms", ".diskrsync"))
				}
				bucket := strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
				upload(t, dir, ":memory:"+bucket)
				there := makeFs(t, fmt.Sprintf(":diskrsync,remote=':memory:%s',format=%s:", bucket, format))
				readable(t, there, "vms/root.img", content)
				refusesToWrite(t, there, "vms/root.img", content)
			})
		}
	}
}

// readable checks that an image is listed, and that all of it and each part of it can
// be read.
func readable(t *testing.T, f fs.Fs, remote string, content []byte) {
	t.Helper()
	entries, err := f.List(t.Context(), filepath.Dir(remote))
	if err != nil || len(entries) != 1 || entries[0].Remote() != remote || entries[0].Size() != int64(len(content)) {
		t.Fatalf("listed are %v, %v", entries, err)
	}
	o, err := f.NewObject(t.Context(), remote)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(content))
	for _, test := range []struct {
		option   fs.OpenOption
		from, to int64
	}{
		{&fs.SeekOption{Offset: 0}, 0, size},
		{&fs.SeekOption{Offset: 131071}, 131071, size},
		{&fs.SeekOption{Offset: size}, size, size},
		{&fs.SeekOption{Offset: size + 5}, size, size},
		{&fs.RangeOption{Start: 0, End: 0}, 0, 1},
		{&fs.RangeOption{Start: 131000, End: 400000}, 131000, 400001},
		{&fs.RangeOption{Start: size - 10, End: size + 10}, size - 10, size},
		{&fs.RangeOption{Start: -1, End: 1000}, size - 1000, size},
	} {
		in, err := o.Open(t.Context(), test.option)
		if err != nil {
			t.Fatalf("%v: %v", test.option, err)
		}
		got, err := io.ReadAll(in)
		if err != nil || !bytes.Equal(got, content[test.from:test.to]) {
			t.Errorf("%v: reading gives %d bytes, %v, which are not those from %d to %d", test.option, len(got), err, test.from, test.to)
		}
		if err := in.Close(); err != nil {
			t.Errorf("%v: %v", test.option, err)
		}
	}
}

// refusesToWrite checks that an image is not written where there is no agent, and
// that nothing becomes of the attempt.
func refusesToWrite(t *testing.T, f fs.Fs, remote string, content []byte) {
	t.Helper()
	for _, name := range []string{remote, "new.img"} {
		src := object.NewStaticObjectInfo(name, modified, 3, true, nil, f)
		_, err := f.Put(t.Context(), strings.NewReader("new"), src)
		if err == nil || !strings.Contains(err.Error(), "can only be written to a path of this machine or to an sftp remote") {
			t.Errorf("writing %s ends with %v", name, err)
		}
	}
	if _, err := f.NewObject(t.Context(), "new.img"); err != fs.ErrorObjectNotFound {
		t.Errorf("looking for what was not written: %v", err)
	}
	readable(t, f, remote, content)
}

// What is stored about an image goes with it wherever it is copied, and judges there what
// is read of it.
func TestDamageElsewhere(t *testing.T) {
	for _, format := range []string{"spgz", "raw"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			here := makeFs(t, fmt.Sprintf(":diskrsync,remote='%s',format=%s:", dir, format))
			put(t, here, "root.img", content(1<<20+777))
			path := filepath.Join(dir, "root.img")
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			const at = 34 << 12 // amidst noise, of both formats
			file[at] ^= 1
			if err := errors.Join(os.WriteFile(path, file, 0o600), os.Chtimes(path, modified, modified)); err != nil {
				t.Fatal(err)
			}
			bucket := "damaged-" + format
			upload(t, dir, ":memory:"+bucket)
			for option, damaged := range map[string]bool{"": true, ",checksum": format == "spgz"} {
				there := makeFs(t, fmt.Sprintf(":diskrsync,remote=':memory:%s',format=%s%s:", bucket, format, option))
				o, err := there.NewObject(t.Context(), "root.img")
				if err != nil {
					t.Fatal(err)
				}
				in, err := o.Open(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, in)
				if damaged != (err != nil) || n > 1<<20+777 {
					t.Errorf("%q: %d bytes were read, %v", option, n, err)
				}
				if err := in.Close(); err != nil {
					t.Error(err)
				}
			}
			if _, err := here.Features().Command(t.Context(), "verify", []string{"root.img"}, nil); err == nil {
				t.Fatal("verify finds nothing")
			}
			bucket += "-known"
			upload(t, dir, ":memory:"+bucket)
			o, err := makeFs(t, fmt.Sprintf(":diskrsync,remote=':memory:%s',format=%s:", bucket, format)).NewObject(t.Context(), "root.img")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := o.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "has 1 bad blocks") {
				t.Errorf("an image with a bad block is opened: %v", err)
			}
		})
	}
}

// content returns an image with noise, text and holes.
func content(size int) []byte {
	p := make([]byte, size)
	numbers := rand.New(rand.NewPCG(1, 2))
	for off := 0; off < size; off += 50_000 {
		switch part := p[off:min(off+50_000, size)]; numbers.IntN(3) {
		case 0:
			for i := range part {
				part[i] = byte(numbers.Uint32())
			}
		case 1:
			copy(part, bytes.Repeat([]byte("all work and no play "), 3000))
		}
	}
	p[size-1] = 1 // no hole at the end: what is there must be found
	return p
}

// modified is when all images of these tests were.
var modified = time.Unix(1e9, 5)

func makeFs(t *testing.T, remote string) fs.Fs {
	t.Helper()
	f, err := fs.NewFs(t.Context(), remote)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func put(t *testing.T, f fs.Fs, remote string, content []byte) {
	t.Helper()
	src := object.NewStaticObjectInfo(remote, modified, int64(len(content)), true, nil, f)
	if _, err := f.Put(t.Context(), bytes.NewReader(content), src); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// upload copies all files of a folder to a remote.
func upload(t *testing.T, dir, remote string) {
	t.Helper()
	ctx := context.Background()
	from, to := makeFs(t, dir), makeFs(t, remote)
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return operations.CopyFile(ctx, to, from, name, name)
	})
	if err != nil {
		t.Fatal(err)
	}
}
