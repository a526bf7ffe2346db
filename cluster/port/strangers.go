package port

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	maxStrangers   = 256 // that are remembered
	strangersBurst = 20  // that are told of at once; after that one a second
)

// strangers remembers who was refused, so that each is told of once. Both what is remembered and what is told are bounded,
// whoever knocks. Its zero value needs a clock.
type strangers struct {
	now func() time.Time

	mu    sync.Mutex
	known map[string]struct{}
	order []string // the oldest first
	pace  *rate.Limiter
}

// news tells whether somebody should hear of this refusal.
func (s *strangers) news(who string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pace == nil {
		s.known, s.pace = make(map[string]struct{}), rate.NewLimiter(1, strangersBurst)
	}
	if _, ok := s.known[who]; ok || !s.pace.AllowN(s.now(), 1) {
		return false
	}
	if len(s.order) == maxStrangers {
		delete(s.known, s.order[0])
		s.order = s.order[1:]
	}
	s.known[who] = struct{}{}
	s.order = append(s.order, who)
	return true
}
