package session_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/merkle/image"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/transport"
)

// BenchmarkJournal compares an update through the journal with one in place: the
// same delta, of a tenth of the blocks of an image, one way and then the other,
// again and again. What counts is the ratio of the sums.
func BenchmarkJournal(b *testing.B) {
	const size, block = 512 << 20, 128 << 10
	dir := b.TempDir()
	versions := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	r := rand.New(rand.NewPCG(9, 9))
	content := make([]byte, size)
	fillHalf(r, content)
	must(b, os.WriteFile(versions[0], content, 0o600))
	for _, i := range r.Perm(size / block)[:size/block/10] {
		fillHalf(r, content[i*block:][:block])
	}
	must(b, os.WriteFile(versions[1], content, 0o600))
	for _, raw := range []bool{true, false} {
		b.Run(fmt.Sprintf("raw=%v", raw), func(b *testing.B) {
			target := [2]string{filepath.Join(b.TempDir(), "journal"), filepath.Join(b.TempDir(), "inplace")}
			var took [2]time.Duration
			for i := range target {
				update(b, versions[0], target[i], image.TargetOptions{Raw: raw})
			}
			next := 1
			for b.Loop() {
				for i := range target {
					began := time.Now()
					update(b, versions[next], target[i], image.TargetOptions{Raw: raw, InPlace: i == 1})
					took[i] += time.Since(began)
				}
				next = 1 - next
			}
			b.ReportMetric(took[0].Seconds()/float64(b.N), "journal-s/op")
			b.ReportMetric(took[1].Seconds()/float64(b.N), "inplace-s/op")
			b.ReportMetric(took[0].Seconds()/took[1].Seconds(), "ratio")
		})
	}
}

// fillHalf fills p with bytes that compress to about a half.
func fillHalf(r *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(r.Uint32()) & 0x0f
	}
}

// update syncs a raw file to an image.
func update(b *testing.B, from, to string, o image.TargetOptions) {
	b.Helper()
	sp, err := image.Locate(from)
	must(b, err)
	defer sp.Close()
	src, err := image.Open(sp, image.Options{Choice: image.AsRaw})
	must(b, err)
	defer src.Close()
	tp, err := image.Locate(to)
	must(b, err)
	defer tp.Close()
	dst, err := image.OpenTarget(tp, o)
	must(b, err)
	here, there := transport.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := session.NewConn(context.Background(), there, 0)
		if err == nil {
			_, err = session.Receive(context.Background(), c, dst, session.Options{})
		}
		if err != nil {
			b.Error(err)
		}
	})
	c, err := session.NewConn(context.Background(), here, 0)
	must(b, err)
	_, err = session.Send(context.Background(), c, src, session.Options{Plain: true})
	must(b, err)
	wg.Wait()
	must(b, dst.Close())
}
