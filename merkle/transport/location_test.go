package transport

import (
	"strings"
	"testing"
)

func TestParseLocation(t *testing.T) {
	here := func(path string) Location { return Location{Path: path} }
	there := func(host, path string) Location { return Location{host, path, true} }
	tests := []struct {
		arg  string
		want Location
	}{
		{"disk.img", here("disk.img")},
		{"/dev/vg00/root", here("/dev/vg00/root")},
		{"/mnt/a:b", here("/mnt/a:b")},
		{"./a:b", here("./a:b")},
		{"dir/", here("dir/")},
		{"a@b", here("a@b")},
		{"[abc]", here("[abc]")},
		{"-", here("-")},
		{"-x/y:z", here("-x/y:z")},
		{"host:", there("host", "./")},
		{"host:/mnt/x", there("host", "/mnt/x")},
		{"host:x", there("host", "x")},
		{"host:a:b", there("host", "a:b")},
		{"host::module", there("host", ":module")},
		{"user@host:~/x", there("user@host", "~/x")},
		{"user@corp@host:x", there("user@corp@host", "x")},
		{"c:x", there("c", "x")},
		{":path", there("", "path")},
		{":", there("", "./")},
		{"[::1]:/x", there("::1", "/x")},
		{"[::1]:", there("::1", "./")},
		{"user@[fe80::1%eth0]:x:y", there("user@fe80::1%eth0", "x:y")},
		{"[host]:x", there("host", "x")},
		{"host:-x", there("host", "-x")},
		{"host:a\nb", there("host", "a\nb")},
		{"höst:x", there("höst", "x")},
	}
	for _, tt := range tests {
		if got, err := parseLocation(tt.arg, false); err != nil || got != tt.want {
			t.Errorf("parseLocation(%q) = %+v, %v, want %+v", tt.arg, got, err, tt.want)
		}
	}
}

func TestParseLocationOnWindows(t *testing.T) {
	tests := []struct {
		arg  string
		want Location
	}{
		{`C:\disk.img`, Location{Path: `C:\disk.img`}},
		{`z:disk.img`, Location{Path: `z:disk.img`}},
		{`C:`, Location{Path: `C:`}},
		{`dir\file:stream`, Location{Path: `dir\file:stream`}},
		{`\\server\share\x:y`, Location{Path: `\\server\share\x:y`}},
		{`nas:C:\x`, Location{"nas", `C:\x`, true}},
		{`\\?\C:\disk.img`, Location{Path: `\\?\C:\disk.img`}},
		{`CORP\user@nas:x`, Location{`CORP\user@nas`, "x", true}},
		{`1:x`, Location{"1", "x", true}},
	}
	for _, tt := range tests {
		if got, err := parseLocation(tt.arg, true); err != nil || got != tt.want {
			t.Errorf("parseLocation(%q) = %+v, %v, want %+v", tt.arg, got, err, tt.want)
		}
	}
}

func TestParseLocationRefuses(t *testing.T) {
	tests := []struct{ arg, want string }{
		{"", "empty"},
		{"-oProxyCommand=x:y", "dash"},
		{"-:y", "dash"},
		{"user@-oProxyCommand=x:y", "dash"},
		{"-l@host:y", "dash"},
		{"[-x::1]:y", "dash"},
		{"user@:y", "no name"},
		{"@host:y", "empty user"},
		{"a\nb:y", "control characters"},
		{"a\x00b:y", "control characters"},
		{"a\x1b[2Jb:y", "control characters"},
		{"a\u0085b:y", "control characters"},
		{"[::1]", "[host]:path"},
		{"[::1", "[host]:path"},
		{"[::1]x:y", "[host]:path"},
		{"[]:y", "[host]:path"},
		{"[a]b:y", "[host]:path"},
		{"user@[[::1]]:y", "[host]:path"},
		{"[a@::1]:y", "no name"},
	}
	for _, tt := range tests {
		got, err := parseLocation(tt.arg, false)
		if err == nil {
			t.Errorf("parseLocation(%q) = %+v, want an error", tt.arg, got)
		} else if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("parseLocation(%q): error %q does not say %q", tt.arg, err, tt.want)
		}
	}
}

func TestLocationString(t *testing.T) {
	for _, arg := range []string{"x", "/a:b", "host:x", "u@host:x", "[::1]:x", "u@[::1]:x:y", ":x", "[c]:x"} {
		l, err := ParseLocation(arg)
		if err != nil || l.String() != arg {
			t.Errorf("ParseLocation(%q) prints as %q (%v)", arg, l, err)
		}
	}
}

// FuzzParseLocation holds that whatever is accepted is safe to hand to ssh, and
// means the same when it is printed and parsed again.
func FuzzParseLocation(f *testing.F) {
	for _, seed := range []string{"", "x", "h:p", "u@h:p", "[::1]:p", "u@[::1]:", "a/b:c", "-h:p", "[a@b:c", `C:\x`, "@:", "[@]:"} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, arg string, drives bool) {
		l, err := parseLocation(arg, drives)
		if err != nil {
			return
		}
		if l.Path == "" || (!l.Remote && (l.Host != "" || l.Path != arg)) {
			t.Fatalf("parseLocation(%q) = %+v", arg, l)
		}
		name := l.Host[strings.LastIndexByte(l.Host, '@')+1:]
		if strings.HasPrefix(l.Host, "-") || strings.HasPrefix(name, "-") || strings.ContainsAny(l.Host, "\x00\n\r") {
			t.Fatalf("parseLocation(%q) accepts the host %q", arg, l.Host)
		}
		if again, err := parseLocation(l.String(), drives); err != nil || again != l {
			t.Fatalf("parseLocation(%q) = %+v, which prints as %q and parses as %+v, %v", arg, l, l, again, err)
		}
	})
}
