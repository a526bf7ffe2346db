package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// AuditLine is one decision: who asked for what, from where, and how it ended. Seq grows from line to line of a node. Claimed
// is the name that a wrong login gave, if somebody has it.
type AuditLine struct {
	Seq        uint64    `json:"seq"`
	Time       time.Time `json:"time"`
	Node       string    `json:"node"`
	Principal  string    `json:"principal"`
	Claimed    string    `json:"claimed,omitempty"`
	Kind       string    `json:"kind"`
	Provider   string    `json:"provider,omitempty"` // who vouches for the principal, where the cluster itself doesn't
	Address    string    `json:"address"`
	Request    string    `json:"request"`
	Action     string    `json:"action"`
	Repository string    `json:"repository,omitempty"`
	Reference  string    `json:"reference,omitempty"`
	Digest     string    `json:"digest,omitempty"`
	Target     string    `json:"target,omitempty"` // of a change of the cluster: whom or what it changes
	Status     int       `json:"status"`
}

// AuditPage has lines, and in Next where to go on behind them. Silent are the nodes whose lines are not among them, since they
// don't answer.
type AuditPage struct {
	Lines  []AuditLine `json:"lines"`
	Next   string      `json:"next"`
	Silent []string    `json:"silent,omitempty"`
}

// AuditRequest chooses lines: the newest, or where After is what a page gave as Next the oldest that came since. Empty fields
// choose all; Limit is 100 when 0, and with After for each node.
type AuditRequest struct {
	After      string
	Since      time.Time
	Principal  string
	Repository string
	Limit      int
}

// Audit gives lines that the nodes have written down, oldest first.
func (c *Client) Audit(ctx context.Context, r AuditRequest) (AuditPage, error) {
	query := url.Values{}
	if !r.Since.IsZero() {
		query.Set("since", r.Since.Format(time.RFC3339Nano))
	}
	for name, value := range map[string]string{"after": r.After, "principal": r.Principal, "repository": r.Repository} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if r.Limit > 0 {
		query.Set("limit", strconv.Itoa(r.Limit))
	}
	var out AuditPage
	return out, c.call(ctx, http.MethodGet, "/api/v1/audit?"+query.Encode(), nil, &out)
}
