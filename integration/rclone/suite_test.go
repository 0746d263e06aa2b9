//go:build linux

package rclone_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// An exception is why tests of rclone's do not apply. They are known by name and by
// what rclone says when it skips them, as "NAME: WORDS".
type exception struct{ tests, why string }

// exceptions are all there are. Any other test that is skipped is a failure here.
var exceptions = []exception{
	{`non local remote$|runs on local$|^TestDirMove|^TestIndexNoHash`, "rclone runs it on its own backend local alone"},
	{`server-side copy$|no Copy(er)? interface$|CopyChunked|FsCopy:`, "a copy at the far side may be a hard link, and images are changed in place"},
	{`Partial uploads not supported$`, "a new name would have no base to compare with"},
	{`deduplicate|PutUnchecked|[Mm]erge ?[Dd]irectories|MergeDirs`, "no remote that can be written to has two files of one name"},
	{`without a hash$|lacks md5|no hash|RcatSizeChecksum/Corrupted|^TestCheckSum`, "images have no hashes: it would take reading them"},
	{`user metadata$|Metadata: `, "the metadata of a file is not that of the content"},
	{`case-sensitive$|CaseInsensitive`, "names are as on the remote behind it"},
	{`supports DirMove$`, "it is for remotes that cannot move folders"},
	{`OpenWriterAt|ChunkWriter|[Mm]ulti-?[Tt]hread|UploadChunk|UploadCutoff|CopyCutoff`, "pieces that are written at once get around the sync"},
	{`PublicLink`, "it would lead to the image's file"},
	{`no ListR interface$|/ListR: `, "what lies beside an image says how large it is, and may be listed later"},
	{`SetTier|MimeType`, "that of a file is not that of the content"},
	{`no ChangeNotify interface$`, "neither a folder nor sftp tells of changes"},
	{`no Purge interface$|WriteDirSetModTime$`, "sftp has no such thing"},
	{`Not a bucket based backend$|InternalTester$`, "it is not for backends of this kind"},
	{`FsPutRetry.*no upload request could be faulted$`, "images do not go over HTTP"},
}

// suite runs a built program of tests of rclone's on the remote disks.
func (b bench) suite(t *testing.T, program string, args ...string) {
	t.Helper()
	t.Setenv("RCLONE_CONFIG", b.config)
	args = append([]string{"-test.v", "-test.timeout", "4m", "-remote", "disks:"}, args...)
	r := lab.Start(t, program, args...).Wait(t)
	passed := 0
	said := map[string]string{} // by each test, last
	running := ""
	for line := range strings.Lines(r.Stdout) {
		words := strings.Fields(line)
		switch {
		case len(words) == 3 && words[0] == "===":
			running = words[2]
		case strings.Contains(line, "_test.go:") || strings.Contains(line, "fstests.go:"):
			_, words, _ := strings.Cut(line, ": ")
			said[running] = strings.TrimSpace(words)
		case len(words) > 2 && words[0] == "---":
			name := words[2]
			switch words[1] {
			case "PASS:":
				passed++
			case "FAIL:":
				t.Errorf("%s failed", name)
			case "SKIP:":
				skipped(t, name, said[name])
			}
		}
	}
	t.Logf("%d tests have passed", passed)
	if r.Code != 0 || passed == 0 {
		t.Errorf("%s: exit status %d\n%s%s", r.Line, r.Code, end(r.Stdout), end(r.Stderr))
	}
}

// skipped checks that there is a reason for which a test may be skipped.
func skipped(t *testing.T, name, said string) {
	t.Helper()
	for _, e := range exceptions {
		if regexp.MustCompile(e.tests).MatchString(name + ": " + said) {
			t.Logf("does not apply: %s: %s (%s)", name, e.why, said)
			return
		}
	}
	t.Errorf("%s was skipped: %s", name, said)
}

func end(s string) string { return s[max(0, len(s)-20_000):] }

// goTest builds the tests of a package in dir.
func goTest(t *testing.T, dir, what string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "suite.test")
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-trimpath", "-o", program, what)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the tests of %s: %v\n%s", what, err, out)
	}
	return program
}

// TestBackend runs rclone's tests of backends, with images on another machine.
func TestBackend(t *testing.T) {
	program := goTest(t, tools.Root, "./backend/diskrsync")
	eachFormat(t, func(t *testing.T, format string) {
		b, _ := newFarBench(t, "format="+format)
		b.suite(t, program, "-test.run", "^TestIntegration$")
	})
}

// backends take the place of all backends of rclone in its tests, but for those that
// the tests use, so that the others need not be built.
const backends = `package all

import (
	_ "github.com/diskrsync/diskrsync/backend/blockdev"
	_ "github.com/diskrsync/diskrsync/backend/diskrsync"
	_ "github.com/rclone/rclone/backend/alias"
	_ "github.com/rclone/rclone/backend/crypt"
	_ "github.com/rclone/rclone/backend/local"
	_ "github.com/rclone/rclone/backend/memory"
	_ "github.com/rclone/rclone/backend/onedrive" // for its hash
	_ "github.com/rclone/rclone/backend/sftp"
)
`

// workspace builds a copy of rclone with the backends of this module. What the
// godebug lines of either module say counts only if it is said here.
const workspace = `go 1.26.0

use (
	./rclone
	%s
)

godebug (
	multipathtcp=0
	x509negativeserial=1
)
`

// TestSyncAndOperations runs rclone's tests of what it does with remotes: all of
// sync, copy, move, check and the rest. By itself:
//
//	go test -v -run TestSyncAndOperations ./integration/rclone
func TestSyncAndOperations(t *testing.T) {
	dir := rcloneCopy(t)
	b := newBench(t)
	b.remote(t, "disks", "diskrsync", "remote="+b.there)
	for _, what := range []string{"sync", "operations"} {
		t.Run(what, func(t *testing.T) {
			program := goTest(t, dir, "./fs/"+what)
			t.Chdir(filepath.Join(dir, "fs", what))
			b.suite(t, program)
		})
	}
}

// rcloneCopy returns the folder of a copy of rclone that has our backends.
func rcloneCopy(t *testing.T) string {
	t.Helper()
	from := lab.Do(t, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/rclone/rclone")
	dir := filepath.Join(t.TempDir(), "rclone")
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	lab.Write(t, filepath.Join(dir, "backend", "all", "all.go"), []byte(backends), 0o644)
	lab.Write(t, filepath.Join(filepath.Dir(dir), "go.work"), []byte(strings.Replace(workspace, "%s", tools.Root, 1)), 0o644)
	return dir
}
