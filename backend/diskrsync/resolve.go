package diskrsync

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/config/configmap"
	"github.com/rclone/rclone/fs/config/configstruct"
	"github.com/rclone/rclone/fs/fserrors"
	"github.com/rclone/rclone/fs/fspath"
	"github.com/rclone/rclone/lib/encoder"

	"github.com/diskrsync/diskrsync/backend/endpoint"
	"github.com/diskrsync/diskrsync/backend/sshexec"
	"github.com/diskrsync/diskrsync/merkle/transport"
)

// A site is the folder behind a remote, if it is one where images can be written: on
// this machine, or on one that programs can be started on.
type site struct {
	root  string // of this machine, or as the agent there is to be told
	below string // in root, of this machine: no link on the way is to lead out of root
	names encoder.MultiEncoder
	host  *sshexec.Host // nil for this machine
	links bool          // of this machine: symbolic links are followed, wherever they lead
	name  string        // of the sftp remote
	spare string        // the folder by a remote that is the same, and reads nothing ahead
}

// maxRemotes bounds how many remotes are looked through to what is behind them.
const maxRemotes = 32

// resolve finds the folder behind a path of the remote that is set. It returns nil if
// there is none: then images can only be read.
func (f *Fs) resolve() (*site, error) {
	remote := fspath.JoinRootPath(f.opt.Remote, f.root)
	inside := f.root // what of the path is not that of a remote that somebody has set
	for range maxRemotes {
		info, name, p, m, err := fs.ConfigFs(remote)
		if err != nil {
			return nil, err
		}
		switch info.Name {
		case "local":
			return localSite(p, inside, m)
		case "sftp":
			s, err := f.sftpSite(name, p, m)
			if err == nil {
				s.spare, err = sparing(remote)
			}
			return s, err
		case "alias", "combine":
			if info.Name == "combine" && strings.Trim(p, "/") == inside {
				_, inside, _ = strings.Cut(inside, "/")
			}
			if remote, err = behind(info.Name, p, m); err != nil || remote == "" {
				return nil, err
			}
		default:
			return nil, nil
		}
	}
	return nil, fserrors.NoRetryError(fmt.Errorf("there are more than %d remotes behind it", maxRemotes))
}

// leadsTo reports whether a remote is one of those that lead to it, or leads to one by
// way of others. They would make each other without end.
func leadsTo(remote string, above []string) bool {
	if len(above) > maxRemotes {
		return true
	}
	info, name, _, m, err := fs.ConfigFs(remote)
	if err != nil || strings.HasPrefix(name, ":") {
		return false // it has no name, or is not there: that is said by who makes it
	}
	if slices.Contains(above, name) {
		return true
	}
	var opt struct {
		Remote    string          `config:"remote"`
		Upstreams fs.SpaceSepList `config:"upstreams"`
	}
	if configstruct.Set(m, &opt) != nil {
		return false
	}
	above = append(slices.Clip(above), name)
	for _, upstream := range opt.Upstreams {
		if info.Name == "combine" {
			_, upstream, _ = strings.Cut(upstream, "=")
		}
		if leadsTo(upstream, above) {
			return true
		}
	}
	return opt.Remote != "" && leadsTo(opt.Remote, above)
}

// behind returns the remote that another one stands for.
func behind(kind, p string, m configmap.Mapper) (string, error) {
	var opt struct {
		Remote    string          `config:"remote"`
		Upstreams fs.SpaceSepList `config:"upstreams"`
	}
	if err := configstruct.Set(m, &opt); err != nil {
		return "", err
	}
	if kind == "alias" {
		return fspath.JoinRootPath(opt.Remote, p), nil
	}
	first, rest, _ := strings.Cut(strings.Trim(p, "/"), "/")
	for _, upstream := range opt.Upstreams {
		if dir, remote, _ := strings.Cut(upstream, "="); dir == first && dir != "" {
			return fspath.JoinRootPath(remote, rest), nil
		}
	}
	return "", nil // the folder of the upstreams themselves
}

func localSite(p, inside string, m configmap.Mapper) (*site, error) {
	var opt struct {
		Enc   encoder.MultiEncoder `config:"encoding"`
		Links bool                 `config:"copy_links"`
	}
	if err := configstruct.Set(m, &opt); err != nil {
		return nil, err
	}
	set := strings.TrimSuffix(p, inside)
	volume := filepath.VolumeName(set) // C: on Windows, whose colon is no part of a name
	set = encoded(filepath.ToSlash(set[len(volume):]), opt.Enc)
	root, err := filepath.Abs(volume + filepath.FromSlash(set))
	return &site{root: root, below: opt.Enc.FromStandardPath(inside), names: opt.Enc, links: opt.Links}, err
}

// encoded returns a path as it is on the disk, and as the local backend has it: in
// what the user writes, "." and ".." are no names.
func encoded(p string, names encoder.MultiEncoder) string {
	elements := strings.Split(p, "/")
	for i, element := range elements {
		if element != "." && element != ".." {
			elements[i] = names.FromStandardName(element)
		}
	}
	return strings.Join(elements, "/")
}

func (f *Fs) sftpSite(name, p string, m configmap.Mapper) (*site, error) {
	var there struct {
		Enc          encoder.MultiEncoder `config:"encoding"`
		PathOverride string               `config:"path_override"`
	}
	if err := configstruct.Set(m, &there); err != nil {
		return nil, err
	}
	root := there.Enc.FromStandardPath(p)
	// As the sftp backend does with the paths that it gives to a shell.
	over, prefix := strings.CutPrefix(there.PathOverride, "@")
	switch {
	case prefix:
		root = path.Join(over, root)
	case over != "" && f.root != "":
		return nil, fserrors.NoRetryError(fmt.Errorf("path_override %s of %s is one folder, and not those in it: set it to @ and what goes before each path there", over, name))
	case over != "":
		root = over
	}
	host, err := sshexec.New(name, m, sshexec.Options{InsecureHostKey: f.opt.InsecureHostKey, KeepAlive: time.Duration(f.opt.KeepAlive)})
	if err != nil {
		return nil, fserrors.NoRetryError(err)
	}
	return &site{root: root, names: there.Enc, host: host, name: name}, nil
}

// place returns where an image is.
func (s *site) place(remote string, opt *Options) endpoint.Place {
	below := s.names.FromStandardPath(remote)
	switch {
	case s.host == nil && s.links:
		return endpoint.Place{Path: filepath.Join(s.root, filepath.FromSlash(s.below), filepath.FromSlash(below))}
	case s.host == nil:
		return endpoint.Place{Root: s.root, Path: filepath.FromSlash(path.Join(s.below, below))}
	}
	return endpoint.Place{
		Path: path.Join(s.root, below),
		Host: s.name,
		Dial: func(ctx context.Context) (endpoint.Carrier, error) {
			p, err := s.host.Start(ctx, transport.Quote(opt.AgentPath)+" serve --stdio")
			if err != nil {
				return nil, err // and not a nil Process in an interface
			}
			return p, nil
		},
	}
}

func (s *site) close() error {
	if s == nil || s.host == nil {
		return nil
	}
	return s.host.Close()
}

// notWritable says why nothing can be written.
func (f *Fs) notWritable() error {
	return fserrors.NoRetryError(fmt.Errorf("%s: images can only be written to a path of this machine or to an sftp remote, on which an agent does the work: %s is neither", f.name, shown(f.opt.Remote)))
}

// shown returns a remote as it may be seen in logs: without settings, which may be
// secret.
func shown(remote string) string {
	parsed, err := fspath.Parse(remote)
	if err != nil {
		return "that is set"
	}
	if parsed.Name == "" {
		return parsed.Path
	}
	return parsed.Name + ":" + parsed.Path
}

// sparing returns an sftp remote with its setting changed by which it reads no more than
// it is asked for: else it has 2 MiB on their way for each look at a long file.
func sparing(remote string) (string, error) {
	parsed, err := fspath.Parse(remote)
	if err != nil {
		return "", err
	}
	return parsed.ConfigString + ",disable_concurrent_reads=true:" + parsed.Path, nil
}
