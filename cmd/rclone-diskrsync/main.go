// Command rclone-diskrsync is rclone with the backends blockdev and diskrsync, and the
// command diskrsync, linked in.
package main

import (
	"runtime/debug"

	_ "github.com/rclone/rclone/backend/all"
	"github.com/rclone/rclone/cmd"
	"github.com/rclone/rclone/fs"
	_ "github.com/rclone/rclone/lib/plugin"

	_ "github.com/diskrsync/diskrsync/backend/blockdev"
	_ "github.com/diskrsync/diskrsync/backend/diskrsync"
)

func main() {
	fs.Version = version(fs.VersionTag, built())
	cmd.Root.AddCommand(syncCommand())
	fs.ConfigFileGet = nameDevices(fs.ConfigFileGet)
	cmd.Main()
}

// version returns what the program says it is: the version of rclone, for what looks
// for that, and behind it ours. It is one by the rules of semantic versions, as rclone
// takes it apart.
func version(rclone, ours string) string {
	if ours == "" || ours == "(devel)" {
		ours = "devel"
	}
	return rclone + "-diskrsync." + ours
}

// built returns the version of diskrsync that was built.
func built() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return info.Main.Version
}

// nameDevices lets the devices of this machine be called blockdev: without a remote of
// that name in the configuration. One that is there rules. The configuration is not read
// for it: it may have a password, and not every command needs it.
func nameDevices(configured func(section, key string) (string, bool)) func(section, key string) (string, bool) {
	const name = "blockdev"
	return func(section, key string) (string, bool) {
		value, ok := configured(section, key)
		if !ok && section == name && key == "type" {
			return name, true
		}
		return value, ok
	}
}
