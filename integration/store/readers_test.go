//go:build linux

package store_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// A reader is a command that writes out the content of an image and has come to
// a stand in the middle, for nobody takes what it writes.
type reader struct {
	*lab.Run
	out  *os.File
	head []byte // what was taken of its output so far
}

// read starts a reader, for which the image must be larger than all the buffers
// between here and there.
func (img image) read(t *testing.T, place string, flags ...string) *reader {
	t.Helper()
	args := append(flags, "cat", "--source-format", img.kind, place)
	run, out := lab.StartPiped(t, tools.Diskrsync, args...)
	r := &reader{Run: run, out: out, head: make([]byte, mib)}
	if _, err := io.ReadFull(out, r.head); err != nil {
		t.Fatalf("reading what cat writes: %v: %+v", err, r.Wait(t))
	}
	return r
}

// finish takes the rest of the output and returns the sum of all of it.
func (r *reader) finish(t *testing.T) string {
	t.Helper()
	defer r.out.Close()
	sum := lab.Sum(t, io.MultiReader(bytes.NewReader(r.head), r.out))
	r.Wait(t).OK(t)
	return sum
}

// abandon kills the reader.
func (r *reader) abandon(t *testing.T) {
	t.Helper()
	defer r.out.Close()
	kill(t, r.Run)
	r.Wait(t)
}

// longSize is the size of an image that is longer than what a reader that stands
// still has read ahead.
const longSize = 64 * mib

// longImage makes the source of such an image, which changes at both ends.
func longImage(t *testing.T) string {
	t.Helper()
	disk := lab.SparseFile(t, filepath.Join(t.TempDir(), "disk"), longSize)
	lab.WriteAt(t, disk, lab.Noise(1, longSize-9*mib), 5*mib)
	return disk
}

func changeEnds(t *testing.T, disk string, seed uint64) {
	t.Helper()
	lab.WriteAt(t, disk, lab.Noise(seed, 3*mib), mib)
	lab.WriteAt(t, disk, lab.Noise(seed+1, 3*mib), longSize-5*mib)
}

// TestReadersDuringCommit updates an image that is being read, here and over
// ssh. Who began before the commit gets the old content to its end, who begins
// after it gets the new.
func TestReadersDuringCommit(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		b := lab.NewBench(t, tools, lab.HostOptions{})
		img := image{kind, b.Far("disk")}
		disk := longImage(t)
		img.sync(t, disk)
		for i, place := range []string{img.path, b.Alpha("disk")} {
			old := lab.SumFile(t, disk)
			early := img.read(t, place, b.Args()...)
			changeEnds(t, disk, uint64(10*i))
			img.run(t, disk).OK(t)
			if got := inspect(t, b.Run(t, "info", "--json", place)); got.Waiting == 0 {
				t.Errorf("%s: nothing waits for the reader to end: %+v", place, got)
			}
			late := img.read(t, place, b.Args()...)
			if got := early.finish(t); got != old {
				t.Errorf("%s: who read during the commit got %s, want the old content, %s", place, got, old)
			}
			if got, want := late.finish(t), lab.SumFile(t, disk); got != want {
				t.Errorf("%s: who read after the commit got %s, want the new content, %s", place, got, want)
			}
			img.holds(t, disk)
		}
	})
}

// waiting makes an image with a committed update that was not put into it,
// because there was a reader, who is gone now.
func waiting(t *testing.T, kind string) (img image, disk string) {
	t.Helper()
	img, disk = newImage(t, kind), longImage(t)
	img.sync(t, disk)
	reader := img.read(t, img.path)
	changeEnds(t, disk, 50)
	img.run(t, disk).OK(t)
	reader.abandon(t)
	return img, disk
}

// TestReadersDuringReplay lets many readers find a committed update that nobody
// has put into the image.
func TestReadersDuringReplay(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		img, disk := waiting(t, kind)
		want := lab.SumFile(t, disk)
		var readers []*reader
		for range 6 {
			run, out := lab.StartPiped(t, tools.Diskrsync, "cat", "--source-format", kind, img.path)
			readers = append(readers, &reader{Run: run, out: out})
		}
		for _, r := range readers {
			if got := r.finish(t); got != want {
				t.Errorf("a reader got %s, want %s", got, want)
			}
		}
		img.holds(t, disk)
	})
}

// TestWriterFindsWaitingUpdate lets the next sync be the one who finds it.
func TestWriterFindsWaitingUpdate(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		img, disk := waiting(t, kind)
		again := img.sync(t, disk)
		if again.Changed+again.Patched > 0 || again.Target.BytesRead > 0 {
			t.Errorf("the update was not taken for done: %+v", again)
		}
		lab.Scatter(t, disk, 60, 10)
		img.sync(t, disk)
	})
}

// TestTwoWriters starts a second sync while the first is at work, and kills the
// first then. Its lock must not outlive it.
func TestTwoWriters(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := lab.Write(t, filepath.Join(t.TempDir(), "disk"), lab.Noise(1, 8*mib), 0o644)
		for range 2 {
			first := img.start(t, disk, slowly...)
			awaitPayload(t, first, 1)
			img.run(t, disk).Fails(t, refused, img.path, "being written", "process "+strconv.Itoa(first.Process.Pid))
			if r := lab.Start(t, tools.Diskrsync, "clean", img.path).Wait(t); r.Code != refused {
				t.Errorf("cleaned under the hands of a writer: %+v", r)
			}
			first.Signal(t, syscall.SIGKILL)
			first.Wait(t)
			img.sync(t, disk)
			lab.WriteAt(t, disk, lab.Noise(2, 8*mib), 0)
		}
	})
}

// TestReaderWithoutTheStore reads as a user who may read an image but not what is
// stored beside it, and so cannot know whether it is whole.
func TestReaderWithoutTheStore(t *testing.T) {
	lab.NeedRoot(t)
	b := lab.NewBench(t, tools, lab.HostOptions{})
	img := image{"raw", b.Far("disk")}
	disk := lab.Image(t, b.Near("disk"), 1, 3*mib)
	img.sync(t, disk)
	for dir := filepath.Dir(img.path); dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode()&0o001 == 0 {
			if err := os.Chmod(dir, info.Mode()|0o055); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Chmod(img.path, 0o644); err != nil {
		t.Fatal(err)
	}
	program := lab.Copy(t, tools.Diskrsync, filepath.Join(filepath.Dir(img.path), "diskrsync"))
	as := func(args ...string) lab.Result {
		return lab.Start(t, "setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", program}, args...)...).Wait(t)
	}
	as("info", img.path).Fails(t, failed, "the folder .diskrsync beside it", "permission denied", "--force")
	if got, want := as("cat", "--force", img.path).OK(t).Stdout, lab.Must(os.ReadFile(disk))(t); got != string(want) {
		t.Error("cat --force wrote something else than the image")
	}
}
