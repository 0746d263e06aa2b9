package transport

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unicode"
)

// Location is one side of a sync as it is typed on a command line:
//
//	path                 on this machine
//	[user@]host:path     on another one; an empty path is the home folder
//	[user@][ipv6]:path   the same, for a host with colons in its name
//	:path                without a host, for a carrier that needs none
//
// The first ":" ends the host. Where a "/" comes before it, all of it is a path
// on this machine, so that ./a:b is a file; so is C:\disk.img on Windows, where a
// single letter before the ":" is a drive.
type Location struct {
	Host   string // with user@, without brackets; "" is this machine, unless Remote
	Path   string // as typed; never empty
	Remote bool   // whether an agent has to be reached
}

// homeFolder is where a remote path begins that does not say.
const homeFolder = "./"

// ParseLocation takes apart one argument of the command line. It refuses what
// can only be a mistake or an attack: an empty argument, and a host that ssh
// would take for an option.
func ParseLocation(arg string) (Location, error) {
	return parseLocation(arg, runtime.GOOS == "windows")
}

func parseLocation(arg string, drives bool) (Location, error) {
	if arg == "" {
		return Location{}, errors.New("empty location")
	}
	colon := strings.IndexByte(arg, ':')
	if colon < 0 || isLocal(arg[:colon], drives) {
		return Location{Path: arg}, nil
	}
	host, path := arg[:colon], arg[colon+1:]
	user := host[:strings.LastIndexByte(host, '@')+1]
	if strings.HasPrefix(host[len(user):], "[") {
		inner, rest, ok := strings.Cut(arg[len(user)+1:], "]:")
		if !ok || inner == "" || strings.ContainsAny(inner, "[]@") {
			return Location{}, fmt.Errorf("location %q: what begins with [ must read [host]:path (for a file here, put ./ before it)", arg)
		}
		host, path = user+inner, rest
	}
	if err := checkHost(host); err != nil {
		return Location{}, fmt.Errorf("location %q: %w", arg, err)
	}
	if path == "" {
		path = homeFolder
	}
	return Location{Host: host, Path: path, Remote: true}, nil
}

// isLocal reports whether a colon behind before is part of a path. On Windows a
// "\" says so as well, unless it stands between a domain and its user.
func isLocal(before string, drives bool) bool {
	if strings.Contains(before, "/") {
		return true
	}
	return drives && (isDrive(before) || strings.Contains(before, `\`) && !strings.Contains(before, "@"))
}

func isDrive(s string) bool {
	return len(s) == 1 && ('a' <= s[0] && s[0] <= 'z' || 'A' <= s[0] && s[0] <= 'Z')
}

// checkHost refuses hosts that are not what they seem: options of ssh, and
// names that would break a log line or end early where they are used. The empty
// host passes.
func checkHost(host string) error {
	at := strings.LastIndexByte(host, '@')
	switch name := host[at+1:]; {
	case at == 0:
		return fmt.Errorf("host %q has an empty user", host)
	case at > 0 && name == "":
		return fmt.Errorf("host %q has a user but no name", host)
	case strings.HasPrefix(host, "-"), strings.HasPrefix(name, "-"):
		return fmt.Errorf("host %q begins with a dash", host)
	case strings.ContainsFunc(host, unicode.IsControl):
		return fmt.Errorf("host %q holds control characters", host)
	}
	return nil
}

// String returns the location the way it is typed.
func (l Location) String() string {
	if !l.Remote {
		return l.Path
	}
	return bracketed(l.Host) + ":" + l.Path
}

// bracketed returns host in the form in which a ":" may follow it on every
// system.
func bracketed(host string) string {
	at := strings.LastIndexByte(host, '@') + 1
	if !strings.Contains(host[at:], ":") && !isDrive(host) {
		return host
	}
	return host[:at] + "[" + host[at:] + "]"
}
