package transport

import "syscall"

// childAttr has the carrier told to end when this process is gone, however it
// went. Its input ends then as well, which is enough for ssh; it is not for a
// carrier that does not read.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
}
