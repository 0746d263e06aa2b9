// Command rclone-diskrsync is rclone with the backends blockdev and diskrsync, and the
// command diskrsync, linked in.
package main

import (
	"os"
	"runtime/debug"

	_ "github.com/rclone/rclone/backend/all"
	"github.com/rclone/rclone/cmd"
	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/config"
	_ "github.com/rclone/rclone/lib/plugin"
	"github.com/spf13/cobra"

	_ "github.com/diskrsync/diskrsync/backend/blockdev"
	_ "github.com/diskrsync/diskrsync/backend/diskrsync"
)

func main() {
	fs.Version = version(fs.VersionTag, built())
	cmd.Root.AddCommand(syncCommand())
	cmd.Root.PersistentPreRun = func(*cobra.Command, []string) { nameDevices() }
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
// that name in the configuration. One that is there rules.
func nameDevices() {
	const name, variable = "blockdev", "RCLONE_CONFIG_BLOCKDEV_TYPE"
	if _, set := os.LookupEnv(variable); !set && !config.LoadedData().HasSection(name) {
		os.Setenv(variable, name) // fails for no name that could be in here
	}
}
