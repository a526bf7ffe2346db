package node

import (
	"context"
	"errors"
	"testing"

	"pier/fsm"
)

// A level that the log has seen is understood by all: nobody is asked any more. One that it hasn't is not taken for that.
func TestLevelsThatAreInUse(t *testing.T) {
	cfg := Default()
	cfg.DataDir, cfg.Listen, cfg.ClusterListen = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0"
	n, err := New(cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	<-n.Ready()
	log := n.instance().log
	if log.isUsed(2) || !log.isUsed(1) {
		t.Error("a log that has seen nothing but starts is said to have seen more")
	}
	if _, err := log.Propose(ctx, fsm.Admitted{Command: fsm.SetSetting{Key: "k", Value: "v"}}); err != nil {
		t.Error(err)
	}
	if !log.isUsed(3) || log.isUsed(4) {
		t.Error("level 3 is in use, and 4 is not")
	}
	if err := log.understood(struct{ fsm.Command }{fsm.SetSetting{}}); !errors.Is(err, fsm.ErrLevel) {
		t.Errorf("a command of a newer release: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
