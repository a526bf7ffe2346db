package client

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Status is the cluster as one node and its peers see it.
type Status struct {
	ClusterID string       `json:"cluster_id"`
	Name      string       `json:"name"`
	Leader    string       `json:"leader"`
	Term      uint64       `json:"term"`
	Quorum    bool         `json:"quorum"`
	Healthy   bool         `json:"healthy"`
	Nodes     []NodeStatus `json:"nodes"`
}

// NodeStatus is one member. Role is leader, voter or nonvoter; State is alive, suspect, dead or left. Bytes and DiskFree are
// bytes.
type NodeStatus struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	API          string    `json:"api"`
	Cluster      string    `json:"cluster"`
	Role         string    `json:"role"`
	State        string    `json:"state"`
	AppliedIndex uint64    `json:"applied_index"`
	Blobs        int64     `json:"blobs"`
	BlobsMissing int64     `json:"blobs_missing"`
	Bytes        int64     `json:"bytes"`
	DiskFree     int64     `json:"disk_free"`
	Version      string    `json:"version"`
	Started      time.Time `json:"started"`
}

// InviteRequest asks for an invite that lives for TTL, such as 30m or 7d; an hour when empty.
type InviteRequest struct {
	TTL string `json:"ttl,omitempty"`
}

// Lifetime parses TTL: above zero, at most 30 days.
func (r InviteRequest) Lifetime() (time.Duration, error) {
	if r.TTL == "" {
		return time.Hour, nil
	}
	d, err := ParseLifetime(r.TTL)
	if err != nil || d > 30*24*time.Hour {
		return 0, fmt.Errorf("ttl %q: a time above zero such as 30m or 7d, at most 30d", r.TTL)
	}
	return d, nil
}

// ParseLifetime reads a time above zero as Go writes it, or a number of days such as 90d.
func ParseLifetime(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n <= 36500 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q: a time above zero such as 12h or 90d", s)
	}
	return d, nil
}

// Invite is a token that lets one node in.
type Invite struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// JoinRequest makes the node that gets it a member of the cluster that the token comes from.
type JoinRequest struct {
	Token   string `json:"token"`
	Discard bool   `json:"discard,omitempty"`
}

// Joined is who the node has become, and where the others look for it.
type Joined struct {
	ID        string `json:"id"`
	ClusterID string `json:"cluster_id"`
	Cluster   string `json:"cluster"`
}

// RemoveRequest takes a node out, by its name or ID.
type RemoveRequest struct {
	Node  string `json:"node"`
	Force bool   `json:"force,omitempty"`
}

// TransferRequest hands leadership to a node, by its name or ID; to the fittest when empty.
type TransferRequest struct {
	Node string `json:"node,omitempty"`
}

// RenewRequest replaces the certificates of an ACME server for these names; for all where there are none.
type RenewRequest struct {
	Names []string `json:"names,omitempty"`
}

// Renewed are the names' new certificates, each by its end.
type Renewed struct {
	Ends map[string]time.Time `json:"ends"`
}

// Error is a refusal: the HTTP status, a code for programs, and a message for people.
type Error struct {
	Status  int
	Code    string
	Message string
}

func (e *Error) Error() string { return e.Message }
