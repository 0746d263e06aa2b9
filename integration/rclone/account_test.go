//go:build linux

package rclone_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rclone/rclone/fs"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// A count is what rclone tells of its transfers, in its log and by remote control.
type count struct {
	Bytes, TotalBytes         int64
	Transfers, TotalTransfers int64
	Errors                    int64
	LastError                 string
	Transferring              []struct{ Bytes, Size int64 }
}

// An entryOfLog is a line of the log with --use-json-log.
type entryOfLog struct {
	Level, Msg, Object string
	Stats              *count
}

// logged returns the log of a run with --use-json-log.
func logged(t *testing.T, r lab.Result) []entryOfLog {
	t.Helper()
	var all []entryOfLog
	for line := range strings.Lines(r.Stderr) {
		var e entryOfLog
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: a line of the log: %v\n%s", r.Line, err, line)
		}
		all = append(all, e)
	}
	return all
}

// counts returns what was told of the transfers, the last at the end.
func counts(t *testing.T, log []entryOfLog) []count {
	t.Helper()
	var all []count
	for _, e := range log {
		if e.Stats != nil {
			all = append(all, *e.Stats)
		}
	}
	if len(all) == 0 {
		t.Fatalf("nothing is told of the transfers: %+v", log)
	}
	return all
}

// whole checks that the count is the one of so many images of so many bytes in all,
// each of which was copied to its end.
func (c count) whole(t *testing.T, transfers, size int64) {
	t.Helper()
	if c.Bytes != size || c.TotalBytes != size || c.Transfers != transfers || c.TotalTransfers != transfers || c.Errors != 0 {
		t.Errorf("of %d transfers with %d bytes is told: %+v", transfers, size, c)
	}
}

// A traffic is what is told at the end of a sync.
type traffic struct{ sent, received, size int64 }

var trafficLine = regexp.MustCompile(`([0-9.]+\w*) of ([0-9.]+\w*) went over the wire, ([0-9.]+\w*) came back: `)

// trafficIn finds what was told once and no more.
func trafficIn(t *testing.T, text string) traffic {
	t.Helper()
	found := trafficLine.FindAllStringSubmatch(text, -1)
	if len(found) != 1 {
		t.Fatalf("what went over the wire is told %d times:\n%s", len(found), text)
	}
	return traffic{sent: sizeOf(t, found[0][1]), size: sizeOf(t, found[0][2]), received: sizeOf(t, found[0][3])}
}

// sizeOf returns the size that rclone has written.
func sizeOf(t *testing.T, text string) int64 {
	t.Helper()
	if strings.Trim(text, "0123456789") == "" {
		text += "B" // which rclone leaves out, and would take for KiB
	}
	var n fs.SizeSuffix
	if err := n.Set(text); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return int64(n)
}

// agrees checks what was told against what has crossed the wire. That is more by the
// encryption, the greetings of two connections, and what is asked by sftp.
func (n traffic) agrees(t *testing.T, passed int64) {
	t.Helper()
	told := n.sent + n.received
	t.Logf("%d bytes told, %d more went over the wire", told, passed-told)
	// Numbers are told with three digits behind the point.
	if passed < told-told/1000 || passed > told+told/50+96<<10 {
		t.Errorf("%d bytes are told to have gone over the wire, and %d have", told, passed)
	}
}

// progressShown matches what is shown of all transfers.
var progressShown = regexp.MustCompile(`[0-9.]+ \w+ / [0-9.]+ \w+, (\d+%|-)`)

// TestProgress holds that what is shown is how far the image is compared, and that
// what went over the wire is told beside that, in one line, and is true.
func TestProgress(t *testing.T) {
	const size = 24*mib + 5
	b, meter := newFarBench(t)
	disk := lab.Image(t, b.near("disk"), 1, size)
	for _, change := range []string{"first", "some", "none"} {
		if change == "some" {
			lab.WriteAt(t, disk, lab.Noise(3, 2*mib), 7*mib+11)
		}
		t.Run(change+" shown", func(t *testing.T) {
			meter.Take()
			r := b.run(t, "diskrsync", "-P", "--stats-one-line", "--stats", "100ms", "blockdev:"+disk, "disks:shown.img").OK(t)
			told := trafficIn(t, r.Stdout+r.Stderr)
			told.agrees(t, meter.Take())
			shown := progressShown.FindAllString(r.Stdout, -1)
			if all := fmt.Sprintf("%s / %[1]s, 100%%", fs.SizeSuffix(size).ByteUnit()); len(shown) == 0 || shown[len(shown)-1] != all {
				t.Errorf("%q is shown, and not %s at the end", shown, all)
			}
			if told.size != sizeOf(t, fs.SizeSuffix(size).String()) {
				t.Errorf("%d bytes are told of %d", told.size, size)
			}
		})
		t.Run(change+" logged", func(t *testing.T) {
			meter.Take()
			r := b.run(t, "diskrsync", "-v", "--use-json-log", "--stats", "100ms", "blockdev:"+disk, "disks:logged.img").OK(t)
			log := logged(t, r)
			growing(t, counts(t, log), size)
			var lines string
			for _, e := range log {
				if strings.Contains(e.Msg, "over the wire") && e.Object == "logged.img" && e.Level == "info" {
					lines += e.Msg + "\n"
				}
			}
			trafficIn(t, lines).agrees(t, meter.Take())
		})
	}
}

// TestProgressOfRestore holds the same for the way back, where the image is one that
// rclone would read over the wire if it was let.
func TestProgressOfRestore(t *testing.T) {
	const size = 48 * mib
	b, meter := newFarBench(t)
	disk := lab.Write(t, b.near("disk"), lab.Noise(1, size), 0o644)
	b.ok(t, "copyto", "blockdev:"+disk, "disks:root.img")
	device := lab.BlankDevice(t, size)
	for _, change := range []string{"first", "none"} {
		t.Run(change, func(t *testing.T) {
			meter.Take()
			r := b.run(t, "copyto", "-v", "--use-json-log", "--stats", "100ms", "disks:root.img", "blockdev,allow_write:"+device).OK(t)
			passed := meter.Take()
			growing(t, counts(t, logged(t, r)), size)
			trafficIn(t, r.Stderr).agrees(t, passed)
			lab.Same(t, device, disk)
		})
	}
}

// growing checks what was told of the transfer of one image: ever more of it, and all
// of it at the end.
func growing(t *testing.T, all []count, size int64) {
	t.Helper()
	for i, c := range all {
		if c.Bytes > size || c.TotalBytes > size || i > 0 && c.Bytes < all[i-1].Bytes {
			t.Errorf("of an image of %d bytes is told: %+v", size, all[:i+1])
		}
	}
	all[len(all)-1].whole(t, 1, size)
}

// TestUnlimitedScan holds that --bwlimit does not slow down what crosses no wire. At
// its rate the smallest of these images, of which nothing has changed, would take
// longer than any command is waited for.
func TestUnlimitedScan(t *testing.T) {
	b, meter := newFarBench(t)
	sparse := lab.SparseFile(t, b.near("sparse"), 64<<30)
	for i := range uint64(8) {
		lab.WriteAt(t, sparse, lab.Noise(i, mib), int64(i)<<33+12345)
	}
	zeros := lab.SparseFile(t, b.near("zeros"), 512*mib)
	lab.WriteAt(t, zeros, make([]byte, 256*mib), 0)
	for _, test := range []struct {
		name, source, target string
		size                 int64
	}{
		{"there", "blockdev:" + sparse, "disks,checksum:sparse.img", 64 << 30},
		{"there as a stream", zeros, "disks,checksum:zeros.img", 512 * mib},
		{"back", "disks:sparse.img", "blockdev,allow_write:" + lab.SparseFile(t, b.near("back"), 64<<30), 64 << 30},
		{"here", "blockdev:" + sparse, ":diskrsync,remote='" + b.near("copies") + "':sparse.img", 64 << 30},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.ok(t, "diskrsync", test.source, test.target)
			meter.Take()
			r := b.run(t, "diskrsync", "-v", "--use-json-log", "--stats", "1h", "--bwlimit", "1M", test.source, test.target).OK(t)
			passed := meter.Take()
			all := counts(t, logged(t, r))
			all[len(all)-1].whole(t, 1, test.size)
			if passed > mib {
				t.Errorf("%d bytes went over the wire, and nothing had changed", passed)
			}
		})
	}
}

// TestLimitedWire holds that --bwlimit limits what has to be sent, whatever it goes
// through: so many bytes cannot take less time than at its rate.
func TestLimitedWire(t *testing.T) {
	const size, rate = 4 * mib, 2 * mib
	h := lab.StartHost(t, tools, lab.HostOptions{})
	b, _ := newBenchAt(t, h)
	disk := lab.Write(t, b.near("disk"), lab.Noise(1, size), 0o644)
	b.remote(t, "outside", "sftp", "ssh="+h.SSH()+" alpha")
	b.remote(t, "shelf", "diskrsync", "remote=outside:"+b.there, "agent_path="+h.Agent)
	b.ok(t, "copyto", disk, "disks:root.img")
	for _, test := range []struct{ name, source, target string }{
		{"there", "blockdev:" + disk, "disks:new.img"},
		{"there by a program", "blockdev:" + disk, "shelf:newer.img"},
		{"there as a stream", disk, "disks:newest.img"},
		{"back", "disks:root.img", "blockdev,allow_write:" + lab.SparseFile(t, b.near("back"), size)},
		{"back by a program", "shelf:root.img", "blockdev,allow_write:" + lab.SparseFile(t, b.near("again"), size)},
		{"here", "blockdev:" + disk, ":diskrsync,remote='" + b.near("copies") + "':root.img"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // most of the time they wait
			began := time.Now()
			b.ok(t, "copyto", "--ignore-times", "--bwlimit", fmt.Sprint(rate, "B"), test.source, test.target)
			if took := time.Since(began); took < size/rate*time.Second {
				t.Errorf("%d bytes took %v at a rate of %d", size, took, rate)
			}
			b.holds(t, test.target, disk)
		})
	}
}

// times returns the names, sizes and times of everything in a folder, down to when a
// file was last written to or renamed by anyone.
func times(t *testing.T, dir string) string {
	t.Helper()
	lines := strings.Split(lab.Do(t, "find", dir, "-printf", `%p %y %m %i %s %T@ %C@\n`), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestDryRun holds that --dry-run says what would be done, and does nothing at all.
func TestDryRun(t *testing.T) {
	b, _ := newFarBench(t)
	disk := lab.Image(t, b.near("disk"), 1, 9*mib)
	b.ok(t, "copyto", "blockdev:"+disk, "disks:vms/root.img")
	b.ok(t, "copyto", "blockdev:"+disk, "disks:vms/old.img")
	b.halfWay(t, "blockdev:"+lab.Write(t, b.near("noise"), lab.Noise(2, 6*mib), 0o644), "half.img")
	lab.WriteAt(t, disk, lab.Noise(3, 5000), mib)
	back := "blockdev,allow_write:" + lab.SparseFile(t, b.near("back"), 9*mib)
	for _, test := range []struct {
		name  string
		args  []string
		words []string
	}{
		{"new", []string{"copyto", "blockdev:" + disk, "disks:new/folder/root.img"}, []string{"Skipped copy", "9Mi"}},
		{"changed", []string{"copyto", "--ignore-times", "blockdev:" + disk, "disks:vms/root.img"}, []string{"Skipped copy", "9Mi"}},
		{"half there", []string{"copyto", "blockdev:" + b.near("noise"), "disks:half.img"}, []string{"Skipped copy", "6Mi"}},
		{"never skipped", []string{"diskrsync", "blockdev:" + disk, "disks:vms/root.img"}, []string{"Skipped copy", "9Mi"}},
		{"stream", []string{"copyto", disk, "disks:vms/old.img"}, []string{"Skipped copy", "9Mi"}},
		{"restore", []string{"copyto", "disks:vms/root.img", back}, []string{"Skipped copy", "9Mi"}},
		{"sync", []string{"sync", "blockdev:" + b.here, "disks:vms"}, []string{"old.img", "Skipped delete"}},
		{"rename", []string{"moveto", "disks:vms/root.img", "disks:vms/new.img"}, []string{"Skipped move"}},
		{"purge", []string{"purge", "disks:vms"}, []string{"root.img", "Skipped delete"}},
		{"touch", []string{"touch", "disks:vms/root.img"}, []string{"Skipped"}},
		{"clean", []string{"backend", "clean", "disks:", "half.img"}, []string{"half.img", "Skipped clean"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			here, there := times(t, b.here), times(t, b.there)
			says(t, b.run(t, append(test.args, "--dry-run")...).OK(t), append(test.words, "--dry-run")...)
			if after := times(t, b.here); after != here {
				t.Errorf("it has changed something here. Before:\n%s\nafter:\n%s", here, after)
			}
			if after := times(t, b.there); after != there {
				t.Errorf("it has changed something there. Before:\n%s\nafter:\n%s", there, after)
			}
		})
	}
}

// TestMaxTransfer holds that --max-transfer ends rclone as it does for any remote, and
// that an image is never left half done.
func TestMaxTransfer(t *testing.T) {
	const exceeded = 8 // rclone's exit status for it
	b, _ := newFarBench(t)
	names := b.images(t, 3, 3*mib)
	for _, test := range []struct {
		name  string
		flags []string
		most  int // images that are there
	}{
		{"smaller than any", []string{"--max-transfer", "2M"}, 0},
		{"one after the other", []string{"--max-transfer", "4M", "--transfers", "1"}, 1},
		{"at once", []string{"--max-transfer", "7M", "--transfers", "3"}, 2},
		{"soft", []string{"--max-transfer", "4M", "--transfers", "1", "--cutoff-mode", "soft"}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := "disks:" + test.name
			r := b.run(t, append(test.flags, "copy", "blockdev:"+b.here, target)...)
			if r.Code != exceeded {
				t.Errorf("exit status %d, want %d", r.Code, exceeded)
			}
			fails(t, r, "max transfer limit reached as set by --max-transfer")
			if found := strings.Fields(b.ok(t, "lsf", target)); len(found) != test.most {
				t.Errorf("%d images were to be transferred, and there are %q", test.most, found)
			}
			b.ok(t, "check", "--one-way", "--download", target, "blockdev:"+b.here)
		})
	}
	b.ok(t, "copy", "blockdev:"+b.here, "disks:one after the other")
	b.equal(t, "disks:one after the other", names)
}

// images makes images of noise and returns their names.
func (b bench) images(t *testing.T, n, size int) (names []string) {
	t.Helper()
	for i := range n {
		names = append(names, fmt.Sprintf("%d.img", i))
		lab.Write(t, b.near(names[i]), lab.Noise(uint64(i), size), 0o644)
	}
	return names
}

// equal checks that a remote has these images of this machine, and no others.
func (b bench) equal(t *testing.T, remote string, names []string) {
	t.Helper()
	if lines := b.list(t, remote); len(lines) != len(names) {
		t.Errorf("lsl tells %q", lines)
	}
	b.ok(t, "check", "--download", "blockdev:"+b.here, remote)
}

// TestTransfers copies images at once, as many as there may be. At the rate they have
// together, none of them can be done before all of these are on their way.
func TestTransfers(t *testing.T) {
	const most, size = 4, 3 * mib
	h := lab.StartHost(t, tools, lab.HostOptions{})
	b, _ := newBenchAt(t, h)
	names := b.images(t, 6, size)
	r := b.start(t, "copy", "--transfers", fmt.Sprint(most), "--bwlimit", "4M", "-v", "--use-json-log", "--stats", "100ms",
		"blockdev:"+b.here, "disks:vms")
	agents := 0
	for r.Running() {
		agents = max(agents, len(h.Agents(t)))
		time.Sleep(50 * time.Millisecond)
	}
	all := counts(t, logged(t, r.Wait(t).OK(t)))
	all[len(all)-1].whole(t, int64(len(names)), int64(len(names))*size)
	transfers := 0
	for _, c := range all {
		transfers = max(transfers, len(c.Transferring))
	}
	if agents < most || transfers != most { // an agent may still be about to end when the next begins
		t.Errorf("there were up to %d transfers with %d agents, and there may be %d", transfers, agents, most)
	}
	b.equal(t, "disks:vms", names)
}
