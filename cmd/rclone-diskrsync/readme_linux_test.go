package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// need skips a test that cannot run here, and fails it where everything is meant to
// be there.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("DISKRSYNC_TEST_REAL") == "1" {
		t.Fatalf("this test needs %s", what)
	}
	t.Skipf("this test needs %s", what)
}

func has(programs ...string) bool {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return false
		}
	}
	return true
}

// shown returns the block of code of README.md that begins with a text.
func shown(t *testing.T, language, begin string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "```"+language+"\n"+begin)
	require.True(t, found, "README.md shows no %q", begin)
	code, _, _ := strings.Cut(rest, "```\n")
	return begin + code
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	require.NoError(t, err, "%s %q: %s", program, args, out)
	return strings.TrimSpace(string(out))
}

// A volume is a loop device that stands for a logical volume and its snapshot, with
// stand-ins for the programs of LVM.
type volume struct {
	script, bin, group, log string
	disk                    []byte
}

const (
	fakeLVS = `#!/bin/sh
[ -e "$SNAPSHOT" ] && echo "  root"
`
	fakeLVCreate = `#!/bin/sh
echo "lvcreate $*" >>"$LOG"
ln -s "$DEVICE" "$SNAPSHOT"
`
	fakeLVRemove = `#!/bin/sh
echo "lvremove $*" >>"$LOG"
rm "$SNAPSHOT"
`
)

// makeVolume lets the script of the README find a volume group with a volume root.
func makeVolume(t *testing.T) *volume {
	need(t, os.Geteuid() == 0 && has("losetup", "flock") && exec.Command("losetup", "-f").Run() == nil, "root, loop devices and flock")
	dir := t.TempDir()
	v := &volume{script: filepath.Join(dir, "backup-lv"), bin: filepath.Join(dir, "bin"), log: filepath.Join(dir, "log"),
		disk: []byte(strings.Repeat("the content of a disk ", 100_000))[:2<<20]}
	require.NoError(t, os.Mkdir(v.bin, 0o700))
	for p, text := range map[string]string{
		v.script:                         shown(t, "sh", "#!/bin/sh\n# /usr/local/sbin/backup-lv"),
		filepath.Join(v.bin, "lvs"):      fakeLVS,
		filepath.Join(v.bin, "lvcreate"): fakeLVCreate,
		filepath.Join(v.bin, "lvremove"): fakeLVRemove,
	} {
		require.NoError(t, os.WriteFile(p, []byte(text), 0o700))
	}
	file := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(file, v.disk, 0o600))
	loop := run(t, "losetup", "--show", "-f", file)
	t.Cleanup(func() { run(t, "losetup", "-d", loop) })
	folder, err := os.MkdirTemp("/dev", "diskrsync-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.Remove(folder)) }) // fails if the snapshot was left
	v.group = filepath.Base(folder)
	t.Cleanup(func() { _ = os.Remove("/run/lock/backup-lv-" + v.group + "-root") })
	t.Setenv("DEVICE", loop)
	t.Setenv("LOG", v.log)
	t.Setenv("SNAPSHOT", v.snapshot())
	t.Setenv("PATH", v.bin+":"+os.Getenv("PATH"))
	t.Setenv("RCLONE_CONFIG", filepath.Join(dir, "none"))
	return v
}

func (v *volume) snapshot() string { return filepath.Join("/dev", v.group, "root-diskrsync") }

// done returns what was done to the volumes.
func (v *volume) done(t *testing.T) string {
	t.Helper()
	log, err := os.ReadFile(v.log)
	require.NoError(t, err)
	require.NoFileExists(t, v.snapshot())
	return strings.ReplaceAll(string(log), v.group, "VG")
}

const (
	created = "lvcreate --snapshot --extents 20%ORIGIN --name root-diskrsync VG/root\n"
	removed = "lvremove --yes VG/root-diskrsync\n"
)

// The script of the README backs up a snapshot, and leaves none: not after a backup, nor
// after one that failed, nor one that a dead run had left.
func TestBackupScript(t *testing.T) {
	v := makeVolume(t)
	copied := filepath.Join(t.TempDir(), "copy.img")
	run(t, v.script, v.group+"/root", copied)
	require.Equal(t, created+removed, v.done(t))
	got, err := os.ReadFile(copied)
	require.NoError(t, err)
	require.True(t, string(got) == string(v.disk), "the backup is not what is on the disk")

	require.NoError(t, os.Remove(v.log))
	require.Error(t, exec.Command(v.script, v.group+"/root", "nowhere:").Run())
	require.Equal(t, created+removed, v.done(t))

	require.NoError(t, os.Remove(v.log))
	require.NoError(t, os.Symlink(os.Getenv("DEVICE"), v.snapshot()))
	run(t, v.script, v.group+"/root", copied)
	require.Equal(t, removed+created+removed, v.done(t))
}

// A backup that is told to end in the middle leaves no snapshot either, and a second one
// meanwhile does not touch it.
func TestBackupScriptEndedInTheMiddle(t *testing.T) {
	v := makeVolume(t)
	slow := "#!/bin/sh\necho backup >>\"$LOG\"\nexec sleep 600\n"
	require.NoError(t, os.WriteFile(filepath.Join(v.bin, "rclone-diskrsync"), []byte(slow), 0o700))
	first := exec.Command(v.script, v.group+"/root", "disks:")
	first.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as systemd ends all of a service
	require.NoError(t, first.Start())
	require.Eventually(t, func() bool {
		log, _ := os.ReadFile(v.log) // not there yet
		return strings.HasSuffix(string(log), "backup\n")
	}, time.Minute, 10*time.Millisecond)
	out, err := exec.Command(v.script, v.group+"/root", "disks:").CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "is under way")
	require.FileExists(t, v.snapshot())

	require.NoError(t, syscall.Kill(-first.Process.Pid, syscall.SIGTERM))
	require.Error(t, first.Wait())
	require.Equal(t, 143, first.ProcessState.ExitCode())
	require.Equal(t, created+"backup\n"+removed, v.done(t))
}

// systemd takes the units of the README as they are.
func TestUnits(t *testing.T) {
	need(t, has("systemd-analyze"), "systemd-analyze")
	dir := t.TempDir()
	var units []string
	for _, kind := range []string{"service", "timer"} {
		text := shown(t, "ini", "# /etc/systemd/system/backup-root."+kind+"\n")
		text = strings.Replace(text, "/usr/local/sbin/backup-lv", "/bin/true", 1) // which it looks for
		units = append(units, filepath.Join(dir, "backup-root."+kind))
		require.NoError(t, os.WriteFile(units[len(units)-1], []byte(text), 0o600))
	}
	out := run(t, "systemd-analyze", append([]string{"verify", "--man=no"}, units...)...)
	require.NotContains(t, out, dir, "it complains")
}

// The CronJob runs a command that there is, on a device and with a configuration that
// are there. Whether Kubernetes takes it all is not tried.
func TestCronJob(t *testing.T) {
	type named struct {
		Name, Value string
		DevicePath  string `yaml:"devicePath"`
		MountPath   string `yaml:"mountPath"`
	}
	var job struct {
		Kind string
		Spec struct {
			JobTemplate struct {
				Spec struct {
					Template struct {
						Spec struct {
							Containers []struct {
								Command       []string
								Env           []named
								VolumeDevices []named `yaml:"volumeDevices"`
								VolumeMounts  []named `yaml:"volumeMounts"`
							}
							Volumes []named
						}
					}
				}
			} `yaml:"jobTemplate"`
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(shown(t, "yaml", "apiVersion: batch/v1\n")), &job))
	require.Equal(t, "CronJob", job.Kind)
	pod := job.Spec.JobTemplate.Spec.Template.Spec
	require.Len(t, pod.Containers, 1)
	backup := pod.Containers[0]
	require.Len(t, backup.VolumeDevices, 1)
	require.Len(t, backup.VolumeMounts, 1)
	require.Len(t, backup.Env, 1)
	require.Equal(t, []string{"/rclone-diskrsync", "diskrsync", "blockdev:" + backup.VolumeDevices[0].DevicePath}, backup.Command[:3])
	require.Equal(t, named{Name: "RCLONE_CONFIG", Value: backup.VolumeMounts[0].MountPath + "/rclone.conf"}, backup.Env[0])
	require.Equal(t, []string{pod.Volumes[0].Name, pod.Volumes[1].Name}, []string{backup.VolumeDevices[0].Name, backup.VolumeMounts[0].Name})
}

// The recipe for a plugin leads to one that an rclone with cgo loads, and one without
// does not, and says so. It builds rclone twice.
func TestPlugin(t *testing.T) {
	if os.Getenv("DISKRSYNC_TEST_REAL") != "1" {
		t.Skip("this test builds rclone for minutes: set DISKRSYNC_TEST_REAL=1")
	}
	need(t, runtime.GOOS == "linux" && has("gcc"), "Linux and gcc")
	dir := t.TempDir()
	build := func(cgo, output string, args ...string) string {
		p := filepath.Join(dir, output)
		c := exec.Command("go", append([]string{"build", "-o", p}, args...)...)
		c.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		out, err := c.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return p
	}
	build("1", "librcloneplugin_backend_diskrsync.so", "-buildmode=plugin", "../../backend/diskrsync/plugin")
	t.Setenv("RCLONE_PLUGIN_PATH", dir)
	t.Setenv("RCLONE_CONFIG", filepath.Join(dir, "none"))
	able := build("1", "rclone", "github.com/rclone/rclone")
	require.Contains(t, run(t, able, "help", "backend", "diskrsync"), "--diskrsync-remote")
	require.Contains(t, run(t, able, "help", "backend", "blockdev"), "--blockdev-allow-write")
	unable := build("0", "rclone-without-cgo", "github.com/rclone/rclone")
	require.Contains(t, run(t, unable, "version"), "plugin: not implemented")
}
