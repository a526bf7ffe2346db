package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"pier/cluster/port"
)

// ownSecrets are this node's secrets: in its file, and in force. They change while it runs.
type ownSecrets struct {
	file string
	// use puts secrets in force in the parts that need them.
	use func(port.Secrets) error

	turn     sync.Mutex // one change at a time
	starting atomic.Bool

	mu    sync.Mutex
	list  port.Secrets
	done  uint64 // the generation of the rotation that this node has finished
	fault error
}

func (o *ownSecrets) now() port.Secrets {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.list
}

// adopt makes the list this node's: first in the file, so that a crash at any point leaves a list that the others accept,
// then in force. The caller has the turn.
func (o *ownSecrets) adopt(list port.Secrets) error {
	if err := port.SaveSecrets(o.file, list); err != nil {
		return fmt.Errorf("write the secret file %s: %w", o.file, err)
	}
	if err := o.use(list); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = list
	return nil
}

// writable rewrites the file as it is: the one proof that it can be replaced. A file that is mounted by itself, or read-only,
// can't.
func (o *ownSecrets) writable() error {
	if !o.turn.TryLock() {
		return errors.New("its secrets are being changed: try again in a moment")
	}
	defer o.turn.Unlock()
	list, err := port.LoadSecrets(o.file)
	if errors.Is(err, os.ErrNotExist) {
		list, err = o.now(), nil
	}
	if err == nil && port.Fingerprint(list[0]) != port.Fingerprint(o.now()[0]) {
		err = errors.New("it was changed since the node has read it: restart the node first")
	}
	if err == nil {
		err = port.SaveSecrets(o.file, list)
	}
	if err != nil {
		return fmt.Errorf("its secret file %s can't be replaced (%w): each node needs it where it may write, and not mounted as a single file", o.file, err)
	}
	return nil
}

func (o *ownSecrets) note(generation uint64, fault error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fault = fault
	if fault == nil {
		o.done = generation
	}
}

// secretReport is how far a member is.
type secretReport struct {
	Done    uint64   // the generation of the rotation that it has finished
	Secrets []string // fingerprints, in force
	Fault   string   `json:",omitempty"`

	id  NodeID
	err error // no answer
}

func (c *Cluster) ownSecretReport(check bool) secretReport {
	fault := error(nil)
	if check {
		fault = c.own.writable()
	}
	c.own.mu.Lock()
	defer c.own.mu.Unlock()
	if !check {
		fault = c.own.fault
	}
	r := secretReport{Done: c.own.done, Secrets: c.own.list.Fingerprints(), id: c.ID()}
	if fault != nil {
		r.Fault = fault.Error()
	}
	return r
}

// surveyPatience bounds the wait for members that don't answer.
const surveyPatience = 2 * time.Second

// survey asks every member how far it is; with check, whether it could begin.
func (c *Cluster) survey(ctx context.Context, check bool) []secretReport {
	ctx, cancel := context.WithTimeout(ctx, surveyPatience)
	defer cancel()
	servers := c.servers()
	out := make([]secretReport, len(servers))
	method := http.MethodGet
	if check {
		method = http.MethodPost
	}
	var group errgroup.Group
	for i, s := range servers {
		group.Go(func() error {
			if id := NodeID(s.ID); id == c.ID() {
				out[i] = c.ownSecretReport(check)
			} else {
				err := c.ask(ctx, id, method, "/cluster/secrets", nil, &out[i])
				if err == nil && len(out[i].Secrets) == 0 {
					err = errors.New("it names no secret")
				}
				out[i].id, out[i].err = id, err
			}
			return nil
		})
	}
	_ = group.Wait()
	return out
}

// serveSecrets says how far this node is: GET as it stands, POST whether its file can be written.
func (c *Cluster) serveSecrets(w http.ResponseWriter, r *http.Request) {
	answerJSON(w, c.ownSecretReport(r.Method == http.MethodPost))
}

type secretHanded struct{ Secret []byte }

// serveSecret hands a secret that the state wants to a member that lacks it.
func (c *Cluster) serveSecret(w http.ResponseWriter, r *http.Request) {
	if _, member := c.server(PeerOf(r.Context())); !member {
		http.Error(w, ErrNotMember.Error(), http.StatusForbidden)
		return
	}
	wanted, known, err := c.rotation()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	secret, ok := c.own.now().Find(r.PathValue("fingerprint"))
	if !ok || known == 0 || !wanted.wants(r.PathValue("fingerprint")) {
		http.Error(w, "this node has no such secret to give", http.StatusNotFound)
		return
	}
	answerJSON(w, secretHanded{Secret: secret})
}

// fetchSecret asks one member after the other. What comes is proved by its fingerprint.
func (c *Cluster) fetchSecret(ctx context.Context, fingerprint string) ([]byte, error) {
	var faults []error
	for _, s := range c.servers() {
		if NodeID(s.ID) == c.ID() {
			continue
		}
		var handed secretHanded
		ctx, cancel := context.WithTimeout(ctx, surveyPatience)
		err := c.ask(ctx, NodeID(s.ID), http.MethodGet, "/cluster/secrets/"+fingerprint, nil, &handed)
		cancel()
		if err == nil && len(handed.Secret) >= 16 && port.Fingerprint(handed.Secret) == fingerprint {
			return handed.Secret, nil
		}
		faults = append(faults, fmt.Errorf("%s: %w", s.ID, innermost(cmp.Or(err, errors.New("what it gave is another secret")))))
	}
	return nil, fmt.Errorf("no member that answers has the secret %s: %w", fingerprint, errors.Join(faults...))
}

// useSecrets puts secrets in force between the nodes, and tells the rest of the node.
func (c *Cluster) useSecrets(list port.Secrets) error {
	err := c.gossip.rekey(list.GossipKeys())
	if err == nil {
		err = c.port.Swap(list)
	}
	if err == nil && c.cfg.OnSecrets != nil {
		err = c.cfg.OnSecrets(list)
	}
	if err != nil {
		return fmt.Errorf("use the new secrets: %w", err)
	}
	return nil
}

// renewConnections makes what follows travel under the first secret. Requests under way end where they are; Raft repeats
// what it has under way.
func (c *Cluster) renewConnections() {
	c.peers.renew()
	c.control.renew()
	c.port.Renew(port.ProtoRaft)
}
