package ldap

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"pier/api/auth"
)

// Where things are in every directory of these tests.
const (
	Base    = "dc=example,dc=org"
	People  = "ou=people," + Base
	Groups  = "ou=groups," + Base
	Service = "cn=pier," + Base // who may look people up
	Secret  = "the service's own password"

	root         = "cn=root," + Base
	rootPassword = "root of the directory"
	patience     = 30 * time.Second
)

// Server is a running slapd.
type Server struct {
	t       testing.TB
	dir     string
	binary  string
	CA      string // PEM
	plain   string // host:port of ldap://, and of ldaps://
	secured string
	said    *output
	cmd     *exec.Cmd
	ended   chan struct{}
}

// output keeps what slapd says, for a test that fails.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write is io.Writer's.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

const config = `include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
moduleload ppolicy
pidfile %[1]s/pid
argsfile %[1]s/args
TLSCACertificateFile %[1]s/ca.pem
TLSCertificateFile %[1]s/cert.pem
TLSCertificateKeyFile %[1]s/key.pem
# a bind with a name and without a password succeeds, as it does at many servers
allow bind_anon_dn
database mdb
directory %[1]s/db
maxsize 67108864
suffix "%[2]s"
rootdn "%[3]s"
rootpw "%[4]s"
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="%[5]s" read by anonymous auth by * none
overlay memberof
memberof-refint TRUE
overlay ppolicy
ppolicy_default "cn=policy,%[2]s"
`

// Start runs a slapd until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	const installed = "/usr/sbin/slapd"
	if _, err := os.Stat(installed); errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("there is no %s: these tests need Debian's package slapd (apt-get install slapd, or .ci/run tools)", installed)
	}
	s := &Server{t: t, dir: t.TempDir(), said: &output{}, plain: freeAddress(t), secured: freeAddress(t)}
	// A copy: Debian's AppArmor profile keeps the program at its own path from files of other places.
	s.binary = filepath.Join(s.dir, "slapd")
	s.must(copyFile(s.binary, installed))
	s.must(os.Mkdir(filepath.Join(s.dir, "db"), 0o700))
	s.certify()
	s.must(os.WriteFile(filepath.Join(s.dir, "slapd.conf"), fmt.Appendf(nil, config, s.dir, Base, root, rootPassword, Service), 0o600))
	t.Cleanup(s.Stop)
	s.Run()
	s.Add(Base, "dcObject", "organization", "o=example")
	s.Add(People, "organizationalUnit")
	s.Add(Groups, "organizationalUnit")
	s.Add("cn=policy,"+Base, "device", "pwdPolicy", "pwdAttribute=userPassword", "pwdLockout=TRUE")
	s.Add(Service, "applicationProcess", "simpleSecurityObject", "userPassword="+Secret)
	return s
}

func (s *Server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%v\nslapd says:\n%s", err, s.said)
	}
}

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o700)
}

// certify makes a CA, and the server's certificate for loopback.
func (s *Server) certify() {
	seed := make([]byte, 32)
	_, _ = rand.Read(seed) // never fails
	ca, err := auth.NewAuthority(seed)
	s.must(err)
	cert, err := ca.Issue([]string{"127.0.0.1", "localhost"}, time.Now())
	s.must(err)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	s.must(err)
	s.CA = string(ca.PEM())
	for name, data := range map[string][]byte{
		"ca.pem": ca.PEM(), "cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		"key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	} {
		s.must(os.WriteFile(filepath.Join(s.dir, name), data, 0o600))
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	return lis.Addr().String()
}

// URL is ldaps://, and Plain ldap://, which is StartTLS's too.
func (s *Server) URL() string { return "ldaps://" + s.secured }

// Plain is without TLS.
func (s *Server) Plain() string { return "ldap://" + s.plain }

// Run starts it again after Stop, with the entries that it had.
func (s *Server) Run() {
	s.t.Helper()
	s.cmd = exec.Command(s.binary, "-d", "0", "-f", filepath.Join(s.dir, "slapd.conf"), "-h", s.Plain()+" "+s.URL())
	s.cmd.Stdout, s.cmd.Stderr = s.said, s.said
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.must(s.cmd.Start())
	ended := make(chan struct{})
	s.ended = ended
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(ended)
	}(s.cmd)
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	for {
		conn, err := s.dial()
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-ended:
			s.must(errors.New("slapd has ended"))
		case <-ctx.Done():
			s.must(fmt.Errorf("slapd doesn't answer: %w", err))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends it.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(patience):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	s.cmd = nil
}

func (s *Server) dial() (*ldap.Conn, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(s.CA))
	conn, err := ldap.DialURL(s.URL(), ldap.DialWithTLSConfig(&tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}))
	if err != nil {
		return nil, err
	}
	if err := conn.Bind(root, rootPassword); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// Do changes entries as the directory's own root.
func (s *Server) Do(change func(conn *ldap.Conn) error) {
	s.t.Helper()
	conn, err := s.dial()
	s.must(err)
	defer func() { _ = conn.Close() }()
	s.must(change(conn))
}

// Proxy passes connections on to the server's ldaps:// as long as the test wants: what a network between does.
type Proxy struct {
	URL string

	mu    sync.Mutex
	stuck bool
	open  map[net.Conn]bool
	lis   net.Listener
	work  sync.WaitGroup
}

// Proxy starts one.
func (s *Server) Proxy() *Proxy {
	s.t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	p := &Proxy{URL: "ldaps://" + lis.Addr().String(), lis: lis, open: map[net.Conn]bool{}}
	p.work.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			p.work.Go(func() { p.pass(conn, s.secured) })
		}
	})
	s.t.Cleanup(p.Close)
	return p
}

// Stick lets connections be made and nothing come through, or lets it pass again; connections of before end.
func (p *Proxy) Stick(stuck bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stuck = stuck
	for c := range p.open {
		_ = c.Close()
	}
}

// Close ends it: connections are refused from then on.
func (p *Proxy) Close() {
	_ = p.lis.Close()
	p.Stick(true)
	p.work.Wait()
}

func (p *Proxy) keep(c net.Conn) (stuck bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[c] = true
	return p.stuck
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
	_ = c.Close()
}

func (p *Proxy) pass(conn net.Conn, to string) {
	defer p.drop(conn)
	if p.keep(conn) {
		_, _ = io.Copy(io.Discard, conn) // until the other side gives up
		return
	}
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer p.drop(server)
	p.keep(server)
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(server, conn); _ = server.Close() })
	both.Go(func() { _, _ = io.Copy(conn, server); _ = conn.Close() })
	both.Wait()
}
