package session_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// call connects to an agent. The function returned waits for what the agent
// returns.
func call(t testing.TB, a session.Agent) (*session.Conn, func() error) {
	t.Helper()
	near, far := transport.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- a.Serve(t.Context(), far) }()
	c, err := session.NewConn(t.Context(), near, 0)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c, func() error { return <-ended }
}

// rooted returns an agent that is locked to a folder, and a folder beside it.
func rooted(t testing.TB) (a session.Agent, inside, outside string) {
	t.Helper()
	dir := t.TempDir()
	inside, outside = filepath.Join(dir, "inside"), filepath.Join(dir, "outside")
	must(t, os.Mkdir(inside, 0o700))
	must(t, os.Mkdir(outside, 0o700))
	root, err := os.OpenRoot(inside)
	must(t, err)
	t.Cleanup(func() { root.Close() })
	return session.Agent{Root: root}, inside, outside
}

func TestAgentAsTargetAndSource(t *testing.T) {
	a, inside, _ := rooted(t)
	content := noise(1_000_000)
	clear(content[200_000:600_000])

	c, ended := call(t, a)
	_, err := c.Open(t.Context(), wire.Request{Verb: wire.VerbTarget, Path: "/disk"})
	must(t, err)
	sent, err := session.Send(t.Context(), c, &disk{content: content}, session.Options{})
	must(t, err)
	must(t, ended())
	if got := readImage(t, filepath.Join(inside, "disk"), image.Spgz); !bytes.Equal(got, content) {
		t.Error("the agent's image is not what was sent")
	}

	c, ended = call(t, a)
	_, err = c.Open(t.Context(), wire.Request{Verb: wire.VerbSource, Path: "disk"})
	must(t, err)
	dst := rawDisk(nil)
	received, err := session.Receive(t.Context(), c, dst, session.Options{})
	must(t, err)
	must(t, ended())
	if !dst.committed || !bytes.Equal(dst.content, content) || received.Digest != sent.Digest {
		t.Errorf("committed %v, digests %v and %v", dst.committed, sent.Digest, received.Digest)
	}
}

// Of an image that nothing is stored of, info tells what can be told without reading
// it, and verify the rest.
func TestAgentInspects(t *testing.T) {
	a, inside, _ := rooted(t)
	content := noise(500_000)
	writeImage(t, filepath.Join(inside, "disk"), image.Spgz, content)
	digest := treeOf(t, content, 65535).digest()
	for _, damaged := range []bool{false, true} {
		if damaged {
			f, err := os.OpenFile(filepath.Join(inside, "disk"), os.O_RDWR, 0)
			must(t, err)
			_, err = f.WriteAt([]byte{9}, 4096+2*65536) // the flag of slot 2
			must(t, err)
			must(t, f.Close())
		}
		for _, verb := range []wire.Verb{wire.VerbInfo, wire.VerbVerify} {
			c, ended := call(t, a)
			_, err := c.Open(t.Context(), wire.Request{Verb: verb, Path: "disk"})
			must(t, err)
			var bad []wire.Bad
			info, err := session.AwaitInspection(t.Context(), c, nil, func(b wire.Bad) error { bad = append(bad, b); return nil })
			must(t, err)
			must(t, ended())
			want := wire.Info{Format: "spgz", Size: 500_000, Allocated: info.Allocated, BlockSize: 65535}
			var named []wire.Bad
			switch {
			case verb == wire.VerbVerify && damaged:
				want.Bad = 1
				named = []wire.Bad{{Index: 2, Offset: 131070, Length: 65535}}
			case verb == wire.VerbVerify:
				want.Digest = digest
			}
			if *info != want {
				t.Errorf("verb %d: %+v, want %+v", verb, info, want)
			}
			for i := range bad {
				bad[i].Text = "" // says what is wrong with it
			}
			if !slices.Equal(bad, named) {
				t.Errorf("verb %d named %+v, want %+v", verb, bad, named)
			}
		}
	}
}

func TestAgentRefuses(t *testing.T) {
	a, inside, outside := rooted(t)
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	must(t, os.WriteFile(filepath.Join(inside, "disk"), []byte("content"), 0o600))
	must(t, os.Symlink(filepath.Join(outside, "secret"), filepath.Join(inside, "absolute")))
	must(t, os.Symlink("../outside/secret", filepath.Join(inside, "relative")))
	must(t, os.Symlink("../outside", filepath.Join(inside, "folder")))
	readOnly := a
	readOnly.ReadOnly = true
	for _, c := range []struct {
		agent session.Agent
		req   wire.Request
		want  string
	}{
		{a, wire.Request{Verb: wire.VerbSource, Path: "../outside/secret"}, "outside"},
		{a, wire.Request{Verb: wire.VerbSource, Path: filepath.Join(outside, "secret")}, "outside"},
		{a, wire.Request{Verb: wire.VerbSource, Path: "absolute"}, "absolute"},
		{a, wire.Request{Verb: wire.VerbSource, Path: "relative"}, "relative"},
		{a, wire.Request{Verb: wire.VerbInfo, Path: "folder/secret"}, "folder"},
		{a, wire.Request{Verb: wire.VerbVerify, Path: "disk/../../outside/secret"}, "disk/"},
		{a, wire.Request{Verb: wire.VerbTarget, Path: "folder/new"}, "folder"},
		{a, wire.Request{Verb: wire.VerbTarget, Path: "../new"}, "new"},
		{a, wire.Request{Verb: wire.VerbTarget, Path: "relative"}, "relative"},
		{a, wire.Request{Verb: wire.VerbSource, Path: "nothing"}, "no such file"},
		{a, wire.Request{Verb: wire.VerbSource, Path: ""}, "folder"},
		{a, wire.Request{Verb: wire.VerbTarget, Path: "."}, "folder"},
		{a, wire.Request{Verb: wire.VerbSource, Path: "nofolder/disk"}, "nofolder"},
		{a, wire.Request{Verb: wire.VerbSource, Path: "disk", Format: "qcow2"}, "qcow2"},
		{a, wire.Request{Verb: wire.VerbSource, Path: "disk", Format: "spgz"}, "spgz"},
		{a, wire.Request{Verb: wire.VerbSource, Path: "disk\x00"}, "disk"},
		{readOnly, wire.Request{Verb: wire.VerbTarget, Path: "disk"}, "read-only"},
	} {
		t.Run(fmt.Sprintf("%d %s", c.req.Verb, c.req.Path), func(t *testing.T) {
			conn, ended := call(t, c.agent)
			_, err := conn.Open(t.Context(), c.req)
			var peer *session.PeerError
			if !errors.As(err, &peer) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the client got %v, want %q", err, c.want)
			}
			if err := ended(); err == nil {
				t.Error("the agent returned no error")
			}
		})
	}
	secret, err := os.ReadFile(filepath.Join(outside, "secret"))
	if entries, _ := os.ReadDir(outside); err != nil || string(secret) != "secret" || len(entries) != 1 {
		t.Errorf("outside: %q, %v, %v", secret, err, entries)
	}
}

// What an interrupted session has left is told of, and dropped on request.
func TestAgentCleans(t *testing.T) {
	a, inside, _ := rooted(t)
	path := filepath.Join(inside, "disk")
	must(t, os.WriteFile(path, noise(2_000_000), 0o600))
	leave := func() {
		t.Helper()
		o := syncFilesOver(t, sourceFile(t, noise(2_100_000)), path, true, session.Options{}, between(func(_ bool, frame []byte) ([]byte, bool) {
			if frame[4] == 15 { // Finish
				return nil, false
			}
			return frame, true
		}))
		if o.err() == nil {
			t.Fatal("the session was not cut")
		}
	}
	clean := func(agent session.Agent) (string, error) {
		c, ended := call(t, agent)
		opened, err := c.Open(t.Context(), wire.Request{Verb: wire.VerbClean, Path: "disk"})
		if err = errors.Join(err, ended()); err != nil {
			return "", err
		}
		return opened.Note, nil
	}
	leave()
	readOnly := a
	readOnly.ReadOnly = true
	before := listing(t, inside)
	if _, err := clean(readOnly); !errors.Is(err, image.ErrRefused) || listing(t, inside) != before {
		t.Errorf("a read-only agent returned %v", err)
	}
	c, ended := call(t, a)
	_, err := c.Open(t.Context(), wire.Request{Verb: wire.VerbInfo, Path: "disk"})
	must(t, err)
	info, err := session.AwaitInspection(t.Context(), c, nil, nil)
	must(t, errors.Join(err, ended()))
	if info.Kept == 0 || info.Size != 2_000_000 || info.Incomplete || info.Waiting != 0 {
		t.Errorf("%+v", info)
	}
	for _, want := range []string{"dropped", "nothing was left over"} {
		if note, err := clean(a); err != nil || !strings.Contains(note, want) {
			t.Errorf("cleaning said %q, %v, want %q", note, err, want)
		}
	}
	if got := readImage(t, path, image.Raw); !bytes.Equal(got, noise(2_000_000)) {
		t.Error("the image has changed")
	}
}

// An agent sets the time of an image, unless it changes nothing.
func TestAgentTouches(t *testing.T) {
	a, inside, _ := rooted(t)
	path, when := filepath.Join(inside, "disk"), time.Unix(1_500_000_000, 123_456_789)
	must(t, os.WriteFile(path, noise(100_000), 0o600))
	touch := func(agent session.Agent, name string) error {
		c, ended := call(t, agent)
		_, err := c.Open(t.Context(), wire.Request{Verb: wire.VerbTouch, Path: name, Modified: when.UnixNano()})
		return errors.Join(err, ended())
	}
	readOnly := a
	readOnly.ReadOnly = true
	if err := touch(readOnly, "disk"); !errors.Is(err, image.ErrRefused) {
		t.Errorf("a read-only agent returned %v", err)
	}
	if err := touch(a, "nothing"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("of what does not exist: %v", err)
	}
	must(t, touch(a, "disk"))
	info, err := os.Stat(path)
	must(t, err)
	if !info.ModTime().Equal(when) || !bytes.Equal(readImage(t, path, image.Raw), noise(100_000)) {
		t.Errorf("modified at %v, want %v, or it has other content", info.ModTime(), when)
	}
}

// An agent removes an image beneath its root, unless it changes nothing.
func TestAgentRemoves(t *testing.T) {
	a, inside, outside := rooted(t)
	path := filepath.Join(inside, "disk")
	must(t, os.WriteFile(path, noise(100_000), 0o600))
	remove := func(agent session.Agent, name string) error {
		c, ended := call(t, agent)
		_, err := c.Open(t.Context(), wire.Request{Verb: wire.VerbRemove, Path: name})
		return errors.Join(err, ended())
	}
	readOnly := a
	readOnly.ReadOnly = true
	if err := remove(readOnly, "disk"); !errors.Is(err, image.ErrRefused) {
		t.Errorf("a read-only agent returned %v", err)
	}
	for _, name := range []string{"nothing", "../" + filepath.Base(outside), outside} {
		if err := remove(a, name); err == nil {
			t.Errorf("%s was removed", name)
		}
	}
	if got := readImage(t, path, image.Raw); !bytes.Equal(got, noise(100_000)) {
		t.Error("the image has changed")
	}
	victim := filepath.Join(outside, "victim")
	must(t, os.WriteFile(victim, noise(100), 0o600))
	must(t, os.Symlink("../outside/victim", filepath.Join(inside, "link")))
	for _, agent := range []session.Agent{a, {}} {
		link := filepath.Join(inside, "link")
		if agent.Root != nil {
			link = "link"
		}
		must(t, remove(agent, link))
		if _, err := os.Lstat(filepath.Join(inside, "link")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the link that was removed: %v", err)
		}
		if _, err := os.Stat(victim); err != nil {
			t.Errorf("what the link led to: %v", err)
		}
		must(t, os.Symlink("../outside/victim", filepath.Join(inside, "link")))
	}
	must(t, remove(a, "disk"))
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the image that was removed: %v", err)
	}
}

func sourceFile(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	must(t, os.WriteFile(path, content, 0o600))
	return path
}

// A read-only agent takes part in a dry run, and stays as it is.
func TestReadOnlyAgentInADryRun(t *testing.T) {
	a, inside, _ := rooted(t)
	a.ReadOnly = true
	must(t, os.WriteFile(filepath.Join(inside, "disk"), noise(100_000), 0o600))
	before := listing(t, inside)
	c, ended := call(t, a)
	_, err := c.Open(t.Context(), wire.Request{Verb: wire.VerbTarget, Path: "disk", DryRun: true})
	must(t, err)
	_, err = session.Send(t.Context(), c, &disk{content: noise(200_000)}, session.Options{DryRun: true})
	must(t, err)
	must(t, ended())
	// One who says it was no dry run after all gets nothing written.
	c, ended = call(t, a)
	_, err = c.Open(t.Context(), wire.Request{Verb: wire.VerbTarget, Path: "disk", DryRun: true})
	must(t, err)
	if _, err = session.Send(t.Context(), c, &disk{content: noise(200_000)}, session.Options{}); err == nil || ended() == nil {
		t.Errorf("the source returned %v", err)
	}
	if after := listing(t, inside); after != before {
		t.Errorf("before %s\nafter %s", before, after)
	}
}

func TestAgentAgainstStrangers(t *testing.T) {
	left := noGoroutinesLeft(t)
	serve := func(ctx context.Context, c session.Carrier) error { return session.Agent{}.Serve(ctx, c) }
	for _, m := range everyKind()[1:] { // all but Request
		name := kindName(m)
		t.Run(name, func(t *testing.T) {
			p := opposeCarrier(t, serve)
			p.send(m)
			told, err := p.end()
			if err == nil || name != "Error" && (!strings.Contains(err.Error(), name) || !strings.Contains(told, name)) {
				t.Errorf("returned %v, said %q", err, told)
			}
		})
	}
	for name, bytes := range map[string]string{
		"nothing":                "",
		"half a frame":           "\x10\x00\x00\x00\x01abc",
		"a kind of no message":   "\x00\x00\x00\x00\x63",
		"too long a frame":       "\xff\xff\xff\xff\x01",
		"a request of verb zero": "\x0a\x00\x00\x00\x01" + strings.Repeat("\x00", 10),
	} {
		t.Run(name, func(t *testing.T) {
			p := opposeCarrier(t, serve)
			_, err := p.carrier.Write([]byte(bytes))
			must(t, err)
			p.carrier.Close()
			if _, err := p.end(); err == nil {
				t.Error("no error")
			}
		})
	}
	left()
}

// A session between two agents, with the client in between.
func TestRelayBetweenAgents(t *testing.T) {
	from, fromDir, _ := rooted(t)
	to, toDir, _ := rooted(t)
	content := noise(1_000_000)
	must(t, os.WriteFile(filepath.Join(fromDir, "a"), content, 0o600))
	relay := func(source, target string) (session.Result, error, error, error) {
		sc, sourceEnded := call(t, from)
		tc, targetEnded := call(t, to)
		_, err := sc.Open(t.Context(), wire.Request{Verb: wire.VerbSource, Path: source})
		must(t, err)
		_, err = tc.Open(t.Context(), wire.Request{Verb: wire.VerbTarget, Path: target, Raw: true})
		must(t, err)
		r, err := session.Relay(t.Context(), sc, tc, session.Options{})
		return r, err, sourceEnded(), targetEnded()
	}
	r, err, sourceErr, targetErr := relay("a", "b")
	must(t, errors.Join(err, sourceErr, targetErr))
	if got := readImage(t, filepath.Join(toDir, "b"), image.Raw); !bytes.Equal(got, content) {
		t.Error("the target is not what the source is")
	}
	if x := treeOf(t, content, merkle.DefaultBlockSize); r.Digest != x.digest() || r.Size != x.Size() || r.BlockSize != x.BlockSize() || r.Sent < x.Size()/2 {
		t.Errorf("%+v", r)
	}

	// An image onto itself, which only the target can see.
	must(t, os.Link(filepath.Join(fromDir, "a"), filepath.Join(toDir, "same")))
	_, err, sourceErr, targetErr = relay("a", "same")
	for who, err := range map[string]error{"relay": err, "source": sourceErr, "target": targetErr} {
		if !errors.Is(err, image.ErrRefused) || !strings.Contains(err.Error(), "are the same") {
			t.Errorf("the %s returned %v", who, err)
		}
	}
}

// Errors of either side reach the relay and the other side.
func TestRelayOfFailures(t *testing.T) {
	left := noGoroutinesLeft(t)
	for name, c := range map[string]struct {
		src, dst *disk
		want     string
	}{
		"source changed":     {&disk{content: noise(500_000), changed: errors.New("modified at noon")}, rawDisk(nil), "noon"},
		"source unreadable":  {&disk{content: noise(500_000), blockSize: 4096, corrupt: map[int64]bool{50: true}}, rawDisk(nil), "reading the source"},
		"target disk broken": {&disk{content: noise(500_000)}, &disk{format: image.Raw, broken: errors.New("input/output error")}, "input/output error"},
	} {
		t.Run(name, func(t *testing.T) {
			o, relayErr := relaySession(t, c.src, c.dst)
			for who, err := range map[string]error{"relay": relayErr, "source": o.sourceErr, "target": o.targetErr} {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("the %s returned %v", who, err)
				}
			}
			if c.dst.committed {
				t.Error("committed")
			}
		})
	}
	left()
}

// A side that dies takes the relay and the other side with it.
func TestRelayOfDeath(t *testing.T) {
	left := noGoroutinesLeft(t)
	for _, sourceDies := range []bool{true, false} {
		source, target, ended := relayByHand(t)
		source.send(&wire.Hello{Size: 1 << 20, BlockSize: 4096})
		await[*wire.Hello](target)
		dying, other := source, target
		if !sourceDies {
			dying, other = target, source
		}
		dying.carrier.Close()
		m, _ := other.next().(*wire.Error)
		if m == nil || !strings.Contains(m.Text, "ended in the middle") {
			t.Errorf("source dies %v: the other side heard %+v", sourceDies, m)
		}
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "ended in the middle") {
			t.Errorf("source dies %v: the relay returned %v", sourceDies, err)
		}
		source.release()
		target.release()
	}
	left()
}

// Sessions of many clients with one agent's folder do not disturb each other,
// and two with one image do not meet in it.
func TestAgentsAtOnce(t *testing.T) {
	a, inside, _ := rooted(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			content := noise(400_000 + i)
			c, ended := call(t, a)
			_, err := c.Open(t.Context(), wire.Request{Verb: wire.VerbTarget, Path: fmt.Sprint("disk", i)})
			if err == nil {
				_, err = session.Send(t.Context(), c, &disk{content: content}, session.Options{})
			}
			if err := errors.Join(err, ended()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 4 {
		if got := readImage(t, filepath.Join(inside, fmt.Sprint("disk", i)), image.Spgz); !bytes.Equal(got, noise(400_000+i)) {
			t.Errorf("image %d is wrong", i)
		}
	}
	first, ended := call(t, a)
	_, err := first.Open(t.Context(), wire.Request{Verb: wire.VerbTarget, Path: "disk0"})
	must(t, err)
	second, secondEnded := call(t, a)
	if _, err := second.Open(t.Context(), wire.Request{Verb: wire.VerbTarget, Path: "disk0"}); !errors.Is(err, image.ErrRefused) {
		t.Errorf("a second writer was told %v", err)
	}
	first.Close()
	if ended() == nil || secondEnded() == nil {
		t.Error("an agent whose client went returned no error")
	}
}
