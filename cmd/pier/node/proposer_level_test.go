package node

import (
	"errors"
	"testing"

	"pier/fsm"
)

// A level that the log has seen is understood by all: nobody is asked any more. One that it hasn't is not taken for that.
func TestLevelsThatAreInUse(t *testing.T) {
	n := run(t, func(*Config) {})
	log := n.instance().log
	if log.isUsed(2) || !log.isUsed(1) {
		t.Error("a log that has seen nothing but starts is said to have seen more")
	}
	if _, err := log.Propose(t.Context(), fsm.Admitted{Command: fsm.SetSetting{Key: "k", Value: "v"}}); err != nil {
		t.Error(err)
	}
	if !log.isUsed(3) || log.isUsed(4) {
		t.Error("level 3 is in use, and 4 is not")
	}
	if err := log.understood(struct{ fsm.Command }{fsm.SetSetting{}}); !errors.Is(err, fsm.ErrLevel) {
		t.Errorf("a command of a newer release: %v", err)
	}
}
