package wait

import (
	"testing"
	"time"
)

// longest is between two looks at what takes its time: those at what comes at once are closer together.
const longest = 50 * time.Millisecond

// Until looks again and again until check finds nothing wrong, and ends the test when it still does after the limit. what says
// what was waited for.
func Until(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	pause := time.Millisecond
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		case <-time.After(pause):
			pause = min(2*pause, longest)
		}
	}
}
