package session_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
)

// A job that is cut off again and again: a source and a target, as files.
type interrupted struct {
	t              *testing.T
	source, target string
	now, old       []byte // old is nil for a new image
	format         image.Format
}

func newInterrupted(t *testing.T, format image.Format, isNew bool) *interrupted {
	r := rand.New(rand.NewPCG(8, 8))
	content := randomContent(r, 4_000_000)
	j := &interrupted{t: t, format: format, now: content}
	if !isNew {
		j.old = bytes.Clone(content)
		for range 40 { // some patched, some whole, some holes
			at := r.IntN(len(content) - 70_000)
			copy(content[at:], randomContent(r, 1+r.IntN(70_000)))
		}
		j.now = append(content, noise(100_000)...)
	}
	return j
}

// begin makes the files anew.
func (j *interrupted) begin() {
	dir := j.t.TempDir()
	j.source, j.target = filepath.Join(dir, "source"), filepath.Join(dir, "target")
	must(j.t, os.WriteFile(j.source, j.now, 0o600))
	if j.old != nil {
		writeImage(j.t, j.target, j.format, j.old)
	}
}

// run syncs over a connection that is cut behind so many frames to the target, 0
// for never. It returns the bytes of content that got through.
func (j *interrupted) run(after int) (o outcome, content int64) {
	j.t.Helper()
	var mu sync.Mutex
	frames := 0
	o = syncFilesOver(j.t, j.source, j.target, j.format == image.Raw, session.Options{}, between(func(toTarget bool, frame []byte) ([]byte, bool) {
		mu.Lock()
		defer mu.Unlock()
		if !toTarget || isProgress(frame) {
			return frame, true
		}
		if frames++; after > 0 && frames > after {
			return nil, false
		}
		if kind := frame[4]; kind == 8 || kind == 9 || kind == 12 { // Holes, Block, Patch
			content += int64(len(frame))
		}
		return frame, true
	}))
	return o, content
}

// check checks that the image is the old one, or after success the new one.
func (j *interrupted) check(o outcome) {
	j.t.Helper()
	want := j.now
	if o.err() != nil {
		want = j.old
	}
	if _, err := os.Lstat(j.target); want == nil && os.IsNotExist(err) {
		return
	}
	if !bytes.Equal(readImage(j.t, j.target, j.format), want) {
		j.t.Fatalf("the image is neither old nor new after %v", o.err())
	}
}

// unheard bounds what has left the connection and is not stored when it is cut:
// what lies in a pipe, and what the workers had in hand.
const unheard = 400 << 10

func eachInterrupted(t *testing.T, test func(t *testing.T, j *interrupted)) {
	for _, format := range []image.Format{image.Raw, image.Spgz} {
		for _, isNew := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, new %v", format, isNew), func(t *testing.T) {
				t.Parallel()
				test(t, newInterrupted(t, format, isNew))
			})
		}
	}
}

// Wherever a run is cut off, the next one sends only the rest.
func TestNextRunSendsTheRest(t *testing.T) {
	eachInterrupted(t, func(t *testing.T, j *interrupted) {
		j.begin()
		o, all := j.run(0)
		must(t, o.err())
		step := 1
		if testing.Short() {
			step = 7
		}
		kept, sum, whole := int64(0), int64(0), int64(0)
		for after := 1; ; after += step {
			j.begin()
			o, first := j.run(after)
			j.check(o)
			if o.err() == nil {
				break
			}
			o, second := j.run(0)
			must(t, o.err())
			j.check(o)
			if first+second > all+unheard {
				t.Errorf("cut after %d frames: %d and %d bytes of content, in one run %d", after, first, second, all)
			}
			sum, whole = sum+first+second, whole+all
			kept = max(kept, o.source.Target.Kept)
			// Nothing of the target is to be read when nothing has changed since.
			if o, _ := j.run(0); o.err() != nil || o.target.Target.Read > 0 {
				t.Errorf("cut after %d frames: the third run read %d bytes of the target, %v", after, o.target.Target.Read, o.err())
			}
			j.onlyTree()
		}
		if sum > whole*105/100 {
			t.Errorf("%d bytes of content in interrupted runs, %d in as many that were not", sum, whole)
		}
		if kept < all/2 {
			t.Errorf("of %d bytes at most %d were kept", all, kept)
		}
	})
}

// onlyTree checks that nothing is left over.
func (j *interrupted) onlyTree() {
	j.t.Helper()
	entries, err := fs.ReadDir(os.DirFS(filepath.Dir(j.target)), ".diskrsync")
	if err != nil || len(entries) != 1 || entries[0].Name() != "target.tree" {
		j.t.Errorf("the store has %v, %v", entries, err)
	}
}

// A job that is cut off every few frames ends all the same.
func TestEveryFewFrames(t *testing.T) {
	eachInterrupted(t, func(t *testing.T, j *interrupted) {
		j.begin()
		o, all := j.run(0)
		must(t, o.err())
		for _, after := range []int{8, 20} {
			j.begin()
			sum, runs := int64(0), 0
			for {
				o, content := j.run(after)
				j.check(o)
				sum += content
				if runs++; o.err() == nil {
					break
				}
				if runs > 100 {
					t.Fatalf("cut every %d frames: no end after %d runs", after, runs)
				}
			}
			if sum > all+int64(runs)*unheard {
				t.Errorf("cut every %d frames: %d bytes of content in %d runs, in one run %d", after, sum, runs, all)
			}
			t.Logf("cut every %d frames: %d bytes of content in %d runs, in one run %d", after, sum, runs, all)
			j.onlyTree()
		}
	})
}
