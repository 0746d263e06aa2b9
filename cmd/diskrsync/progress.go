package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/diskrsync/diskrsync/merkle"
	"github.com/diskrsync/diskrsync/merkle/session"
	"github.com/diskrsync/diskrsync/merkle/wire"
)

// How often progress is shown: on a terminal, as JSON, and as lines in a log.
const (
	barsEvery  = 200 * time.Millisecond
	jsonEvery  = time.Second
	linesEvery = 10 * time.Second
)

// A display shows a session at work until it is stopped.
type display struct {
	stopping chan struct{}
	stopped  sync.WaitGroup
	end      func() error
}

// stop returns the first error of showing.
func (d *display) stop() error {
	close(d.stopping)
	d.stopped.Wait()
	return d.end()
}

// every calls show once in an interval until the display is stopped.
func (d *display) every(interval time.Duration, show func()) {
	d.stopped.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				show()
			case <-d.stopping:
				return
			}
		}
	})
}

func (s *syncRun) newDisplay() (*display, error) {
	d := &display{stopping: make(chan struct{}), end: func() error { return nil }}
	bars := s.progress
	if !s.progressGiven {
		bars = isTerminal(s.stderr) && !s.json
	}
	started := time.Now()
	if s.json {
		err := s.emit(map[string]any{"message_type": "start", "source": s.source.String(), "target": s.target.String(), "dry_run": s.dryRun})
		if err != nil {
			return nil, err
		}
		s.showJSON(d, started)
	}
	switch {
	case bars && isTerminal(s.stderr):
		s.showBars(d)
	case bars, s.reach.verbose:
		d.every(linesEvery, func() { fmt.Fprintln(s.stderr, progressLine(s.mon.Snapshot(), time.Since(started))) })
	}
	return d, nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progressLine is one line for a log.
func progressLine(r session.Result, took time.Duration) string {
	line := fmt.Sprintf("scanned %s of %s", size(r.Source.Scanned), size(r.Size))
	if r.Size > 0 {
		line += fmt.Sprintf(" (%d %%)", r.Source.Scanned*100/r.Size)
	}
	if done := r.Source.Scanned; done > 0 && done < r.Size {
		left := time.Duration(float64(took) * float64(r.Size-done) / float64(done))
		line += fmt.Sprintf(", about %v left", left.Round(time.Second))
	}
	return line + fmt.Sprintf("; sent %d blocks whole, %d patched, %s", r.Source.Changed, r.Source.Patched, size(r.Source.Payload)) + keptText(r)
}

// keptText says what did not have to be sent again.
func keptText(r session.Result) string {
	if r.Target.Kept == 0 {
		return ""
	}
	return fmt.Sprintf("; kept %s of an interrupted run", size(r.Target.Kept))
}

// showBars draws a bar for the scan, whose end is known, and a counter for what
// is sent, whose end is not. The scan waits for the sending, so its time left is
// that of the whole.
func (s *syncRun) showBars(d *display) {
	p := mpb.New(mpb.WithOutput(s.stderr), mpb.WithRefreshRate(barsEvery), mpb.WithAutoRefresh())
	above := s.stderr
	s.stderr = p // what is printed meanwhile goes above the bars
	scan := p.New(0, mpb.BarStyle(),
		mpb.PrependDecorators(decor.Name("scan ", decor.WCSyncSpaceR), decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace)),
		mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace), decor.AverageSpeed(decor.SizeB1024(0), " % .1f", decor.WCSyncSpace),
			decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)))
	sent := p.New(0, mpb.NopStyle(),
		mpb.PrependDecorators(decor.Name("send ", decor.WCSyncSpaceR), decor.CurrentKibiByte("% .1f", decor.WCSyncSpace)),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1024(0), " % .1f", decor.WCSyncSpace),
			decor.Any(func(decor.Statistics) string {
				r := s.mon.Snapshot()
				return fmt.Sprintf("  %d blocks whole, %d patched, %d holes", r.Source.Changed, r.Source.Patched, r.Source.Holes) + keptText(r)
			})))
	show := func() {
		r := s.mon.Snapshot()
		scan.SetTotal(r.Size, false)
		scan.SetCurrent(r.Source.Scanned)
		sent.SetTotal(r.Source.Payload+1, false) // never complete by itself
		sent.SetCurrent(r.Source.Payload)
	}
	d.every(barsEvery, show)
	d.end = func() error {
		show()
		scan.Abort(false)
		sent.Abort(false)
		p.Wait()
		s.stderr = above
		return nil
	}
}

func (s *syncRun) showJSON(d *display, started time.Time) {
	var failed error
	d.every(jsonEvery, func() {
		r := s.mon.Snapshot()
		err := s.emit(progressMessage{Type: "progress", Seconds: time.Since(started).Seconds(), Size: r.Size,
			Scanned: r.Source.Scanned, TargetScanned: r.Target.Scanned, Kept: r.Target.Kept, counts: newCounts(r.Source)})
		if failed == nil {
			failed = err
		}
	})
	d.end = func() error { return failed }
}

// emit writes v as a line of JSON to standard output.
func (a *app) emit(v any) error {
	if err := json.NewEncoder(a.stdout).Encode(v); err != nil {
		return fmt.Errorf("writing to standard output: %w", err)
	}
	return nil
}

// counts is what the source found to do.
type counts struct {
	Changed int64 `json:"blocks_changed"` // sent whole
	Patched int64 `json:"blocks_patched"`
	Holes   int64 `json:"blocks_holes"`
	Payload int64 `json:"bytes_payload"` // of blocks and patches, as encoded
}

func newCounts(s wire.Stats) counts {
	return counts{Changed: s.Changed, Patched: s.Patched, Holes: s.Holes, Payload: s.Payload}
}

type progressMessage struct {
	Type          string  `json:"message_type"`
	Seconds       float64 `json:"seconds"`
	Size          int64   `json:"image_size"`
	Scanned       int64   `json:"bytes_scanned"`
	TargetScanned int64   `json:"target_bytes_scanned"`
	Kept          int64   `json:"kept"`
	counts
}

// sideMessage is the work of one side.
type sideMessage struct {
	Read   int64 `json:"bytes_read"`
	Hashed int64 `json:"bytes_hashed"`
}

type summary struct {
	Type     string      `json:"message_type"`
	DryRun   bool        `json:"dry_run"`
	Source   sideMessage `json:"source"`
	Target   sideMessage `json:"target"`
	Read     int64       `json:"bytes_read"` // of both sides
	Hashed   int64       `json:"bytes_hashed"`
	Sent     int64       `json:"bytes_sent"` // on the wire, from the source to the target
	Received int64       `json:"bytes_received"`
	counts
	Repaired  int64       `json:"blocks_repaired"`
	Kept      int64       `json:"kept"` // bytes of content that an interrupted run had left
	Seconds   float64     `json:"seconds"`
	Digest    merkle.Hash `json:"digest"`
	Size      int64       `json:"image_size"`
	BlockSize int         `json:"block_size"`
}

func summaryMessage(r session.Result, took time.Duration, dryRun bool) summary {
	return summary{
		Type: "summary", DryRun: dryRun,
		Source: sideMessage{r.Source.Read, r.Source.Hashed},
		Target: sideMessage{r.Target.Read, r.Target.Hashed},
		Read:   r.Source.Read + r.Target.Read, Hashed: r.Source.Hashed + r.Target.Hashed,
		Sent: r.Sent, Received: r.Received,
		counts:   newCounts(r.Source),
		Repaired: r.Target.Repaired, Kept: r.Target.Kept, Seconds: took.Seconds(),
		Digest: r.Digest, Size: r.Size, BlockSize: r.BlockSize,
	}
}
