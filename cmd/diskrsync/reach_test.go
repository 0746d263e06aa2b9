package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/diskrsync/diskrsync/merkle/transport"
)

func TestInFolder(t *testing.T) {
	for _, tt := range []struct{ target, source, want string }{
		{"copy", "disk.img", "copy"},
		{"store/copy", "a/disk.img", "store/copy"},
		{"store/", "disk.img", "store/disk.img"},
		{"store/", "a/b/disk.img", "store/disk.img"},
		{"store//", "a//disk.img", "store//disk.img"},
		{"/", "/dev/vg0/root", "/root"},
		{"./", "../disk.img", "./disk.img"},
		{"store/", "a/b/", "store/b"},
		{"store/", "nas:a/disk.img", "store/disk.img"},
		{"store/", "nas:disk.img", "store/disk.img"},
		{"store/", `nas:C:\images\disk.img`, "store/disk.img"},
		{"nas:", "disk.img", "nas:./disk.img"},
		{"nas:store/", "disk.img", "nas:store/disk.img"},
		{"nas:store/", "san:a/disk.img", "nas:store/disk.img"},
		{"nas:copy", "disk.img", "nas:copy"},
	} {
		got, err := inFolder(parse(t, tt.target), parse(t, tt.source))
		if err != nil || got.String() != tt.want {
			t.Errorf("%s from %s: %v, %v, want %s", tt.target, tt.source, got, err, tt.want)
		}
	}
}

func TestInFolderWithoutName(t *testing.T) {
	for _, source := range []string{".", "..", "./", "a/..", "a/.", "/", "//", "nas:", "nas:..", `nas:a\..`} {
		_, err := inFolder(parse(t, "store/"), parse(t, source))
		var usage usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), source) {
			t.Errorf("%s: %v", source, err)
		}
		if _, err := inFolder(parse(t, "copy"), parse(t, source)); err != nil {
			t.Errorf("%s needs no name, but: %v", source, err)
		}
	}
}

func parse(t *testing.T, arg string) transport.Location {
	t.Helper()
	l, err := location(arg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLocationIsUsage(t *testing.T) {
	for _, arg := range []string{"", "-v:x", "u@-v:x", "[::1:x", "@nas:x"} {
		_, err := location(arg)
		var usage usageError
		if !errors.As(err, &usage) {
			t.Errorf("%q: %v", arg, err)
		}
	}
}

func TestByteRate(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "1000": 1000, "500K": 500 << 10, "500k": 500 << 10, "500KiB": 500 << 10,
		"10M": 10 << 20, "10m": 10 << 20, "10MB": 10 << 20, "1.5M": 3 << 19, "1G": 1 << 30, "0.5G": 1 << 29,
	} {
		var b byteRate
		if err := b.Set(s); err != nil || int64(b) != want {
			t.Errorf("%q is %d, %v, want %d", s, int64(b), err, want)
		}
	}
	for _, s := range []string{"", "-1", "-5M", "M", "ten", "10X", "1e", "10 M M", "K10", "NaN", "Inf", "-Inf", "1e400"} {
		b := byteRate(7)
		if err := b.Set(s); err == nil || !strings.Contains(err.Error(), s) {
			t.Errorf("%q is taken for %d, %v", s, int64(b), err)
		}
		if b != 7 {
			t.Errorf("%q, which is no rate, changed it to %d", s, int64(b))
		}
	}
}

// TestByteRateShows makes sure that what help shows as a value can be given.
func TestByteRateShows(t *testing.T) {
	for _, n := range []byteRate{1, 512, 1 << 10, 3 << 19, 10 << 20, 1 << 30} {
		var again byteRate
		if err := again.Set(n.String()); err != nil || again != n {
			t.Errorf("%d shows as %s, which is %d, %v", int64(n), n.String(), int64(again), err)
		}
	}
}
