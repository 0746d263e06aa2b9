package main

import (
	"context"

	"github.com/rclone/rclone/cmd"
	"github.com/rclone/rclone/fs"
	"github.com/spf13/cobra"

	"github.com/diskrsync/diskrsync/backend/job"
)

// syncCommand is copyto that skips nothing.
func syncCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diskrsync SRC DST",
		Short: `Bring a disk image or a device up to date, and skip nothing.`,
		Long: `Brings DST up to date with SRC, which are paths of remotes: a device, an
image, or a folder, which stands for all images in it.

` + "```console" + `
rclone-diskrsync diskrsync blockdev:/dev/vg0/root-snap disks:root.img
rclone-diskrsync diskrsync disks:root.img restore:/dev/vg0/root
` + "```" + `

It is like [copyto](/commands/rclone_copyto/) with two differences. An image
is never skipped because its size and time are as they were: whatever holds a disk
may have changed without either. And if DST is a folder that exists, or ends in
"/" or ":", an image gets there the name that it has.

Between ` + "`blockdev` and `diskrsync`" + ` remotes both sides are compared by their hashes, and
what differs is sent. What goes over the wire is told at the end with ` + "`-v` or `-P`." + `
To and from any other remote it is a copy.

--ignore-existing, --compare-dest and --copy-dest are refused.`,
		Annotations: map[string]string{"groups": "Copy,Filter,Important"},
		Run: func(command *cobra.Command, args []string) {
			cmd.CheckArgs(2, 2, command, args)
			ctx := context.Background()
			j, err := job.NewJob(ctx, args[0], args[1])
			if err != nil {
				fs.Fatalf(nil, "%v", fs.CountError(ctx, err))
			}
			defer j.Close()
			cmd.Run(true, true, command, func() error {
				_, err := j.Run(ctx)
				return err
			})
		},
	}
}
