package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"pier/api/client"
	"pier/fsm"
)

const (
	doctorWait = 10 * time.Second // for the nodes' answers
	quorumWait = 3 * time.Second

	// Nodes stamp audit lines, and check tokens and certificates by their own clocks. Tokens bear 30 seconds.
	clockWarning = 5 * time.Second
	clockProblem = 25 * time.Second
)

// diagnosis is what a node says when a peer asks how it is.
type diagnosis struct {
	Now      time.Time        `json:"now"`
	Findings []client.Finding `json:"findings"`
}

func (a *API) ownDiagnosis(ctx context.Context) diagnosis {
	var d diagnosis
	if a.cfg.Doctor != nil {
		d.Findings = a.cfg.Doctor(ctx)
	}
	outside := append(a.checkProviders(ctx), a.checkIssuers(ctx)...)
	slices.SortFunc(outside, func(x, y client.Finding) int { return cmp.Compare(x.Check, y.Check) }) // they come in any order
	d.Findings = append(d.Findings, outside...)
	for i := range d.Findings {
		d.Findings[i].Node = a.cfg.Name
	}
	d.Now = a.access.cfg.Now()
	return d
}

// peerDoctor tells a peer how this node is.
func (a *API) peerDoctor(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, "application/json", a.ownDiagnosis(r.Context()))
}

// getDoctor gathers what all nodes find, and what only shows beside each other. No node waits for one that doesn't answer.
func (a *API) getDoctor(r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), doctorWait)
	defer cancel()
	nodes, err := a.state.Nodes()
	if err != nil {
		return nil, err
	}
	found := make([][]client.Finding, len(nodes)+2)
	var group errgroup.Group
	group.Go(func() error {
		found[len(nodes)] = append(a.ownDiagnosis(ctx).Findings, a.checkQuorum(ctx), a.checkVersions(nodes))
		return nil
	})
	group.Go(func() error {
		found[len(nodes)+1] = append(a.checkRotation(ctx), a.checkNewcomers(ctx, nodes)...)
		return nil
	})
	for i, n := range nodes {
		if n.ID == a.cfg.Node || a.cfg.Relay == nil {
			continue
		}
		group.Go(func() error {
			found[i] = a.examine(ctx, n)
			return nil
		})
	}
	_ = group.Wait()
	out := slices.Concat(found...)
	slices.SortStableFunc(out, func(x, y client.Finding) int { return cmp.Compare(x.Node, y.Node) })
	return out, nil
}

// examine asks another node how it is, and what time.
func (a *API) examine(ctx context.Context, n fsm.Node) []client.Finding {
	asked := a.access.cfg.Now()
	var d diagnosis
	if err := a.askPeer(ctx, n.ID, "/doctor", &d); err != nil {
		a.logger.Warn("a node doesn't say how it is", "peer", n.ID, "request", exchangeOf(ctx).id, "err", err)
		return []client.Finding{{
			Node: n.Name, Check: "reach", Level: client.LevelProblem, Message: "it does not answer " + a.cfg.Name,
			Remedy: "see whether it runs, and whether the cluster port is open between the nodes; `pier cluster remove` takes out what doesn't come back",
		}}
	}
	return append(d.Findings, clocks(n.Name, a.cfg.Name, d.Now, asked, a.access.cfg.Now()))
}

// clocks compares what a node said with when it must have said it.
func clocks(node, other string, said, asked, heard time.Time) client.Finding {
	off := time.Duration(0)
	switch {
	case said.Before(asked):
		off = asked.Sub(said)
	case said.After(heard):
		off = said.Sub(heard)
	}
	f := client.Finding{Node: node, Check: "clock", Level: client.LevelOK, Message: "its clock agrees with that of " + other}
	if off <= clockWarning {
		return f
	}
	f.Level = client.LevelWarning
	if off > clockProblem {
		f.Level = client.LevelProblem
	}
	f.Message = fmt.Sprintf("its clock differs from that of %s by %s: tokens and certificates of one may not be good at the other", other, off.Round(time.Second))
	f.Remedy = "set both clocks by NTP (chrony, systemd-timesyncd)"
	return f
}

func (a *API) checkQuorum(ctx context.Context) client.Finding {
	ctx, cancel := context.WithTimeout(ctx, quorumWait)
	defer cancel()
	f := client.Finding{Node: a.cfg.Name, Check: "quorum", Level: client.LevelOK, Message: "a majority of the nodes agrees"}
	if err := a.log.Current(ctx); err != nil {
		f.Level, f.Message = client.LevelProblem, "no majority answers: pushes wait, and tags may be old ("+oneLine(err.Error())+")"
		f.Remedy = "start the nodes that are down; `pier cluster status` shows which"
	}
	return f
}

// checkVersions looks at what the nodes said of themselves when they last started.
func (a *API) checkVersions(nodes []fsm.Node) client.Finding {
	f := client.Finding{Node: a.cfg.Name, Check: "versions", Level: client.LevelOK, Message: "all nodes run the same version"}
	var said []string
	var lowest, highest uint64
	for _, n := range nodes {
		said = append(said, n.Version)
		if lowest == 0 || n.Level < lowest {
			lowest = n.Level
		}
		highest = max(highest, n.Level)
	}
	slices.Sort(said)
	said = slices.Compact(said)
	switch {
	case lowest != highest:
		f.Level, f.Message = client.LevelWarning, fmt.Sprintf("the nodes speak the levels %d to %d: what is newer than %d waits for all", lowest, highest, lowest)
	case len(said) > 1:
		f.Level, f.Message = client.LevelWarning, fmt.Sprintf("the nodes run different versions: %s", oneLine(fmt.Sprint(said)))
	default:
		return f
	}
	f.Remedy = "finish the upgrade: `pier cluster status` shows each node's version"
	return f
}

// checkProviders tells from which directories this node can let people in.
func (a *API) checkProviders(ctx context.Context) []client.Finding {
	people, err := a.access.outsiders()
	if err != nil {
		return nil
	}
	var out []client.Finding
	for name, err := range people.Reach(ctx) {
		f := client.Fine("provider "+name, "all its servers let the bind user in")
		if err != nil {
			f.Level, f.Message = client.LevelWarning, oneLine(err.Error())
			f.Remedy = "its people come in at this node as long as one server answers; `pier provider test " + name + "` shows how far a login gets"
		}
		out = append(out, f)
	}
	return out
}

// checkIssuers tells of which issuers of ID tokens this node can ask for keys.
func (a *API) checkIssuers(ctx context.Context) []client.Finding {
	var out []client.Finding
	for i, err := range a.access.reachIssuers(ctx) {
		f := client.Fine("issuer "+i.URL, "it can be asked for its keys")
		if err != nil {
			f.Level, f.Message = client.LevelWarning, oneLine(err.Error())
			f.Remedy = "let this node reach it; those of its keys that are known here go on working for a day, and without any its people and jobs come in at other nodes"
		}
		out = append(out, f)
	}
	return out
}

// checkRotation says nothing where it can't be told: then the quorum is what is to be mended.
func (a *API) checkRotation(ctx context.Context) []client.Finding {
	s, err := a.cluster.SecretStatus(ctx)
	if err != nil {
		a.logger.Warn("how far the cluster's secret is can't be told now", "request", exchangeOf(ctx).id, "err", err)
		return nil
	}
	f := rotationFinding(s)
	f.Node = a.cfg.Name
	return []client.Finding{f}
}

// checkNewcomers tells of members that no node has heard from yet: they say nothing of themselves, and nobody asks them.
func (a *API) checkNewcomers(ctx context.Context, nodes []fsm.Node) []client.Finding {
	s, err := a.cluster.Status(ctx)
	if err != nil {
		a.logger.Warn("who is in the cluster can't be told now", "request", exchangeOf(ctx).id, "err", err)
		return nil
	}
	var out []client.Finding
	for _, m := range s.Nodes {
		if slices.ContainsFunc(nodes, func(n fsm.Node) bool { return string(n.ID) == m.ID }) {
			continue
		}
		out = append(out, client.Finding{
			Node: cmp.Or(m.Name, m.ID), Check: "reach", Level: client.LevelWarning,
			Message: "it was taken in and has not come up since; the others look for it at " + m.Cluster,
			Remedy:  "see whether they reach that (its settings cluster-listen and cluster-advertise); `pier cluster remove " + m.ID + "` takes it out",
		})
	}
	return out
}

func rotationFinding(s client.SecretStatus) client.Finding {
	const check = "rotation"
	if len(s.Waiting) == 0 {
		return client.Fine(check, "no node keeps the cluster's secret from being replaced")
	}
	return client.Finding{
		Check: check, Level: client.LevelWarning, Message: "the replacement of the cluster's secret (step " + s.Step + ") waits for " + oneLine(strings.Join(s.Waiting, ", ")),
		Remedy: "start those nodes, or remove them; `pier cluster secret status` says what keeps each",
	}
}
