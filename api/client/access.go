package client

import (
	"context"
	"net/http"
	"time"
)

// Access is who may do what.
type Access struct {
	On         bool        `json:"on"`
	Principals []Principal `json:"principals"`
	Grants     []Grant     `json:"grants"`
}

// Principal is a user or a robot, without what it proves itself by.
type Principal struct {
	Name     string     `json:"name"`
	Kind     string     `json:"kind"` // user or robot
	Provider string     `json:"provider,omitempty"`
	Groups   []string   `json:"groups"`
	Disabled bool       `json:"disabled"`
	Expires  *time.Time `json:"expires,omitempty"`
	Secrets  []Secret   `json:"secrets,omitempty"`
}

// Secret is one of a robot's secrets, by its ID.
type Secret struct {
	ID      string     `json:"id"`
	Expires *time.Time `json:"expires,omitempty"`
}

// Grant gives a right (pull, push, delete, admin) on the repositories of a pattern to a user, a robot, group:NAME or
// anonymous.
type Grant struct {
	Subject string `json:"subject"`
	Right   string `json:"right"`
	Pattern string `json:"pattern"`
}

// UserRequest makes a user, with a password, a bcrypt hash that another program made, or the provider that has the password.
type UserRequest struct {
	Name     string   `json:"name"`
	Provider string   `json:"provider,omitempty"`
	Password string   `json:"password,omitempty"`
	Hash     string   `json:"hash,omitempty"`
	Groups   []string `json:"groups,omitempty"`
}

// UserAdded tells whether this was the first user, which turns access control on; and what is not as it should be where
// that is so.
type UserAdded struct {
	First   bool   `json:"first"`
	Warning string `json:"warning,omitempty"`
}

// PrincipalChange changes what is set of a user or a robot.
type PrincipalChange struct {
	Name     string    `json:"name"`
	Password *string   `json:"password,omitempty"`
	Groups   *[]string `json:"groups,omitempty"`
	Disabled *bool     `json:"disabled,omitempty"`
}

// NameRequest names a provider or a trust rule.
type NameRequest struct {
	Name string `json:"name"`
}

// RemovalRequest names a user or a robot. With a kind it is refused for one of the other.
type RemovalRequest struct {
	Name string `json:"name"`
	Kind string `json:"kind,omitempty"`
}

// RobotRequest makes a robot with its first secret and its grants. TTL ends it; empty is never.
type RobotRequest struct {
	Name   string  `json:"name"`
	TTL    string  `json:"ttl,omitempty"`
	Grants []Grant `json:"grants,omitempty"`
	// NoSecret makes none: the robot comes in by trust rules alone.
	NoSecret bool `json:"no_secret,omitempty"`
}

// RotateRequest gives a robot a new secret. The ones before it stay good for Keep; they end at once when it is empty.
type RotateRequest struct {
	Name string `json:"name"`
	Keep string `json:"keep,omitempty"`
}

// RobotSecret is a secret, which is shown this once.
type RobotSecret struct {
	Name    string     `json:"name"`
	Secret  string     `json:"secret,omitempty"`
	Expires *time.Time `json:"expires,omitempty"`
}

// ExplainRequest asks why a subject may do something, or not.
type ExplainRequest struct {
	Subject    string `json:"subject"`
	Right      string `json:"right"`
	Repository string `json:"repository"`
}

// Explanation is the decision, and the grant that it rests on where there is one.
type Explanation struct {
	Allowed bool   `json:"allowed"`
	Grant   *Grant `json:"grant,omitempty"`
	Reason  string `json:"reason"`
}

// Authority is the cluster's CA for the certificates that clients see; Fingerprint is the SHA-256 of it, in hex.
type Authority struct {
	PEM         string `json:"pem"`
	Fingerprint string `json:"fingerprint"`
}

// Authority gives the CA.
func (c *Client) Authority(ctx context.Context) (Authority, error) {
	var out Authority
	return out, c.call(ctx, http.MethodGet, "/api/v1/ca", nil, &out)
}

// Access lists users, robots and grants.
func (c *Client) Access(ctx context.Context) (Access, error) {
	var out Access
	return out, c.call(ctx, http.MethodGet, "/api/v1/access", nil, &out)
}

// AddUser makes a user.
func (c *Client) AddUser(ctx context.Context, r UserRequest) (UserAdded, error) {
	var out UserAdded
	return out, c.call(ctx, http.MethodPost, "/api/v1/access/user/add", r, &out)
}

// ChangePrincipal changes a user or a robot; its tokens from before end.
func (c *Client) ChangePrincipal(ctx context.Context, r PrincipalChange) error {
	return c.call(ctx, http.MethodPost, "/api/v1/access/change", r, nil)
}

// RemovePrincipal removes a user or a robot with its grants.
func (c *Client) RemovePrincipal(ctx context.Context, r RemovalRequest) error {
	return c.call(ctx, http.MethodPost, "/api/v1/access/remove", r, nil)
}

// AddRobot makes a robot and gives its secret.
func (c *Client) AddRobot(ctx context.Context, r RobotRequest) (RobotSecret, error) {
	var out RobotSecret
	return out, c.call(ctx, http.MethodPost, "/api/v1/access/robot/add", r, &out)
}

// RotateRobot gives a robot a new secret.
func (c *Client) RotateRobot(ctx context.Context, r RotateRequest) (RobotSecret, error) {
	var out RobotSecret
	return out, c.call(ctx, http.MethodPost, "/api/v1/access/robot/rotate", r, &out)
}

// Grant adds a grant.
func (c *Client) Grant(ctx context.Context, g Grant) error {
	return c.call(ctx, http.MethodPost, "/api/v1/access/grant", g, nil)
}

// Revoke takes a grant away.
func (c *Client) Revoke(ctx context.Context, g Grant) error {
	return c.call(ctx, http.MethodPost, "/api/v1/access/revoke", g, nil)
}

// Explain tells which grant decides.
func (c *Client) Explain(ctx context.Context, r ExplainRequest) (Explanation, error) {
	var out Explanation
	return out, c.call(ctx, http.MethodPost, "/api/v1/access/explain", r, &out)
}

// OpenAccess turns access control off; CloseAccess turns it on again.
func (c *Client) OpenAccess(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/api/v1/access/open", struct{}{}, nil)
}

// CloseAccess turns access control on.
func (c *Client) CloseAccess(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/api/v1/access/close", struct{}{}, nil)
}
