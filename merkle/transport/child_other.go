//go:build !linux

package transport

import "syscall"

// childAttr asks for nothing: here a carrier learns that this process is gone
// from the end of its input.
func childAttr() *syscall.SysProcAttr { return nil }
