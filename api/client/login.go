package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Login is what a client keeps to come in over the network: a token that stands for a user's password, or a robot's secret as it
// is, or the files of a certificate and its key, which are read anew with each connection; and the CA to trust beside the
// system's, PEM.
type Login struct {
	Token string `json:"token"`
	Robot string `json:"robot,omitempty"` // whose secret Token is
	Cert  string `json:"cert,omitempty"`
	Key   string `json:"key,omitempty"`
	CA    string `json:"ca,omitempty"`
}

// bearer asks for access tokens, each as long as it is good.
type bearer struct {
	login Login

	mu     sync.Mutex
	access string
	ends   time.Time
}

// controlScope is what the control API asks of a token.
const controlScope = "cluster:pier:admin"

// LogIn gives the login that stands for a user's password on this server, or has a robot's secret.
func (c *Client) LogIn(ctx context.Context, user, password string) (Login, error) {
	form := Login{Robot: user, Token: password}.form()
	form.Set("access_type", "offline")
	answer, err := c.token(ctx, form)
	if err == nil && answer.Refresh == "" { // for robots there is nothing that lasts but the secret
		return Login{Robot: user, Token: password}, nil
	}
	return Login{Token: answer.Refresh}, err
}

// form is what the login proves, for a token.
func (l Login) form() url.Values {
	if l.Robot != "" {
		return url.Values{"grant_type": {"password"}, "username": {l.Robot}, "password": {l.Token}}
	}
	return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {l.Token}}
}

// lasting asks for a token that stands for what the form proves.
func (c *Client) lasting(ctx context.Context, form url.Values) (Login, error) {
	answer, err := c.token(ctx, form)
	if err == nil && answer.Refresh == "" {
		err = errors.New("the server gives no token that lasts")
	}
	return Login{Token: answer.Refresh}, err
}

type tokenAnswer struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
	Expires int    `json:"expires_in"`
}

func (c *Client) token(ctx context.Context, form url.Values) (tokenAnswer, error) {
	form.Set("service", "pier")
	form.Set("client_id", "pier")
	form.Set("scope", controlScope)
	var out tokenAnswer
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		return out, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := c.http.Do(req)
	if err != nil {
		return out, c.noAnswer(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil && resp.StatusCode/100 != 2 {
		err = refusal(resp, data)
	}
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	return out, err
}

// authorize gives a request the caller's token, if there is a login.
func (c *Client) authorize(req *http.Request) error {
	if c.login == nil {
		return nil
	}
	c.login.mu.Lock()
	defer c.login.mu.Unlock()
	if time.Now().After(c.login.ends) {
		answer, err := c.token(req.Context(), c.login.login.form())
		var refused *Error
		if errors.As(err, &refused) && refused.Status == http.StatusUnauthorized {
			return fmt.Errorf("the login is not good any more (pier login): %w", err)
		}
		if err != nil {
			return err
		}
		c.login.access = answer.Access
		c.login.ends = time.Now().Add(time.Duration(answer.Expires) * time.Second / 2)
	}
	req.Header.Set("Authorization", "Bearer "+c.login.access)
	return nil
}

// Certified tells whose certificate this client shows, by the server's word.
func (c *Client) Certified(ctx context.Context) (user string, err error) {
	var answer tokenAnswer
	if err := c.call(ctx, http.MethodGet, "/token?service=pier", nil, &answer); err != nil {
		return "", err
	}
	if user, _ = (Login{Token: answer.Access}).Whose(); user == "" {
		return "", errors.New("the server takes no clients' certificates (its setting tls-client-ca)")
	}
	return user, nil
}

// connectWait is how long a server may take to be there at all; its answer may take long.
const connectWait = 10 * time.Second

// transport trusts the login's CA beside the system's, and shows its certificate.
func (l Login) transport() *http.Transport {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{},
		DialContext: (&net.Dialer{Timeout: connectWait}).DialContext, TLSHandshakeTimeout: connectWait,
	}
	if l.CA != "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		roots.AppendCertsFromPEM([]byte(l.CA))
		t.TLSClientConfig.RootCAs = roots
	}
	if l.Cert != "" {
		t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(l.Cert, l.Key)
			if err != nil {
				return nil, fmt.Errorf("the certificate %s with the key %s: %w", l.Cert, l.Key, err)
			}
			return &pair, nil
		}
	}
	return t
}
