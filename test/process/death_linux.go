package process

import "syscall"

// deathSignal makes the kernel end a node when the program that started it dies without stopping it.
func deathSignal() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
