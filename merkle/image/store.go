package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// StoreFolder lies beside the images of a folder, with what is stored about them.
const StoreFolder = ".diskrsync"

// A Kind is what lies in the store about an image, by the end of its name.
type Kind string

// All that may be in there.
const (
	KindTree    Kind = "tree"    // the outboard
	KindLock    Kind = "lock"    // who is writing
	KindJournal Kind = "journal" // what is, or was, under way
	KindPartial Kind = "partial" // a new image
	KindFresh   Kind = "fresh"   // a journal that is being made
)

// Of returns where in the store that of an image lies: a path in the image's folder,
// with slashes.
func (k Kind) Of(name string) string { return path.Join(StoreFolder, name+"."+string(k)) }

// A store is what is kept about one image: for a file in the folder .diskrsync
// beside it, for a device in a folder of this machine's state.
type store struct {
	images folder // where the image is
	name   string // of the image in there
	path   string // of the image, for messages

	root folder // where the store is; nil if there is nowhere for it
	dir  string // the folder in root
	key  string // the image's name in that folder

	trees folder // where the outboard is: root but for a device

	device bool
	noTree bool // hashes are neither stored nor believed
}

func newStore(p *Place) *store {
	return &store{images: p.root, name: p.name, path: p.path, root: p.root, dir: StoreFolder, key: p.name, trees: p.root}
}

// file returns the name of one of the store's files.
func (s *store) file(kind Kind) string { return path.Join(s.dir, s.key+"."+string(kind)) }

// base describes the file of an image for its journal. A device is identified by
// the name of what is kept about it.
func (s *store) base(d *disk) (fileState, error) {
	if s.device {
		return fileState{}, nil
	}
	return s.fileState(d)
}

func (s *store) fileState(d *disk) (fileState, error) {
	state, err := fileStateOf(d.f)
	if err != nil {
		return fileState{}, fmt.Errorf("image %s: looking at it: %w", s.path, cause(err))
	}
	return state, nil
}

// fileStateOf returns how a file is.
func fileStateOf(f file) (fileState, error) {
	info, err := f.Stat()
	if err != nil {
		return fileState{}, err
	}
	return fileState{Size: info.Size(), Time: info.ModTime().UnixNano(), Inode: f.Inode()}, nil
}

// bound describes an image for its outboard: as long as it does not change, nor
// does the image, as far as that can be known.
func (s *store) bound(d *disk) (fileState, error) {
	if !s.device {
		return s.fileState(d)
	}
	inode, err := d.f.Writes()
	return fileState{Size: d.held, Inode: inode}, err
}

// makeFolder makes the store's folder, durably.
func (s *store) makeFolder() error {
	if s.device {
		return nil // it was made when it was opened
	}
	if err := s.root.Mkdir(s.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("image %s: making the folder %s beside it: %w", s.path, s.dir, spaceError(err))
	}
	if err := s.checkFolder(); err != nil {
		return err
	}
	// Even if it was there: another process may have made it just now.
	return s.syncImages()
}

// checkFolder refuses a folder that someone may have put there who has no power
// over the images beside it: what a journal says is put into them.
func (s *store) checkFolder() error {
	if s.device {
		return nil
	}
	info, err := s.root.Lstat(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("image %s: looking at the folder %s beside it: %w", s.path, s.dir, cause(err))
	}
	if !info.IsDir() {
		return refuse(ErrRefused, "image %s: what is called %s beside it is not a folder: move it elsewhere", s.path, s.dir)
	}
	uid, known := owner(info)
	above, err := s.root.Lstat(".")
	if !known || err != nil || above.Mode()&anyoneWrites == 0 {
		return nil
	}
	if host, _ := owner(above); info.Mode()&anyoneWrites == 0 && (uid == 0 || uid == os.Geteuid() || uid == host) {
		return nil
	}
	return refuse(ErrRefused, "image %s: the folder %s beside it is under the control of user %d, who could change the image by it: remove it, or have it owned by who syncs", s.path, s.dir, uid)
}

// anyoneWrites is the permission of everyone to write.
const anyoneWrites = 0o002

// readJournal opens the journal, if there is one, as it is.
func (s *store) readJournal() (*journal, error) {
	if err := s.checkFolder(); err != nil {
		return nil, err
	}
	return openJournal(s.root, s.file(KindJournal), s.path, os.O_RDONLY)
}

// openJournalToWrite opens the journal, if there is one, for a writer. Whoever
// left it may have been killed at any point, so what can be seen of it need not be
// durable. It is made so before anything is built upon it.
func (s *store) openJournalToWrite() (*journal, error) {
	f, err := openRegular(s.root, s.file(KindJournal), os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: opening its journal: %w", s.path, cause(err))
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("image %s: making its journal durable: %w", s.path, cause(err))
	}
	if err := s.sync(); err != nil {
		return nil, err
	}
	return openJournal(s.root, s.file(KindJournal), s.path, os.O_RDWR)
}

// syncImages and sync make the names beside the image, and in the store, durable.
func (s *store) syncImages() error { return s.syncNames(s.images, ".") }
func (s *store) sync() error       { return s.syncNames(s.root, s.dir) }

// syncNames lets pass that some file systems have no such call, since they do so
// by themselves.
func (s *store) syncNames(root folder, name string) error {
	if err := root.Sync(name); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("image %s: making a name durable: %w", s.path, cause(err))
	}
	return nil
}

// drop removes a file of the store, if it exists.
func (s *store) drop(kind Kind) error {
	if err := s.root.Remove(s.file(kind)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %s: removing its %s: %w", s.path, s.file(kind), cause(err))
	}
	return nil
}

// dropTree removes the outboard, durably.
func (s *store) dropTree() error {
	if err := s.trees.Remove(s.file(KindTree)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %s: removing what is stored of its hashes: %w", s.path, cause(err))
	}
	return s.syncNames(s.trees, s.dir)
}

// dropJournal ends what the journal was about, durably: if it came back after a
// crash it would be put into an image that has changed since.
func (s *store) dropJournal() error {
	if err := s.drop(KindJournal); err != nil {
		return err
	}
	return s.sync()
}

// createJournal makes a journal in place of any other. Once it has its name all
// of its header is durable: a journal with a damaged one is not just a new one.
func (s *store) createJournal(h journalHeader) (*journal, error) {
	if err := s.drop(KindFresh); err != nil {
		return nil, err
	}
	f, err := s.root.OpenFile(s.file(KindFresh), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("image %s: making its journal: %w", s.path, spaceError(err))
	}
	j := &journal{f: f, path: s.path, head: h}
	if err := s.begin(j); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

func (s *store) begin(j *journal) error {
	if _, err := j.f.WriteAt(append(j.head.encode(), make([]byte, journalPage)...), 0); err != nil {
		return j.fail("writing", err)
	}
	if err := j.sync(); err != nil {
		return err
	}
	if err := s.root.Rename(s.file(KindFresh), s.file(KindJournal)); err != nil {
		return fmt.Errorf("image %s: making its journal: %w", s.path, cause(err))
	}
	return s.sync()
}

// baseOf returns the name of the file that a journal is about.
func (s *store) baseOf(j *journal) (string, error) {
	if j.head.Way != wayNew {
		return s.name, nil
	}
	_, err := s.images.Lstat(s.file(KindPartial))
	switch {
	case err == nil:
		return s.file(KindPartial), nil
	case errors.Is(err, fs.ErrNotExist):
		return s.name, nil // it is in place already
	}
	return "", fmt.Errorf("image %s: looking for its partial file: %w", s.path, cause(err))
}

// publish moves the partial file to the image's name. A hard link is the way to
// do so that never replaces anything; an empty file may be replaced.
func (s *store) publish() error {
	partial := s.file(KindPartial)
	if _, err := s.images.Lstat(partial); errors.Is(err, fs.ErrNotExist) {
		return nil // it was done already
	}
	if err := s.images.Link(partial, s.name); err != nil {
		// Something is in the way, or there are no hard links here.
		if err := s.mayReplace(); err != nil {
			return err
		}
		if err := s.images.Rename(partial, s.name); err != nil {
			return fmt.Errorf("image %s: putting it into place: %w", s.path, spaceError(err))
		}
	}
	if err := s.syncImages(); err != nil {
		return err
	}
	return s.drop(KindPartial)
}

// mayReplace refuses to put the new image in the place of anything but an empty
// file, or of itself.
func (s *store) mayReplace() error {
	now, err := s.images.Lstat(s.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", s.path, cause(err))
	}
	own, err := s.images.Lstat(s.file(KindPartial))
	if err == nil && s.images.Same(now, own) || now.Mode().IsRegular() && now.Size() == 0 {
		return nil
	}
	return &takenError{refuse(ErrChanged, "image %s: was made by someone else in the meantime, and is left alone: the new one is kept as %s: move what is in its place elsewhere and sync again, or drop the new one with diskrsync clean",
		s.path, s.file(KindPartial))}
}

// A takenError says that there is something where a new image is to be.
type takenError struct{ error }

func (e *takenError) Unwrap() error { return e.error }

// changeTree opens the outboard to be changed, and makes it if that is asked
// for. It is nil if there is none.
func (s *store) changeTree(make bool) (*tree, error) {
	flag := os.O_RDWR
	if make {
		flag |= os.O_CREATE
	}
	f, err := openRegular(s.trees, s.file(KindTree), flag)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: storing its hashes: %w", s.path, spaceError(err))
	}
	return &tree{f: f, path: s.path, have: -1}, s.syncNames(s.trees, s.dir)
}

// believedTree opens the outboard if it is that of the image as it is now, else
// returns nil.
func (s *store) believedTree(d *disk) (*tree, error) {
	if s.noTree {
		return nil, nil
	}
	t, err := openTree(s.trees, s.file(KindTree), s.path)
	if err != nil || t == nil {
		return nil, err
	}
	if !s.isOf(t, d) {
		return nil, t.close()
	}
	return t, nil
}

// isOf reports whether an outboard is that of the image as it is now.
func (s *store) isOf(t *tree, d *disk) bool {
	now, err := s.bound(d)
	return err == nil && now == fileState{t.head.FileSize, t.head.FileTime, t.head.Inode}
}

// close releases what the store of a device has opened.
func (s *store) close() error {
	if !s.device {
		return nil
	}
	var errs []error
	if s.root != nil {
		errs = append(errs, s.root.Close())
	}
	if s.trees != nil {
		errs = append(errs, s.trees.Close())
	}
	return errors.Join(errs...)
}
