//go:build linux

// Package rclone_test drives the built rclone-diskrsync against real things: agents
// behind an ssh server on loopback, loop devices, file systems, and the programs that
// people use it with. What a test needs and does not find makes it skip, or fail
// where DISKRSYNC_TEST_REAL=1 is set.
package rclone_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

const mib = 1 << 20

// tools are built once for all tests, by TestMain.
var tools lab.Tools

func TestMain(m *testing.M) { os.Exit(lab.Main(m, &tools)) }

// formats are what image files can be.
var formats = []string{"spgz", "raw"}

// eachFormat runs a test for every format.
func eachFormat(t *testing.T, test func(t *testing.T, format string)) {
	for _, format := range formats {
		t.Run(format, func(t *testing.T) { test(t, format) })
	}
}

// A bench is a configuration of rclone, and the folders that a test uses on either
// machine, which are one in truth.
type bench struct {
	program, config, caches string
	here, there             string
}

// newBench returns one without remotes.
func newBench(t *testing.T) bench {
	t.Helper()
	dir := t.TempDir()
	b := bench{tools.RcloneDiskrsync(t), filepath.Join(dir, "rclone.conf"), filepath.Join(dir, "caches"), t.TempDir(), t.TempDir()}
	lab.Write(t, b.config, nil, 0o600)
	return b
}

// newFarBench returns one with the remotes nas, of an ssh server, and disks on it.
// Those who ask for a meter count what crosses the wire.
func newFarBench(t *testing.T, settings ...string) (bench, *lab.Meter) {
	t.Helper()
	return newBenchAt(t, lab.StartHost(t, tools, lab.HostOptions{}), settings...)
}

// newBenchAt is newFarBench with an ssh server that has been started.
func newBenchAt(t *testing.T, h *lab.Host, settings ...string) (bench, *lab.Meter) {
	t.Helper()
	b := newBench(t)
	m := lab.NewMeter(t, h)
	b.remote(t, "nas", "sftp", m.Remote(t)...)
	b.remote(t, "disks", "diskrsync", append([]string{"remote=nas:" + b.there, "agent_path=" + h.Agent}, settings...)...)
	return b, m
}

// remote adds a remote to the configuration.
func (b bench) remote(t *testing.T, name, kind string, settings ...string) {
	t.Helper()
	b.ok(t, append([]string{"config", "create", name, kind}, settings...)...)
}

// args puts the configuration in front of the arguments.
func (b bench) args(args []string) []string {
	return append([]string{"--config", b.config, "--cache-dir", b.caches}, args...)
}

func (b bench) start(t *testing.T, args ...string) *lab.Run {
	t.Helper()
	return lab.Start(t, b.program, b.args(args)...)
}

// run runs rclone to its end, however it ends.
func (b bench) run(t *testing.T, args ...string) lab.Result {
	t.Helper()
	return b.start(t, args...).Wait(t)
}

// ok runs rclone, which must succeed, and returns what it wrote to standard output.
func (b bench) ok(t *testing.T, args ...string) string {
	t.Helper()
	return b.run(t, args...).OK(t).Stdout
}

// near returns the path of a file on this machine.
func (b bench) near(name string) string { return filepath.Join(b.here, name) }

// far returns the path of a file on the other machine.
func (b bench) far(name string) string { return filepath.Join(b.there, name) }

// list returns the lines of lsl without the blanks at their beginning.
func (b bench) list(t *testing.T, args ...string) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(b.ok(t, append([]string{"lsl"}, args...)...)) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

// holds checks that an object has the content of a file, by reading all of it.
func (b bench) holds(t *testing.T, object, file string) {
	t.Helper()
	r, out := lab.StartPiped(t, b.program, b.args([]string{"cat", object})...)
	defer out.Close()
	sum := lab.Sum(t, out)
	r.Wait(t).OK(t)
	if want := lab.SumFile(t, file); sum != want {
		t.Fatalf("the content of %s is %s, that of %s is %s", object, sum, file, want)
	}
}

// An inspection is what the backend's commands say of an image.
type inspection struct {
	Image, Format, Digest, State string
	Size, Generation             int64
	BadBlocks                    int64 `json:"bad_blocks"`
	Done                         string
	Regions                      int64
	Roots                        []struct {
		Region int64
		Root   string
	}
}

// command runs a command of the backend for one image, which must succeed.
func (b bench) command(t *testing.T, name, remote, image string) inspection {
	t.Helper()
	var all []inspection
	out := b.ok(t, "backend", name, remote, image)
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("backend %s: %v\n%s", name, err, out)
	}
	if len(all) != 1 || all[0].Image != image {
		t.Fatalf("backend %s speaks of something else than %s: %s", name, image, out)
	}
	return all[0]
}

// entry matches how rclone begins each entry of its log.
var entry = regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d (DEBUG|INFO|NOTICE|ERROR|CRITICAL) *: `)

// fails checks that rclone failed and told why in lines that are whole: the last one
// holds all of the words.
func fails(t *testing.T, r lab.Result, words ...string) {
	t.Helper()
	if r.Code <= 0 {
		t.Errorf("%s: exit status %d", r.Line, r.Code)
	}
	last := ""
	for line := range strings.Lines(r.Stderr) {
		last = strings.TrimSuffix(line, "\n")
		if !entry.MatchString(last) || strings.ContainsFunc(last, unicode.IsControl) {
			t.Errorf("%s: a message is not one line:\n%s", r.Line, r.Stderr)
		}
	}
	for _, word := range words {
		if !strings.Contains(last, word) {
			t.Errorf("%s: the message does not hold %q:\n%s", r.Line, word, r.Stderr)
		}
	}
}

// says checks that rclone wrote a line to its log that holds all of the words.
func says(t *testing.T, r lab.Result, words ...string) {
	t.Helper()
	for line := range strings.Lines(r.Stderr) {
		found := true
		for _, word := range words {
			found = found && strings.Contains(line, word)
		}
		if found {
			return
		}
	}
	t.Errorf("%s: no line of the log holds %q:\n%s", r.Line, words, r.Stderr)
}
