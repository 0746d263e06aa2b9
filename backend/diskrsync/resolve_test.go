package diskrsync

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/rclone/rclone/backend/alias"
	_ "github.com/rclone/rclone/backend/combine"
	_ "github.com/rclone/rclone/backend/local"
	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/lib/encoder"
)

// No link is to lead out of the folder that is set, whatever stands in between.
func TestResolveHere(t *testing.T) {
	t.Setenv("RCLONE_CONFIG_OTHER_TYPE", "alias")
	t.Setenv("RCLONE_CONFIG_OTHER_REMOTE", "/srv/data")
	t.Setenv("RCLONE_CONFIG_TREE_TYPE", "combine")
	t.Setenv("RCLONE_CONFIG_TREE_UPSTREAMS", "data=/srv/data vms=other:vms")
	for _, test := range []struct{ remote, root, set, below string }{
		{"/backup", "", "/backup", ""},
		{"/backup", "vms/web", "/backup", "vms/web"},
		{"/vms", "vms", "/vms", "vms"},
		{"/", "vms", "/", "vms"},
		{"other:", "x", "/srv/data", "x"},
		{"other:x", "x", "/srv/data/x", "x"},
		{"tree:", "data", "/srv/data", ""},
		{"tree:", "data/data", "/srv/data", "data"},
		{"tree:data", "data", "/srv/data", "data"},
		{"tree:", "vms/web", "/srv/data/vms", "web"},
	} {
		f := &Fs{root: test.root, opt: Options{Remote: test.remote}}
		s, err := f.resolve()
		if err != nil || s == nil {
			t.Errorf("%s of %s: %v", test.root, test.remote, err)
		} else if filepath.ToSlash(s.root) != test.set || s.below != test.below {
			t.Errorf("%s of %s is %s and %s, want %s and %s", test.root, test.remote, s.root, s.below, test.set, test.below)
		}
	}
}

// In what the user writes, ".." is no name, and in names it is none but that.
func TestEncoded(t *testing.T) {
	names := encoder.Standard | encoder.EncodeColon
	if got := encoded("../a:b/./c", names); got != "../a：b/./c" {
		t.Error(got)
	}
}

// What is behind a remote can lead back to it by any number of others.
func TestLeadsTo(t *testing.T) {
	for name, settings := range map[string][2]string{
		"A": {"alias", "B:x"}, "B": {"diskrsync", "A:y"},
		"C": {"combine", "p=/tmp q=D:z"}, "D": {"diskrsync", "C:q"},
		"E": {"alias", "/tmp"}, "F": {"combine", "p=E:1 q=E:2"}, "G": {"diskrsync", "F:p"},
		"H": {"alias", "I:"}, "I": {"alias", "H:"}, "J": {"diskrsync", "H:"},
		"K": {"diskrsync", "missing:"},
	} {
		key := "REMOTE"
		if settings[0] == "combine" {
			key = "UPSTREAMS"
		}
		t.Setenv("RCLONE_CONFIG_"+name+"_TYPE", settings[0])
		t.Setenv("RCLONE_CONFIG_"+name+"_"+key, settings[1])
	}
	for name, want := range map[string]bool{"B": true, "D": true, "G": false, "J": true, "K": false} {
		m := fs.ConfigMap("", nil, name, nil)
		remote, _ := m.Get("remote")
		if got := leadsTo(remote, []string{name}); got != want {
			t.Errorf("%s leads to itself by %s: %v", name, remote, got)
		}
	}
}

func TestShown(t *testing.T) {
	for remote, want := range map[string]string{
		"nas:/backup": "nas:/backup", "/backup": "/backup", "nas,pass=secret:/backup": "nas:/backup",
		":webdav,url='https://x/',bearer_token=secret:a": ":webdav:a", "nas,pass='secret:": "that is set",
	} {
		if got := shown(remote); got != want || strings.Contains(got, "secret") {
			t.Errorf("%s is shown as %s", remote, got)
		}
	}
}

// A reader that is held reads what it has been made for, unless that is no longer wanted.
func TestHold(t *testing.T) {
	var h holding
	opened := 0
	open := func() (io.ReadCloser, error) {
		opened++
		return io.NopCloser(strings.NewReader("content")), nil
	}
	read, unwanted := h.hold(t.Context(), open), h.hold(t.Context(), open)
	got, err := io.ReadAll(read)
	if err != nil || string(got) != "content" || opened != 1 {
		t.Errorf("%q, %v, opened %d times", got, err, opened)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := unwanted.Read(make([]byte, 1))
		ended <- err
	}()
	h.release()
	select {
	case err := <-ended:
		if !errors.Is(err, errUnwanted) {
			t.Errorf("what is not wanted ends with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("what is not wanted still waits")
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.hold(cancelled, open).Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	h.release() // also of what has begun, or ended
	for _, r := range []*held{read, unwanted} {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
