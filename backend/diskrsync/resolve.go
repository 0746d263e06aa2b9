package diskrsync

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
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
	names encoder.MultiEncoder
	host  *sshexec.Host // nil for this machine
	name  string        // of the sftp remote
}

// maxRemotes bounds how many remotes are looked through to what is behind them.
const maxRemotes = 32

// resolve finds the folder behind a remote. It returns nil if there is none: then
// images can only be read.
func resolve(remote string, opt *Options) (*site, error) {
	for range maxRemotes {
		info, name, p, m, err := fs.ConfigFs(remote)
		if err != nil {
			return nil, err
		}
		switch info.Name {
		case "local":
			return localSite(p, m)
		case "sftp":
			return sftpSite(name, p, m, opt)
		case "alias", "combine":
			if remote, err = behind(info.Name, p, m); err != nil || remote == "" {
				return nil, err
			}
		default:
			return nil, nil
		}
	}
	return nil, fserrors.NoRetryError(errors.New("the remotes behind it lead in a circle"))
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

func localSite(p string, m configmap.Mapper) (*site, error) {
	var opt struct {
		Enc encoder.MultiEncoder `config:"encoding"`
	}
	if err := configstruct.Set(m, &opt); err != nil {
		return nil, err
	}
	root, err := filepath.Abs(filepath.FromSlash(opt.Enc.FromStandardPath(p)))
	return &site{root: root, names: opt.Enc}, err
}

func sftpSite(name, p string, m configmap.Mapper, opt *Options) (*site, error) {
	var there struct {
		Enc          encoder.MultiEncoder `config:"encoding"`
		PathOverride string               `config:"path_override"`
	}
	if err := configstruct.Set(m, &there); err != nil {
		return nil, err
	}
	root := there.Enc.FromStandardPath(p)
	// As the sftp backend does with the paths that it gives to a shell.
	if over, ok := strings.CutPrefix(there.PathOverride, "@"); ok {
		root = path.Join(over, root)
	} else if over != "" {
		root = over
	}
	host, err := sshexec.New(name, m, sshexec.Options{InsecureHostKey: opt.InsecureHostKey, KeepAlive: time.Duration(opt.KeepAlive)})
	if err != nil {
		return nil, fserrors.NoRetryError(err)
	}
	return &site{root: root, names: there.Enc, host: host, name: name}, nil
}

// place returns where an image is.
func (s *site) place(remote string, opt *Options) endpoint.Place {
	below := s.names.FromStandardPath(remote)
	if s.host == nil {
		return endpoint.Place{Path: filepath.Join(s.root, filepath.FromSlash(below))}
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
	return fserrors.NoRetryError(fmt.Errorf("%s: images can only be written to a path of this machine or to an sftp remote, on which an agent does the work: %s is neither", f.name, f.opt.Remote))
}
