package merkle

import "io"

// A Source is the content that a tree is built over. Its methods may be called
// by many goroutines at once.
type Source interface {
	// ReadAt fills p with the content at off, zeros where there is a hole. It
	// either fills all of p or returns an error.
	io.ReaderAt

	// NextData returns the first extent at or behind off that may hold
	// anything but zeros, cut at off if it begins before. Everything between
	// off and the extent reads as zeros. It returns io.EOF when there is no
	// more data. A Source that knows nothing of holes returns the rest of the
	// content.
	NextData(off int64) (Extent, error)
}
