package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// A journal is about one file, whatever that is called. Images are moved and copied
// by people who do not know what lies beside them, also right after a crash, when an
// update has been put into one half way, or is committed and waits. What must not
// happen then is that half of an update is read as a whole image, or that the only
// thing that could complete it is dropped without a word.

// A claim is what a journal may still have for its file.
type claim int

const (
	claimNone    claim = iota
	claimWaiting       // a committed update, of which the file has nothing yet
	claimHalf          // the file is a mixture
)

// claim returns what the journal still has for its file.
func (j *journal) claim() claim {
	sealed := j.lastSeal() != nil
	switch {
	case j.head.Way == wayNew:
		return claimNone // nobody takes a partial file for an image
	case j.head.Way == wayInPlace && !sealed, j.head.Way == wayRedo && sealed && j.marked && j.applied() == nil:
		return claimHalf
	case j.head.Way == wayRedo && sealed && j.applied() == nil:
		return claimWaiting
	}
	return claimNone
}

// whereIs returns the name, beside the image, of the file of an inode, and how it is;
// "" if it is not there.
func (s *store) whereIs(inode uint64) (string, fileState, error) {
	names, err := s.images.Names(".")
	if err != nil {
		return "", fileState{}, fmt.Errorf("image %s: looking what lies beside it: %w", s.path, cause(err))
	}
	for _, name := range names {
		f, err := openRegular(s.images, name, os.O_RDONLY)
		if err != nil {
			continue // none of ours, or gone
		}
		state, err := fileStateOf(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", fileState{}, fmt.Errorf("image %s: looking at %s beside it: %w", s.path, name, cause(err))
		}
		if state.Inode == inode {
			return name, state, nil
		}
	}
	return "", fileState{}, nil
}

// strayed returns an error if the file that a journal still has something for lies
// beside the image under another name: to bring it back completes it, and nothing else
// can.
func (s *store) strayed(j *journal) error {
	c := j.claim()
	if c == claimNone || s.device {
		return nil
	}
	name, now, err := s.whereIs(j.head.Base.Inode)
	if err != nil || name == "" || name == s.name {
		return err
	}
	what := "an update was put half way into what is now called %s"
	if c == claimWaiting {
		if now != j.head.Base {
			return nil // it has changed since, and cannot be completed any more
		}
		what = "a committed update waits for what is now called %s"
	}
	return refuse(ErrInUse, "image %s: "+what+": give that its name back to complete it, or drop the update with diskrsync clean", s.path, name)
}

// former returns what a journal beside the image, of another name, has for the file of
// an inode, and that name.
func (s *store) former(inode uint64) (string, claim, error) {
	names, err := s.root.Names(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", claimNone, nil
	}
	if err != nil {
		return "", claimNone, fmt.Errorf("image %s: looking what is stored beside it: %w", s.path, cause(err))
	}
	for _, name := range names {
		old, ok := strings.CutSuffix(name, "."+string(KindJournal))
		if !ok || old == s.key || !s.isAbout(path.Join(s.dir, name), inode) {
			continue
		}
		j, err := openJournal(s.root, path.Join(s.dir, name), s.path, os.O_RDONLY)
		if err != nil || j == nil {
			continue // it is damaged, or ended just now
		}
		c := j.claim()
		if err := j.close(); err != nil {
			return "", claimNone, err
		}
		if c != claimNone {
			return old, c, nil
		}
	}
	return "", claimNone, nil
}

// movedHalfWay says why an image is incomplete, and what to do.
func movedHalfWay(old string) string {
	return fmt.Sprintf("it was moved while an update was half way in it: give it its name %s back, which completes it", old)
}

// isAbout reports whether a file is a journal about the file of an inode. Only its
// first page is read: that of another image may be long.
func (s *store) isAbout(name string, inode uint64) bool {
	f, err := openRegular(s.root, name, os.O_RDONLY)
	if err != nil {
		return false
	}
	defer f.Close() // it was only read
	p := make([]byte, journalPage)
	if n, err := f.ReadAt(p, 0); n < len(p) && err != nil && err != io.EOF {
		return false
	}
	h, err := decodeJournalHeader(p)
	return err == nil && h.Way != wayNew && h.Base.Inode == inode
}

// openRegular opens what is, or is going to be, a regular file. Anything else that lies
// there was put there by someone else: a pipe would be waited for, and a link would
// lead to another file.
func openRegular(root folder, name string, flag int) (file, error) {
	info, err := root.Lstat(name)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("is not a regular file")}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return root.OpenFile(name, flag, 0o600)
}
