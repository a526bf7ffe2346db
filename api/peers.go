package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"pier/fsm"
)

// maxPeerAnswer is more than any answer of a peer has: as many lines of the audit log as may be asked for.
const maxPeerAnswer = 64 << 20

// Peer answers other nodes that ask for what only this one has: its lines of the audit log, and how it is.
func (a *API) Peer() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/audit", a.plain("audit", a.ownAudit))
	mux.Handle("/doctor", a.plain("doctor", a.peerDoctor))
	return a.observe(mux)
}

// askPeer asks what Peer answers on another node.
func (a *API) askPeer(ctx context.Context, id fsm.NodeID, path string, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+string(id)+path, nil)
	if err != nil {
		return err
	}
	resp, err := a.cfg.Relay.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the node answers %s", resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxPeerAnswer)).Decode(answer)
}
