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
	"testing/iotest"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/rclone/rclone/fs/fserrors"
	"github.com/stretchr/testify/require"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

func TestSpool(t *testing.T) {
	const unit = 128 << 10
	for _, size := range []int{0, 1, unit - 1, unit, unit + 1, 3*unit - 1, 3 * unit, 10*unit + 5} {
		for _, zeros := range []bool{false, true} {
			want := disk(1, size)
			if zeros {
				clear(want)
			}
			f, err := os.Create(filepath.Join(t.TempDir(), "spool"))
			require.NoError(t, err)
			n, err := spool(f, iotest.HalfReader(bytes.NewReader(want)))
			require.NoError(t, err)
			require.EqualValues(t, size, n)
			got, err := io.ReadAll(f)
			require.NoError(t, errors.Join(err, f.Close()))
			same(t, got, want)
		}
	}
}

func TestSpoolThatFails(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	require.NoError(t, err)
	broken := errors.New("broken")
	_, err = spool(f, io.MultiReader(bytes.NewReader(make([]byte, 200_000)), failing{broken}))
	require.ErrorIs(t, err, broken)
	require.NoError(t, f.Close())
	_, err = spool(f, bytes.NewReader([]byte("to a file that takes nothing")))
	require.ErrorIs(t, err, os.ErrClosed)
}

// What rclone hands over is read below where it counts, however it is wrapped.
func TestRelease(t *testing.T) {
	ctx, _ := begin(t)
	plain := bytes.NewReader([]byte("content"))
	in, a := release(plain)
	require.Same(t, plain, in)
	require.Nil(t, a.Account)
	a.Abandon() // there is nothing to abandon

	for name, wrap := range map[string]func(*accounting.Account) io.Reader{
		"the account":      func(acc *accounting.Account) io.Reader { return acc },
		"a stream over it": func(acc *accounting.Account) io.Reader { return acc.WrapStream(acc.OldStream()) },
	} {
		tr := accounting.Stats(ctx).NewTransferRemoteSize(name, 7, nil, nil)
		acc := tr.Account(ctx, io.NopCloser(bytes.NewReader([]byte("content"))))
		in, a := release(wrap(acc))
		require.Same(t, acc, a.Account, name)
		got, err := io.ReadAll(in)
		require.NoError(t, err)
		require.Equal(t, "content", string(got), name)
		require.Zero(t, accounting.Stats(ctx).GetBytes(), name)
		tr.Done(ctx, nil)
	}
}

// All of an image counts as transferred, and only once, whatever of it was sent.
func TestAccount(t *testing.T) {
	ctx, _ := begin(t)
	dir := t.TempDir()
	now := disk(1, 1<<20)
	dst := Target{Place: Place{Path: filepath.Join(dir, "copy")}}
	for i, src := range []fs.ObjectInfo{info(1 << 20), imageAt(t, Place{Path: write(t, filepath.Join(dir, "disk.img"), now)})} {
		tr := accounting.Stats(ctx).NewTransferRemoteSize("disk.img", 1<<20, nil, nil)
		in := tr.Account(ctx, io.NopCloser(bytes.NewReader(now))).WithBuffer()
		_, err := Upload(ctx, dst.Path, in, src, dst)
		require.NoError(t, err)
		tr.Done(ctx, err)
		require.EqualValues(t, (i+1)<<20, accounting.Stats(ctx).GetBytes())
	}
}

func TestClassify(t *testing.T) {
	require.NoError(t, Classify(nil))
	for _, tt := range []struct {
		name           string
		err            error
		retry, noRetry bool
	}{
		{"anything", io.ErrUnexpectedEOF, false, false},
		{"changed", image.ErrChanged, false, true},
		{"lost", fmt.Errorf("nas: %w", &session.LostError{Err: io.EOF}), true, false},
		{"refused", fmt.Errorf("x: %w", image.ErrInUse), false, true},
		{"refused far away", fmt.Errorf("nas: %w", &session.PeerError{Code: wire.CodeRefused, Text: "no"}), false, true},
		{"failed far away", &session.PeerError{Code: wire.CodeFailed, Text: "no"}, false, false},
		{"refused, and then lost", errors.Join(&session.LostError{Err: io.EOF}, image.ErrTooSmall), false, true},
	} {
		got := Classify(tt.err)
		require.ErrorIs(t, got, tt.err, tt.name)
		require.Equal(t, tt.retry, fserrors.IsRetryError(got), tt.name)
		require.Equal(t, tt.noRetry, fserrors.IsNoRetryError(got), tt.name)
	}
}

func TestExplain(t *testing.T) {
	plain := errors.New("plain")
	for _, tt := range []struct {
		name              string
		err               error
		want              string
		explained, closed int
	}{
		{"of this machine", plain, "plain", 0, 0},
		{"lost", fmt.Errorf("reading: %w", &session.LostError{Err: plain}), "nas: reading: plain (the cable was cut)", 1, 1},
		{"told by the other", &session.PeerError{Text: "no such file"}, "nas: no such file", 0, 1},
	} {
		w := &cable{}
		err := (&agent{carrier: w, host: "nas"}).explain(tt.err)
		require.EqualError(t, err, tt.want, tt.name)
		require.ErrorIs(t, err, tt.err, tt.name)
		require.Equal(t, []int{tt.explained, tt.closed}, []int{int(w.explained.Load()), int(w.closed.Load())}, tt.name)
	}
	require.NoError(t, (&agent{}).explain(nil))
}

func TestReader(t *testing.T) {
	const size = 1<<20 + 3
	want := disk(1, size)
	p := write(t, filepath.Join(t.TempDir(), "disk.img"), want)
	require.NoError(t, iotest.TestReader(open(t, p), want))
	for _, tt := range []struct {
		option   fs.OpenOption
		from, to int64
	}{
		{&fs.SeekOption{Offset: 0}, 0, size},
		{&fs.SeekOption{Offset: 500_000}, 500_000, size},
		{&fs.SeekOption{Offset: size}, size, size},
		{&fs.SeekOption{Offset: size + 1}, size, size},
		{&fs.SeekOption{Offset: -1}, 0, size},
		{&fs.RangeOption{Start: 10, End: 10}, 10, 11},
		{&fs.RangeOption{Start: size / 3, End: 2*size/3 + 1}, size / 3, 2*size/3 + 2},
		{&fs.RangeOption{Start: 10, End: -1}, 10, size},
		{&fs.RangeOption{Start: -1, End: 10}, size - 10, size},
		{&fs.RangeOption{Start: size - 1, End: 1 << 62}, size - 1, size},
		{&fs.RangeOption{Start: size + 5, End: size + 10}, size, size},
	} {
		r := open(t, p, tt.option)
		got, err := io.ReadAll(r)
		require.NoError(t, err, "%v", tt.option)
		same(t, got, want[tt.from:tt.to])
		require.NoError(t, r.Close())
	}
}

// A mixture is no content, and to open it again and go on would not make it one.
func TestReaderOfWhatChanges(t *testing.T) {
	p := write(t, filepath.Join(t.TempDir(), "disk.img"), disk(1, 1<<20))
	r := open(t, p)
	_, err := io.ReadFull(r, make([]byte, 1000))
	require.NoError(t, err)
	write(t, p, disk(2, 1<<20))
	require.NoError(t, os.Chtimes(p, day, day)) // however coarse the clock is
	_, err = io.Copy(io.Discard, r)
	require.ErrorIs(t, err, image.ErrChanged)
	require.True(t, fserrors.IsNoLowLevelRetryError(err))
	require.NoError(t, r.Close())
}

// Damage does not pass for content: neither in what is read nor in a hole, of an image of
// which hashes are stored. What lies in other blocks can be read.
func TestReaderOfWhatIsDamaged(t *testing.T) {
	const size = 1<<20 + 3
	for _, raw := range []bool{false, true} {
		ctx, _ := begin(t)
		p := filepath.Join(t.TempDir(), "disk.img")
		_, err := Upload(ctx, p, bytes.NewReader(disk(1, size)), info(size), Target{Place: Place{Path: p}, Raw: raw})
		require.NoError(t, err)
		same(t, content(t, p), disk(1, size))
		file, err := os.ReadFile(p)
		require.NoError(t, err)
		for name, damaged := range map[string]func(p []byte){
			"a byte":  func(p []byte) { p[len(p)/20] ^= 1 },
			"a hole":  func(p []byte) { clear(p[4096 : 4096+256<<10]) },
			"no hole": func(p []byte) { p[len(p)/2] = 1 },
		} {
			if !raw && name != "a byte" {
				continue // another slot than there was cannot be decoded
			}
			now := bytes.Clone(file)
			damaged(now)
			stat, err := os.Stat(p)
			require.NoError(t, err)
			write(t, p, now)
			require.NoError(t, os.Chtimes(p, stat.ModTime(), stat.ModTime()))
			r := open(t, p)
			_, err = io.Copy(io.Discard, r)
			require.Error(t, err, "raw %v, %s", raw, name)
			require.True(t, fserrors.IsNoRetryError(err) && fserrors.IsNoLowLevelRetryError(err), "%v", err)
			if raw {
				require.ErrorIs(t, err, session.ErrStored)
			}
			require.NoError(t, r.Close())
			r = open(t, p, &fs.RangeOption{Start: size - 5000, End: size})
			got, err := io.ReadAll(r)
			require.NoError(t, err)
			same(t, got, disk(1, size)[size-5000:])
			require.NoError(t, r.Close())
		}
	}
}

// What does not fit waits for what does, which would be ended with it, and fails then.
func TestBudget(t *testing.T) {
	ctx, ci := begin(t)
	ci.MaxTransfer, ci.CutoffMode = 100, fs.CutoffModeHard
	var b Budget
	require.NoError(t, b.take(ctx, 60))
	require.NoError(t, b.take(ctx, 40))
	third := make(chan error, 1)
	go func() { third <- b.take(ctx, 1) }()
	b.give(60) // of the first all is counted: that alone is no end
	accounting.Stats(ctx).Bytes(60)
	b.leave(0)
	select {
	case err := <-third:
		t.Fatalf("while another is under way: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	b.leave(40) // it was cut off
	require.NoError(t, <-third)
	accounting.Stats(ctx).Bytes(40)
	b.leave(1)
	require.ErrorIs(t, b.take(ctx, 1), accounting.ErrorMaxTransferLimitReachedFatal)

	over, cancel := context.WithCancel(ctx)
	ci.MaxTransfer = 110
	require.NoError(t, b.take(ctx, 10))
	cancel()
	require.ErrorIs(t, b.take(over, 10), context.Canceled)
	ci.CutoffMode = fs.CutoffModeSoft
	require.NoError(t, b.take(ctx, 1000))
}
