//go:build linux

// Package debian_test is the main job on a real machine's disk: an image of a
// Debian system with a database, then of the same system some weeks later, kept
// up to date over ssh and measured against rsync. Run it by
//
//	DISKRSYNC_TEST_REAL=1 go test ./integration/sync/debian -count=1 -v -timeout 20m
//
// as root. It installs a Debian system from the machine's own package sources,
// which takes some minutes. Where XDG_CACHE_HOME is set, the two images are kept
// there for the next time.
package debian_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/integration/internal/lab"
)

const (
	// shareOfRsync bounds what the second sync sends, in hundredths of what
	// rsync sends for the same change.
	shareOfRsync = 60
	// nothing bounds what a sync of an unchanged image sends.
	nothing = 4 << 30 / 1000
)

func TestDebian(t *testing.T) {
	if !lab.Real() {
		t.Skip("installs a Debian system, which takes some minutes: set " + lab.RealEnv + "=1")
	}
	lab.NeedRoot(t)
	lab.NeedPrograms(t, "debootstrap", "unshare", "mkfs.ext4", "rsync", "cmp", "apt-get")
	tools := lab.Must(lab.Build(t.TempDir()))(t)
	tools.NeedPeers(t)
	first, second := images(t)
	b := bench{lab.StartHost(t, tools, lab.HostOptions{}), tools, t.TempDir()}
	rows := []row{b.rsync(t, first, second)}
	for _, kind := range []string{"spgz", "raw"} {
		rows = append(rows, b.backUp(t, kind, first, second))
	}
	show(t, rows)
	for _, r := range rows[1:] {
		if r.second*100 >= rows[0].second*shareOfRsync {
			t.Errorf("%s: the second sync sent %d bytes, not less than %d %% of the %d that rsync sent",
				r.name, r.second, shareOfRsync, rows[0].second)
		}
		if r.third > nothing {
			t.Errorf("%s: sent %d bytes when nothing had changed", r.name, r.third)
		}
	}
}

// images returns the two images, from the cache if there is one.
func images(t *testing.T) (first, second string) {
	t.Helper()
	dir := t.TempDir()
	if cache := os.Getenv("XDG_CACHE_HOME"); cache != "" {
		dir = filepath.Join(cache, "diskrsync-debian")
	}
	first, second = filepath.Join(dir, "first.img"), filepath.Join(dir, "second.img")
	if _, err := os.Stat(second); err != nil {
		lab.Do(t, "bash", "images.sh", dir)
	}
	return first, second
}

// A row of the table: the bytes that one program sent in each of its runs.
type row struct {
	name                 string
	first, second, third int64
	answers              int64 // bytes that came back in the second run
	allocated            int64 // what the image takes at the target
}

type bench struct {
	*lab.Host
	tools lab.Tools
	there string
}

// backUp syncs the first image, the second, and the second once more. Every
// byte is compared; the last time the digest tells enough.
func (b bench) backUp(t *testing.T, kind, first, second string) row {
	t.Helper()
	image := filepath.Join(b.there, kind)
	sync := func(source string) lab.Summary {
		args := b.Args("--json", source, "alpha:"+image)
		if kind == "raw" {
			args = append(args, "--no-compress")
		}
		return lab.Start(t, b.tools.Diskrsync, args...).Wait(t).Summary(t)
	}
	one := sync(first)
	b.compare(t, kind, image, first)
	two := sync(second)
	b.compare(t, kind, image, second)
	three := sync(second)
	if three.Digest != two.Digest || two.Digest == one.Digest {
		t.Errorf("%s: digests %s, %s, %s", kind, one.Digest, two.Digest, three.Digest)
	}
	r := row{"diskrsync to " + kind, one.BytesSent, two.BytesSent, three.BytesSent,
		two.BytesReceived, lab.Allocated(t, image)}
	t.Logf("%s: second run: %d blocks sent, %d patched, %d holes", kind, two.Changed, two.Patched, two.Holes)
	return r
}

func (b bench) compare(t *testing.T, kind, image, source string) {
	t.Helper()
	if kind == "spgz" {
		image = filepath.Join(b.there, "extracted")
		defer os.Remove(image)
		lab.Do(t, b.tools.Spgz, "-x", filepath.Join(b.there, kind), image)
	}
	lab.Do(t, "cmp", image, source)
}

// rsync brings a copy of the first image up to date over the same server.
func (b bench) rsync(t *testing.T, first, second string) row {
	t.Helper()
	image := lab.Copy(t, first, filepath.Join(b.there, "rsync"))
	defer os.Remove(image)
	out := lab.Do(t, "rsync", "--inplace", "-z", "--ignore-times", "--stats",
		"--rsh", b.SSH(), second, "alpha:"+image)
	lab.Do(t, "cmp", image, second)
	return row{name: "rsync --inplace -z", second: stat(t, out, "sent"),
		answers: stat(t, out, "received"), allocated: lab.Allocated(t, image)}
}

func stat(t *testing.T, out, what string) int64 {
	t.Helper()
	found := regexp.MustCompile("Total bytes " + what + `: ([0-9,]+)`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("rsync did not say how much it %s:\n%s", what, out)
	}
	return lab.Must(strconv.ParseInt(strings.ReplaceAll(found[1], ",", ""), 10, 64))(t)
}

func show(t *testing.T, rows []row) {
	var out strings.Builder
	fmt.Fprintf(&out, "\n%-20s %12s %12s %12s %12s %12s\n", "MB",
		"first", "upgraded", "unchanged", "answers", "on disk")
	for _, r := range rows {
		fmt.Fprintf(&out, "%-20s", r.name)
		for _, n := range []int64{r.first, r.second, r.third, r.answers, r.allocated} {
			fmt.Fprintf(&out, " %12.3f", float64(n)/1e6)
		}
		out.WriteByte('\n')
	}
	t.Log(out.String())
}
