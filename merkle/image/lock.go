package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// lockTries bounds how often the lock is tried for: each time, a writer
	// that just ended has removed the file in between.
	lockTries = 100

	// lockPause is what is waited for another to let go of a lock that is only
	// held for a moment.
	lockPause = 5 * time.Millisecond

	// holderSize bounds what is read of who holds a lock.
	holderSize = 512
)

// A lock keeps a second writer from an image. It is held on a file of its own,
// because the image may be replaced while it is held, and it goes with the
// process that holds it. The file has one line: process id, host, since when.
type lock struct {
	root folder
	name string
	path string // of the image, for messages
	f    file
}

// errLockMoved says that the lock file, or its folder, was removed while it was
// being locked: its holder is done, and a lock on it would exclude nobody.
var errLockMoved = errors.New("lock file was removed while it was being locked")

// takeLock locks an image. It fails with ErrInUse if another writer holds it.
func takeLock(s *store) (*lock, error) {
	var err error
	for range lockTries {
		var l *lock
		if l, err = tryLock(s); !errors.Is(err, errLockMoved) {
			return l, err
		}
	}
	return nil, fmt.Errorf("image %s: taking its lock: %w", s.path, err)
}

func tryLock(s *store) (*lock, error) {
	if err := s.makeFolder(); err != nil {
		return nil, err
	}
	l := &lock{root: s.root, name: s.file(KindLock), path: s.path}
	var err error
	if l.f, err = openRegular(s.root, l.name, os.O_RDWR|os.O_CREATE); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errLockMoved
		}
		return nil, fmt.Errorf("image %s: opening its lock file %s: %w", s.path, l.name, cause(err))
	}
	if err := l.take(s.path); err != nil {
		return nil, errors.Join(err, l.f.Close())
	}
	return l, nil
}

func (l *lock) take(path string) error {
	got, err := l.f.Lock(exclusive)
	if err != nil {
		return fmt.Errorf("image %s: locking %s: %w", path, l.name, cause(err))
	}
	if !got {
		return inUse(path, l.holder())
	}
	mine, err := l.f.Stat()
	if err != nil {
		return fmt.Errorf("image %s: locking %s: %w", path, l.name, cause(err))
	}
	if there, err := l.root.Lstat(l.name); err != nil || !l.root.Same(mine, there) {
		return errLockMoved
	}
	// A lock that is not signed excludes others as well. On a full disk it is what
	// lets an update be completed, and clean make room.
	if err := l.sign(); err != nil && !isFull(err) {
		_ = l.root.Remove(l.name) // a file without a lock means nothing
		return fmt.Errorf("image %s: writing %s: %w", path, l.name, cause(err))
	}
	return nil
}

// beingWritten reports whether another writer has the image, as far as can be known.
func (s *store) beingWritten() bool {
	if s.root == nil {
		return false
	}
	f, err := openRegular(s.root, s.file(KindLock), os.O_RDONLY)
	if err != nil {
		return false
	}
	free, err := f.Lock(shared)
	return f.Close() == nil && err == nil && !free
}

// sign writes who holds the lock.
func (l *lock) sign() error {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err = l.f.WriteAt(fmt.Appendf(nil, "%d %s %s\n", os.Getpid(), host, time.Now().Format(time.RFC3339)), 0)
	return err
}

// holder returns in words who holds the lock. Anybody may have written the file,
// so nothing but what we would write is repeated.
func (l *lock) holder() string {
	const someone = "another process"
	text, err := io.ReadAll(io.NewSectionReader(l.f, 0, holderSize))
	field := strings.Fields(string(text))
	if err != nil || len(field) != 3 {
		return someone
	}
	pid, err := strconv.Atoi(field[0])
	if err != nil {
		return someone
	}
	since, err := time.Parse(time.RFC3339, field[2])
	if err != nil || strings.ContainsFunc(field[1], notInHost) {
		return someone
	}
	return fmt.Sprintf("process %d on host %s, since %s", pid, field[1], since.Format("2006-01-02 15:04:05"))
}

func notInHost(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_", r))
}

func inUse(path, holder string) error {
	return refuse(ErrInUse, "image %s: is being written by %s: wait for it to end", path, holder)
}

// release removes the lock file while it is still locked, so that whoever opens
// it from now on finds that it is gone, and the folder if nothing else is in it.
func (l *lock) release() error {
	if l == nil {
		return nil
	}
	err := l.root.Remove(l.name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err = errors.Join(cause(err), cause(l.f.Close())); err != nil {
		return fmt.Errorf("image %s: letting go of its lock %s: %w", l.path, l.name, err)
	}
	dropFolder(l.root)
	return nil
}

// dropFolder removes the store's folder if it is empty. If it is not, other
// images need it; any other trouble with it is not worth failing for either.
func dropFolder(root folder) { _ = root.Remove(StoreFolder) }
