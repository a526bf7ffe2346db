package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"pier/cluster/port"
)

const (
	stagedFile  = "join.json"
	joinTimeout = 30 * time.Second // to use up the invite and to change the members, each with its own patience
	maxJoins    = 16
	askTimeout  = 10 * time.Second // to say who wants in
	maxGuests   = 64               // who haven't said it yet
)

// JoinConfig says who wants to join and with which invite.
type JoinConfig struct {
	DataDir, Token, Name, Advertise, API string
	Network                              port.Network
	Logger                               *slog.Logger
}

// Joined is what the node has become.
type Joined struct {
	ID        NodeID
	ClusterID string
	Peers     []string
}

type joinRequest struct {
	Key  []byte   `json:"key"`
	Node newcomer `json:"node"`
}

type joinReply struct {
	Error     string   `json:"error,omitempty"`
	Code      int      `json:"code,omitempty"`
	Secrets   [][]byte `json:"secrets,omitempty"`
	ClusterID string   `json:"cluster_id,omitempty"`
	Peers     []string `json:"peers,omitempty"`
}

// tokenErrors are the refusals that cross the wire, by number.
var tokenErrors = []error{nil, ErrTokenInvalid, ErrTokenExpired, ErrTokenUsed, ErrRotating}

// staged is a joining that only has to be written down: it is durable before anything of the old node goes.
type staged struct {
	Identity identity `json:"identity"`
	Secrets  [][]byte `json:"secrets"`
}

// Join uses an invite for the node in DataDir, whose inside must be stopped. The node gets a new identity, the cluster's
// secret and an empty log; the caller drops the old state.
func Join(ctx context.Context, cfg JoinConfig) (Joined, error) {
	t, err := parseToken(cfg.Token, time.Now())
	if err != nil {
		return Joined{}, err
	}
	id := NodeID(uuid.NewString())
	req := joinRequest{Key: t.Key, Node: newcomer{ID: id, Name: cfg.Name, Address: cfg.Advertise}}
	var reply joinReply
	var failed []error
	for _, address := range t.Addresses {
		if reply, err = redeem(ctx, cfg.Network, address, t.Fingerprint, req); err == nil {
			break
		}
		failed = append(failed, fmt.Errorf("%s: %w", address, err))
	}
	if err != nil {
		return Joined{}, fmt.Errorf("join: %w", errors.Join(failed...))
	}
	next := staged{Identity: identity{ID: id, Seen: map[NodeID]boot{}, Peers: reply.Peers}, Secrets: reply.Secrets}
	if err := stage(cfg.DataDir, next); err != nil {
		return Joined{}, err
	}
	if err := finishJoin(cfg.DataDir); err != nil {
		return Joined{}, err
	}
	return Joined{ID: id, ClusterID: reply.ClusterID, Peers: reply.Peers}, nil
}

func redeem(ctx context.Context, n port.Network, address, fingerprint string, req joinRequest) (joinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var reply joinReply
	conn, err := port.DialJoin(ctx, n, address, fingerprint)
	if err != nil {
		return reply, err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return reply, err
	}
	if err := json.NewDecoder(io.LimitReader(conn, 1<<20)).Decode(&reply); err != nil {
		return reply, fmt.Errorf("read the answer: %w", err)
	}
	if reply.Code > 0 && reply.Code < len(tokenErrors) {
		return reply, tokenErrors[reply.Code]
	}
	if reply.Error != "" {
		return reply, errors.New(reply.Error)
	}
	return reply, nil
}

func stage(dir string, s staged) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, stagedFile)
	f, err := os.OpenFile(path+".next", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("keep the invite's answer: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".next", path)
	}
	if err = errors.Join(err, syncDir(dir)); err != nil {
		return fmt.Errorf("keep the invite's answer: %w", err)
	}
	return nil
}

// finishJoin writes a staged joining down; again after a crash, until it is done. Its last act drops the staged file.
func finishJoin(dir string) error {
	path := filepath.Join(dir, stagedFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var s staged
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return fmt.Errorf("finish joining: %w", err)
	}
	if err := os.Remove(filepath.Join(dir, logFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("drop the old log: %w", err)
	}
	if err := writeIdentity(dir, s.Identity); err != nil {
		return err
	}
	if err := port.SaveSecrets(filepath.Join(dir, secretFile), s.Secrets); err != nil {
		return fmt.Errorf("keep the cluster's secret: %w", err)
	}
	return errors.Join(os.Remove(path), syncDir(dir))
}

// FinishJoin completes a joining that a crash cut short; it comes before the secret is read.
func FinishJoin(dir string) error { return finishJoin(dir) }

// serveJoins answers the invited until ctx ends, a bounded number at a time. A place is for who has asked: whoever reaches the
// port can open connections and say nothing.
func serveJoins(ctx context.Context, lis net.Listener, admit func(context.Context, joinRequest) (joinReply, error)) error {
	stop := context.AfterFunc(ctx, func() { _ = lis.Close() })
	defer stop()
	var guests sync.WaitGroup
	defer guests.Wait()
	silent := port.NewNewcomers(maxGuests)
	slots := make(chan struct{}, maxJoins)
	for {
		conn, err := lis.Accept()
		if err != nil {
			return nil
		}
		silent.Expect(conn)
		guests.Go(func() {
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(askTimeout))
			var req joinRequest
			err := json.NewDecoder(io.LimitReader(conn, 64<<10)).Decode(&req)
			if !silent.Shown(conn) || err != nil || req.Node.ID == "" {
				return
			}
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				serveJoin(ctx, conn, req, admit)
			default:
			}
		})
	}
}

func serveJoin(ctx context.Context, conn net.Conn, req joinRequest, admit func(context.Context, joinRequest) (joinReply, error)) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	reply, err := admit(ctx, req)
	if err != nil {
		reply = joinReply{Error: err.Error()}
		for i, known := range tokenErrors {
			if known != nil && errors.Is(err, known) {
				reply.Code = i
			}
		}
	}
	_ = json.NewEncoder(conn).Encode(reply)
}

// Invite makes a token that lets one node in until it expires, or until the secret is replaced.
func (c *Cluster) Invite(ctx context.Context, ttl time.Duration) (string, time.Time, error) {
	if err := c.ReadIndex(ctx); err != nil {
		return "", time.Time{}, err
	}
	secrets, err := c.toHand()
	if err != nil {
		return "", time.Time{}, err
	}
	signs := port.Fingerprint(secrets[0])
	expires := c.cfg.Now().Add(ttl)
	addresses := []string{c.advertise}
	for _, m := range c.Members() {
		if !m.Self && m.State == stateAlive {
			addresses = append(addresses, m.Address)
		}
	}
	t := newToken(addresses, signs, expires)
	if err := c.records.CreateInvite(ctx, keyHash(t.Key, signs), expires); err != nil {
		return "", time.Time{}, err
	}
	return t.String(), expires, nil
}

// invited tells whether there is such an invite, without a word to the log: whoever reaches the port may guess.
func (c *Cluster) invited(ctx context.Context, hash []byte) error {
	known, err := c.records.Invited(hash)
	if err == nil && !known {
		if err = c.ReadIndex(ctx); err == nil { // it may have been made on another node a moment ago
			known, err = c.records.Invited(hash)
		}
	}
	if err == nil && !known {
		err = ErrTokenUsed
	}
	return err
}

// admitInvited uses an invite up and takes its holder in.
func (c *Cluster) admitInvited(ctx context.Context, r joinRequest) (joinReply, error) {
	if _, _, err := net.SplitHostPort(r.Node.Address); err != nil {
		return joinReply{}, fmt.Errorf("the newcomer's address: %w", err)
	}
	hash := keyHash(r.Key, port.Fingerprint(c.own.now()[0]))
	if err := c.invited(ctx, hash); err != nil {
		return joinReply{}, err
	}
	if _, err := c.toHand(); err != nil {
		return joinReply{}, err
	}
	if err := c.records.RedeemInvite(ctx, hash); err != nil {
		return joinReply{}, err
	}
	secrets, err := c.toHand() // what has begun before the invite was used is known here now
	if err != nil {
		return joinReply{}, err
	}
	r.Node.Secrets = secrets.Fingerprints()
	if err := c.takeInPatiently(ctx, r.Node); err != nil {
		return joinReply{}, err
	}
	id, err := c.records.ClusterID()
	if err != nil {
		return joinReply{}, err
	}
	peers := []string{c.advertise}
	for _, s := range c.servers() {
		if string(s.Address) != r.Node.Address && string(s.Address) != c.advertise {
			peers = append(peers, string(s.Address))
		}
	}
	return joinReply{Secrets: secrets, ClusterID: id, Peers: peers}, nil
}

// takeInPatiently follows the leader from node to node as a command does: the invite is used up by now, so that the newcomer
// can't come a second time.
func (c *Cluster) takeInPatiently(ctx context.Context, n newcomer) error {
	ctx, cancel := context.WithTimeout(ctx, proposePatience)
	defer cancel()
	for {
		changed := c.newLeader.wait()
		err := c.takeIn(ctx, n)
		if err == nil || errors.Is(err, ErrNotMember) || errors.Is(err, ErrRotating) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-changed:
		case <-time.After(formPause):
		}
	}
}

// serveJoin takes in a holder of the secret, or notes where a member is now.
func (c *Cluster) serveJoin(w http.ResponseWriter, r *http.Request) {
	var n newcomer
	if !readJSON(w, r, &n) {
		return
	}
	from := PeerOf(r.Context())
	if _, member := c.server(from); from != n.ID && !member {
		http.Error(w, "a node speaks for itself", http.StatusForbidden)
		return
	}
	switch err := c.takeIn(r.Context(), n); {
	case errors.Is(err, ErrNotMember) && from == n.ID:
		http.Error(w, err.Error(), http.StatusGone)
	case errors.Is(err, ErrNotMember): // who only passes it on is no former member
		http.Error(w, err.Error(), http.StatusForbidden)
	case errors.Is(err, ErrRotating):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}
