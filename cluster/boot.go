package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
)

// epochPatience is how long a boot waits for one that may know better.
const epochPatience = time.Second

// confirmBoot opens the gate to elections once enough voters know of no newer boot of this node: with itself they are a
// majority. Every voter is told of every boot, by this and by keepContact, and the state keeps it as well. So an old disk
// passes only where all whom its last life could tell are away at the same time, which is more than the one failure that
// its lost memory is.
func (c *Cluster) confirmBoot(ctx context.Context) error {
	for pause := retryPause; ; pause = min(2*pause, maxRetryPause) {
		if c.bootRefused() != nil || c.isRemoved() {
			<-ctx.Done()
			return ctx.Err()
		}
		var others []NodeID
		voters, self := 0, false
		for _, s := range c.servers() {
			if s.Suffrage == raft.Voter {
				voters++
				if NodeID(s.ID) == c.ID() {
					self = true
				} else {
					others = append(others, NodeID(s.ID))
				}
			}
		}
		need := voters / 2
		if !self {
			need = min(1, len(others))
		}
		err := c.askEpoch(ctx, others, need)
		if err == nil && c.openGate() {
			if self && voters == 1 {
				c.transport.electNow(ctx)
			}
			return nil
		}
		if errors.Is(err, ErrEpochUsed) {
			c.refuseBoot()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// askEpoch asks all others about this boot and waits for each a moment longer than need be: one that knows better must be
// heard even where enough others don't.
func (c *Cluster) askEpoch(ctx context.Context, others []NodeID, need int) error {
	if need <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, epochPatience)
	defer cancel()
	answers := make([]error, len(others))
	var group errgroup.Group
	for i, id := range others {
		group.Go(func() error {
			answers[i] = c.ask(ctx, id, http.MethodPost, "/cluster/epoch", c.memory(), nil)
			return nil
		})
	}
	_ = group.Wait()
	for _, err := range answers {
		if epochUsed(err) {
			return ErrEpochUsed
		}
		if err == nil {
			need--
		}
	}
	if need > 0 {
		return fmt.Errorf("%w: %w", ErrNoQuorum, errors.Join(answers...))
	}
	return nil
}

func epochUsed(err error) bool {
	var refused *statusError
	return errors.As(err, &refused) && refused.code == http.StatusConflict
}

// memory is what this disk says of itself.
func (c *Cluster) memory() memory {
	c.mu.Lock()
	defer c.mu.Unlock()
	return memory{boot: c.boot, Lives: c.identity.Lives}
}

// serveEpoch remembers a peer's boot, durably, before it confirms it.
func (c *Cluster) serveEpoch(w http.ResponseWriter, r *http.Request) {
	var m memory
	if !readJSON(w, r, &m) {
		return
	}
	id := PeerOf(r.Context())
	records, err := c.records.Nodes()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.identity.Seen[id]
	if i := slices.IndexFunc(records, func(r Record) bool { return r.ID == id }); i >= 0 && records[i].Epoch > known.Epoch {
		known = boot{Epoch: records[i].Epoch, Nonce: records[i].Nonce}
	}
	if !m.holds(known) {
		http.Error(w, ErrEpochUsed.Error(), http.StatusConflict)
		return
	}
	if m.boot == c.identity.Seen[id] {
		return
	}
	c.identity.Seen[id] = m.boot
	if err := writeIdentity(c.cfg.DataDir, c.identity); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// bootKey marks the one proposal that may go out before this boot is on record.
type bootKey struct{}

// recordBoot announces this boot in the state, which is also the first proof that this node can take pushes.
func (c *Cluster) recordBoot(ctx context.Context) error {
	boot := context.WithValue(ctx, bootKey{}, true)
	for {
		err := c.records.Boot(boot, Record{
			ID: c.ID(), Name: c.cfg.Name, API: c.cfg.API, Cluster: c.advertise, Version: c.cfg.Version,
			Epoch: c.Epoch(), Nonce: c.boot.Nonce, Level: c.cfg.Level,
		})
		if err == nil {
			close(c.booted)
			return nil
		}
		if errors.Is(err, ErrEpochUsed) {
			c.refuseBoot()
		}
		if c.bootRefused() != nil || c.isRemoved() {
			<-ctx.Done()
			return ctx.Err()
		}
		if ctx.Err() == nil {
			c.cfg.Logger.Debug("the cluster doesn't know of this boot yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(formPause):
		}
	}
}

// openGate lets this node vote, unless it was refused or removed meanwhile.
func (c *Cluster) openGate() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed || c.identity.Refused {
		return false
	}
	c.transport.open()
	return true
}

// refuseBoot shuts the gate for ever and says so: who knows of the life that this disk lacks may be away when it starts
// again. The node goes on to follow and to serve: its log is made whole by the leader, only its word in elections is worth
// nothing.
func (c *Cluster) refuseBoot() {
	err := c.remember(func(id *identity) { id.Refused = true })
	c.mu.Lock()
	c.identity.Refused = true // for this life at least, if the disk doesn't take it
	c.mu.Unlock()
	c.transport.shut()
	c.newLeader.notify()
	c.sayRefused(err)
}

func (c *Cluster) sayRefused(err error) {
	c.cfg.Logger.Error("this node stays out of elections: remove it from the cluster, empty its data directory and start it anew", "err", errors.Join(ErrEpochUsed, err))
}

// bootRefused is why this node stays out of elections; nil where it doesn't.
func (c *Cluster) bootRefused() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.identity.Refused {
		return ErrEpochUsed
	}
	return nil
}
