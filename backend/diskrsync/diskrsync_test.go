package diskrsync_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/rclone/rclone/backend/local"
	_ "github.com/rclone/rclone/backend/memory"
	_ "github.com/rclone/rclone/backend/sftp"
	"github.com/rclone/rclone/fstest"
	"github.com/rclone/rclone/fstest/fstests"

	"github.com/diskrsync/diskrsync/backend/diskrsync"
)

// notOurs are optional methods that the backend leaves out on purpose.
var notOurs = []string{
	// Reading and writing in pieces at once gets around the sync, and around the
	// check that an image has not changed.
	"OpenWriterAt", "OpenChunkWriter",
	// A copy at the far side may be a hard link, and images are changed in place.
	"Copy",
	// It would lead to the file of the image, compressed, and not to the content.
	"PublicLink",
	// No remote that can be written to has two files of one name.
	"PutUnchecked", "MergeDirs",
	// What lies beside an image says how large it is, and may come later in a
	// recursive listing.
	"ListR",
}

// notTheContents are optional methods of objects that tell something of the file that
// an image is in, and not of the content.
var notTheContents = []string{"MimeType", "ID", "GetTier", "SetTier", "Metadata", "SetMetadata"}

// notOfFolders are optional methods of folders, which are those of the remote behind,
// as they come from there. Not every remote has them.
var notOfFolders = []string{"Metadata", "SetMetadata", "SetModTime"}

// rclonesTests runs rclone's own tests of a backend.
func rclonesTests(t *testing.T, remote string, config []fstests.ExtraConfigItem) {
	t.Helper()
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.MkdirAll(filepath.Join(dir, "fstest", "testserver", "init.d"), 0o700); err != nil { // where they look for servers
		t.Fatal(err)
	}
	fstests.Run(t, &fstests.Opt{
		RemoteName:                      remote,
		NilObject:                       (*diskrsync.Object)(nil),
		ExtraConfig:                     config,
		UnimplementableFsMethods:        notOurs,
		UnimplementableObjectMethods:    notTheContents,
		UnimplementableDirectoryMethods: notOfFolders,
		QuickTestOK:                     true,
	})
}

// TestIntegration runs rclone's tests on a remote of the user's configuration.
func TestIntegration(t *testing.T) {
	if *fstest.RemoteName == "" {
		t.Skip("-remote names no remote to test")
	}
	rclonesTests(t, *fstest.RemoteName, nil)
}

// Images in a folder of this machine.
func TestLocal(t *testing.T) {
	if *fstest.RemoteName != "" {
		t.Skip("-remote names another remote")
	}
	for _, format := range []string{"spgz", "raw"} {
		t.Run(format, func(t *testing.T) {
			name := "Test" + strings.NewReplacer("/", "").Replace(t.Name())
			rclonesTests(t, name+":", []fstests.ExtraConfigItem{
				{Name: name, Key: "type", Value: "diskrsync"},
				{Name: name, Key: "remote", Value: filepath.Join(t.TempDir(), "images")},
				{Name: name, Key: "format", Value: format},
			})
		})
	}
}
