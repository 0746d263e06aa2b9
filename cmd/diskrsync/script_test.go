package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dop251/spgz"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/diskrsync/diskrsync/merkle"
)

// TestMain makes this test binary the program diskrsync for the scripts and for
// whatever they start: it is in their PATH, so that a carrier which runs its
// arguments here, such as env, leads to an agent.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"diskrsync": main})
}

// TestScripts runs testdata/script. Each of the scripts says in its name and its
// first line what it shows.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition:           condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":    only(cmdStatus, 2),
			"fails":     only(cmdFails, 2),
			"fail-each": only(cmdFailEach, 1),
			"says":      only(cmdSays, 1),
			"disk":      only(cmdDisk, 2),
			"poke":      only(cmdPoke, 3),
			"rot":       only(cmdRot, 3),
			"resize":    only(cmdResize, 2),
			"age":       only(cmdAge, 1),
			"holds":     only(cmdHolds, 2),
			"outputs":   only(cmdOutputs, 2),
			"format":    only(cmdFormat, 2),
			"lists":     only(cmdLists, 1),
			"json":      only(cmdJSON, 1),
		},
	})
}

// only makes a script command that cannot be negated and needs some arguments.
func only(do func(*testscript.TestScript, []string), atLeast int) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) < atLeast {
			ts.Fatalf("wrong use of a script command: negated %v, arguments %q", neg, args)
		}
		do(ts, args)
	}
}

// condition makes prerequisites conditions of the scripts. Where everything is
// meant to be there, one that is missing is an error rather than a reason to
// skip.
func condition(cond string) (bool, error) {
	var met bool
	switch what, arg, _ := strings.Cut(cond, ":"); what {
	case "race":
		return underRace(), nil
	case "have":
		_, err := exec.LookPath(arg)
		met = err == nil
	case "mounts": // whether we may mount, in a namespace of our own
		met = exec.Command("unshare", "-m", "true").Run() == nil
	case "loop": // whether we may make loop devices, which are in /dev then
		met = exec.Command("losetup", "-f").Run() == nil
	default:
		return false, fmt.Errorf("there is no condition %q", cond)
	}
	if !met && runtime.GOOS == "linux" && os.Getenv("DISKRSYNC_TEST_REAL") == "1" {
		return false, fmt.Errorf("this test needs %s", cond)
	}
	return met, nil
}

// underRace reports whether the race detector is on, which makes what computes
// much some twenty times slower.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// cmdStatus runs a program, which must end with the exit status given first.
func cmdStatus(ts *testscript.TestScript, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%s: %v", args[1], err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// cmdFails is status for failures as they should be: nothing on standard output,
// and on standard error one line.
func cmdFails(ts *testscript.TestScript, args []string) {
	cmdStatus(ts, args)
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("standard output has %q", out)
	}
	complaint(ts)
}

// cmdFailEach is fails for a list of statuses and arguments, one a line of a file.
func cmdFailEach(ts *testscript.TestScript, args []string) {
	tried := 0
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		ts.Logf("trying %q", words)
		cmdFails(ts, append([]string{words[0], "diskrsync"}, words[1:]...))
		tried++
	}
	if tried == 0 {
		ts.Fatalf("%s: nothing to try", args[0])
	}
}

// complaint returns what standard error has, which must be one line that says
// whose it is.
func complaint(ts *testscript.TestScript) string {
	text, ok := strings.CutPrefix(ts.ReadFile("stderr"), "diskrsync: ")
	if line, rest, ended := strings.Cut(text, "\n"); !ok || !ended || rest != "" || line == "" || strings.HasPrefix(line, "note: ") {
		ts.Fatalf("standard error is not one line of complaint: %q", ts.ReadFile("stderr"))
	}
	return text
}

// cmdSays checks that the complaint holds all of the words, as they are.
func cmdSays(ts *testscript.TestScript, args []string) {
	text := complaint(ts)
	for _, word := range args {
		if !strings.Contains(text, word) {
			ts.Fatalf("%q does not say %q", text, word)
		}
	}
}

func number(ts *testscript.TestScript, s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	ts.Check(err)
	return n
}

// cmdDisk makes a raw image: disk NAME SIZE [SEED]. A third of it is random, a
// third compressible, and a third a hole, in pieces that end nowhere in
// particular.
func cmdDisk(ts *testscript.TestScript, args []string) {
	size, seed := number(ts, args[1]), uint64(1)
	if len(args) > 2 {
		seed = uint64(number(ts, args[2]))
	}
	r := rand.New(rand.NewPCG(seed, 1))
	content := make([]byte, size)
	for at, kind := int64(0), 0; at < size; kind++ {
		piece := content[at:min(size, at+1+r.Int64N(150_000))]
		at += int64(len(piece))
		for i := range piece {
			switch kind % 3 {
			case 0:
				piece[i] = byte(r.Uint32())
			case 1:
				piece[i] = "diskrsync"[i%9]
			}
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), content, 0o600))
}

// cmdPoke overwrites a part of a file: poke NAME OFFSET TEXT.
func cmdPoke(ts *testscript.TestScript, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	_, err = f.WriteAt([]byte(args[2]), number(ts, args[1]))
	ts.Check(errors.Join(err, f.Close()))
}

// cmdRot is poke for bytes that change by themselves: the time of the file stays
// as it was. The text "zeros" is that of a whole block.
func cmdRot(ts *testscript.TestScript, args []string) {
	path := ts.MkAbs(args[0])
	info, err := os.Stat(path)
	ts.Check(err)
	if args[2] == "zeros" {
		args[2] = strings.Repeat("\x00", merkle.DefaultBlockSize)
	}
	cmdPoke(ts, args)
	ts.Check(os.Chtimes(path, time.Time{}, info.ModTime()))
}

// cmdResize cuts or extends a file: resize NAME SIZE.
func cmdResize(ts *testscript.TestScript, args []string) {
	ts.Check(os.Truncate(ts.MkAbs(args[0]), number(ts, args[1])))
}

// cmdAge makes a file look as if it had been written an hour ago, so that the
// next write shows however coarse the clock of the file system is.
func cmdAge(ts *testscript.TestScript, args []string) {
	then := time.Now().Add(-time.Hour)
	ts.Check(os.Chtimes(ts.MkAbs(args[0]), then, then))
}

// isSpgz reports whether a file has the header of an spgz image.
func isSpgz(ts *testscript.TestScript, name string) bool {
	return strings.HasPrefix(ts.ReadFile(name), "SPGZ0001")
}

// cmdFormat checks what an image is: format NAME raw|spgz.
func cmdFormat(ts *testscript.TestScript, args []string) {
	if got := isSpgz(ts, args[0]); got != (args[1] == "spgz") {
		ts.Fatalf("%s: has an spgz header: %v", args[0], got)
	}
}

// cmdHolds checks the content of an image against a raw file: holds NAME RAW. An
// spgz image is read by the library of the original.
func cmdHolds(ts *testscript.TestScript, args []string) {
	got := []byte(ts.ReadFile(args[0]))
	if isSpgz(ts, args[0]) {
		f, err := spgz.OpenFile(ts.MkAbs(args[0]), os.O_RDONLY, 0)
		ts.Check(err)
		got, err = io.ReadAll(f)
		ts.Check(errors.Join(err, f.Close()))
	}
	want := []byte(ts.ReadFile(args[1]))
	if !bytes.Equal(got, want) {
		ts.Fatalf("%s holds %d bytes that are not the %d of %s", args[0], len(got), len(want), args[1])
	}
}

// cmdOutputs runs diskrsync, which must write exactly the bytes of a file to
// standard output: outputs FILE ARG... Unlike with exec, they are not logged.
func cmdOutputs(ts *testscript.TestScript, args []string) {
	cmd := exec.Command("diskrsync", args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	got, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		ts.Fatalf("diskrsync %q: %v: %s", args[1:], err, &stderr)
	}
	if want := ts.ReadFile(args[0]); string(got) != want {
		ts.Fatalf("diskrsync %q wrote %d bytes that are not the %d of %s", args[1:], len(got), len(want), args[0])
	}
}

// cmdLists checks that a folder has exactly these entries: lists DIR [NAME]...
func cmdLists(ts *testscript.TestScript, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := slices.Sorted(slices.Values(args[1:]))
	if !slices.Equal(got, want) {
		ts.Fatalf("%s has %q, want %q", filepath.Clean(args[0]), got, want)
	}
}

// cmdJSON checks the last standard output: each line must be a JSON object with
// a message_type, and the last one of the type given must have these fields:
// json TYPE [KEY | KEY=VALUE]...
func cmdJSON(ts *testscript.TestScript, args []string) {
	var found map[string]json.RawMessage
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		var object map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			ts.Fatalf("line %q: %v", line, err)
		}
		switch kind := string(object["message_type"]); kind {
		case "":
			ts.Fatalf("line %q has no message_type", line)
		case strconv.Quote(args[0]):
			found = object
		}
	}
	if found == nil {
		ts.Fatalf("there is no %q in %q", args[0], ts.ReadFile("stdout"))
	}
	for _, arg := range args[1:] {
		key, want, exact := strings.Cut(arg, "=")
		got, ok := found[key]
		if !ok || exact && string(got) != want {
			ts.Fatalf("%q is %s, want %q", key, got, arg)
		}
	}
}
