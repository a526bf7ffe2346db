package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"pier/api"
	"pier/api/auth"
	"pier/fsm"
)

// authority is the CA of the cluster that this node is in: another one after it has joined.
type authority struct {
	current atomic.Pointer[auth.Authority]
}

func (a *authority) store(seeds [][]byte) error {
	next, err := auth.NewAuthority(seeds[0], seeds[1:]...)
	if err == nil {
		a.current.Store(next)
	}
	return err
}

// Load gives the CA, once there is one.
func (a *authority) Load() (*auth.Authority, error) {
	if now := a.current.Load(); now != nil {
		return now, nil
	}
	return nil, errors.New("this node has no cluster secret yet")
}

// certificates are what the API port shows.
type certificates interface {
	Run(ctx context.Context) error
	TLS() *tls.Config
	Fault() error
	// Covers tells whether a certificate is good for the host.
	Covers(host string) bool
}

// certificates gives what the settings ask for; nil where clients come by HTTP.
func (n *Node) certificates() (certificates, error) {
	switch a := n.cfg.Access; {
	case a.TLS == tlsACME:
		return n.keeper()
	case a.TLS == "auto":
		return auth.FromAuthority(n.authority.Load, n.hosts, n.opts.Tuning.Clock, n.logger)
	case a.TLSCert != "":
		return auth.FromFiles(a.TLSCert, a.TLSKey, n.logger)
	}
	return nil, nil
}

// readClientCAs takes the CAs of clients' certificates, if the settings name any.
func (n *Node) readClientCAs() (err error) {
	path := n.cfg.Access.TLSClientCA
	if path == "" {
		return nil
	}
	if n.clients, err = auth.ClientsFromFile(path, n.logger); err != nil {
		return fmt.Errorf("tls-client-ca: %w", err)
	}
	return nil
}

// encrypt makes the public door one for HTTPS, if the settings ask for that.
func (n *Node) encrypt() (err error) {
	if n.certs, err = n.certificates(); err != nil || n.certs == nil {
		return err
	}
	serve := n.certs.TLS()
	if n.clients != nil {
		serve = n.clients.Ask(serve)
	}
	n.public.secure(serve)
	return nil
}

// CertificateFault is why the certificate that clients see isn't what it is to be; nil when it is.
func (n *Node) CertificateFault() error {
	if n.certs == nil {
		return nil
	}
	return n.certs.Fault()
}

// hosts are the names and addresses in the certificate of this node: what it is told that clients use, and what it can
// tell by itself.
func (n *Node) hosts() []string {
	out := append([]string{}, n.cfg.Access.PublicNames...)
	if name, err := os.Hostname(); err == nil {
		out = append(out, name)
	}
	out = append(out, "localhost")
	if host, _, err := net.SplitHostPort(n.cfg.ClusterAdvertise); err == nil && host != "" {
		out = append(out, host)
	}
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLinkLocalUnicast() {
			out = append(out, ip.IP.String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// guarded refuses to start where passwords would travel in the open.
func (n *Node) guarded(state *fsm.State) error {
	access, err := state.Access()
	if err != nil || !n.closed(access) || n.secure() || n.cfg.Access.InsecureHTTP || isLoopback(n.cfg.Listen) {
		return err
	}
	return fmt.Errorf("access control is on and %s is reachable from elsewhere without TLS, so passwords could be read on the way: use --tls auto (or --tls-cert), listen on loopback, or say --insecure-http", n.cfg.Listen)
}

// Exposure says what anybody who reaches this node from elsewhere can do; empty when that is nothing.
func (n *Node) Exposure() string {
	said, _ := n.exposure()
	return said
}

func (n *Node) exposure() (said, remedy string) {
	access, err := n.instance().state.Access()
	switch {
	case isLoopback(n.cfg.Listen) || err != nil:
	case n.closed(access) && n.secure():
	case n.closed(access) && n.cfg.Access.InsecureHTTP:
		return "PASSWORDS TRAVEL IN THE OPEN: the registry listens beyond this machine without TLS", "--tls auto encrypts"
	case n.closed(access): // since it started: it wouldn't have, else
		return "PASSWORDS TRAVEL IN THE OPEN: the registry listens beyond this machine without TLS; the next start is refused without --tls auto, --tls-cert or --insecure-http",
			"start it with --tls auto, and change the passwords that were used meanwhile"
	case n.secure():
		return "THE REGISTRY IS OPEN: it listens beyond this machine without access control; everybody who reaches it can push and delete",
			"`pier user add` makes the first user and closes the registry; --listen 127.0.0.1:5000 keeps others out"
	default:
		return "THE REGISTRY IS OPEN: it listens beyond this machine, without access control and without TLS; everybody who reaches it can push and delete",
			"start the nodes with --tls auto, then `pier user add` makes the first user and closes the registry; or --listen 127.0.0.1:5000 keeps others out"
	}
	return "", ""
}

// closed tells whether access control is in force, or about to be.
func (n *Node) closed(a fsm.Access) bool { return a.On || n.cfg.Access.AdminUser != "" && !a.Decided }

func (n *Node) secure() bool { return n.cfg.Access.secure() }

// isLoopback tells whether only this machine reaches the address.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// firstUser makes the administrator that the settings name, if nobody has made a user yet. All nodes may have the setting:
// the first one that gets through makes it.
func (n *Node) firstUser(ctx context.Context, inst *instance, log api.Log) error {
	a := n.cfg.Access
	if a.AdminUser == "" {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-inst.cluster.Ready():
	}
	for {
		err := n.makeFirst(ctx, inst.state, log)
		if ctx.Err() != nil {
			return nil // the node ends, and whoever comes next makes it
		}
		var again *api.Unavailable
		// A cluster that has just formed doesn't know yet what all of its nodes understand.
		if !errors.As(err, &again) && !errors.Is(err, fsm.ErrLevel) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func (n *Node) makeFirst(ctx context.Context, state *fsm.State, log api.Log) error {
	if err := log.Current(ctx); err != nil {
		return err
	}
	set, err := state.Setting(fsm.SettingAccess)
	if err != nil || set != "" {
		return err
	}
	password, err := os.ReadFile(n.cfg.Access.AdminPasswordFile)
	if err != nil {
		return fmt.Errorf("admin-password-file: %w", err)
	}
	hash, err := auth.HashPassword(strings.TrimRight(string(password), "\r\n"))
	if err = errors.Join(err, auth.CheckName(n.cfg.Access.AdminUser)); err != nil {
		return fmt.Errorf("admin-user: %w", err)
	}
	_, err = log.Propose(ctx, fsm.PutPrincipal{Principal: fsm.Principal{Name: n.cfg.Access.AdminUser, Password: hash}})
	if errors.Is(err, fsm.ErrPrincipalExists) {
		return nil
	}
	if err == nil {
		n.logger.Info("access control is on; made its administrator", "user", n.cfg.Access.AdminUser)
	}
	return err
}
