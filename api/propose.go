package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"pier/fsm"
)

// settleWait is how long a change waits for a node that starts.
const settleWait = 10 * time.Second

// settled comes before a change of the cluster: a node that is new or comes back hasn't heard yet what was decided meanwhile
// about who may do what, and what it proposes is done by all.
func (a *API) settled(ctx context.Context) error {
	if exchangeOf(ctx).by == nil || a.cfg.Ready(false) == nil {
		return nil
	}
	deadline := time.Now().Add(settleWait)
	for {
		err := a.catchUp(ctx)
		ready := a.cfg.Ready(false)
		if !errors.Is(err, ErrUnavailable) || ready != nil && !errors.Is(ready, ErrStarting) || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, relayPause); err != nil {
			return err
		}
	}
}

// propose is for what a caller asked for. It happens only while who may do what is as it was when the caller was let in: where
// that has changed, this node waits until it has heard of it and decides again.
func (a *API) propose(ctx context.Context, cmd fsm.Command) (fsm.Answer, error) {
	if err := a.settled(ctx); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(settleWait)
	for {
		answer, err := a.proposeOnce(ctx, cmd)
		if !errors.Is(err, fsm.ErrAccessChanged) || exchangeOf(ctx).relayed || time.Now().After(deadline) {
			return answer, err
		}
		if err := a.catchUp(ctx); err != nil {
			return nil, err
		}
	}
}

func (a *API) proposeOnce(ctx context.Context, cmd fsm.Command) (fsm.Answer, error) {
	x := exchangeOf(ctx)
	if !x.decided { // the operator, who may do all
		return a.log.Propose(ctx, cmd)
	}
	answer, err := a.log.Propose(ctx, fsm.Admitted{Access: x.version, Command: cmd})
	if errors.Is(err, fsm.ErrLevel) { // a node of the release before doesn't know what that is
		return a.log.Propose(ctx, cmd)
	}
	return answer, err
}

// fresh comes before what the cluster itself is told to do, which is no command of a caller's: it rests on what the cluster
// has heard by now.
func (a *API) fresh(ctx context.Context) error {
	if exchangeOf(ctx).by == nil {
		return nil
	}
	if err := a.settled(ctx); err != nil {
		return err
	}
	return a.catchUp(ctx)
}

// headerAccess goes with a relayed request: the version of who may do what that let the caller in. In an answer it says that
// the state has another by now, so that nothing was done.
const headerAccess = "Pier-Access-Version"

// letInElsewhere takes over what another node has decided.
func (x *exchange) letInElsewhere(r *http.Request) {
	version, err := strconv.ParseUint(r.Header.Get(headerAccess), 10, 64)
	x.version, x.decided = version, err == nil
}

// tellVersion says with a request to another node by what this one let the caller in. What the client sends by that name is
// never passed on.
func (x *exchange) tellVersion(h http.Header) {
	h.Del(headerAccess)
	if x.decided {
		h.Set(headerAccess, strconv.FormatUint(x.version, 10))
	}
}
