package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"

	"pier/api/auth"
	"pier/test/process"
	"pier/test/proxy"
)

const (
	secureUser     = "suite"
	securePassword = "a pass:word"
)

// secured closes the cluster, and runs the suite as a user who may push and delete below conformance/ and nothing else. All
// the way is HTTPS: the suite trusts the proxy's authority alone, the proxy that of the nodes.
func secured(ctx context.Context, s suite, o options, c *process.Cluster, dir string) error {
	if err := admit(ctx, c, dir); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(c.Authority)) // the cluster has looked at it
	seed := make([]byte, 32)
	_, _ = rand.Read(seed) // never fails
	authority, err := auth.NewAuthority(seed)
	if err != nil {
		return err
	}
	cert, err := authority.Issue([]string{"127.0.0.1"}, time.Now())
	if err != nil {
		return err
	}
	ca := filepath.Join(dir, "proxy-ca.crt")
	if err := os.WriteFile(ca, authority.PEM(), 0o600); err != nil {
		return fmt.Errorf("keep the proxy's authority: %w", err)
	}
	return behind(ctx, "secure", proxy.Config{Backends: c.URLs(), Roots: roots}, cert, func(ctx context.Context, p *proxy.Proxy, address string) error {
		return errors.Join(
			runVersions(ctx, s, o, "secure", address, "OCI_TLS=enabled", "OCI_USERNAME="+secureUser, "OCI_PASSWORD="+securePassword, "SSL_CERT_FILE="+ca),
			closed(p))
	})
}

// admit makes an administrator, which closes the registry, and the suite's user.
func admit(ctx context.Context, c *process.Cluster, dir string) error {
	var users strings.Builder
	for _, name := range []string{"root", secureUser} {
		hash, err := bcrypt.GenerateFromPassword([]byte(securePassword), bcrypt.MinCost)
		if err != nil {
			return err
		}
		fmt.Fprintf(&users, "%s:%s\n", name, hash)
	}
	path := filepath.Join(dir, "users")
	if err := os.WriteFile(path, []byte(users.String()), 0o600); err != nil {
		return fmt.Errorf("write the users: %w", err)
	}
	for i, args := range [][]string{
		{"user", "import", "--htpasswd", path},
		{"access", "grant", secureUser, "push", "conformance/**"},
		{"access", "grant", secureUser, "delete", "conformance/**"},
	} {
		if _, err := c.Nodes[i%len(c.Nodes)].Pier(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// closed is an error unless the suite was asked who it is. It keeps what it gets for each repository and method.
func closed(p *proxy.Proxy) error {
	if p.Stats().Status[http.StatusUnauthorized] < 10 {
		return errors.New("the suite was let in without a login")
	}
	return nil
}
