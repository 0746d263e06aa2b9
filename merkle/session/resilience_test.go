package session_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// A source that asks without end and never reads fills all queues of the target
// up to its reader, which then is not waiting for the source any more. The
// target must give up all the same, or it keeps its image locked for ever.
func TestTargetGivesUpOnSourceThatNeverReads(t *testing.T) {
	content := noise(1 << 20)
	dst := rawDisk(content)
	p := opposeTarget(t, 200*time.Millisecond, dst)
	p.send(&wire.Hello{Size: int64(len(content)), BlockSize: 4096})
	await[*wire.Accept](p)
	var all []int64
	for b := range int64(256) {
		all = append(all, b)
	}
	go func() {
		for p.send(&wire.AskPages{Blocks: all}) {
		}
	}()
	if err := p.wait(); err == nil || dst.committed {
		t.Errorf("returned %v, committed %v", err, dst.committed)
	}
}

// The number of regions is for the source to choose, up to 2^54: what one
// message costs must not depend on it.
func TestAdvanceFarAhead(t *testing.T) {
	dst := &disk{format: image.Raw, sparse: true}
	p := opposeTarget(t, 0, dst)
	p.send(&wire.Hello{Size: merkle.MaxSize, BlockSize: 1})
	await[*wire.Accept](p)
	p.send(&wire.Advance{Through: merkle.MaxSize / merkle.RegionBlocks})
	p.fails("advance")
}

// A target that reads nothing holds up the source's coordinator; the source
// must not go on collecting what the target sends meanwhile.
func TestSourceMemoryBoundedAgainstFlood(t *testing.T) {
	for _, m := range []wire.Message{
		&wire.Block{Data: make([]byte, 1<<20)},
		&wire.Bad{Text: strings.Repeat("x", 4096)},
		&wire.Roots{Hashes: make([]merkle.Hash, wire.MaxList)},
		&wire.Pages{Hashes: make([]merkle.PageHash, 100_000)},
	} {
		t.Run(kindName(m), func(t *testing.T) {
			src := &disk{content: noise(8 << 20)}
			before := heap()
			p := opposeSource(t, 0, src, session.Options{Plain: true})
			await[*wire.Hello](p)
			p.send(&wire.Accept{BlockSize: 4096})
			for range 400 {
				if !p.send(m) {
					break
				}
			}
			if grown := heap() - before; grown > 64<<20 {
				t.Errorf("%d MiB grown", grown>>20)
			}
			p.carrier.Close()
			if err := p.wait(); err == nil {
				t.Error("no error")
			}
		})
	}
}

// What the peer said before it went is the reason to be told, however the two
// ends of the news race each other.
func TestPeersReasonWins(t *testing.T) {
	content := noise(2 << 20)
	for range 100 {
		dst := &disk{format: image.Raw, broken: errors.New("no space left")}
		o := runSession(t, &disk{content: content}, dst, session.Options{Plain: true}, nil)
		var peer *session.PeerError
		if !errors.As(o.sourceErr, &peer) || !strings.Contains(peer.Text, "no space left") {
			t.Fatalf("the source says %v", o.sourceErr)
		}
	}
}

func TestRelayPassesOnTheReason(t *testing.T) {
	content := noise(2 << 20)
	for range 100 {
		dst := &disk{format: image.Raw, broken: errors.New("no space left")}
		o, relayErr := relaySession(t, &disk{content: content}, dst)
		for who, err := range map[string]error{"relay": relayErr, "source": o.sourceErr} {
			if err == nil || !strings.Contains(err.Error(), "no space left") {
				t.Fatalf("the %s says %v", who, err)
			}
		}
	}
}

// Only a target that names the digest that the source has named is done.
func TestRelayDoesNotBelieveDone(t *testing.T) {
	for name, script := range map[string]func(source, target *peer){
		"early": func(_, target *peer) { target.send(&wire.Done{}) },
		"with another digest": func(source, target *peer) {
			source.send(&wire.Finish{Digest: merkle.Hash{1}})
			await[*wire.Finish](target)
			target.send(&wire.Done{Digest: merkle.Hash{2}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			source, target, ended := relayByHand(t)
			source.send(&wire.Hello{Size: 10, BlockSize: 4})
			await[*wire.Hello](target)
			target.send(&wire.Accept{BlockSize: 4})
			await[*wire.Accept](source)
			script(source, target)
			if err := <-ended; err == nil {
				t.Error("the relay returned no error")
			}
		})
	}
}

// A request that cannot be written must not wait for its answer.
func TestRequestThatCannotBeWritten(t *testing.T) {
	p := oppose(t, 0, func(ctx context.Context, c *session.Conn) error {
		_, err := c.Open(ctx, wire.Request{Verb: wire.VerbInfo, Path: strings.Repeat("x", 5000)})
		return err
	})
	if err := p.wait(); err == nil || !strings.Contains(err.Error(), "4096") {
		t.Errorf("returned %v", err)
	}
}

// A remote menu or a prompt prints something and waits: the operator must see
// what, not only that the time was up.
func TestSilenceAfterBanner(t *testing.T) {
	ours, theirs := transport.Pipe()
	defer ours.Close()
	if _, err := ours.Write([]byte("Press any key to continue")); err != nil {
		t.Fatal(err)
	}
	_, err := session.NewConn(context.Background(), theirs, 200*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "Press any key") {
		t.Errorf("returned %v", err)
	}
}

// A side that ends the conversation says why, from the first message on.
func TestGreetingFailuresAreTold(t *testing.T) {
	t.Run("source began with something else", func(t *testing.T) {
		p := opposeTarget(t, 0, &disk{format: image.Raw})
		p.send(&wire.Done{})
		p.fails("began with")
	})
	t.Run("target answered with something else", func(t *testing.T) {
		p := opposeSource(t, 0, &disk{content: noise(10)}, session.Options{})
		await[*wire.Hello](p)
		p.send(&wire.Done{})
		p.fails("answered with")
	})
	t.Run("target answered with an absurd block size", func(t *testing.T) {
		p := opposeSource(t, 0, &disk{content: noise(10)}, session.Options{})
		await[*wire.Hello](p)
		p.send(&wire.Accept{BlockSize: 0})
		p.fails("block size")
	})
}

// A source that never answers a Refetch keeps the target from folding the
// regions behind it. The target must not keep an entry for each of them.
func TestTargetMemoryBoundedWhileRefetchIsOpen(t *testing.T) {
	const size = 256 << 20 // in blocks of a byte: a million regions
	dst := &disk{format: image.Raw, sparse: true}
	p := opposeTarget(t, 0, dst)
	p.send(&wire.Hello{Size: size, BlockSize: 1})
	await[*wire.Accept](p)
	p.send(&wire.Patch{Blocks: []wire.PatchedBlock{{Index: 0, Leaf: merkle.Hash{1}, Pages: []byte{1}}}, Data: []byte{1}})
	await[*wire.Refetch](p)
	before := heap()
	for i := range int64(size / merkle.RegionBlocks / 4) {
		block := wire.Block{Index: i*merkle.RegionBlocks + 1, Leaf: merkle.Leaf([]byte{1}), Data: []byte{1}}
		if !p.send(&block, &wire.Advance{Through: i + 1}) {
			break
		}
	}
	if grown := heap() - before; grown > 16<<20 {
		t.Errorf("%d MiB grown", grown>>20)
	}
	p.carrier.Close()
	if err := p.wait(); err == nil || dst.committed {
		t.Errorf("returned %v, committed %v", err, dst.committed)
	}
}
