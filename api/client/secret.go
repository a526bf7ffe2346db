package client

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// DefaultKeepOld is how long a secret is accepted after the next one is in use everywhere: as long as the logins that were made
// under it last.
const DefaultKeepOld = 30 * 24 * time.Hour

// RotateSecretRequest replaces the cluster's secret. KeepOld is how long the one before is accepted once all nodes use the new
// one, as Go writes durations or in days; DefaultKeepOld when empty, and as short as possible when 0.
type RotateSecretRequest struct {
	KeepOld string `json:"keep_old,omitempty"`
}

// Keep parses KeepOld.
func (r RotateSecretRequest) Keep() (time.Duration, error) {
	switch r.KeepOld {
	case "":
		return DefaultKeepOld, nil
	case "0", "0s":
		return 0, nil
	}
	keep, err := ParseLifetime(r.KeepOld)
	if err != nil {
		return 0, fmt.Errorf("keep-old %w, or 0 to drop the old secret as soon as possible", err)
	}
	return keep, nil
}

// SecretStatus is how far the last rotation of the cluster's secret is. Step is add, roll, keep, drop or done, and empty where
// there was none yet. Secrets are named by fingerprints: the first is in use, the others are accepted.
type SecretStatus struct {
	Step    string          `json:"step,omitempty"`
	Begun   *time.Time      `json:"begun,omitempty"`
	By      string          `json:"by,omitempty"`
	Secrets []ClusterSecret `json:"secrets"`
	Waiting []string        `json:"waiting"` // the nodes that the step waits for
	Nodes   []SecretNode    `json:"nodes"`
	// Authority is the fingerprint of the CA that clients are to trust; empty where they see none of the cluster's.
	Authority string `json:"authority,omitempty"`
}

// Rolled tells whether every node uses the newest secret.
func (s SecretStatus) Rolled() bool { return s.Step != "add" && s.Step != "roll" }

// ClusterSecret is one secret by its name. Until is its end, where that is settled.
type ClusterSecret struct {
	Fingerprint string     `json:"fingerprint"`
	Until       *time.Time `json:"until,omitempty"`
}

// SecretNode is one node's part: whether it has done the step, which secrets it has in force, and what keeps it.
type SecretNode struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	Done    bool     `json:"done"`
	Secrets []string `json:"secrets"`
	Fault   string   `json:"fault,omitempty"`
}

// SecretStatus asks how far the rotation is.
func (c *Client) SecretStatus(ctx context.Context) (SecretStatus, error) {
	var s SecretStatus
	return s, c.call(ctx, http.MethodGet, "/api/v1/cluster/secret/status", nil, &s)
}

// RotateSecret begins to replace the secret.
func (c *Client) RotateSecret(ctx context.Context, r RotateSecretRequest) (SecretStatus, error) {
	var s SecretStatus
	return s, c.call(ctx, http.MethodPost, "/api/v1/cluster/secret/rotate", r, &s)
}

// DropSecret ends the old secrets as soon as possible.
func (c *Client) DropSecret(ctx context.Context) (SecretStatus, error) {
	var s SecretStatus
	return s, c.call(ctx, http.MethodPost, "/api/v1/cluster/secret/drop", struct{}{}, &s)
}
