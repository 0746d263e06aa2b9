package blockdev_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	_ "github.com/rclone/rclone/backend/local"
	"github.com/rclone/rclone/backend/overview"
	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/rclone/rclone/fs/config/configmap"
	"github.com/rclone/rclone/fs/fserrors"
	rcobject "github.com/rclone/rclone/fs/object"
	"github.com/rclone/rclone/fs/operations"
	"github.com/rclone/rclone/fs/sync"
	"github.com/rclone/rclone/fstest"
	"github.com/rclone/rclone/fstest/fstests"
	"github.com/stretchr/testify/require"

	"github.com/diskrsync/diskrsync/backend/blockdev"
)

// TestIntegration runs rclone's own tests for backends against a folder of image
// files. There is one exception: FromRoot lists the folder from the root of the
// remote: that of ours lists disks, so the test is told that it cannot be listed.
// Tests of optional methods that there are none of skip themselves.
func TestIntegration(t *testing.T) {
	// They look here for servers to start, and insist on the folder.
	here := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(here, "fstest", "testserver", "init.d"), 0o700))
	t.Chdir(here)
	fs.Register(&fs.RegInfo{
		Name:        "blockdevfolder",
		Description: "blockdev without its root",
		NewFs: func(ctx context.Context, name, root string, m configmap.Mapper) (fs.Fs, error) {
			if root == "" {
				return nil, fs.ErrorCantListRoot
			}
			return blockdev.NewFs(ctx, name, root, m)
		},
		Options:  []fs.Option{{Name: "allow_write", Default: false}},
		Overview: &overview.BackendConfig{},
	})
	fstests.Run(t, &fstests.Opt{
		RemoteName: "TestBlockdev:" + filepath.ToSlash(t.TempDir()),
		NilObject:  (*blockdev.Object)(nil),
		ExtraConfig: []fstests.ExtraConfigItem{
			{Name: "TestBlockdev", Key: "type", Value: "blockdevfolder"},
			{Name: "TestBlockdev", Key: "allow_write", Value: "true"},
		},
		QuickTestOK: true,
	})
}

// The features that would lead rclone around Update, or to read a source twice,
// must not be there.
func TestFeatures(t *testing.T) {
	f := open(t, t.Context(), writing+t.TempDir()).Features()
	for name, has := range map[string]bool{
		"OpenWriterAt": f.OpenWriterAt != nil, "OpenChunkWriter": f.OpenChunkWriter != nil,
		"Move": f.Move != nil, "Copy": f.Copy != nil, "DirMove": f.DirMove != nil, "Purge": f.Purge != nil,
		"PartialUploads": f.PartialUploads, "IsLocal": f.IsLocal,
	} {
		require.False(t, has, name)
	}
	require.True(t, f.NoMultiThreading)
}

// Every range that can be asked of every small size, also outside of it.
func TestRanges(t *testing.T) {
	p := filepath.Join(t.TempDir(), "disk")
	for size := range 5 {
		all := noise(7, size)
		write(t, p, all)
		o := object(t, t.Context(), reading, p)
		n := int64(size)
		require.Equal(t, n, o.Size())
		for start := int64(-2); start <= n+2; start++ {
			at := min(max(start, 0), n)
			same(t, read(t, o, &fs.SeekOption{Offset: start}), all[at:], "what is read from an offset")
			for end := max(start, 0); end <= n+2; end++ {
				r := &fs.RangeOption{Start: start, End: end}
				want := all[at:max(at, min(end+1, n))]
				if start < 0 { // the last so many
					want = all[max(0, n-end):]
				}
				same(t, read(t, o, r), want, r.String())
			}
			if start >= 0 {
				same(t, read(t, o, &fs.RangeOption{Start: start, End: -1}), all[at:], "an open range")
			}
		}
		for _, far := range []int64{math.MaxInt64, math.MaxInt64 - 1, math.MinInt64} {
			read(t, o, &fs.SeekOption{Offset: far})
			read(t, o, &fs.RangeOption{Start: far, End: far})
			same(t, read(t, o, &fs.RangeOption{Start: 0, End: far}), all, "a range with a far end")
		}
	}
}

// A file with holes is read as it is, from any offset.
func TestHoles(t *testing.T) {
	p := filepath.Join(t.TempDir(), "disk")
	want := make([]byte, 3<<20+17)
	write(t, p, nil)
	require.NoError(t, os.Truncate(p, int64(len(want))))
	for _, at := range []int{64 << 10, 1<<20 + 4096, 3 << 20} {
		copy(want[at:], noise(uint64(at), 5000))
		overwrite(t, p, int64(at), want[at:min(len(want), at+5000)])
	}
	o := object(t, t.Context(), reading, p)
	for _, off := range []int64{0, 1, 64<<10 + 1, 70000, 1 << 20, 3<<20 + 16} {
		same(t, read(t, o, &fs.SeekOption{Offset: off}), want[off:], "a file with holes")
		same(t, read(t, o, &fs.RangeOption{Start: off, End: off + 99}), want[off:min(off+100, int64(len(want)))], "a range")
	}
}

// A copy of an image that changed while it was read is no copy, and must not be
// completed by opening the image again.
func TestChangesWhileRead(t *testing.T) {
	p := filepath.Join(t.TempDir(), "disk")
	write(t, p, noise(1, 1<<20))
	for _, start := range []int64{0, 1000} {
		o := object(t, t.Context(), reading, p)
		in, err := o.Open(t.Context(), &fs.SeekOption{Offset: start})
		require.NoError(t, err)
		_, err = io.ReadFull(in, make([]byte, 1000))
		require.NoError(t, err)
		overwrite(t, p, 0, []byte{9})
		require.NoError(t, os.Chtimes(p, time.Time{}, time.Now().Add(time.Duration(start+1)*time.Second)))
		_, err = io.Copy(io.Discard, in)
		require.ErrorContains(t, err, "changed while it was read")
		require.True(t, fserrors.IsNoLowLevelRetryError(err))
		require.NoError(t, in.Close())
	}
	o := object(t, t.Context(), reading, p)
	require.NoError(t, os.Truncate(p, 5000))
	_, err := o.Open(t.Context())
	require.ErrorContains(t, err, "5000 bytes now and had 1048576")
}

// A copy of another size than rclone expects must fail by itself: rclone would
// remove it, and with it the backup that it was to update.
func TestOtherSizeThanExpected(t *testing.T) {
	ctx := begin(t)
	dir := t.TempDir()
	p := filepath.Join(dir, "disk")
	write(t, p, noise(1, 10000))
	o := object(t, ctx, reading, p)
	fdst := open(t, ctx, writing+t.TempDir())
	_, err := fdst.Put(ctx, counted(t, ctx), liar{o})
	require.ErrorContains(t, err, "had 10001 bytes when it was listed, and has 10000 now")
	require.NoError(t, os.Truncate(p, 20000))
	_, err = o.ImageSource(context.Background())
	require.ErrorContains(t, err, "20000 bytes now and had 10000")
	_, err = fdst.Put(ctx, counted(t, ctx), o)
	require.ErrorContains(t, err, "20000 bytes now and had 10000")
}

// counted is a stream that rclone counts, as it does those of its copies, with nothing in
// it: the image is to be read where it lies.
func counted(t *testing.T, ctx context.Context) io.Reader {
	t.Helper()
	tr := accounting.Stats(ctx).NewTransferRemoteSize(t.Name(), -1, nil, nil)
	t.Cleanup(func() { tr.Done(ctx, nil) })
	return tr.Account(ctx, io.NopCloser(bytes.NewReader(nil)))
}

// A liar is larger than it was when it was found.
type liar struct{ *blockdev.Object }

func (l liar) Size() int64 { return l.Object.Size() + 1 }

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "disk.img"), noise(1, 100))
	write(t, filepath.Join(dir, "empty.img"), nil)
	for _, sub := range []string{"vms", ".diskrsync", "vms/.diskrsync"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o700))
		write(t, filepath.Join(dir, sub, "x.tree"), nil)
	}
	for name, to := range map[string]string{"link.img": "disk.img", "gone": "nowhere", "circle": "circle", "sub": "vms", "null": "/dev/null"} {
		require.NoError(t, os.Symlink(to, filepath.Join(dir, name)))
	}
	f := open(t, t.Context(), writing+dir)
	entries, err := f.List(t.Context(), "")
	require.NoError(t, err)
	got := map[string]int64{}
	for _, e := range entries {
		got[e.Remote()] = e.Size()
	}
	require.Equal(t, map[string]int64{"disk.img": 100, "empty.img": 0, "link.img": 100, "vms": -1}, got)
	entries, err = f.List(t.Context(), "vms")
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, "vms/x.tree", entries[0].Remote())

	for _, hidden := range []string{".diskrsync", "vms/.diskrsync"} {
		_, err = f.List(t.Context(), hidden)
		require.Equal(t, fs.ErrorDirNotFound, err)
		_, err = f.NewObject(t.Context(), hidden+"/x.tree")
		require.Equal(t, fs.ErrorObjectNotFound, err)
		_, err = f.Put(t.Context(), bytes.NewReader(nil), info(hidden+"/x.tree", 0))
		require.ErrorContains(t, err, "diskrsync's own")
		require.ErrorContains(t, f.Mkdir(t.Context(), hidden), "diskrsync's own")
		_, err = fs.NewFs(t.Context(), writing+dir+"/"+hidden)
		require.ErrorContains(t, err, "no images")
	}
	for _, absent := range []string{"gone", "circle", "disk.img/x", "vms/y", ""} {
		_, err = f.NewObject(t.Context(), absent)
		require.True(t, err == fs.ErrorObjectNotFound || err == fs.ErrorIsDir, "%s: %v", absent, err)
	}
	_, err = f.NewObject(t.Context(), "null")
	require.ErrorContains(t, err, "neither a block device nor a file")
	_, err = f.List(t.Context(), "disk.img")
	require.Equal(t, fs.ErrorIsFile, err)
	for _, outside := range []string{"../disk.img", "../../etc/passwd", "..", "vms/../../x"} {
		_, err = open(t, t.Context(), reading+dir+"/vms").NewObject(t.Context(), outside)
		require.Equal(t, fs.ErrorObjectNotFound, err, outside)
	}
	_, err = fs.NewFs(t.Context(), writing+dir+"/../x")
	require.ErrorContains(t, err, "has ..")
}

// info is what rclone tells about a stream.
func info(remote string, size int64) fs.ObjectInfo {
	return rcobject.NewStaticObjectInfo(remote, time.Unix(1e9, 123456789), size, true, nil, nil)
}

// Without allow_write nothing is ever changed.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "disk.img")
	write(t, p, noise(1, 10000))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	before, was := listing(t, dir), content(t, p)
	then, err := os.Stat(p)
	require.NoError(t, err)

	ctx := begin(t)
	f := open(t, ctx, reading+dir)
	o := object(t, ctx, reading, p)
	in := func() io.Reader { return bytes.NewReader(noise(2, 10000)) }
	_, putNew := f.Put(ctx, in(), info("new.img", 10000))
	_, put := f.Put(ctx, in(), info("disk.img", 10000))
	_, putDeep := f.Put(ctx, in(), info("a/b/new.img", 10000))
	for what, err := range map[string]error{
		"Put of a new one": putNew, "Put": put, "Put in a new folder": putDeep,
		"Update":     o.Update(ctx, in(), info("disk.img", 10000)),
		"SetModTime": o.SetModTime(ctx, time.Unix(1, 0)),
		"Remove":     o.Remove(ctx),
		"Mkdir":      f.Mkdir(ctx, "other"),
		"Rmdir":      f.Rmdir(ctx, "sub"),
	} {
		require.ErrorContains(t, err, "allow_write", what)
		require.True(t, fserrors.IsNoRetryError(err), what)
	}
	require.NoError(t, f.Mkdir(ctx, "sub"), "of what exists")
	require.Equal(t, before, listing(t, dir))
	same(t, content(t, p), was, "the image")
	now, err := os.Stat(p)
	require.NoError(t, err)
	require.Equal(t, then.ModTime(), now.ModTime())
}

// An image goes there and back, keeps its time, and is skipped when nothing has
// changed. What is stored about it goes with it.
func TestFiles(t *testing.T) {
	ctx := begin(t)
	from, to := t.TempDir(), t.TempDir()
	src, dst := filepath.Join(from, "a", "disk.img"), filepath.Join(to, "a", "disk.img")
	require.NoError(t, os.Mkdir(filepath.Dir(src), 0o700))
	write(t, src, noise(1, 300_000))
	fsrc, fdst := open(t, ctx, reading+from), open(t, ctx, writing+to)
	require.NoError(t, sync.CopyDir(ctx, fdst, fsrc, false))
	same(t, content(t, dst), content(t, src), "the copy")
	require.False(t, operations.NeedTransfer(ctx, object(t, ctx, writing, dst), object(t, ctx, reading, src)))

	overwrite(t, src, 1000, noise(2, 1000))
	require.NoError(t, os.Chtimes(src, time.Time{}, time.Unix(2e9, 987654321)))
	require.NoError(t, sync.CopyDir(ctx, fdst, fsrc, false))
	same(t, content(t, dst), content(t, src), "the copy of what changed")
	require.True(t, object(t, ctx, writing, dst).ModTime(ctx).Equal(time.Unix(2e9, 987654321)))
	require.NoError(t, object(t, ctx, writing, dst).SetModTime(ctx, time.Unix(1e9, 1)))
	require.True(t, object(t, ctx, writing, dst).ModTime(ctx).Equal(time.Unix(1e9, 1)))

	require.NoError(t, os.Remove(src))
	require.NoError(t, sync.Sync(ctx, fdst, fsrc, false))
	require.Equal(t, []string{to, filepath.Dir(dst)}, listing(t, to))
}

// An update that has to wait for a reader is what is listed, and the reader goes
// on with what it has opened.
func TestReaderDuringUpdate(t *testing.T) {
	ctx := begin(t)
	p := filepath.Join(t.TempDir(), "disk.img")
	f := open(t, ctx, writing+filepath.Dir(p))
	old, new := noise(1, 400_000), noise(2, 500_000)
	_, err := f.Put(ctx, bytes.NewReader(old), info("disk.img", 400_000))
	require.NoError(t, err)
	o := object(t, ctx, writing, p)
	in, err := o.Open(ctx)
	require.NoError(t, err)
	o2 := object(t, ctx, writing, p)
	src := rcobject.NewStaticObjectInfo("disk.img", time.Unix(1.5e9, 5), 500_000, true, nil, nil)
	require.NoError(t, o2.Update(ctx, bytes.NewReader(new), src))
	require.Equal(t, int64(500_000), o2.Size())
	require.Equal(t, int64(500_000), object(t, ctx, writing, p).Size(), "listed anew")
	require.True(t, object(t, ctx, writing, p).ModTime(ctx).Equal(src.ModTime(ctx)))
	same(t, read(t, o2), new, "the update")
	got, err := io.ReadAll(in)
	require.NoError(t, errors.Join(err, in.Close()))
	same(t, got, old, "what was being read")
	same(t, read(t, object(t, ctx, writing, p)), new, "the update")
}

// A folder in which an image never came to be can be removed; one with an image
// cannot.
func TestLeftovers(t *testing.T) {
	ctx := begin(t)
	top := t.TempDir()
	f := open(t, ctx, writing+top)
	in := io.MultiReader(bytes.NewReader(noise(1, 1<<20)), &failing{})
	_, err := f.Put(ctx, in, info("vms/disk.img", 2<<20))
	require.ErrorContains(t, err, "the cable was cut")
	_, err = f.NewObject(ctx, "vms/disk.img")
	require.Equal(t, fs.ErrorObjectNotFound, err)
	store := filepath.Join(top, "vms", ".diskrsync")
	require.NoError(t, os.MkdirAll(store, 0o700))
	for _, kind := range []string{"tree", "partial", "fresh", "lock"} {
		write(t, filepath.Join(store, "disk.img."+kind), noise(1, 100))
	}
	require.NoError(t, f.Rmdir(ctx, "vms"))
	require.Equal(t, []string{top}, listing(t, top))

	_, err = f.Put(ctx, bytes.NewReader(noise(1, 1000)), info("vms/disk.img", 1000))
	require.NoError(t, err)
	require.Equal(t, fs.ErrorDirectoryNotEmpty, f.Rmdir(ctx, "vms"))
	require.Equal(t, fs.ErrorDirNotFound, f.Rmdir(ctx, "other"))
	require.Error(t, f.Mkdir(ctx, "vms/disk.img"))
}

type failing struct{}

func (*failing) Read([]byte) (int, error) { return 0, errors.New("the cable was cut") }

func TestAbout(t *testing.T) {
	about := open(t, t.Context(), reading+t.TempDir()).Features().About
	if about == nil {
		t.Skip("free space is only known on Linux")
	}
	usage, err := about(t.Context())
	require.NoError(t, err)
	require.Positive(t, *usage.Total)
	_, err = open(t, t.Context(), reading).Features().About(t.Context())
	require.ErrorIs(t, err, fs.ErrorNotImplemented)
}

// What is said of devices while they are written stays out of the machine's state.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		state, err := os.MkdirTemp("", "blockdev-test-")
		if err == nil {
			err = os.Setenv("XDG_STATE_HOME", state)
		}
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(state)
		fstest.Initialise()
		return m.Run()
	}())
}
