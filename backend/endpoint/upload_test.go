package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/rclone/rclone/fs/fserrors"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/diskrsync/diskrsync/merkle/image"
)

// Every way that a sync can go leads to the same image, and sends what differs.
func TestUploadEveryWay(t *testing.T) {
	const size = 3<<20 + 77
	for _, source := range []string{"stream", "here", "agent"} {
		for _, target := range []string{"here", "agent"} {
			for _, raw := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s to %s, raw %v", source, target, raw), func(t *testing.T) {
					ctx, _ := begin(t)
					var reports []Report
					ctx = WithReports(ctx, func(r Report) { reports = append(reports, r) })
					dir := t.TempDir()
					places := map[string]func(host, p string) Place{
						"here":  func(_, p string) Place { return Place{Path: p} },
						"agent": func(host, p string) Place { return far(t, host, p) },
					}
					now := disk(1, size)
					from := write(t, filepath.Join(dir, "disk.img"), now)
					dst := Target{Place: places[target]("nas", filepath.Join(dir, "copy")), Raw: raw}
					upload := func() {
						t.Helper()
						require.NoError(t, os.Chtimes(from, day, day))
						var src fs.ObjectInfo = info(size)
						var in io.Reader = bytes.NewReader(now)
						if source != "stream" {
							src, in = imageAt(t, places[source]("host", from)), counted(t, ctx, unread{t})
						}
						_, err := Upload(ctx, t.Name(), in, src, dst)
						require.NoError(t, err)
						same(t, content(t, dst.Path), now)
					}
					upload()
					copy(now[100_000:], "a change")
					write(t, from, now)
					upload()

					stat, err := os.Stat(dst.Path)
					require.NoError(t, err)
					require.True(t, stat.ModTime().Equal(day), "it has the time %v", stat.ModTime())
					require.Equal(t, raw, stat.Size() == size, "%d bytes", stat.Size())
					require.Len(t, reports, 2)
					require.Equal(t, "disk.img", reports[0].Remote)
					require.EqualValues(t, size, reports[0].Size)
					require.Greater(t, reports[0].Sent, int64(size/4))
					require.Less(t, reports[1].Sent, int64(size/16))
				})
			}
		}
	}
}

// An existing image is left as it is, whatever was wrong, and nobody is told of success.
func TestUploadThatFails(t *testing.T) {
	before, now := disk(1, 1<<20), disk(2, 1<<20)
	broken := errors.New("the disk has fallen down")
	for _, tt := range []struct {
		name string
		in   io.Reader
		src  func(t *testing.T, p string) fs.ObjectInfo
		want string
	}{
		{"short stream", bytes.NewReader(now[:1<<19]), stream(1 << 20), "524288"},
		{"long stream", bytes.NewReader(now), stream(1 << 19), "524288"},
		{"broken stream", io.MultiReader(bytes.NewReader(now[:1<<19]), failing{broken}), stream(1 << 20), broken.Error()},
		{"broken stream of unknown length", io.MultiReader(bytes.NewReader(now[:1<<19]), failing{broken}), stream(-1), broken.Error()},
		{"image of another size", failing{broken}, changed(func(o *imageObject) { o.size++ }), "had 1048577 bytes when it was listed, and has 1048576 now"},
		{"image that is gone", failing{broken}, changed(func(o *imageObject) { o.src.Path += "gone" }), "no such file"},
		{"image that cannot be found", failing{broken}, changed(func(o *imageObject) { o.err = broken }), broken.Error()},
		{"agent that cannot be started", failing{broken}, changed(func(o *imageObject) {
			o.src.Dial = func(context.Context) (Carrier, error) { return nil, broken }
		}), broken.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, _ := begin(t)
			ctx = WithReports(ctx, func(Report) { t.Error("a sync that failed was reported") })
			dir := t.TempDir()
			t.Setenv("TMPDIR", t.TempDir())
			target := write(t, filepath.Join(dir, "copy"), before)
			src := tt.src(t, write(t, filepath.Join(dir, "disk.img"), now))
			_, err := Upload(ctx, t.Name(), counted(t, ctx, tt.in), src, Target{Place: Place{Path: target}, Raw: true})
			require.ErrorContains(t, err, tt.want)
			same(t, content(t, target), before)
			require.Empty(t, listing(t, os.TempDir()), "a temporary file was left")
		})
	}
}

func stream(size int64) func(*testing.T, string) fs.ObjectInfo {
	return func(*testing.T, string) fs.ObjectInfo { return info(size) }
}

func changed(how func(*imageObject)) func(*testing.T, string) fs.ObjectInfo {
	return func(t *testing.T, p string) fs.ObjectInfo {
		o := imageAt(t, Place{Path: p})
		how(o)
		return o
	}
}

// failing is a stream that fails.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// An object that is not Placed at the time is read as a stream.
func TestUploadOfWhatIsNotPlaced(t *testing.T) {
	ctx, _ := begin(t)
	dir := t.TempDir()
	now := disk(1, 300_000)
	o := &imageObject{size: 300_000, err: fmt.Errorf("x: %w", ErrNotPlaced)}
	_, err := Upload(ctx, o, bytes.NewReader(now), o, Target{Place: Place{Path: filepath.Join(dir, "copy")}})
	require.NoError(t, err)
	same(t, content(t, filepath.Join(dir, "copy")), now)
}

// What reads a stream together with others, as union does, waits for each to be read:
// then the place of the source is of no use.
func TestUploadOfWhatOthersReadToo(t *testing.T) {
	ctx, _ := begin(t)
	dir := t.TempDir()
	now := disk(1, 300_000)
	o := imageAt(t, Place{Path: write(t, filepath.Join(dir, "disk.img"), now)})
	in, all := io.Pipe()
	var fed errgroup.Group
	fed.Go(func() error {
		_, err := all.Write(now)
		return errors.Join(err, all.Close())
	})
	_, err := Upload(ctx, o, in, o, Target{Place: Place{Path: filepath.Join(dir, "copy")}})
	require.NoError(t, errors.Join(err, fed.Wait()))
	same(t, content(t, filepath.Join(dir, "copy")), now)
}

// A stream whose next byte never comes does not keep a sync from being ended, and leaves
// no file.
func TestUploadOfWhatNeverComes(t *testing.T) {
	for _, size := range []int64{-1, 1 << 20} {
		ctx, _ := begin(t)
		ctx, cancel := context.WithCancel(ctx)
		t.Setenv("TMPDIR", t.TempDir())
		in, more := io.Pipe()
		t.Cleanup(func() { require.NoError(t, more.Close()) })
		ended := make(chan error, 1)
		go func() {
			_, err := Upload(ctx, t.Name(), in, info(size), Target{Place: Place{Path: filepath.Join(t.TempDir(), "copy")}})
			ended <- err
		}()
		_, err := more.Write([]byte("the first bytes"))
		require.NoError(t, err)
		cancel()
		select {
		case err := <-ended:
			require.ErrorIs(t, err, context.Canceled)
		case <-time.After(time.Minute):
			t.Fatalf("of %d bytes: still waits", size)
		}
		require.Empty(t, listing(t, os.TempDir()), "a temporary file was left")
	}
}

// copyto hands out objects under another name, which must not hide what they are.
func TestUploadUnderAnotherName(t *testing.T) {
	ctx, _ := begin(t)
	dir := t.TempDir()
	now := disk(1, 300_000)
	o := imageAt(t, Place{Path: write(t, filepath.Join(dir, "disk.img"), now)})
	told := ""
	ctx = WithReports(ctx, func(r Report) { told = r.Remote })
	_, err := Upload(ctx, o, counted(t, ctx, unread{t}), fs.NewOverrideRemote(o, "other"), Target{Place: Place{Path: filepath.Join(dir, "copy")}})
	require.NoError(t, err)
	same(t, content(t, filepath.Join(dir, "copy")), now)
	require.Equal(t, "other", told)
}

// A target that was a device when rclone found it must not become a file.
func TestUploadToWhatIsNoDevice(t *testing.T) {
	ctx, _ := begin(t)
	p := write(t, filepath.Join(t.TempDir(), "disk"), []byte("was a device"))
	_, err := Upload(ctx, p, bytes.NewReader(make([]byte, 12)), info(12), Target{Place: Place{Path: p}, Raw: true, Device: true})
	require.ErrorContains(t, err, "no longer a device")
	same(t, content(t, p), []byte("was a device"))
}

// cancelling is a stream that ends its context on the way.
type cancelling struct {
	in     io.Reader
	cancel context.CancelFunc
}

func (c *cancelling) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if err == io.EOF {
		c.cancel()
		return n, context.Canceled
	}
	return n, err
}

// What has arrived of a new image is there for the next run, and nothing else is.
func TestUploadThatIsCancelled(t *testing.T) {
	const size = 8 << 20
	all, _ := begin(t)
	ctx, cancel := context.WithCancel(all)
	dir := t.TempDir()
	now := disk(1, size)
	dst := Target{Place: Place{Path: filepath.Join(dir, "copy")}}
	_, err := Upload(ctx, t.Name(), &cancelling{bytes.NewReader(now[:size/2]), cancel}, info(size), dst)
	require.ErrorIs(t, err, context.Canceled)
	require.NoFileExists(t, dst.Path)

	_, err = Upload(all, t.Name(), bytes.NewReader(now), info(size), dst)
	require.NoError(t, err)
	same(t, content(t, dst.Path), now)
}

// endless is all zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// --max-transfer with --cutoff-mode hard ends a sync in the middle, and rclone as well.
func TestUploadOverTheLimit(t *testing.T) {
	const size = 1 << 50
	ctx, ci := begin(t)
	ci.MaxTransfer, ci.CutoffMode = 1, fs.CutoffModeHard
	src := info(size)
	tr := accounting.Stats(ctx).NewTransferRemoteSize("disk.img", size, nil, nil)
	in := tr.Account(ctx, io.NopCloser(endless{}))
	p := filepath.Join(t.TempDir(), "copy")
	_, err := Upload(ctx, p, in, src, Target{Place: Place{Path: p}})
	tr.Done(ctx, err)
	require.ErrorIs(t, err, accounting.ErrorMaxTransferLimitReachedFatal)
	require.True(t, fserrors.IsFatalError(err), "rclone goes on after %v", err)
	require.NoFileExists(t, p)
}

// A stream of unknown length is put aside, with its holes, and the file is gone then.
func TestUploadOfUnknownLength(t *testing.T) {
	for _, size := range []int{0, 1, 128 << 10, 128<<10 + 1, 1_000_000} {
		ctx, _ := begin(t)
		t.Setenv("TMPDIR", t.TempDir())
		p := filepath.Join(t.TempDir(), "copy")
		now := disk(1, size)
		r, err := Upload(ctx, p, bytes.NewReader(now), info(-1), Target{Place: Place{Path: p}})
		require.NoError(t, err)
		require.EqualValues(t, size, r.Size)
		same(t, content(t, p), now)
		require.Empty(t, listing(t, os.TempDir()), "a temporary file was left")
	}
}

// What is known of an image can be asked, changed and dropped, here and far away.
func TestControl(t *testing.T) {
	for _, where := range []string{"here", "agent"} {
		t.Run(where, func(t *testing.T) {
			ctx, _ := begin(t)
			p := filepath.Join(t.TempDir(), "copy")
			place := Place{Path: p}
			if where == "agent" {
				place = far(t, "nas", p)
			}
			r, err := Upload(ctx, p, bytes.NewReader(disk(1, 1<<20)), info(1<<20), Target{Place: place, Raw: true})
			require.NoError(t, err)
			src := Source{Place: place, Format: image.Auto}
			told, bad, err := Inspect(ctx, src, true)
			require.NoError(t, err)
			require.Empty(t, bad)
			require.Equal(t, r.Digest, told.Digest)

			later := day.AddDate(1, 0, 0)
			require.NoError(t, SetModified(ctx, place, later))
			stat, err := os.Stat(p)
			require.NoError(t, err)
			require.True(t, stat.ModTime().Equal(later))
			require.NoError(t, os.WriteFile(p, make([]byte, 1<<20), 0o600))
			require.NoError(t, os.Chtimes(p, later, later)) // rot does not change the time
			told, bad, err = Inspect(ctx, src, true)
			require.NoError(t, err)
			require.EqualValues(t, len(bad), told.Bad)
			require.NotEmpty(t, bad)
			for i := range bad[1:] {
				require.Less(t, bad[i].Index, bad[i+1].Index)
			}

			done, err := Clean(ctx, Target{Place: place})
			require.NoError(t, err)
			require.NotEmpty(t, done)
			gone := place
			gone.Path += "gone"
			_, _, err = Inspect(ctx, Source{Place: gone, Format: image.Auto}, false)
			require.ErrorContains(t, err, "no such file")
			require.ErrorContains(t, SetModified(ctx, gone, later), "no such file")
		})
	}
}
