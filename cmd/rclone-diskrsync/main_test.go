package main

import (
	"errors"
	"fmt"
	"go/build"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-semver/semver"
	"github.com/rclone/rclone/cmd"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
)

// TestMain makes this test binary the program for the scripts and the tests.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"rclone-diskrsync": main})
}

// TestScripts runs testdata/script. Each of the scripts says in its name and its
// first line what it shows.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			store := filepath.Join(env.WorkDir, "store")
			env.Setenv("RCLONE_CONFIG", filepath.Join(env.WorkDir, "rclone.conf"))
			config := fmt.Sprintf("[disks]\ntype = diskrsync\nremote = %s\n", filepath.ToSlash(store))
			return errors.Join(os.Mkdir(store, 0o700), os.WriteFile(filepath.Join(env.WorkDir, "rclone.conf"), []byte(config), 0o600))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"disk":  cmdDisk,
			"rot":   cmdRot,
			"lists": cmdLists,
			"job":   cmdJob,
		},
	})
}

// cmdDisk makes a raw image of random bytes: disk NAME SIZE.
func cmdDisk(ts *testscript.TestScript, _ bool, args []string) {
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content) // it never fails
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), content, 0o600))
}

// cmdRot changes a part of a file behind everyone's back, so that neither its size
// nor its time tell: rot NAME OFFSET TEXT.
func cmdRot(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	_, err = f.WriteAt([]byte(args[2]), off)
	ts.Check(errors.Join(err, f.Close(), os.Chtimes(f.Name(), time.Time{}, info.ModTime())))
}

// cmdLists checks that a folder has exactly these entries: lists DIR [NAME]...
func cmdLists(ts *testscript.TestScript, _ bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if want := slices.Sorted(slices.Values(args[1:])); !slices.Equal(got, want) {
		ts.Fatalf("%s has %q, want %q", args[0], got, want)
	}
}

// cmdJob starts a job of a daemon, which may still be about to listen, and waits until
// it has ended. Its status is the standard output then: job SOCKET CALL ARG...
func cmdJob(ts *testscript.TestScript, _ bool, args []string) {
	call := append([]string{"rc", "--unix-socket", args[0]}, args[1:]...)
	started := await(ts, `"jobid": (\d+)`, append(call, "_async=true"))
	await(ts, `("finished": true)`, []string{"rc", "--unix-socket", args[0], "job/status", "jobid=" + started})
}

// await runs the program until its output has what is looked for, and returns the
// group in that.
func await(ts *testscript.TestScript, pattern string, args []string) string {
	looked := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err := ts.Exec("rclone-diskrsync", args...); err != nil {
			continue
		}
		if found := looked.FindStringSubmatch(ts.ReadFile("stdout")); found != nil {
			return found[1]
		}
	}
	ts.Fatalf("%q never said %s, but %q and %q", args, pattern, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	return ""
}

// Whatever is built, rclone must find its own version in the first place, and a
// version by the rules that it takes it apart by.
func TestVersion(t *testing.T) {
	for ours, want := range map[string]string{
		"":        "v1.76.0-diskrsync.devel",
		"(devel)": "v1.76.0-diskrsync.devel",
		"v1.2.3":  "v1.76.0-diskrsync.v1.2.3",
		"v0.0.0-20260102030405-0123456789ab+dirty": "v1.76.0-diskrsync.v0.0.0-20260102030405-0123456789ab+dirty",
	} {
		got := version("v1.76.0", ours)
		require.Equal(t, want, got)
		parsed, err := semver.NewVersion(got[1:])
		require.NoError(t, err)
		require.EqualValues(t, 76, parsed.Minor)
	}
}

// imports returns what a package of rclone, or of ours, imports.
func imports(t *testing.T, dir string) []string {
	t.Helper()
	pkg, err := build.ImportDir(dir, 0)
	require.NoError(t, err)
	return pkg.Imports
}

// rcloneFolder returns where the module rclone is.
func rcloneFolder(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/rclone/rclone").Output()
	require.NoError(t, err, "finding rclone's source")
	return strings.TrimSpace(string(out))
}

// All commands of rclone are here, but for the one that would put the original in the
// place of this program.
func TestCommandsAreAllButSelfupdate(t *testing.T) {
	const prefix = "github.com/rclone/rclone/cmd/"
	ours := imports(t, ".")
	theirs := 0
	for _, p := range imports(t, filepath.Join(rcloneFolder(t), "cmd", "all")) {
		name, ok := strings.CutPrefix(p, prefix)
		if !ok {
			continue
		}
		theirs++
		if want := name != "selfupdate"; want != slices.Contains(ours, p) {
			t.Errorf("commands.go imports %s: %v, want %v", p, !want, want)
		}
	}
	require.Greater(t, theirs, 50, "that was not the list of all commands")
	for _, c := range cmd.Root.Commands() {
		require.NotEqual(t, "selfupdate", c.Name())
	}
}

// The pages must have the options and commands as the program tells them. A page that
// has not is rewritten if DISKRSYNC_TEST_UPDATE=1 is set.
func TestPagesHaveTheOptions(t *testing.T) {
	for name, asks := range map[string][][]string{
		"blockdev":  {{"help", "backend", "blockdev"}},
		"diskrsync": {{"help", "backend", "diskrsync"}, {"backend", "help", "diskrsync"}},
	} {
		t.Run(name, func(t *testing.T) {
			var want strings.Builder
			for _, args := range asks {
				want.WriteString(strings.Trim(told(t, args...), "\n") + "\n\n")
			}
			file := filepath.Join("..", "..", "backend", name, name+".md")
			page, err := os.ReadFile(file)
			require.NoError(t, err)
			begin := regexp.MustCompile(`<!-- autogenerated options start .*-->\n`).FindIndex(page)
			end := strings.Index(string(page), "<!-- autogenerated options stop -->")
			require.True(t, begin != nil && end >= begin[1], "%s has no section for the options", file)
			if os.Getenv("DISKRSYNC_TEST_UPDATE") == "1" {
				page = slices.Concat(page[:begin[1]], []byte(want.String()), page[end:])
				require.NoError(t, os.WriteFile(file, page, 0o644))
				return
			}
			require.Equal(t, want.String(), string(page[begin[1]:end]), "DISKRSYNC_TEST_UPDATE=1 brings the page up to date")
		})
	}
}

// told returns what the program prints, without any configuration.
func told(t *testing.T, args ...string) string {
	t.Helper()
	program := exec.Command("rclone-diskrsync", args...)
	program.Env = append(os.Environ(), "RCLONE_CONFIG="+filepath.Join(t.TempDir(), "none"))
	out, err := program.Output()
	require.NoError(t, err)
	return string(out)
}
