package image

import (
	"crypto/sha256"
	"encoding/binary"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// crashFS is a file system in memory that can crash: it records what is changed
// and what is synced, and crash returns what a loss of power may leave. It also
// runs full and fails where it is told to.
//
// What was synced survives. Of everything else each part survives or not, in any
// combination: a sector of a write or of a hole, a size, a modification time, a
// name. Only what happens to one and the same sector, size or time keeps its
// order.
type crashFS struct {
	mu    sync.Mutex
	base  *crashVolume // before log
	now   *crashVolume // as processes see it
	log   []diskChange
	next  uint64 // inode
	clock time.Time
	tick  time.Duration // by which the clock goes on at each change
	flat  bool          // holes are neither found nor made
	space int64         // bytes that fit; 0 is no limit

	open  map[uint64]int
	locks map[*crashFile]lockMode

	fault diskFault
	seen  int  // operations of the kinds of fault
	fired bool // fault has struck
}

// A diskFault makes the n-th operation of some kinds fail, counted from 1, and every
// later one if it lasts.
type diskFault struct {
	kinds opKind
	n     int
	err   error
	lasts bool
}

// An opKind is a set of kinds of operations.
type opKind int

const (
	opRead opKind = 1 << iota
	opWrite
	opName
	opRemove
	opSync
	opAny = opRead | opWrite | opName | opRemove | opSync
)

func newCrashFS() *crashFS { return onVolume(newCrashVolume(), 2, time.Unix(1_700_000_000, 0)) }

func onVolume(v *crashVolume, next uint64, clock time.Time) *crashFS {
	return &crashFS{base: v.clone(), now: v, next: next, clock: clock, tick: time.Microsecond,
		open: map[uint64]int{}, locks: map[*crashFile]lockMode{}}
}

// crash returns what is left after the first k changes, as a file system that
// was just mounted.
func (c *crashFS) crash(k int, f fate) *crashFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := onVolume(c.base.crashed(c.log[:k], f), c.next, c.clock)
	left.tick, left.flat, left.space = c.tick, c.flat, c.space
	return left
}

// killed returns the file system as the next process finds it, if the one that
// was writing ended after the first k changes: nothing is lost yet, and nothing
// has become durable.
func (c *crashFS) killed(k int) *crashFS {
	left := c.crash(k, keepAll)
	left.base, left.log = c.base, slices.Clone(c.log[:k])
	return left
}

// reboot returns the file system after an orderly end, as if all was synced.
func (c *crashFS) reboot() *crashFS { return c.crash(len(c.log), keepAll) }

// inject makes operations fail from now on.
func (c *crashFS) inject(f diskFault) { c.fault, c.seen, c.fired = f, 0, false }

// fails counts an operation and returns the error that it has to fail with.
func (c *crashFS) fails(kind opKind) error {
	if c.fault.kinds&kind == 0 {
		return nil
	}
	c.seen++
	if c.seen == c.fault.n || c.fault.lasts && c.seen > c.fault.n {
		c.fired = true
		return c.fault.err
	}
	return nil
}

// record makes a change.
func (c *crashFS) record(ch diskChange) {
	c.clock = c.clock.Add(c.tick)
	if n := c.now.nodes[ch.inode]; n != nil && ch.kind == didWrite {
		ch.size = max(n.size, ch.off+int64(len(ch.data)))
	} else if n != nil && ch.kind != didTruncate {
		ch.size = n.size
	}
	if ch.kind != didStamp {
		ch.modified = c.clock
	}
	c.log = append(c.log, ch)
	re := crashReplay{crashVolume: c.now, fate: keepAll, sure: []bool{true}, lost: map[uint64]*losses{}}
	re.apply(0, &ch)
}

func crashError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// parent checks that the folder of a name exists.
func (c *crashFS) parent(name string) error {
	inode, ok := c.now.names[path.Dir(name)]
	switch {
	case !ok:
		return syscall.ENOENT
	case !c.now.nodes[inode].mode.IsDir():
		return syscall.ENOTDIR
	}
	return nil
}

func (c *crashFS) Lstat(name string) (fs.FileInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.fails(opRead); err != nil {
		return nil, crashError("lstat", name, err)
	}
	inode, ok := c.now.names[path.Clean(name)]
	if !ok {
		return nil, crashError("lstat", name, syscall.ENOENT)
	}
	return c.info(name, inode), nil
}

func (c *crashFS) OpenFile(name string, flag int, perm fs.FileMode) (file, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	inode, err := c.lookup(path.Clean(name), flag, perm)
	if err != nil {
		return nil, crashError("open", name, err)
	}
	c.open[inode]++
	f := &crashFile{fs: c, inode: inode, name: name, writable: flag&(os.O_RDWR|os.O_WRONLY) != 0}
	if flag&os.O_TRUNC != 0 && c.now.nodes[inode].size > 0 {
		c.record(diskChange{kind: didTruncate, inode: inode})
	}
	return f, nil
}

// lookup returns the inode that is to be opened, and makes it if asked to.
func (c *crashFS) lookup(name string, flag int, perm fs.FileMode) (uint64, error) {
	inode, ok := c.now.names[name]
	switch {
	case ok && flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return 0, syscall.EEXIST
	case ok && c.now.nodes[inode].mode.IsDir() && flag&(os.O_RDWR|os.O_WRONLY) != 0:
		return 0, syscall.EISDIR
	case ok:
		return inode, c.fails(opRead)
	case flag&os.O_CREATE == 0:
		return 0, syscall.ENOENT
	}
	if err := c.parent(name); err != nil {
		return 0, err
	}
	return c.create(name, perm)
}

// create makes a file or a folder.
func (c *crashFS) create(name string, mode fs.FileMode) (uint64, error) {
	if err := c.fails(opName); err != nil {
		return 0, err
	}
	inode := c.next
	c.next++
	c.record(diskChange{kind: didMake, inode: inode, name: name, mode: mode})
	return inode, nil
}

func (c *crashFS) Mkdir(name string, perm fs.FileMode) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.now.names[path.Clean(name)]; ok {
		return crashError("mkdir", name, syscall.EEXIST)
	}
	if err := c.parent(path.Clean(name)); err != nil {
		return crashError("mkdir", name, err)
	}
	if _, err := c.create(path.Clean(name), fs.ModeDir|perm); err != nil {
		return crashError("mkdir", name, err)
	}
	return nil
}

func (c *crashFS) Link(oldname, newname string) error {
	return c.move("link", oldname, newname, func(inode uint64, there bool) (diskChange, error) {
		if there {
			return diskChange{}, syscall.EEXIST
		}
		return diskChange{kind: didLink, inode: inode, name: path.Clean(newname)}, nil
	})
}

func (c *crashFS) Rename(oldname, newname string) error {
	return c.move("rename", oldname, newname, func(inode uint64, _ bool) (diskChange, error) {
		return diskChange{kind: didRename, inode: inode, name: path.Clean(newname), from: path.Clean(oldname)}, nil
	})
}

func (c *crashFS) move(op, oldname, newname string, how func(uint64, bool) (diskChange, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	fail := func(err error) error { return &os.LinkError{Op: op, Old: oldname, New: newname, Err: err} }
	inode, ok := c.now.names[path.Clean(oldname)]
	if !ok {
		return fail(syscall.ENOENT)
	}
	if err := c.parent(path.Clean(newname)); err != nil {
		return fail(err)
	}
	other, there := c.now.names[path.Clean(newname)]
	ch, err := how(inode, there)
	if err == nil {
		err = c.fails(opName)
	}
	if err != nil {
		return fail(err)
	}
	if other != inode { // else there is nothing to rename, as POSIX has it
		c.record(ch)
	}
	return nil
}

func (c *crashFS) Remove(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	inode, ok := c.now.names[path.Clean(name)]
	if !ok {
		return crashError("remove", name, syscall.ENOENT)
	}
	for other := range c.now.names {
		if strings.HasPrefix(other, path.Clean(name)+"/") {
			return crashError("remove", name, syscall.ENOTEMPTY)
		}
	}
	if err := c.fails(opRemove); err != nil {
		return crashError("remove", name, err)
	}
	c.record(diskChange{kind: didRemove, inode: inode, name: path.Clean(name)})
	return nil
}

func (c *crashFS) Sync(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.now.names[path.Clean(name)]; !ok {
		return crashError("open", name, syscall.ENOENT)
	}
	if err := c.fails(opSync); err != nil {
		return crashError("sync", name, err)
	}
	c.log = append(c.log, diskChange{kind: didSyncFolder, name: path.Clean(name)})
	return nil
}

func (c *crashFS) Same(a, b fs.FileInfo) bool { return a.Sys() == b.Sys() }

func (c *crashFS) Free() (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.fails(opRead); err != nil {
		return 0, crashError("statfs", ".", err)
	}
	return c.free(), nil
}

func (c *crashFS) free() int64 {
	if c.space == 0 {
		return 1 << 50
	}
	return max(0, c.space-c.used())
}

// used returns the bytes in use, those of files without a name included as long
// as they are open.
func (c *crashFS) used() (sum int64) {
	counted := map[uint64]bool{}
	count := func(inode uint64) {
		if !counted[inode] {
			counted[inode] = true
			sum += int64(len(c.now.nodes[inode].pages)) * crashPage
		}
	}
	for _, inode := range c.now.names {
		count(inode)
	}
	for inode, n := range c.open {
		if n > 0 {
			count(inode)
		}
	}
	return sum
}

func (c *crashFS) Close() error { return nil }

// Names returns the names in a folder.
func (c *crashFS) Names(folder string) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.fails(opRead); err != nil {
		return nil, crashError("readdir", folder, err)
	}
	if inode, ok := c.now.names[path.Clean(folder)]; path.Clean(folder) != "." && (!ok || !c.now.nodes[inode].mode.IsDir()) {
		return nil, crashError("readdir", folder, syscall.ENOENT)
	}
	var names []string
	for name := range c.now.names {
		if name != "." && path.Dir(name) == path.Clean(folder) {
			names = append(names, path.Base(name))
		}
	}
	slices.Sort(names)
	return names, nil
}

// names returns the names in the file system but those of folders.
func (c *crashFS) names() []string {
	var names []string
	for name, inode := range c.now.names {
		if !c.now.nodes[inode].mode.IsDir() {
			names = append(names, name)
		}
	}
	return names
}

// flip inverts one bit of a file, as a disk may do that forgets.
func (c *crashFS) flip(name string, off int64, bit int) {
	n := c.now.nodes[c.now.names[name]]
	var b [1]byte
	n.read(b[:], off)
	b[0] ^= 1 << bit
	n.put(off, b[:])
	c.base = c.now.clone()
	c.log = nil
}

// crashInfo describes a file. Two of one inode are of the same file.
type crashInfo struct {
	name     string
	inode    uint64
	size     int64
	mode     fs.FileMode
	modified time.Time
}

func (c *crashFS) info(name string, inode uint64) crashInfo {
	n := c.now.nodes[inode]
	return crashInfo{path.Base(name), inode, n.size, n.mode, n.modified}
}

func (i crashInfo) Name() string       { return i.name }
func (i crashInfo) Size() int64        { return i.size }
func (i crashInfo) Mode() fs.FileMode  { return i.mode }
func (i crashInfo) ModTime() time.Time { return i.modified }
func (i crashInfo) IsDir() bool        { return i.mode.IsDir() }
func (i crashInfo) Sys() any           { return i.inode }

// read fills p from off. What is behind the end is left alone.
func (n *crashNode) read(p []byte, off int64) int {
	p = p[:max(0, min(int64(len(p)), n.size-off))]
	for done := 0; done < len(p); {
		at := off + int64(done)
		part := p[done:min(len(p), done+int(crashPage-at%crashPage))]
		if page := n.pages[at/crashPage]; page != nil {
			copy(part, page[at%crashPage:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(p)
}

// identity makes an Identity of an inode.
func (c *crashFS) identity(inode uint64) (id Identity) {
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, inode))
	copy(id[:], sum[:])
	return id
}

var _ folder = (*crashFS)(nil)
