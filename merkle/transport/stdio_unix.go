//go:build unix

package transport

import (
	"os"

	"golang.org/x/sys/unix"
)

// unshared returns a duplicate of a standard file that suits a conversation
// better, if it is a pipe or a socket; anything else is returned as it is.
//
// The duplicate's number is not 1, so that a carrier that is gone is an error of
// Write; at number 1 it would end the process by SIGPIPE. And it does not block,
// so that Close interrupts a Read. A terminal must not be set to that: the shell
// shares it.
func unshared(f *os.File) *os.File {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return f
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFIFO && kind != unix.S_IFSOCK {
		return f
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return f
	}
	if err := unix.SetNonblock(dup, true); err != nil {
		unix.Close(dup)
		return f
	}
	return os.NewFile(uintptr(dup), f.Name())
}
