package api

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// shares hand out a bounded amount of something, of which one source gets no more than a part: what it holds for long it holds
// from itself first.
type shares struct {
	all  *semaphore.Weighted
	part int64

	mu   sync.Mutex
	from map[string]*share
}

// share is what one source has. It is there while somebody has or wants some of it.
type share struct {
	left  *semaphore.Weighted
	users int
}

func newShares(all, part int64) *shares {
	return &shares{all: semaphore.NewWeighted(all), part: part, from: make(map[string]*share)}
}

// acquire waits for n, which release gives back.
func (s *shares) acquire(ctx context.Context, source string, n int64) (release func(), err error) {
	own := s.join(source)
	if err := own.left.Acquire(ctx, n); err != nil {
		s.quit(source)
		return nil, err
	}
	if err := s.all.Acquire(ctx, n); err != nil {
		own.left.Release(n)
		s.quit(source)
		return nil, err
	}
	return func() {
		s.all.Release(n)
		own.left.Release(n)
		s.quit(source)
	}, nil
}

func (s *shares) join(source string) *share {
	s.mu.Lock()
	defer s.mu.Unlock()
	own, ok := s.from[source]
	if !ok {
		own = &share{left: semaphore.NewWeighted(s.part)}
		s.from[source] = own
	}
	own.users++
	return own
}

func (s *shares) quit(source string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from[source].users--; s.from[source].users == 0 {
		delete(s.from, source)
	}
}
