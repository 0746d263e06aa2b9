package diskrsync

import (
	"time"

	"github.com/rclone/rclone/fs"

	"github.com/diskrsync/diskrsync/merkle/image"
)

func options() []fs.Option { return append(standard(), advanced()...) }

func standard() []fs.Option {
	return []fs.Option{{
		Name: "remote",
		Help: `Remote that the images are on, such as "nas:/mnt/backup" or "/mnt/backup".

To write images it must be a path of this machine or an sftp remote,
directly or by way of alias or combine. From any other remote they can
only be read.`,
		Required: true,
	}, {
		Name: "format",
		Help: `Format of new images.

An image that exists keeps its format.`,
		Default: string(image.Spgz),
		Examples: []fs.OptionExample{{
			Value: string(image.Spgz),
			Help:  "Sparse and compressed.",
		}, {
			Value: string(image.Raw),
			Help:  "The content byte for byte, with holes where it is zero.",
		}},
		Exclusive: true,
	}}
}

func advanced() []fs.Option {
	return []fs.Option{{
		Name: "agent_path",
		Help: `Path of diskrsync on the machine of an sftp remote.

It is needed if the program is not where the shell there looks for it.`,
		Default:  "diskrsync",
		Advanced: true,
	}, {
		Name: "checksum",
		Help: `Read and hash both sides, whatever is stored about them.

This is not the global flag --checksum, which makes rclone compare
checksums that images do not have.`,
		Default:  false,
		Advanced: true,
	}, {
		Name: "inplace",
		Help: `Change existing images block by block.

This takes no space for a journal. If it is interrupted, the image is a
mixture of old and new, and is marked as incomplete until a sync is
through. It is not the global flag --inplace.`,
		Default:  false,
		Advanced: true,
	}, {
		Name: "force",
		Help: `Read images that are known to be incomplete or damaged.

What is read of them is what they hold. It is refused otherwise.`,
		Default:  false,
		Advanced: true,
	}, {
		Name: "keep_alive",
		Help: `How long the machine of an sftp remote may be silent before it is asked
for a sign of life.

While both sides read there is nothing to send, and firewalls forget a
connection on which nothing moves. It is asked at least three times in
the time of the global flag --timeout. An external ssh (the option ssh of
the sftp remote) has a setting of its own, ServerAliveInterval.`,
		Default:  fs.Duration(30 * time.Second),
		Advanced: true,
	}, {
		Name: "insecure_host_key",
		Help: `Start agents on machines whose host key is not known.

An sftp remote that has neither known_hosts_file nor host_keys does not
check who it talks to. To start a program there this must be allowed.`,
		Default:  false,
		Advanced: true,
	}}
}

// Options defines the configuration for this backend
type Options struct {
	Remote          string      `config:"remote"`
	Format          string      `config:"format"`
	AgentPath       string      `config:"agent_path"`
	Checksum        bool        `config:"checksum"`
	InPlace         bool        `config:"inplace"`
	Force           bool        `config:"force"`
	KeepAlive       fs.Duration `config:"keep_alive"`
	InsecureHostKey bool        `config:"insecure_host_key"`
}
