package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// AuditLine is one decision: who asked for what, from where, and how it ended.
type AuditLine struct {
	Time       time.Time `json:"time"`
	Node       string    `json:"node"`
	Principal  string    `json:"principal"`
	Kind       string    `json:"kind"`
	Address    string    `json:"address"`
	Request    string    `json:"request"`
	Action     string    `json:"action"`
	Repository string    `json:"repository,omitempty"`
	Reference  string    `json:"reference,omitempty"`
	Digest     string    `json:"digest,omitempty"`
	Target     string    `json:"target,omitempty"` // of a change of the cluster: whom or what it changes
	Status     int       `json:"status"`
}

// AuditRequest chooses lines. Empty fields choose all; Limit is 100 when 0.
type AuditRequest struct {
	Since      time.Time
	Principal  string
	Repository string
	Limit      int
}

// Audit gives the newest lines that a node has written down, oldest first.
func (c *Client) Audit(ctx context.Context, r AuditRequest) ([]AuditLine, error) {
	query := url.Values{}
	if !r.Since.IsZero() {
		query.Set("since", r.Since.Format(time.RFC3339Nano))
	}
	for name, value := range map[string]string{"principal": r.Principal, "repository": r.Repository} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if r.Limit > 0 {
		query.Set("limit", strconv.Itoa(r.Limit))
	}
	var out []AuditLine
	return out, c.call(ctx, http.MethodGet, "/api/v1/audit?"+query.Encode(), nil, &out)
}
