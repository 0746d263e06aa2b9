//go:build linux

package lab

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// endWithin is how long what belongs to a sync may stay around after the sync
// has ended in whatever way.
const endWithin = 15 * time.Second

// A Process is one entry of the process table.
type Process struct {
	ID      int
	Parent  int
	Program string // the path of its executable
	Line    string // its command line
	began   string // when it started: what tells it from one that has its id later
}

func (p Process) String() string { return fmt.Sprintf("%d (%s)", p.ID, p.Line) }

// Processes returns what runs on behalf of a sync with the host, at either end:
// the sessions of its server, and everything that has the host's folder in the
// path of its program or in its arguments. The server itself is not among them.
func (h *Host) Processes(t testing.TB) []Process {
	t.Helper()
	var found []Process
	for _, p := range allProcesses(t) {
		ours := p.Parent == h.server.Process.Pid ||
			strings.HasPrefix(p.Program, h.Dir) || strings.Contains(p.Line, h.Dir)
		if ours && p.ID != h.server.Process.Pid {
			found = append(found, p)
			h.seen[p.ID] = p
		}
	}
	return found
}

// Agents returns the agents that run at the host.
func (h *Host) Agents(t testing.TB) []Process {
	t.Helper()
	return slices.DeleteFunc(h.Processes(t), func(p Process) bool { return p.Program != h.Agent })
}

// Carriers returns the ssh clients that are connected to the host.
func (h *Host) Carriers(t testing.TB) []Process {
	t.Helper()
	return slices.DeleteFunc(h.Processes(t), func(p Process) bool { return filepath.Base(p.Program) != "ssh" })
}

// AwaitQuiet fails the test if something is still there some seconds later. What
// was seen before and is about to end counts, too: it may hold locks.
func (h *Host) AwaitQuiet(t testing.TB) {
	t.Helper()
	left := h.left(t)
	for deadline := time.Now().Add(endWithin); len(left) > 0 && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
		left = h.left(t)
	}
	for _, p := range left {
		t.Errorf("left behind after %v: process %v", endWithin, p)
	}
}

func (h *Host) left(t testing.TB) []Process {
	t.Helper()
	h.Processes(t)
	maps.DeleteFunc(h.seen, func(_ int, p Process) bool { return p.gone() })
	return slices.Collect(maps.Values(h.seen))
}

func allProcesses(t testing.TB) []Process {
	t.Helper()
	entries := Must(os.ReadDir("/proc"))(t)
	var all []Process
	for _, entry := range entries {
		id, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue // not a process
		}
		if p, ok := readProcess(id); ok {
			all = append(all, p)
		}
	}
	return all
}

// readProcess returns false for a process that has ended meanwhile, or that
// has ended and only waits for its parent to ask.
func readProcess(id int) (Process, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(id))
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || len(line) == 0 {
		return Process{}, false
	}
	stat, err := readStat(id)
	if err != nil {
		return Process{}, false
	}
	parent, err := strconv.Atoi(stat[1])
	if err != nil {
		return Process{}, false
	}
	program, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		program = "" // another user's: known by its line only
	}
	return Process{id, parent, program, strings.ReplaceAll(strings.Trim(string(line), "\x00"), "\x00", " "), stat[19]}, true
}

// readStat returns what the kernel tells of a process, from its state on.
func readStat(id int) ([]string, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(id), "stat"))
	if err != nil {
		return nil, err
	}
	// Before that stands the name, in parentheses, which may hold anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("process %d: what the kernel tells is not understood: %s", id, stat)
	}
	return fields, nil
}

// gone reports whether nothing is left of a process. One that was killed has lost
// its name and its memory long before its last thread is back from the disk, and
// only then its files are closed.
func (p Process) gone() bool {
	stat, err := readStat(p.ID)
	if err != nil || stat[19] != p.began {
		return true
	}
	ended := stat[0] == "Z" || stat[0] == "X"
	return ended && (stat[17] == "1" || stat[17] == "0") // threads
}

// Sessions returns the processes of the server that carry the host's sessions.
func (h *Host) Sessions(t testing.TB) []Process {
	t.Helper()
	return slices.DeleteFunc(h.Processes(t), func(p Process) bool { return p.Parent != h.server.Process.Pid })
}
