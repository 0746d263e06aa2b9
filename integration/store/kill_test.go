//go:build linux

package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// killsEnv names the environment variable that says how often TestKills kills.
// The full run, which takes some minutes, is
//
//	DISKRSYNC_TEST_KILLS=300 go test ./integration/store -run TestKills -count=1 -v -timeout 1h
const (
	killsEnv     = "DISKRSYNC_TEST_KILLS"
	defaultKills = 25
)

func countKills(t *testing.T) int {
	t.Helper()
	text := os.Getenv(killsEnv)
	if text == "" {
		return defaultKills
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: want a number", killsEnv, text)
	}
	return n
}

// TestKills keeps two images up to date over ssh and on this machine, and kills
// one or the other process of nearly every sync at a random moment.
func TestKills(t *testing.T) {
	b := lab.NewBench(t, tools, lab.HostOptions{})
	numbers := rand.New(rand.NewPCG(1, 1))
	var images []*hunted
	for _, kind := range kinds {
		images = append(images, newHunted(t, b, kind, numbers))
	}
	for n := range countKills(t) {
		h := images[n%len(images)]
		h.round(t)
		if n%8 < len(images) {
			h.verify(t)
		}
	}
	for _, h := range images {
		h.verify(t)
		for _, way := range ways {
			h.change(t)
			h.start(t, way).Wait(t).OK(t)
			h.holds(t, h.disk)
			h.verify(t)
		}
		logTally(t, h.tally)
	}
}

// A hunted image is one whose syncs are killed.
type hunted struct {
	lab.Bench
	image
	disk    string // the source
	was     string // the sum of what the image holds
	numbers *rand.Rand
	first   pace // of a first copy
	update  pace // of an update
	tally   map[string]int
}

// A pace is how long a sync takes.
type pace struct {
	whole time.Duration
	work  time.Duration // since it has locked the image
}

// ways are from where to where a sync goes: to the other machine, from there,
// and on this machine.
var ways = []string{"push", "pull", "here"}

// newHunted makes an image and measures how long its syncs take.
func newHunted(t *testing.T, b lab.Bench, kind string, numbers *rand.Rand) *hunted {
	t.Helper()
	h := &hunted{Bench: b, image: newImage(t, kind), numbers: numbers, tally: map[string]int{}}
	h.disk = lab.Image(t, b.Near(kind+"-disk"), 1, 24*mib)
	h.first = h.measure(t)
	h.change(t)
	h.update = h.measure(t)
	h.was = h.sum(t)
	t.Logf("%s: a first copy takes %v, an update %v", kind, h.first, h.update)
	return h
}

func (h *hunted) measure(t *testing.T) pace {
	t.Helper()
	before := stamp(t, h.lock())
	began := time.Now()
	r := h.start(t, "push")
	awaitChange(t, r, h.lock(), before)
	locked := time.Now()
	r.Wait(t).OK(t)
	return pace{time.Since(began), time.Since(locked)}
}

// lock returns the path of the lock file, which may be left from a sync before.
func (h *hunted) lock() string {
	return filepath.Join(filepath.Dir(h.path), ".diskrsync", "disk.lock")
}

// stamp returns what changes when a file does.
func stamp(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		return absent
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(info.Size(), info.ModTime().UnixNano())
}

// awaitChange waits until a file changes, or the sync has ended.
func awaitChange(t *testing.T, r *lab.Run, path, before string) {
	t.Helper()
	for r.Running() && stamp(t, path) == before {
		time.Sleep(100 * time.Microsecond)
	}
}

// startAndAwait starts a sync and waits for a random moment, at which it may have
// ended: counted from its start, or from when it locked the image, since much of
// the time before that goes into reaching the other machine, or from when the
// image itself begins to change, which is soon over.
func (h *hunted) startAndAwait(t *testing.T, way string, usual pace) *lab.Run {
	t.Helper()
	image, lock := stamp(t, h.path), stamp(t, h.lock())
	r := h.start(t, way)
	full := usual.whole
	switch h.numbers.IntN(6) {
	case 0:
	case 1, 2:
		awaitChange(t, r, h.path, image)
		full = usual.work / 20
	default:
		awaitChange(t, r, h.lock(), lock)
		full = usual.work
	}
	time.Sleep(time.Duration(h.numbers.Float64() * 1.3 * float64(full)))
	return r
}

func (h *hunted) start(t *testing.T, way string) *lab.Run {
	t.Helper()
	source, target := h.disk, h.path
	switch way {
	case "push":
		target = "alpha:" + target
	case "pull":
		source = "alpha:" + source
	}
	return h.Start(t, h.args(source, target)...)
}

// round starts a sync of a source that has changed, kills something, and looks
// at what is left.
func (h *hunted) round(t *testing.T) {
	t.Helper()
	if h.numbers.IntN(4) == 0 {
		h.forget(t)
	}
	what, usual := "update", h.update
	if h.was == absent {
		what, usual = "first copy", h.first
	}
	h.change(t)
	way := ways[h.numbers.IntN(len(ways))]
	r := h.startAndAwait(t, way, usual)
	who := h.strike(t, r, way)
	result := r.Wait(t)
	h.AwaitQuiet(t)
	left := strings.Join(h.store(t), " ")
	if h.numbers.IntN(3) == 0 {
		h.killReader(t)
	}
	outcome := h.judge(t, fmt.Sprintf("%s by %s, %s killed, left [%s]", what, way, who, left), result)
	h.tally[fmt.Sprintf("%s of %s: %s with [%s] left", what, h.kind, outcome, left)]++
}

// forget removes the image, as a user would who knows nothing of its store.
func (h *hunted) forget(t *testing.T) {
	t.Helper()
	if err := os.Remove(h.path); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	h.was = absent
}

// judge checks that the image is what it was or what it was to become.
func (h *hunted) judge(t *testing.T, what string, result lab.Result) string {
	t.Helper()
	now, was := h.sum(t), h.was
	h.was = now
	switch {
	case now == lab.SumFile(t, h.disk):
		return "new"
	case now != was:
		t.Fatalf("%s: the image is torn\n%+v", what, result)
	case result.Code == 0:
		t.Fatalf("%s: reported success, but the image is what it was\n%+v", what, result)
	}
	return "old"
}

// verify checks that all of the image can be read and is what is stored of it, if
// anything is: no kill damages a block, or leaves hashes that are those of another
// one.
func (h *hunted) verify(t *testing.T) {
	t.Helper()
	if h.was == absent {
		return
	}
	r := here(t, "verify", "--json", "--source-format", h.kind, h.path)
	i := inspect(t, r)
	if r.Code != 0 || i.State != "complete" && i.State != "unknown" {
		t.Fatalf("nobody has damaged %s, and verify says %+v\n%+v", h.path, i, r)
	}
	h.tally[fmt.Sprintf("%s: verify says %s", h.kind, i.State)]++
}

// strike kills some of the processes of a sync without giving them notice, and
// returns whose they were. On this machine one process is both sides.
func (h *hunted) strike(t *testing.T, r *lab.Run, way string) string {
	t.Helper()
	h.Processes(t) // so that AwaitQuiet knows them
	who := "both"
	if way != "here" {
		who = []string{"target", "source", "both", "ssh"}[h.numbers.IntN(4)]
	}
	if who == "ssh" {
		killAll(t, h.Carriers(t))
		return who
	}
	agent := map[string]string{"push": "target", "pull": "source"}[way]
	if who == "both" || who == agent {
		killAll(t, h.Agents(t))
	}
	if who == "both" || who != agent {
		kill(t, r)
	}
	return who
}

// kill ends a command without giving it notice, if it has not ended yet.
func kill(t *testing.T, r *lab.Run) {
	t.Helper()
	if err := r.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
}

// killAll kills processes, of which some may have ended meanwhile.
func killAll(t *testing.T, processes []lab.Process) {
	t.Helper()
	for _, p := range processes {
		if err := syscall.Kill(p.ID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatalf("killing %v: %v", p, err)
		}
	}
}

// killReader kills a command that reads the image, and may be about to finish
// what the writer left.
func (h *hunted) killReader(t *testing.T) {
	t.Helper()
	r := lab.Start(t, tools.Diskrsync, "info", h.path)
	time.Sleep(time.Duration(h.numbers.IntN(40)) * time.Millisecond)
	kill(t, r)
	r.Wait(t)
}

// change makes another version of the source, of another size now and then.
func (h *hunted) change(t *testing.T) {
	t.Helper()
	lab.Scatter(t, h.disk, h.numbers.Uint64(), 10)
	size := lab.Size(t, h.disk)
	run := int64(h.numbers.IntN(4 * mib))
	switch h.numbers.IntN(6) {
	case 0: // it grows
		if size < 32*mib {
			lab.WriteAt(t, h.disk, lab.Noise(h.numbers.Uint64(), int(run)), size+run/2)
		}
	case 1: // it shrinks
		if size > 16*mib {
			if err := os.Truncate(h.disk, size-run); err != nil {
				t.Fatal(err)
			}
		}
	case 2: // a part becomes zeros
		lab.WriteAt(t, h.disk, make([]byte, run), h.numbers.Int64N(size-run))
	default: // files are written
		lab.WriteAt(t, h.disk, lab.Noise(h.numbers.Uint64(), int(run)), h.numbers.Int64N(size-run))
		lab.WriteAt(t, h.disk, lab.Prose(h.numbers.Uint64(), int(run)), h.numbers.Int64N(size-run))
	}
}
