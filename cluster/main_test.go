package cluster

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// settled gives memberlist the time to end: its shutdown doesn't wait for the last probe, which may take some seconds.
type settled struct{ *testing.M }

func (s settled) Run() int {
	code := s.M.Run()
	for end := time.Now().Add(patience); goleak.Find() != nil && time.Now().Before(end); {
	}
	return code
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(settled{m}) }
