package auth

import "time"

const (
	failureMemory = 15 * time.Minute
	failureLimit  = 10_000
	firstPause    = 500 * time.Millisecond
)

// failures counts wrong logins by account or by address, and says how long the next one has to wait. Not safe for
// concurrent use.
type failures struct {
	free    int // this many cost nothing
	longest time.Duration
	memory  time.Duration
	seen    map[string]failure
}

type failure struct {
	count int
	last  time.Time
}

func newFailures(free int, longest time.Duration) *failures {
	return &failures{free: free, longest: longest, memory: failureMemory, seen: make(map[string]failure)}
}

// note counts one more. The pauses double from half a second.
func (f *failures) note(key string, now time.Time) {
	if len(f.seen) >= failureLimit {
		f.makeRoom(now)
	}
	was := f.seen[key]
	if now.Sub(was.last) > f.memory {
		was.count = 0
	}
	f.seen[key] = failure{count: was.count + 1, last: now}
}

// makeRoom forgets what is old, and a part of the rest where that is not enough: a flood of names must not fill memory.
func (f *failures) makeRoom(now time.Time) {
	for key, was := range f.seen {
		if now.Sub(was.last) > f.memory {
			delete(f.seen, key)
		}
	}
	for key := range f.seen {
		if len(f.seen) < failureLimit*9/10 {
			return
		}
		delete(f.seen, key)
	}
}

// count is how many there were of late.
func (f *failures) count(key string, now time.Time) int {
	was := f.seen[key]
	if now.Sub(was.last) > f.memory {
		return 0
	}
	return was.count
}

func (f *failures) forget(key string) { delete(f.seen, key) }

// pause is what is left to wait.
func (f *failures) pause(key string, now time.Time) time.Duration {
	was := f.seen[key]
	if was.count < f.free {
		return 0
	}
	wait := min(firstPause<<min(was.count-f.free, 16), f.longest)
	return max(0, wait-now.Sub(was.last))
}
