//go:build disks

package harness

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"pier/cmd/pier/node"
)

// SmallDisk mounts a file system of the given size at dir until the test ends. It needs root; elsewhere the test fails, and
// says so.
func SmallDisk(t testing.TB, dir string, bytes int64) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Fatalf("mount a small disk (run the tests as root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// StartOnDisks is StartTuned with a file system of its own, of the given bytes, for each node.
func StartOnDisks(t testing.TB, n int, bytes int64, tune node.Tuning) *Cluster {
	t.Helper()
	c := lay(t, n, tune)
	for _, x := range c.Nodes {
		SmallDisk(t, x.Dir, bytes)
	}
	return c.start()
}
