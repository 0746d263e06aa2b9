// Command plugin is what an rclone that was built with cgo can load, to have the
// backends blockdev and diskrsync. The page of the backend says how, and when not to.
package main

import (
	_ "github.com/diskrsync/diskrsync/backend/blockdev"
	_ "github.com/diskrsync/diskrsync/backend/diskrsync"
	_ "github.com/diskrsync/diskrsync/backend/job"
)

// main is never called.
func main() {}
