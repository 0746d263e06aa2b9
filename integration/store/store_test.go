//go:build linux

// Package store_test drives the built command through what can happen to an
// image between two good backups: processes that are killed, disks that are full
// or rot, power cuts, links that are cut, and several users at once. Whatever it
// was, the image must be one of the versions that were synced, whole. What a test
// needs and does not find makes it skip, or fail where DISKRSYNC_TEST_REAL=1 is
// set.
package store_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

const mib = 1 << 20

// Exit statuses.
const (
	failed  = 1
	refused = 3
)

// tools are built once for all tests, by TestMain.
var tools lab.Tools

func TestMain(m *testing.M) { os.Exit(lab.Main(m, &tools)) }

// kinds are the formats of image files.
var kinds = []string{"spgz", "raw"}

// eachKind runs a test for every format.
func eachKind(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}

// An image is the target of syncs in a folder of this machine, which may stand
// for the other one.
type image struct {
	kind string // "spgz" or "raw"
	path string
}

// newImage returns an image in a folder of its own.
func newImage(t *testing.T, kind string) image {
	t.Helper()
	return image{kind, filepath.Join(t.TempDir(), "disk")}
}

// args returns the arguments of a sync of this kind.
func (img image) args(source, target string, flags ...string) []string {
	if img.kind == "raw" {
		flags = append([]string{"--no-compress"}, flags...)
	}
	return append(flags, source, target)
}

// start starts a sync on this machine.
func (img image) start(t *testing.T, source string, flags ...string) *lab.Run {
	t.Helper()
	return lab.Start(t, tools.Diskrsync, img.args(source, img.path, flags...)...)
}

// run runs a sync on this machine to its end, however it ends.
func (img image) run(t *testing.T, source string, flags ...string) lab.Result {
	t.Helper()
	return img.start(t, source, flags...).Wait(t)
}

// sync runs a sync on this machine that must succeed, and checks the image.
func (img image) sync(t *testing.T, source string, flags ...string) lab.Summary {
	t.Helper()
	s := img.run(t, source, append([]string{"--json"}, flags...)...).Summary(t)
	img.holds(t, source)
	return s
}

// holds checks that the image has the content of a file, and that nothing of the
// sync is left but what is known about the image.
func (img image) holds(t *testing.T, source string) {
	t.Helper()
	if got, want := img.sum(t), lab.SumFile(t, source); got != want {
		t.Fatalf("the content of %s is %s, that of %s is %s", img.path, describe(got), source, want)
	}
	img.settled(t)
}

// absent is the sum of an image that does not exist.
const absent = ""

func describe(sum string) string {
	if sum == absent {
		return "absent"
	}
	return sum
}

// sum returns the SHA-256 of the image's content, or absent. The command reads it
// first, and finishes what a writer had to leave; after that, the file alone must
// say the same to a program that knows nothing of the command.
func (img image) sum(t *testing.T) string {
	t.Helper()
	r, out := lab.StartPiped(t, tools.Diskrsync, "cat", "--source-format", img.kind, img.path)
	defer out.Close()
	sum := lab.Sum(t, out)
	result := r.Wait(t)
	if _, err := os.Stat(img.path); os.IsNotExist(err) {
		result.Fails(t, failed, img.path, "no such file")
		return absent
	}
	result.OK(t)
	content := img.path
	if img.kind == "spgz" {
		content = tools.Extract(t, img.path)
		defer os.Remove(content)
	}
	if alone := lab.SumFile(t, content); alone != sum {
		t.Fatalf("%s: the command reads %s, but the file holds %s; beside it: %v", img.path, sum, alone, img.store(t))
	}
	return sum
}

// store returns the names that lie in the store's folder, without the image's.
// Each image of these tests has a folder to itself.
func (img image) store(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(img.path), ".diskrsync"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, strings.TrimPrefix(entry.Name(), filepath.Base(img.path)+"."))
	}
	return names
}

// settled checks that nothing is left of a sync but what is known about the
// image.
func (img image) settled(t *testing.T) {
	t.Helper()
	if left := img.store(t); !slices.Equal(left, []string{"tree"}) {
		t.Errorf("%s: its store holds %v, want the tree alone", img.path, left)
	}
}

// An inspection is what the command says about an image.
type inspection struct {
	Format  string
	Size    int64
	State   string
	Stored  bool
	Digest  string
	Kept    int64
	Waiting int64
}

// here runs a command on this machine to its end, however it ends.
func here(t *testing.T, args ...string) lab.Result {
	t.Helper()
	return lab.Start(t, tools.Diskrsync, args...).Wait(t)
}

// inspect reads what info --json has said, whatever its exit status.
func inspect(t *testing.T, r lab.Result) inspection {
	t.Helper()
	var i inspection
	line, _, _ := strings.Cut(r.Stdout, "\n")
	if err := json.Unmarshal([]byte(line), &i); err != nil {
		t.Fatalf("%s: %v\nstdout: %s\nstderr: %s", r.Line, err, r.Stdout, r.Stderr)
	}
	return i
}

// info asks about an image on this machine.
func info(t *testing.T, path string) inspection {
	t.Helper()
	return inspect(t, here(t, "info", "--json", path))
}

// slowly are flags for a sync that has so little bandwidth that what a test does
// after it began is done long before it ends.
var slowly = []string{"--json", "--bwlimit", "2M"}

// awaitPayload waits until a sync that runs with --json has sent so many bytes of
// content.
func awaitPayload(t *testing.T, r *lab.Run, size int64) {
	t.Helper()
	for r.Running() {
		for line := range strings.Lines(r.Output()) {
			var progress struct {
				Payload int64 `json:"bytes_payload"`
			}
			// The last line may not be whole yet.
			if json.Unmarshal([]byte(line), &progress) == nil && progress.Payload >= size {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the sync ended too early: %+v", r.Wait(t))
}

// logTally tells what happened how often.
func logTally(t *testing.T, tally map[string]int) {
	t.Helper()
	for _, what := range slices.Sorted(maps.Keys(tally)) {
		t.Logf("%3d times %s", tally[what], what)
	}
}
