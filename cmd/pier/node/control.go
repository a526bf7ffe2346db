package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"pier/api"
	"pier/api/client"
	"pier/cluster"
)

// control carries out what people ask of the cluster through the control API.
type control struct {
	node *Node
	inst *instance
}

// refuse is an answer to the person who asked: what can't be done, and what would make it possible.
func refuse(status int, code string, err error) error {
	return &client.Error{Status: status, Code: code, Message: err.Error()}
}

// Status is the cluster as this node and its peers see it.
func (c *control) Status(ctx context.Context) (client.Status, error) {
	s, err := c.inst.cluster.Status(ctx)
	if err != nil {
		return client.Status{}, err
	}
	return wireStatus(s), nil
}

func wireStatus(s cluster.Status) client.Status {
	out := client.Status{
		ClusterID: s.ClusterID, Name: s.Name, Leader: string(s.Leader), Term: s.Term, Quorum: s.Quorum, Healthy: s.Healthy,
		Nodes: make([]client.NodeStatus, 0, len(s.Nodes)),
	}
	for _, n := range s.Nodes {
		out.Nodes = append(out.Nodes, client.NodeStatus{
			ID: string(n.ID), Name: n.Name, API: n.API, Cluster: n.Cluster, Role: n.Role, State: n.State,
			AppliedIndex: n.AppliedIndex, Blobs: n.Blobs, BlobsMissing: n.BlobsMissing, Bytes: n.Bytes,
			DiskFree: n.DiskFree, Version: n.Version, Started: n.Started,
		})
	}
	return out
}

// Invite makes a token for one newcomer.
func (c *control) Invite(ctx context.Context, r client.InviteRequest) (client.Invite, error) {
	ttl, err := r.Lifetime()
	if err != nil {
		return client.Invite{}, refuse(http.StatusBadRequest, "INVALID", err)
	}
	token, expires, err := c.inst.cluster.Invite(ctx, ttl)
	if err != nil {
		return client.Invite{}, answer(err)
	}
	return client.Invite{Token: token, Expires: expires}, nil
}

// Leave drains this node and takes it out of the cluster. The process then ends by itself.
func (c *control) Leave(ctx context.Context) error { return answer(c.inst.cluster.Leave(ctx)) }

// Remove takes a node out that can't leave by itself.
func (c *control) Remove(ctx context.Context, r client.RemoveRequest) error {
	id, err := c.find(r.Node)
	if err != nil {
		return err
	}
	return answer(c.inst.cluster.Remove(ctx, id, r.Force))
}

// Transfer hands leadership to a node, or to the fittest where none is named.
func (c *control) Transfer(ctx context.Context, r client.TransferRequest) error {
	if r.Node == "" {
		return answer(c.inst.cluster.Transfer(ctx, ""))
	}
	id, err := c.find(r.Node)
	if err != nil {
		return err
	}
	return answer(c.inst.cluster.Transfer(ctx, id))
}

// find takes a node's ID or name; a name that two nodes have is refused.
func (c *control) find(nameOrID string) (cluster.NodeID, error) {
	var found []cluster.NodeID
	for _, m := range c.inst.cluster.Members() {
		if string(m.ID) == nameOrID {
			return m.ID, nil
		}
		if m.Name == nameOrID {
			found = append(found, m.ID)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", answer(fmt.Errorf("%w: %q; `pier cluster status` lists them", cluster.ErrNodeUnknown, nameOrID))
	}
	return "", refuse(http.StatusConflict, "AMBIGUOUS", fmt.Errorf("%d nodes are called %q; use one of the IDs %v", len(found), nameOrID, found))
}

// joinOrder asks the node's main loop to make this node a member of another cluster.
type joinOrder struct {
	token  string
	answer chan joinAnswer
}

type joinAnswer struct {
	joined cluster.Joined
	err    error
}

// Join makes this node a member of the cluster that the token comes from. It refuses on a node that has company or
// images, unless the images may go.
func (c *control) Join(ctx context.Context, r client.JoinRequest) (client.Joined, error) {
	if c.node.cfg.ClusterSecretFile != "" {
		return client.Joined{}, refuse(http.StatusConflict, "CONFLICT", errors.New(
			"this node takes its cluster secret from cluster-secret-file; take that setting away and restart it to join with a token"))
	}
	if members := c.inst.cluster.Members(); len(members) > 1 {
		return client.Joined{}, refuse(http.StatusConflict, "CONFLICT", fmt.Errorf(
			"this node is in a cluster of %d; `pier cluster leave` first", len(members)))
	}
	counts, err := c.inst.state.Counts()
	if err != nil {
		return client.Joined{}, err
	}
	if counts.Repositories > 0 && !r.Discard {
		return client.Joined{}, refuse(http.StatusConflict, "CONFLICT", fmt.Errorf(
			"this node holds %d repositories, which joining would discard; copy them first, or say --discard", counts.Repositories))
	}
	if err := cluster.CheckToken(r.Token, time.Now()); err != nil {
		return client.Joined{}, answer(err)
	}
	order := joinOrder{token: r.Token, answer: make(chan joinAnswer, 1)}
	select {
	case c.node.joins <- order:
	case <-ctx.Done():
		return client.Joined{}, ctx.Err()
	}
	select {
	case a := <-order.answer:
		return client.Joined{ID: string(a.joined.ID), ClusterID: a.joined.ClusterID, Cluster: c.inst.cluster.Advertised()}, notJoined(a.err)
	case <-ctx.Done():
		return client.Joined{}, ctx.Err()
	}
}

// notJoined tells the person who asked why a node is still who it was. Mostly nobody could be reached, which is no fault of its own.
func notJoined(err error) error {
	err = answer(err)
	var refused *client.Error
	if err == nil || errors.As(err, &refused) || errors.Is(err, api.ErrUnavailable) {
		return err
	}
	return refuse(http.StatusBadGateway, "NOT_JOINED", fmt.Errorf("%w; see that this machine reaches the cluster port of those that the invite names", err))
}

// answer gives the cluster's refusals their HTTP form.
func answer(err error) error {
	if err == nil {
		return nil
	}
	var last *cluster.LastCopyError
	switch {
	case errors.Is(err, cluster.ErrTokenInvalid), errors.Is(err, cluster.ErrTokenExpired), errors.Is(err, cluster.ErrTokenUsed):
		return refuse(http.StatusBadRequest, "TOKEN_INVALID", err)
	case errors.Is(err, cluster.ErrNodeUnknown):
		return refuse(http.StatusNotFound, "NODE_UNKNOWN", err)
	case refusesRotation(err), errors.Is(err, cluster.ErrWouldLoseQuorum), errors.Is(err, cluster.ErrCantLead), errors.As(err, &last):
		return refuse(http.StatusConflict, "CONFLICT", err)
	case errors.Is(err, cluster.ErrNoQuorum):
		return &api.Unavailable{Reason: cluster.ErrNoQuorum.Error() + ": start the nodes that `pier cluster status` shows as dead, or mend the network", Err: err}
	}
	return unavailable(err)
}
