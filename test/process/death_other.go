//go:build !linux

package process

import "syscall"

// deathSignal is the kernel's business on linux only; elsewhere a dead test leaves its nodes to be stopped by hand.
func deathSignal() *syscall.SysProcAttr { return nil }
