package endpoint

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/rclone/rclone/fs/object"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
)

// day is when the sources of the tests were modified.
var day = time.Date(2024, 2, 29, 12, 0, 0, 123456789, time.UTC)

// begin returns the context of a test, in which what others transfer is not counted,
// and the configuration in it.
func begin(t *testing.T) (context.Context, *fs.ConfigInfo) {
	return fs.AddConfig(accounting.WithStatsGroup(t.Context(), t.TempDir())) // a name that no other has
}

// disk returns n bytes: a third random, a third zeros, a third the same.
func disk(seed uint64, n int) []byte {
	p := bytes.Repeat([]byte("disk"), n/4+1)[:n]
	clear(p[n/3 : 2*n/3])
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(p[:n/3]) // it never fails
	return p
}

func write(t *testing.T, p string, content []byte) string {
	t.Helper()
	require.NoError(t, os.WriteFile(p, content, 0o600))
	return p
}

// same compares contents without printing them.
func same(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes that are not the %d that they should be", len(got), len(want))
	}
}

// content returns what the image at p holds, whatever its format.
func content(t *testing.T, p string) []byte {
	t.Helper()
	r := open(t, p)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	return got
}

// open opens the image at p for reading by NewReader.
func open(t *testing.T, p string, options ...fs.OpenOption) io.ReadCloser {
	t.Helper()
	place, err := image.Locate(p)
	require.NoError(t, err)
	img, err := image.Open(place, image.Options{})
	require.NoError(t, err)
	r, err := NewReader(t.Context(), p, img, img.Size(), img.Changed, place.Close, options)
	require.NoError(t, err)
	return r
}

// info describes a source that is a stream of size bytes.
func info(size int64) fs.ObjectInfo {
	return object.NewStaticObjectInfo("disk.img", day, size, true, nil, nil)
}

// An imageObject is an object that is Placed.
type imageObject struct {
	fs.Object // nil: the rest of it must not be needed
	src       Source
	size      int64
	err       error
}

func (o *imageObject) Remote() string                              { return "disk.img" }
func (o *imageObject) Size() int64                                 { return o.size }
func (o *imageObject) ModTime(context.Context) time.Time           { return day }
func (o *imageObject) ImageSource(context.Context) (Source, error) { return o.src, o.err }
func imageAt(t *testing.T, place Place) *imageObject {
	t.Helper()
	stat, err := os.Stat(place.Path)
	require.NoError(t, err)
	return &imageObject{src: Source{Place: place, Format: image.AsRaw}, size: stat.Size()}
}

// counted has rclone count what is read of in.
func counted(t *testing.T, ctx context.Context, in io.Reader) io.Reader {
	t.Helper()
	tr := accounting.Stats(ctx).NewTransferRemoteSize(t.Name(), -1, nil, nil)
	t.Cleanup(func() { tr.Done(ctx, nil) })
	return tr.Account(ctx, io.NopCloser(in))
}

// unread is a stream that must be left alone.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the stream was read, although the image lies there")
	return 0, io.ErrUnexpectedEOF
}

// A cable is a Carrier to an agent of this process, which has ended when Close returns, as
// a program has.
type cable struct {
	io.ReadWriteCloser
	ended             chan struct{}
	explained, closed atomic.Int64 // how often; several may close it
}

func (w *cable) Explain(err error) error {
	w.explained.Add(1)
	return fmt.Errorf("%w (the cable was cut)", err)
}

func (w *cable) Close() error {
	w.closed.Add(1)
	if w.ReadWriteCloser == nil {
		return nil
	}
	err := w.ReadWriteCloser.Close()
	<-w.ended
	return err
}

// far makes a place one that an agent has.
func far(t *testing.T, host, p string) Place {
	t.Helper()
	var agents errgroup.Group
	t.Cleanup(func() { require.NoError(t, agents.Wait()) })
	return Place{Path: p, Host: host, Dial: func(ctx context.Context) (Carrier, error) {
		near, there := transport.Pipe()
		ended := make(chan struct{})
		agents.Go(func() error {
			defer close(ended)
			_ = session.Agent{}.Serve(t.Context(), there) // its peer is told
			return there.Close()
		})
		return &cable{ReadWriteCloser: near, ended: ended}, nil
	}}
}

// listing returns the names in a folder.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	return found
}
