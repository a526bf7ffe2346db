package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"

	"pier/api/auth"
	"pier/api/client"
)

const (
	defaultFilter = "(uid={user})"
	defaultName   = "uid"

	ldapTime   = 10 * time.Second // all servers of a directory together
	serverTime = 4 * time.Second  // one of them
	restTime   = 5 * time.Second  // of a directory of which no server answers, before it is asked again

	maxLDAPAnswer   = 8 << 20 // bytes of one connection
	maxLDAPPassword = 1 << 10
	maxLDAPGroups   = 1000
)

// refusal is a login that a directory has refused, and why: for who administers it, not for who tried.
type refusal struct {
	reason  string
	unknown bool // there is nobody of that name
}

func (r *refusal) Error() string { return r.reason }

// Unwrap makes it a login that was wrong.
func (r *refusal) Unwrap() error { return auth.ErrWrongLogin }

// silence is a directory that doesn't say.
type silence struct{ err error }

func (s *silence) Error() string {
	text := s.err.Error()
	return text[:min(len(text), 500)]
}

// Unwrap makes it a login that can't be decided.
func (s *silence) Unwrap() []error { return []error{auth.ErrNoAnswer, s.err} }

// doubt is an answer that leaves it open who somebody is, of a server that does answer, and others as it should.
type doubt struct{ error }

func (d doubt) Unwrap() error { return d.error }

// doubted tells what a server says from its silence.
func doubted(err error) error {
	var said *ldap.Error
	if errors.As(err, &said) && said.ResultCode < ldap.ErrorNetwork && said.ResultCode != ldap.LDAPResultBusy && said.ResultCode != ldap.LDAPResultUnavailable {
		return doubt{err}
	}
	return err
}

// directory is an LDAP provider and how its servers did of late.
type directory struct {
	cfg    client.LDAP
	roots  *x509.CertPool // nil: the system's
	groups groupMap
	// whole bounds one question, each what one server may take of it, and pause is how long silent servers are left alone.
	whole, each, pause time.Duration

	mu    sync.Mutex
	first int       // the server that answered last
	rest  time.Time // until then none is asked
}

func newDirectory(l client.LDAP) *directory {
	l.Filter, l.NameAttribute = orElse(l.Filter, defaultFilter), orElse(l.NameAttribute, defaultName)
	d := &directory{cfg: l, groups: newGroupMap(l.Groups), whole: ldapTime, each: serverTime, pause: restTime}
	if l.CA != "" {
		d.roots = x509.NewCertPool()
		d.roots.AppendCertsFromPEM([]byte(l.CA)) // checked when it was set
	}
	return d
}

// question is one login, or a look whether somebody is there.
type question struct {
	user     string
	password string
	lookUp   bool // without a password
	note     func(format string, args ...any)
}

// person is whom a directory knows: the name there, and the groups here.
type person struct {
	name   string
	groups []string
}

// ask puts the question to the servers in turn, beginning with the one that answered last.
func (d *directory) ask(ctx context.Context, q question) (person, error) {
	// An empty one would bind as nobody, and succeed; to some servers one is empty that begins with NUL.
	if !q.lookUp && (q.password == "" || len(q.password) > maxLDAPPassword || strings.Contains(q.password, "\x00")) {
		return person{}, &refusal{reason: fmt.Sprintf("a password of %d bytes; 1 to %d without NUL are tried", len(q.password), maxLDAPPassword)}
	}
	within, cancel := context.WithTimeout(ctx, d.whole)
	defer cancel()
	d.mu.Lock()
	first := d.first
	d.mu.Unlock()
	var faults []error
	answered := false
	for i := range d.cfg.URLs {
		n := (first + i) % len(d.cfg.URLs)
		p, err := d.askServer(within, d.cfg.URLs[n], q)
		if ctx.Err() != nil {
			return person{}, ctx.Err() // who asked is gone; that says nothing of the servers
		}
		decided := err == nil || errors.Is(err, auth.ErrWrongLogin)
		if decided || errors.As(err, &doubt{}) {
			answered = true
			d.mu.Lock()
			d.first, d.rest = n, time.Time{}
			d.mu.Unlock()
		}
		if decided {
			return p, err
		}
		q.note("%s: %v", d.cfg.URLs[n], err)
		faults = append(faults, fmt.Errorf("%s: %w", d.cfg.URLs[n], err))
		if within.Err() != nil {
			break
		}
	}
	// Somebody in more groups than a server will list must not keep everybody else out.
	if !answered {
		d.mu.Lock()
		d.rest = time.Now().Add(d.pause)
		d.mu.Unlock()
	}
	return person{}, &silence{errors.Join(faults...)}
}

// resting tells whether the servers were silent a moment ago: a login then isn't made to wait for them again.
func (d *directory) resting() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Now().Before(d.rest) {
		return &silence{errors.New("no server answered a moment ago; it is asked again soon")}
	}
	return nil
}

// reach tells which servers don't let the bind user in.
func (d *directory) reach(ctx context.Context) error {
	faults := make([]error, len(d.cfg.URLs))
	var all sync.WaitGroup
	for i, address := range d.cfg.URLs {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, d.each)
			defer cancel()
			conn, err := d.connect(ctx, address)
			if err == nil {
				defer func() { _ = conn.Close() }()
				err = d.bindService(conn)
			}
			if err != nil {
				faults[i] = fmt.Errorf("%s: %w", address, err)
			}
		})
	}
	all.Wait()
	return errors.Join(faults...)
}

func (d *directory) askServer(ctx context.Context, address string, q question) (person, error) {
	ctx, cancel := context.WithTimeout(ctx, d.each)
	defer cancel()
	conn, err := d.connect(ctx, address)
	if err != nil {
		return person{}, err
	}
	defer func() { _ = conn.Close() }()
	if err := d.bindService(conn); err != nil {
		return person{}, err
	}
	entry, err := d.find(conn, q.user)
	if err != nil {
		return person{}, doubted(err)
	}
	q.note("%s: found %s", address, entry.DN)
	p, err := d.named(entry)
	if err != nil {
		return person{}, err
	}
	if !q.lookUp {
		if err := conn.Bind(entry.DN, q.password); err != nil {
			return person{}, doubted(bindFault(entry.DN, err))
		}
		q.note("the password is right")
		if d.groups.search() { // which the user itself may not be allowed to
			if err := d.bindService(conn); err != nil {
				return person{}, err
			}
		}
	}
	theirs, err := d.groups.of(conn, entry, p.name)
	if err != nil {
		return person{}, doubted(err)
	}
	p.groups = d.groups.mapped(theirs, q.note)
	return p, nil
}

// connect opens a connection that ends with ctx, and is secured unless the settings say that it isn't.
func (d *directory) connect(ctx context.Context, address string) (*ldap.Conn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"ldap": ldap.DefaultLdapPort, "ldaps": ldap.DefaultLdapsPort}[u.Scheme]
	}
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(end)
	}
	bound := &boundedConn{Conn: raw, left: maxLDAPAnswer}
	settings := &tls.Config{RootCAs: d.roots, ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
	if u.Scheme == "ldaps" {
		secured := tls.Client(bound, settings)
		if err := secured.HandshakeContext(ctx); err != nil {
			_ = bound.Close()
			return nil, fmt.Errorf("TLS: %w", err)
		}
		return begin(ctx, raw, ldap.NewConn(secured, true)), nil
	}
	conn := begin(ctx, raw, ldap.NewConn(bound, false))
	if d.cfg.Insecure {
		return conn, nil
	}
	if err := conn.StartTLS(settings); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("StartTLS: %w", err)
	}
	return conn, nil
}

// begin starts the library's conversation, which ends with ctx. Closing the connection below it isn't enough: the library (v3.4.15)
// stops reading after the first packet in answer to StartTLS, and would wait for ever where that was another's.
func begin(ctx context.Context, raw net.Conn, conn *ldap.Conn) *ldap.Conn {
	conn.Start()
	context.AfterFunc(ctx, func() {
		_ = raw.Close()
		_ = conn.Close()
	})
	return conn
}

// boundedConn reads so many bytes and no more: what a server sends ends up in memory.
type boundedConn struct {
	net.Conn
	left int64 // only the connection's one reader counts
}

// Read is net.Conn's.
func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, fmt.Errorf("the answer has more than %d bytes", maxLDAPAnswer)
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// bindService is who may search. A failure is a fault of the settings, not of who logs in.
func (d *directory) bindService(conn *ldap.Conn) error {
	err := error(nil)
	if d.cfg.BindDN == "" {
		err = conn.UnauthenticatedBind("")
	} else {
		err = conn.Bind(d.cfg.BindDN, d.cfg.BindPassword)
	}
	if err != nil {
		return fmt.Errorf("bind as %q: %w", d.cfg.BindDN, err)
	}
	return nil
}

// find gives the one entry that has the name.
func (d *directory) find(conn *ldap.Conn, user string) (*ldap.Entry, error) {
	filter := strings.ReplaceAll(d.cfg.Filter, "{user}", ldap.EscapeFilter(user))
	r := &ldap.SearchRequest{
		BaseDN: d.cfg.Base, Scope: ldap.ScopeWholeSubtree, Filter: filter, SizeLimit: 2, EnforceSizeLimit: true,
		TimeLimit: int(serverTime / time.Second), Attributes: append([]string{d.cfg.NameAttribute}, d.groups.attributes()...),
	}
	found, err := conn.Search(r)
	if err != nil && !ldap.IsErrorAnyOf(err, ldap.LDAPResultSizeLimitExceeded) {
		return nil, fmt.Errorf("search below %s: %w", d.cfg.Base, err)
	}
	switch {
	case err != nil || len(found.Entries) > 1:
		return nil, &refusal{reason: fmt.Sprintf("%s finds more than one entry below %s", filter, d.cfg.Base)}
	case len(found.Entries) == 0:
		return nil, &refusal{reason: fmt.Sprintf("%s finds nobody below %s", filter, d.cfg.Base), unknown: true}
	}
	return found.Entries[0], nil
}

// named takes the name from the entry, not from who typed it: one person must not be two here.
func (d *directory) named(entry *ldap.Entry) (person, error) {
	names := entry.GetEqualFoldAttributeValues(d.cfg.NameAttribute)
	if len(names) != 1 {
		return person{}, &refusal{reason: fmt.Sprintf("%s has %d values of %s; one is needed for the name here", entry.DN, len(names), d.cfg.NameAttribute)}
	}
	if err := auth.CheckName(names[0]); err != nil {
		return person{}, &refusal{reason: fmt.Sprintf("%s: %v", entry.DN, err)}
	}
	return person{name: names[0]}, nil
}

// bindFault tells a password that is refused from a server that doesn't decide. Servers say in several ways that an account
// is locked or disabled.
func bindFault(dn string, err error) error {
	if ldap.IsErrorAnyOf(err, ldap.LDAPResultInvalidCredentials, ldap.LDAPResultInappropriateAuthentication, ldap.LDAPResultUnwillingToPerform,
		ldap.LDAPResultConstraintViolation, ldap.LDAPResultInsufficientAccessRights, ldap.LDAPResultNoSuchObject) {
		return &refusal{reason: fmt.Sprintf("%s: the server refuses the password: %v", dn, err)}
	}
	return fmt.Errorf("bind as %s: %w", dn, err)
}
