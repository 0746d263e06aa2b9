package blockdev_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/stretchr/testify/require"

	"github.com/diskrsync/diskrsync/backend/blockdev"
)

const (
	reading = ":blockdev:"
	writing = ":blockdev,allow_write:"
)

// begin returns the context of a test, in which the errors of no other are counted.
func begin(t *testing.T) context.Context {
	return accounting.WithStatsGroup(t.Context(), t.Name())
}

// need skips a test that cannot run here, and fails it where everything is said
// to be there.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("DISKRSYNC_TEST_REAL") == "1" {
		t.Fatalf("DISKRSYNC_TEST_REAL=1, but %s", what)
	}
	t.Skip(what)
}

// noise returns n bytes that do not compress, others for each seed.
func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(p) // it never fails
	return p
}

func write(t *testing.T, p string, content []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(p, content, 0o600))
}

// overwrite changes a file or device as any program might.
func overwrite(t *testing.T, p string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(data, off)
	require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
}

func content(t *testing.T, p string) []byte {
	t.Helper()
	p2, err := os.ReadFile(p)
	require.NoError(t, err)
	return p2
}

// same compares contents without printing them.
func same(t *testing.T, got, want []byte, what string) {
	t.Helper()
	require.Equal(t, len(want), len(got), "size of %s", what)
	if !slices.Equal(got, want) {
		t.Fatalf("%s differs from what it should be", what)
	}
}

// open returns the Fs of a remote that is a folder.
func open(t *testing.T, ctx context.Context, remote string) fs.Fs {
	t.Helper()
	f, err := fs.NewFs(ctx, remote)
	require.NoError(t, err)
	return f
}

// object returns the object at a path.
func object(t *testing.T, ctx context.Context, prefix, p string) *blockdev.Object {
	t.Helper()
	o, err := open(t, ctx, prefix+filepath.Dir(p)).NewObject(ctx, filepath.Base(p))
	require.NoError(t, err)
	return o.(*blockdev.Object)
}

// read returns what Open with options gives.
func read(t *testing.T, o fs.Object, options ...fs.OpenOption) []byte {
	t.Helper()
	in, err := o.Open(t.Context(), options...)
	require.NoError(t, err)
	buf := noise(9, int(o.Size())+1) // what is there must be overwritten, by holes too
	n, err := io.ReadFull(in, buf)
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		t.Fatalf("read %d bytes, then %v", n, err)
	}
	require.NoError(t, in.Close())
	return buf[:n]
}

// listing returns the names in a folder, and in those below it.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	require.NoError(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		all = append(all, p)
		return err
	}))
	return all
}
