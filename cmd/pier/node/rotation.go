package node

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"pier/api/auth"
	"pier/api/client"
	"pier/cluster"
	"pier/cluster/port"
)

// useSecrets makes what clients see follow the cluster's secrets: the keys of their tokens and the CA of tls auto.
func (i *instance) useSecrets(n *Node) func(port.Secrets) error {
	return func(secrets port.Secrets) error {
		keys, err := auth.NewKeys(secrets.TokenSeeds())
		if err != nil {
			return err
		}
		if err := n.authority.store(secrets.AuthoritySeeds()); err != nil {
			return err
		}
		i.keys.Store(keys) // with an empty memory of verified tokens: those of a dropped secret are forgotten with it
		if c, ok := n.certs.(interface{ Refresh() }); ok {
			c.Refresh()
		}
		return nil
	}
}

// SecretStatus is how far the rotation of the cluster's secret is.
func (c *control) SecretStatus(ctx context.Context) (client.SecretStatus, error) {
	s, err := c.inst.cluster.SecretStatus(ctx)
	if err != nil {
		return client.SecretStatus{}, err
	}
	out := client.SecretStatus{Step: s.Step, Secrets: []client.ClusterSecret{}, Waiting: []string{}, Nodes: []client.SecretNode{}}
	if s.Begun != 0 {
		out.Begun, out.By = moment(s.Begun), string(s.By)
	}
	for _, w := range s.Secrets {
		out.Secrets = append(out.Secrets, client.ClusterSecret{Fingerprint: w.Fingerprint, Until: moment(w.Until)})
	}
	for _, m := range s.Nodes {
		name := m.Name
		if name == "" {
			name = string(m.ID)
		}
		if m.ID == s.By {
			out.By = name
		}
		if waits(s.Rotation, time.Now()) && !m.Done {
			out.Waiting = append(out.Waiting, name)
		}
		out.Nodes = append(out.Nodes, client.SecretNode{ID: string(m.ID), Name: name, Done: m.Done, Secrets: append([]string{}, m.Secrets...), Fault: m.Fault})
	}
	if ca, err := c.node.authority.Load(); err == nil && c.node.cfg.Access.TLS == "auto" {
		out.Authority = ca.Fingerprint()
	}
	return out, nil
}

// waits tells whether anything depends on every node now. Old secrets are kept whoever is away, until one has reached its end.
func waits(r cluster.Rotation, now time.Time) bool {
	switch r.Step {
	case cluster.StepAdd, cluster.StepRoll, cluster.StepDrop:
		return true
	case cluster.StepKeep:
		return slices.ContainsFunc(r.Secrets, func(s cluster.WantedSecret) bool { return s.Until != 0 && s.Until <= now.UnixMilli() })
	}
	return false
}

func moment(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}

// RotateSecret begins to replace the cluster's secret; it goes on by itself.
func (c *control) RotateSecret(ctx context.Context, r client.RotateSecretRequest) (client.SecretStatus, error) {
	keep, err := r.Keep()
	if err != nil {
		return client.SecretStatus{}, refuse(http.StatusBadRequest, "INVALID", err)
	}
	if err := c.inst.cluster.RotateSecret(ctx, keep); err != nil {
		return client.SecretStatus{}, answer(err)
	}
	return c.SecretStatus(ctx)
}

// DropSecret ends the old secrets as soon as what was made with them allows.
func (c *control) DropSecret(ctx context.Context) (client.SecretStatus, error) {
	if err := c.inst.cluster.DropSecret(ctx); err != nil {
		return client.SecretStatus{}, answer(err)
	}
	return c.SecretStatus(ctx)
}

// refusesRotation tells whether a rotation can't be had as things are.
func refusesRotation(err error) bool {
	var notReady *cluster.NotReadyError
	return errors.As(err, &notReady) || errors.Is(err, cluster.ErrRotating) || errors.Is(err, cluster.ErrSecretAlone) ||
		errors.Is(err, cluster.ErrSecretsDiffer) || errors.Is(err, cluster.ErrTooManySecrets) || errors.Is(err, cluster.ErrRotationChanged)
}
