//go:build linux

package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

const (
	// resumeSize is the size of the image, and deltaSize that of a change.
	resumeSize = 36 * mib
	deltaSize  = 14 * mib

	// twice bounds what all runs of an interrupted sync send together, in
	// hundredths of what one run sends.
	twice = 105
)

// over runs a command with an agent on this machine whose connection is cut after
// so many bytes, or never, and returns how many bytes it sent and received. The
// agent has ended then, too.
func over(t *testing.T, cut int64, args ...string) (r lab.Result, to, from int64) {
	t.Helper()
	carrier := lab.NewCarrier(t)
	r = lab.Start(t, tools.Diskrsync, carrier.Args(t, tools.Diskrsync, cut, args...)...).Wait(t)
	to, from = carrier.Sent(t)
	return r, to, from
}

// push is a sync to an agent.
func (img image) push(t *testing.T, disk string, cut int64) (r lab.Result, sent int64) {
	t.Helper()
	r, sent, _ = over(t, cut, img.args(disk, "there:"+img.path, "--json")...)
	return r, sent
}

// cutAfter starts a sync that ends when it has sent so many bytes, and returns
// how many it was.
func cutAfter(t *testing.T, img image, disk string, size int64) int64 {
	t.Helper()
	r, sent := img.push(t, disk, size)
	r.Fails(t, failed, "there")
	return sent
}

// forget removes the image, and what is known about it.
func (img image) forget(t *testing.T) {
	t.Helper()
	for _, path := range []string{img.path, filepath.Join(filepath.Dir(img.path), ".diskrsync")} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

func noiseDisk(t *testing.T, size int) string {
	t.Helper()
	return lab.Write(t, filepath.Join(t.TempDir(), "disk"), lab.Noise(1, size), 0o644)
}

// TestResume cuts the link in the middle of a first copy and of an update.
func TestResume(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := noiseDisk(t, resumeSize)
		for what, prepare := range map[string]func(seed int){
			"first copy": func(int) { img.forget(t) },
			"update": func(seed int) {
				img.sync(t, disk)
				lab.WriteAt(t, disk, lab.Noise(uint64(100+seed), deltaSize), 9*mib+12345)
			},
		} {
			t.Run(what, func(t *testing.T) {
				prepare(0)
				r, whole := img.push(t, disk, 0)
				r.OK(t)
				for _, percent := range []int{10, 50, 90} {
					prepare(percent)
					img.resume(t, disk, whole, percent)
				}
			})
		}
	})
}

// resume cuts a sync short and does the rest, and looks at what was sent in all.
func (img image) resume(t *testing.T, disk string, whole int64, percent int) {
	t.Helper()
	first := cutAfter(t, img, disk, whole*int64(percent)/100)
	r, rest := img.push(t, disk, 0)
	s := r.Summary(t)
	img.holds(t, disk)
	if s.Kept == 0 {
		t.Errorf("cut at %d %%: nothing was kept", percent)
	}
	if s.Kept+s.Target.BytesRead > whole+mib {
		t.Errorf("cut at %d %%: the target kept %d bytes and read %d, more than the %d that differed", percent, s.Kept, s.Target.BytesRead, whole)
	}
	sentOnce(t, fmt.Sprintf("cut at %d %%", percent), first+rest, whole)
	t.Logf("cut at %d %%: kept %d, the target read %d", percent, s.Kept, s.Target.BytesRead)
}

// sentOnce checks that hardly more was sent than in one run.
func sentOnce(t *testing.T, what string, all, whole int64) {
	t.Helper()
	t.Logf("%s: sent %d bytes in all, one run sends %d: %.2f times", what, all, whole, float64(all)/float64(whole))
	if all*100 > whole*twice {
		t.Errorf("%s: sent %d bytes in all, more than %d %% of the %d of one run", what, all, twice, whole)
	}
}

// TestResumeManyTimes cuts the link again and again.
func TestResumeManyTimes(t *testing.T) {
	const cuts = 8
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := noiseDisk(t, resumeSize)
		r, whole := img.push(t, disk, 0)
		r.OK(t)
		img.forget(t)
		var all int64
		for range cuts {
			all += cutAfter(t, img, disk, whole/(cuts+1))
		}
		r, rest := img.push(t, disk, 0)
		r.OK(t)
		img.holds(t, disk)
		sentOnce(t, "cut many times", all+rest, whole)
	})
}

// TestResumePull cuts the link to a source.
func TestResumePull(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := noiseDisk(t, resumeSize)
		args := img.args("there:"+disk, img.path, "--json")
		r, _, whole := over(t, 0, args...)
		r.OK(t)
		img.forget(t)
		r, _, first := over(t, whole/2, args...)
		r.Fails(t, failed, "there")
		r, _, rest := over(t, 0, args...)
		if s := r.Summary(t); s.Kept == 0 || s.Target.BytesRead > mib {
			t.Errorf("kept %d bytes, and the target read %d", s.Kept, s.Target.BytesRead)
		}
		img.holds(t, disk)
		sentOnce(t, "cut in the middle", first+rest, whole)
	})
}

// TestResumeOfAnotherSource lets the source change before the sync goes on.
func TestResumeOfAnotherSource(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		img := newImage(t, kind)
		disk := noiseDisk(t, resumeSize)
		for _, update := range []bool{false, true} {
			cutAfter(t, img, disk, 8*mib)
			lab.Scatter(t, disk, 2, 10)
			lab.WriteAt(t, disk, lab.Noise(3, mib), lab.Size(t, disk)-mib/2)
			s := img.sync(t, disk)
			if s.Kept < 4*mib {
				t.Errorf("update %v: only %d bytes were kept of 8 MiB", update, s.Kept)
			}
			lab.WriteAt(t, disk, lab.Noise(4, deltaSize), mib)
		}
	})
}

// TestKeptIsSaid reads what a person reads.
func TestKeptIsSaid(t *testing.T) {
	img := newImage(t, "raw")
	disk := noiseDisk(t, 16*mib)
	cutAfter(t, img, disk, 8*mib)
	r := img.run(t, disk, "--verbose").OK(t)
	if !strings.Contains(r.Stderr, "kept") {
		t.Errorf("nothing is said about what was kept:\n%s", r.Stderr)
	}
}

// clean runs the command on an image, with an agent if there is a place.
func clean(t *testing.T, place, path string) {
	t.Helper()
	if place == "" {
		here(t, "clean", path).OK(t)
		return
	}
	r, _, _ := over(t, 0, "clean", place+path)
	r.OK(t)
}

// TestClean drops what an interrupted sync has left, here and elsewhere.
func TestClean(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		for _, place := range []string{"", "there:"} {
			img := newImage(t, kind)
			disk := noiseDisk(t, 20*mib)
			for _, left := range [][]string{nil, {"tree"}} {
				was := img.sum(t)
				cutAfter(t, img, disk, 8*mib)
				clean(t, place, img.path)
				if got := img.store(t); !slices.Equal(got, left) {
					t.Errorf("clean %s left %v, want %v", place, got, left)
				}
				if now := img.sum(t); now != was {
					t.Errorf("clean %s changed the image from %s to %s", place, describe(was), describe(now))
				}
				if s := img.sync(t, disk); s.Kept != 0 {
					t.Errorf("clean %s left %d bytes that were kept", place, s.Kept)
				}
				lab.WriteAt(t, disk, lab.Noise(4, deltaSize), mib)
			}
		}
	})
}
