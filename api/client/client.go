package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
)

const maxAnswer = 16 << 20

// Options say where the node is: its control socket, or its API's URL.
type Options struct {
	Socket string
	Server string
	Login  Login // for Server
}

// Client is safe for concurrent use. Calls end with their context.
type Client struct {
	base   string
	at     string // where the node is, for errors
	http   *http.Client
	socket bool
	login  *bearer // nil without one
}

// New makes a client; it connects with the first call.
func New(o Options) *Client {
	if o.Server != "" {
		base := strings.TrimSuffix(o.Server, "/")
		if !strings.Contains(base, "://") {
			base = "http://" + base
		}
		c := &Client{base: base, at: base, http: &http.Client{Transport: o.Login.transport(), CheckRedirect: stay}}
		if o.Login.Token != "" {
			c.login = &bearer{login: o.Login}
		}
		return c
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", o.Socket)
	}
	return &Client{base: "http://pier", at: o.Socket, socket: true, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// stay follows nobody: a password or a token would be sent along, even from HTTPS to HTTP.
func stay(r *http.Request, _ []*http.Request) error {
	return fmt.Errorf("it redirects to %s://%s; if that is meant, name it in place of this", r.URL.Scheme, r.URL.Host)
}

// Status gives the cluster's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, http.MethodGet, "/api/v1/cluster/status", nil, &s)
}

// Invite makes a token.
func (c *Client) Invite(ctx context.Context, r InviteRequest) (Invite, error) {
	var i Invite
	return i, c.call(ctx, http.MethodPost, "/api/v1/cluster/invite", r, &i)
}

// Join makes the node a member elsewhere.
func (c *Client) Join(ctx context.Context, r JoinRequest) (Joined, error) {
	var j Joined
	return j, c.call(ctx, http.MethodPost, "/api/v1/cluster/join", r, &j)
}

// Leave takes the node out of its cluster; it returns when the node is out.
func (c *Client) Leave(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/api/v1/cluster/leave", struct{}{}, nil)
}

// Remove takes another node out.
func (c *Client) Remove(ctx context.Context, r RemoveRequest) error {
	return c.call(ctx, http.MethodPost, "/api/v1/cluster/remove", r, nil)
}

// Transfer hands leadership on.
func (c *Client) Transfer(ctx context.Context, r TransferRequest) error {
	return c.call(ctx, http.MethodPost, "/api/v1/cluster/transfer", r, nil)
}

// RenewCertificates replaces certificates of an ACME server; it returns when the new ones are in use at the node.
func (c *Client) RenewCertificates(ctx context.Context, r RenewRequest) (Renewed, error) {
	var out Renewed
	return out, c.call(ctx, http.MethodPost, "/api/v1/acme/renew", r, &out)
}

// Health asks whether the node can serve pulls, or pushes too.
func (c *Client) Health(ctx context.Context, push bool) error {
	path := "/readyz"
	if push {
		path += "?for=push"
	}
	return c.call(ctx, http.MethodGet, path, nil, nil)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	if err := c.authorize(req); err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.noAnswer(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the node's answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return refusal(resp, data)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("understand the node's answer: %w", err)
	}
	return nil
}

func (c *Client) noAnswer(err error) error {
	var outer *url.Error // names a URL that nobody wrote
	if errors.As(err, &outer) {
		err = outer.Err
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%s is for the user that runs the node, and for root: %w", c.at, err)
	}
	var stranger x509.UnknownAuthorityError
	if errors.As(err, &stranger) {
		return fmt.Errorf("nobody vouches for the node at %s (`pier trust HOST:PORT --install`, or `pier login --ca FILE`): %w", c.at, err)
	}
	if c.socket {
		return fmt.Errorf("no answer from the node at %s (is `pier serve` running, and is --data-dir its directory?): %w", c.at, err)
	}
	return fmt.Errorf("no answer from the node at %s: %w", c.at, err)
}

// refusal reads the error body that all of the API uses. A fault of the node's own is told with the ID that is in its log.
func refusal(resp *http.Response, data []byte) error {
	status := resp.StatusCode
	var body struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	e := &Error{Status: status, Code: "UNKNOWN", Message: fmt.Sprintf("%d: %.200s", status, bytes.TrimSpace(data))}
	if json.Unmarshal(data, &body) == nil && len(body.Errors) > 0 {
		e.Code, e.Message = body.Errors[0].Code, body.Errors[0].Message
	}
	if id := resp.Header.Get("X-Request-Id"); id != "" && status == http.StatusInternalServerError {
		e.Message += ": " + id
	}
	return e
}
