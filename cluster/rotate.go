package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pier/cluster/port"
)

// hereKey marks a proposal that only this node may make, as the leader that it took itself for.
type hereKey struct{}

// rotation is what this node's state says; a generation of 0 is none.
func (c *Cluster) rotation() (Rotation, uint64, error) {
	r, generation, err := c.records.Rotation()
	if err == nil && generation != 0 && len(r.Secrets) == 0 {
		err = errors.New("the rotation of the cluster's secret names none")
	}
	return r, generation, err
}

// RotateSecret makes a new secret and begins to bring it to all. The ones before it are accepted for keep after all use it,
// and never shorter than what was made with them needs.
func (c *Cluster) RotateSecret(ctx context.Context, keep time.Duration) error {
	if !c.own.starting.CompareAndSwap(false, true) {
		return ErrRotating
	}
	defer c.own.starting.Store(false)
	if err := c.ReadIndex(ctx); err != nil {
		return err
	}
	was, generation, err := c.rotation()
	if err != nil {
		return err
	}
	members := c.survey(ctx, true)
	if err := c.prepared(members); err != nil {
		return err
	}
	c.own.turn.Lock()
	defer c.own.turn.Unlock()
	before := c.own.now()
	next, err := begin(was, generation != 0, before, members)
	if err != nil {
		return err
	}
	fresh := port.NewSecret()
	next.Step, next.By, next.Begun = StepAdd, c.ID(), c.cfg.Now().UnixMilli()
	next.Keep = max(keep, c.cfg.SecretGrace).Milliseconds()
	next.Secrets = append(next.Secrets, WantedSecret{Fingerprint: port.Fingerprint(fresh)})
	list, err := arrange(next, append(slices.Clone(before), fresh))
	if err != nil {
		return err
	}
	if err := c.own.adopt(list); err != nil {
		return err
	}
	// Whatever comes of it: a secret that nobody wants does no harm, and goes with the next rotation.
	return c.records.PutRotation(ctx, next, generation)
}

// arrange gives the secrets that a rotation wants, in its order, from those that are at hand.
func arrange(r Rotation, have port.Secrets) (port.Secrets, error) {
	var out port.Secrets
	for _, s := range r.Secrets {
		secret, ok := have.Find(s.Fingerprint)
		if !ok {
			return nil, fmt.Errorf("this node lacks the secret %s", s.Fingerprint)
		}
		out = append(out, secret)
	}
	return out, nil
}

// prepared tells what keeps the members from beginning.
func (c *Cluster) prepared(members []secretReport) error {
	var faults []error
	if len(members) == 0 {
		faults = append(faults, errors.New("this node is in no cluster yet"))
	}
	for _, m := range members {
		switch {
		case m.err != nil:
			faults = append(faults, fmt.Errorf("%s doesn't answer: bring it back, or `pier cluster remove` it (%w)", c.nameOf(m.id), innermost(m.err)))
		case m.Fault != "":
			faults = append(faults, fmt.Errorf("%s: %s", c.nameOf(m.id), m.Fault))
		}
	}
	if faults == nil {
		return nil
	}
	return &NotReadyError{Faults: faults}
}

func (c *Cluster) nameOf(id NodeID) string {
	for _, m := range c.Members() {
		if m.ID == id && m.Name != "" {
			return m.Name
		}
	}
	return string(id)
}

// DropSecret ends the old secrets as soon as what was made with them allows.
func (c *Cluster) DropSecret(ctx context.Context) error {
	for {
		if err := c.ReadIndex(ctx); err != nil {
			return err
		}
		r, generation, err := c.rotation()
		if err != nil {
			return err
		}
		if generation == 0 || r.Step == StepDone {
			return ErrSecretAlone
		}
		r.Secrets = slices.Clone(r.Secrets)
		r.Keep = c.cfg.SecretGrace.Milliseconds()
		if !r.spreading() {
			r.end(c.cfg.Now().Add(c.cfg.SecretGrace))
		}
		if err := c.records.PutRotation(ctx, r, generation); !errors.Is(err, ErrRotationChanged) {
			return err
		}
	}
}

// keepSecrets follows the rotation, as a member and as the leader, until ctx ends.
func (c *Cluster) keepSecrets(ctx context.Context) error {
	tick := time.NewTicker(max(c.cfg.RaftTimeout/4, 50*time.Millisecond))
	defer tick.Stop()
	var r Rotation
	var generation, seen uint64
	var asked time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if c.isRemoved() {
			continue
		}
		if applied := c.state.AppliedIndex(); applied != seen {
			var err error
			if r, generation, err = c.rotation(); err != nil {
				c.own.note(0, err)
				continue
			}
			seen = applied
		}
		if generation == 0 {
			continue
		}
		if c.port.Old() {
			c.peers.tidy()
			c.control.tidy()
		}
		c.conform(ctx, r, generation)
		if c.leading() && time.Since(asked) > c.cfg.RaftTimeout/2 {
			if next, due := r.next(c.cfg.Now()); due {
				asked = time.Now()
				c.advance(ctx, next, generation)
			}
		}
	}
}

// conform makes this node's secrets those that the state wants.
func (c *Cluster) conform(ctx context.Context, r Rotation, generation uint64) {
	c.own.mu.Lock()
	done := c.own.done == generation && c.own.fault == nil
	c.own.mu.Unlock()
	if done || !c.own.turn.TryLock() {
		return
	}
	defer c.own.turn.Unlock()
	err := c.follow(ctx, r)
	if err == nil && !r.spreading() {
		c.renewConnections()
	}
	if err != nil {
		c.complain("can't follow the rotation of the cluster's secret yet", r.By, err)
	}
	c.own.note(generation, err)
}

func (c *Cluster) follow(ctx context.Context, r Rotation) error {
	have := c.own.now()
	if r.fulfilled(have.Fingerprints()) {
		return nil
	}
	if stored, err := port.LoadSecrets(c.own.file); err == nil {
		have = append(slices.Clone(have), stored...) // another node that shares the file may have been first
	}
	for _, s := range r.Secrets {
		if _, ok := have.Find(s.Fingerprint); ok {
			continue
		}
		fetched, err := c.fetchSecret(ctx, s.Fingerprint)
		if err != nil {
			return err
		}
		have = append(slices.Clone(have), fetched)
	}
	list, err := arrange(r, have)
	if err == nil {
		err = c.own.adopt(list)
	}
	if err == nil {
		c.cfg.Logger.Info("the cluster's secrets have changed", "step", r.Step, "signs", r.Secrets[0].Fingerprint, "accepted", len(list))
	}
	return err
}

// advance proposes the next step if every member of the configuration has finished the last one. It does so as this leader
// and no other, while no membership change is under way: whom a later configuration has besides was let in with all secrets
// that this step needs.
func (c *Cluster) advance(ctx context.Context, next Rotation, generation uint64) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	now, term := c.raft.GetConfiguration(), c.raft.CurrentTerm()
	if now.Error() != nil {
		return
	}
	for _, m := range c.survey(ctx, false) {
		if m.err != nil || m.Done != generation {
			c.complain("the rotation of the cluster's secret waits for a node", m.id, m.err)
			return
		}
	}
	select {
	case c.changing <- struct{}{}:
	default:
		return
	}
	defer func() { <-c.changing }()
	again := c.raft.GetConfiguration()
	if again.Error() != nil || again.Index() != now.Index() || !c.leading() || c.raft.CurrentTerm() != term {
		return
	}
	err := c.records.PutRotation(context.WithValue(ctx, hereKey{}, true), next, generation)
	if err != nil {
		c.cfg.Logger.Debug("the next step of the rotation of the cluster's secret wasn't taken", "step", next.Step, "err", err)
		return
	}
	c.cfg.Logger.Info("the rotation of the cluster's secret goes on", "step", next.Step)
}

// lacks is why a newcomer can't be let in, for want of secrets. Who isn't a member yet can't fetch one.
func (c *Cluster) lacks(n newcomer) error {
	r, generation, err := c.rotation()
	if err != nil || generation == 0 {
		return err
	}
	for i, s := range r.Secrets {
		if (i == 0 || r.spreading()) && !slices.Contains(n.Secrets, s.Fingerprint) {
			return fmt.Errorf("%w; the newcomer lacks a secret: it needs a new invite then, or the secret file of a member", ErrRotating)
		}
	}
	return nil
}

// toHand are the secrets that an invited newcomer gets: all that are in force. While not everybody has them, nobody is let
// in: an invite from before must not bring the new secret.
func (c *Cluster) toHand() (port.Secrets, error) {
	r, generation, err := c.rotation()
	if err != nil {
		return nil, err
	}
	list := c.own.now()
	if c.own.starting.Load() || generation != 0 && (r.spreading() || !r.fulfilled(list.Fingerprints())) {
		return nil, ErrRotating
	}
	if generation == 0 {
		return list, nil
	}
	return arrange(r, list)
}

// OwnRotation is the rotation as this node knows it: whether there is one, and what keeps this node from doing its step.
func (c *Cluster) OwnRotation() (Rotation, bool, string, error) {
	r, generation, err := c.rotation()
	return r, generation != 0, c.ownSecretReport(false).Fault, err
}

// SecretStatus is how far the rotation is, as this node and its peers see it.
type SecretStatus struct {
	Rotation
	Known bool // there has been one
	Nodes []SecretMember
}

// SecretMember is one member's part in it.
type SecretMember struct {
	Member
	Done    bool
	Secrets []string // fingerprints, in force; none where it doesn't answer
	Fault   string
}

// SecretStatus asks every member, for at most two seconds.
func (c *Cluster) SecretStatus(ctx context.Context) (SecretStatus, error) {
	r, generation, err := c.rotation()
	if err != nil {
		return SecretStatus{}, err
	}
	out := SecretStatus{Rotation: r, Known: generation != 0}
	if !out.Known {
		for _, f := range c.own.now().Fingerprints() {
			out.Secrets = append(out.Secrets, WantedSecret{Fingerprint: f})
		}
	}
	reports := c.survey(ctx, false)
	for _, m := range c.Members() {
		i := slices.IndexFunc(reports, func(r secretReport) bool { return r.id == m.ID })
		if i < 0 {
			continue
		}
		n := SecretMember{Member: m, Done: reports[i].Done == generation && reports[i].err == nil, Secrets: reports[i].Secrets, Fault: reports[i].Fault}
		if reports[i].err != nil {
			n.Fault = "it doesn't answer: " + innermost(reports[i].err).Error()
		}
		out.Nodes = append(out.Nodes, n)
	}
	return out, nil
}
