package session_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/dop251/spgz"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// syncFiles runs a session from one image file to another, both opened as a
// command would.
func syncFiles(t *testing.T, from, to string, raw bool, opt session.Options) outcome {
	t.Helper()
	return syncFilesOver(t, from, to, raw, opt, nil)
}

// syncFilesOver is syncFiles over what wrap makes of the ends of a pipe.
func syncFilesOver(t *testing.T, from, to string, raw bool, opt session.Options, wrap func(a, b session.Carrier) (session.Carrier, session.Carrier)) outcome {
	t.Helper()
	sp, err := image.Locate(from)
	must(t, err)
	defer sp.Close()
	tp, err := image.Locate(to)
	must(t, err)
	defer tp.Close()
	src, err := image.Open(sp, image.Options{})
	must(t, err)
	defer src.Close()
	dst, err := image.OpenTarget(tp, image.TargetOptions{Raw: raw, DryRun: opt.DryRun})
	must(t, err)
	var o outcome
	var a, b session.Carrier = transport.Pipe()
	if wrap != nil {
		a, b = wrap(a, b)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := session.NewConn(t.Context(), b, 0)
		if err == nil {
			o.target, err = session.Receive(t.Context(), c, dst, session.Options{})
		}
		o.targetErr = err
	})
	c, err := session.NewConn(t.Context(), a, 0)
	if err == nil {
		o.source, err = session.Send(t.Context(), c, src, opt)
	}
	o.sourceErr = err
	wg.Wait()
	must(t, dst.Close())
	return o
}

// writeImage makes an image file without any code of ours.
func writeImage(t *testing.T, path string, format image.Format, content []byte) {
	t.Helper()
	if format == image.Raw {
		must(t, os.WriteFile(path, content, 0o600))
		return
	}
	f, err := spgz.OpenFileSize(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600, 65535)
	must(t, err)
	_, err = f.WriteAt(content, 0)
	must(t, err)
	must(t, f.Close())
}

// readImage reads an image file without any code of ours.
func readImage(t *testing.T, path string, format image.Format) []byte {
	t.Helper()
	if format == image.Raw {
		p, err := os.ReadFile(path)
		must(t, err)
		return p
	}
	f, err := spgz.OpenFile(path, os.O_RDONLY, 0)
	must(t, err)
	defer f.Close()
	size, err := f.Size()
	must(t, err)
	p := make([]byte, size)
	if n, err := f.ReadAt(p, 0); err != nil && err != io.EOF || int64(n) != size {
		t.Fatalf("the library read %d of %d bytes: %v", n, size, err)
	}
	return p
}

// Every format to every other, over a life of growing, shrinking and changing.
func TestImageFiles(t *testing.T) {
	for _, from := range []image.Format{image.Raw, image.Spgz} {
		for _, to := range []image.Format{image.Raw, image.Spgz} {
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
				dir := t.TempDir()
				source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
				r := rand.New(rand.NewPCG(3, uint64(len(from)*2+len(to))))
				content := randomContent(r, 3_000_000)
				for step := range 20 {
					writeImage(t, source, from, content)
					o := syncFiles(t, source, target, to == image.Raw, session.Options{})
					must(t, o.err())
					if !bytes.Equal(readImage(t, target, to), content) {
						t.Fatalf("step %d: the target is not what the source is", step)
					}
					again := syncFiles(t, source, target, to == image.Raw, session.Options{})
					must(t, again.err())
					if n := again.source.Source; n.Changed+n.Patched+n.Holes != 0 || again.source.Digest != o.source.Digest {
						t.Fatalf("step %d: nothing had changed, and the source says %+v", step, n)
					}
					if n := again.target.Target; n.Read+n.Hashed != 0 {
						t.Fatalf("step %d: nothing had changed, and the target says %+v", step, n)
					}
					must(t, os.RemoveAll(source))
					content = edited(r, content)
					if len(content) == 0 { // an empty file is no spgz image
						content = randomContent(r, 1000)
					}
				}
				entries, err := os.ReadDir(filepath.Join(dir, ".diskrsync"))
				must(t, err)
				if len(entries) != 1 || entries[0].Name() != "target.tree" {
					t.Errorf("the store has %v", entries)
				}
			})
		}
	}
}

// A dry run changes nothing and tells what the real one then does.
func TestDryRun(t *testing.T) {
	for _, to := range []image.Format{image.Raw, image.Spgz} {
		r := rand.New(rand.NewPCG(9, 9))
		for range 20 {
			dir := t.TempDir()
			source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
			old := randomContent(r, 2_000_000)
			now := edited(r, old)
			must(t, os.WriteFile(source, now, 0o600))
			if r.IntN(4) > 0 {
				writeImage(t, target, to, old)
			}
			before := listing(t, dir)
			// Plain, since what compression saves depends on what is packed together.
			dry := syncFiles(t, source, target, to == image.Raw, session.Options{DryRun: true, Plain: true})
			must(t, dry.err())
			if after := listing(t, dir); after != before {
				t.Fatalf("before %s\nafter %s", before, after)
			}
			done := syncFiles(t, source, target, to == image.Raw, session.Options{Plain: true})
			must(t, done.err())
			if dry.source.Source != done.source.Source || dry.source.Digest != done.source.Digest {
				t.Fatalf("dry %+v\nreal %+v", dry.source.Source, done.source.Source)
			}
		}
	}
}

// listing describes all files below dir, content and times included.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		fmt.Fprintf(&all, "%s %v %d %x\n", path, info.ModTime(), info.Size(), content[:min(len(content), 100)])
		return err
	}))
	return all.String()
}

// The worked example of PROTOCOL.md is what both roles really do.
func TestWorkedExample(t *testing.T) {
	steps := workedExample(t)
	t.Run("target", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "target")
		must(t, os.WriteFile(path, []byte("0123\x00\x00\x00\x00"), 0o600))
		place, err := image.Locate(path)
		must(t, err)
		defer place.Close()
		dst, err := image.OpenTarget(place, image.TargetOptions{})
		must(t, err)
		replay(t, opposeTarget(t, 0, dst), steps, "source")
		must(t, dst.Close())
		if got := readImage(t, path, image.Raw); string(got) != "0123456789" {
			t.Errorf("the target is %q", got)
		}
	})
	t.Run("source", func(t *testing.T) {
		src := &disk{content: []byte("0123456789"), blockSize: 4}
		replay(t, opposeSource(t, 0, src, session.Options{}), steps, "target")
	})
}

type step struct {
	from string
	m    wire.Message
}

// workedExample reads the frames at the end of PROTOCOL.md, as the test of
// package wire does that holds them to their meaning.
func workedExample(t *testing.T) []step {
	t.Helper()
	raw, err := os.ReadFile("../wire/PROTOCOL.md")
	must(t, err)
	_, section, _ := strings.Cut(string(raw), "## Worked example\n")
	var from []string
	var stream []byte
	for line := range strings.Lines(section) {
		words, indented := strings.CutPrefix(line, "    ")
		for i, word := range strings.Fields(words) {
			if indented && i == 0 && (word == "source" || word == "target") {
				from = append(from, word)
			} else if b, err := hex.DecodeString(word); indented && err == nil && len(b) == 1 {
				stream = append(stream, b...)
			}
		}
	}
	r := wire.NewReader(bytes.NewReader(stream))
	var steps []step
	for _, who := range from {
		m, err := r.Read()
		must(t, err)
		steps = append(steps, step{who, m})
	}
	if len(steps) < 5 {
		t.Fatalf("%d steps", len(steps))
	}
	return steps
}

// replay plays the part of one side of the example and checks the other's.
func replay(t *testing.T, p *peer, steps []step, as string) {
	t.Helper()
	for i, s := range steps {
		if s.from == as {
			p.send(s.m)
			continue
		}
		got := p.next()
		if got == nil {
			t.Fatalf("step %d: the role ended: %v", i, p.wait())
		}
		// These two are drawn anew, or belong to the machine.
		switch m := got.(type) {
		case *wire.Hello:
			m.Identity = s.m.(*wire.Hello).Identity
		case *wire.Accept:
			m.Key = s.m.(*wire.Accept).Key
		}
		if !bytes.Equal(appendFrame(t, got), appendFrame(t, s.m)) {
			t.Fatalf("step %d is %+v, want %+v", i, got, s.m)
		}
	}
	if _, err := p.end(); err != nil {
		t.Errorf("returned %v", err)
	}
}
