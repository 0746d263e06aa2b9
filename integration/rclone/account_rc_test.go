//go:build linux

package rclone_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

// A controlled is an rclone that runs as a daemon and is told what to do.
type controlled struct {
	bench
	*lab.Run
	address string
}

// control starts one, which ends with the test.
func (b bench) control(t *testing.T) controlled {
	t.Helper()
	address := freeAddress(t)
	r := b.daemon(t, address, "rcd", "--rc-no-auth", "--rc-addr", address)
	return controlled{b, r, address}
}

// call makes a call, which must succeed, and puts what it returns into result.
func (c controlled) call(t *testing.T, path string, in map[string]any, result any) {
	t.Helper()
	body := lab.Must(json.Marshal(in))(t)
	answer := lab.Must(http.Post("http://"+c.address+"/"+path, "application/json", bytes.NewReader(body)))(t)
	defer answer.Body.Close()
	out := lab.Must(io.ReadAll(answer.Body))(t)
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s\n%s", path, answer.Status, out)
	}
	if err := json.Unmarshal(out, result); err != nil {
		t.Fatalf("%s: %v\n%s", path, err, out)
	}
}

// A job is what job/status tells of one.
type job struct {
	ID                int64
	Finished, Success bool
	Error             string
	Output            struct {
		Size, Sent, Received int64
		Images               []struct {
			Image                string
			Size, Sent, Received int64
			Changed, Kept        int64
		}
	}
}

// begin starts a job of diskrsync/sync as a user does, and returns its number.
func (c controlled) begin(t *testing.T, src, dst string) int64 {
	t.Helper()
	out := c.ok(t, "rc", "--url", c.address, "diskrsync/sync", "src="+src, "dst="+dst, "_async=true", `_config={"LowLevelRetries":2}`)
	var started struct{ JobID int64 }
	if err := json.Unmarshal([]byte(out), &started); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return started.JobID
}

// status asks for the status of a job.
func (c controlled) status(t *testing.T, id int64) (j job) {
	t.Helper()
	c.call(t, "job/status", map[string]any{"jobid": id}, &j)
	return j
}

// finish waits until a job has finished. That it never does is for the one who waits
// for the test.
func (c controlled) finish(t *testing.T, id int64) job {
	t.Helper()
	for {
		if j := c.status(t, id); j.Finished {
			return j
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// stats asks what is counted for a job.
func (c controlled) stats(t *testing.T, id int64) (n count) {
	t.Helper()
	c.call(t, "core/stats", map[string]any{"group": fmt.Sprint("job/", id)}, &n)
	return n
}

// TestRemoteControl holds that a job's status, its statistics and the wire tell the
// same.
func TestRemoteControl(t *testing.T) {
	const size = 12*mib + 5
	b, meter := newFarBench(t)
	c := b.control(t)
	disk := lab.Image(t, b.near("disk"), 1, size)
	for _, change := range []string{"first", "some", "none"} {
		t.Run(change, func(t *testing.T) {
			if change == "some" {
				lab.WriteAt(t, disk, lab.Noise(3, mib), 7*mib+11)
			}
			meter.Take()
			id := c.begin(t, "blockdev:"+disk, "disks:root.img")
			j := c.finish(t, id)
			if !j.Success || j.Error != "" || len(j.Output.Images) != 1 {
				t.Fatalf("job/status tells %+v", j)
			}
			image := j.Output.Images[0]
			if image.Image != "root.img" || image.Size != size || j.Output.Size != size ||
				image.Sent != j.Output.Sent || image.Received != j.Output.Received {
				t.Errorf("job/status tells %+v", j)
			}
			c.stats(t, id).whole(t, 1, size)
			traffic{sent: image.Sent, received: image.Received}.agrees(t, meter.Take())
			if changed := change != "none"; changed != (image.Changed > 0) {
				t.Errorf("%d blocks have changed", image.Changed)
			}
			b.holds(t, "disks:root.img", disk)
		})
	}
	t.Run("tried again", func(t *testing.T) {
		lab.WriteAt(t, disk, lab.Noise(4, 8*mib), mib)
		meter.Break(4 * mib)
		id := c.begin(t, "blockdev:"+disk, "disks:root.img")
		j := c.finish(t, id)
		if !j.Success || j.Output.Size != size || len(j.Output.Images) != 1 || j.Output.Images[0].Kept == 0 {
			t.Errorf("job/status tells %+v", j)
		}
		c.stats(t, id).whole(t, 1, size)
		b.holds(t, "disks:root.img", disk)
	})
	t.Run("folder", func(t *testing.T) {
		names := b.images(t, 5, mib)
		id := c.begin(t, "blockdev:"+b.here, "disks:vms")
		j := c.finish(t, id)
		if !j.Success || len(j.Output.Images) != len(names)+1 || j.Output.Size != size+5*mib {
			t.Errorf("job/status tells %+v", j)
		}
		c.stats(t, id).whole(t, int64(len(names))+1, size+5*mib)
	})
}

// TestRemoteControlOfFailures has jobs fail before and while they are at work.
func TestRemoteControlOfFailures(t *testing.T) {
	b, _ := newFarBench(t)
	c := b.control(t)
	disk := lab.Image(t, b.near("disk"), 1, 3*mib)
	b.ok(t, "copyto", "blockdev:"+disk, "disks:root.img")
	for _, test := range []struct {
		name, source, target string
		words                []string
	}{
		{"no agent", "blockdev:" + disk, "disks,agent_path=/nowhere/diskrsync:root.img", []string{"nas", "/nowhere/diskrsync"}},
		{"smaller device", "blockdev:" + disk, "blockdev,allow_write:" + lab.BlankDevice(t, mib), []string{"3145728", "1048576"}},
		{"no source", "blockdev:/dev/none", "disks:root.img", []string{"/dev/none"}},
		{"no leave", "disks:root.img", "blockdev:" + disk, []string{"allow_write"}},
		{"bad target", "blockdev:" + disk, "disks:../root.img", []string{".."}},
	} {
		t.Run(test.name, func(t *testing.T) {
			there, here := lab.Snap(t, b.there), lab.Snap(t, b.here)
			id := c.begin(t, test.source, test.target)
			j := c.finish(t, id)
			if j.Success || len(j.Output.Images) > 0 || j.Error == "" || strings.ContainsAny(j.Error, "\n\r") {
				t.Errorf("job/status tells %+v", j)
			}
			n := c.stats(t, id)
			if n.Errors == 0 || n.Transfers > 0 {
				t.Errorf("job/status tells %q, core/stats %+v", j.Error, n)
			}
			for _, word := range test.words {
				if !strings.Contains(j.Error, word) || !strings.Contains(n.LastError, word) {
					t.Errorf("the errors %q and %q do not both hold %q", j.Error, n.LastError, word)
				}
			}
			there.Unchanged(t, b.there)
			here.Unchanged(t, b.here)
		})
	}
}

// TestStoppedJob stops a job in the middle of a sync, and has another one do the rest.
func TestStoppedJob(t *testing.T) {
	const size = 5 * mib
	h := lab.StartHost(t, tools, lab.HostOptions{})
	b, meter := newBenchAt(t, h)
	c := b.control(t)
	disk := lab.Write(t, b.near("disk"), lab.Noise(2, size), 0o644)
	var none struct{}
	c.call(t, "core/bwlimit", map[string]any{"rate": "2M"}, &none)
	id := c.begin(t, "blockdev:"+disk, "disks:root.img")
	b.awaitPart(t, c.Run, "root.img", 3*mib/2)
	if n := c.stats(t, id); len(n.Transferring) != 1 || n.Transferring[0].Size != size || n.Transfers != 0 {
		t.Errorf("of a job at work is told %+v", n)
	}
	c.call(t, "job/stop", map[string]any{"jobid": id}, &none)
	if j := c.finish(t, id); j.Success || !strings.Contains(j.Error, "canceled") {
		t.Errorf("job/status tells %+v", j)
	}
	b.oldOrAbsent(t, "root.img", "")
	agentsEnd(t, h)
	c.call(t, "core/bwlimit", map[string]any{"rate": "off"}, &none)
	meter.Take()
	j := c.finish(t, c.begin(t, "blockdev:"+disk, "disks:root.img"))
	if !j.Success || len(j.Output.Images) != 1 || j.Output.Images[0].Kept < mib {
		t.Errorf("job/status tells %+v", j)
	}
	if passed := meter.Take(); passed > size-mib {
		t.Errorf("%d bytes went over the wire, though some were there", passed)
	}
	b.holds(t, "disks:root.img", disk)
}

// agentsEnd checks that no agent is left at a host, even if connections to it are.
func agentsEnd(t *testing.T, h *lab.Host) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(h.Agents(t)) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("agents are left: %v", h.Agents(t))
		}
	}
}
