//go:build linux

// Package lab gives the integration tests real things to work on: the built
// command and the programs it must stay compatible with, an ssh server on
// loopback, loop devices, file systems, disk images and the means to compare
// them. Nothing in it imitates anything.
//
// Every helper cleans up behind itself at the end of the test that called it,
// also when that test fails: servers are stopped by their process id, devices
// detached, file systems unmounted. A helper that cannot do its work ends the
// test.
package lab

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// RealEnv names the environment variable that is set to "1" where everything a
// test may need is known to be there. A test that would be skipped fails then.
const RealEnv = "DISKRSYNC_TEST_REAL"

// Real reports whether missing prerequisites are failures.
func Real() bool { return os.Getenv(RealEnv) == "1" }

// Missing skips the test for a reason, or fails it where everything should be
// there.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if Real() {
		t.Fatalf(RealEnv+" is set, but "+format, args...)
	}
	t.Skipf(format, args...)
}

// NeedRoot skips the test for anyone but root on Linux.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "loop devices and mounts need root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		Missing(t, "no loop devices here: %v", err)
	}
}

// NeedPrograms skips the test if one of the programs is not installed.
func NeedPrograms(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := findProgram(name); err != nil {
			Missing(t, "%s is not installed", name)
		}
	}
}

// findProgram looks where the shell of a user looks, and then where the
// system's own programs are, which is often missing from a user's PATH.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(dir + "/" + name); err == nil {
			return path, nil
		}
	}
	return "", err
}

// Do runs a program that must succeed and returns what it wrote to standard
// output, without the last line feed.
func Do(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := findProgram(name)
	if err != nil {
		t.Fatalf("running %s: %v", name, err)
	}
	var stdout, stderr strings.Builder
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return strings.TrimSuffix(stdout.String(), "\n")
}

// Must returns v, or ends the test.
func Must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// Write makes a file with the given content.
func Write(t testing.TB, path string, content []byte, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
	return path
}
