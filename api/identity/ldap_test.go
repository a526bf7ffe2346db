package identity

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	"pier/api/auth"
	"pier/api/client"
)

func example() client.LDAP {
	return client.LDAP{URLs: []string{"ldaps://ldap.example.org"}, Base: "ou=people,dc=example,dc=org"}
}

func TestSettingsOfProviders(t *testing.T) {
	for name, x := range map[string]struct {
		change func(l *client.LDAP)
		fault  string
	}{
		"the least":         {func(*client.LDAP) {}, ""},
		"with a port":       {func(l *client.LDAP) { l.URLs = []string{"ldap://[::1]:1389", "ldaps://x/"} }, ""},
		"no server":         {func(l *client.LDAP) { l.URLs = nil }, "URLs"},
		"nine servers":      {func(l *client.LDAP) { l.URLs = strings.Split(strings.Repeat("ldaps://x ", 9)+"ldaps://x", " ") }, "URLs"},
		"another scheme":    {func(l *client.LDAP) { l.URLs = []string{"https://x"} }, "ldaps://HOST"},
		"a socket":          {func(l *client.LDAP) { l.URLs = []string{"ldapi:///"} }, "ldaps://HOST"},
		"a password in it":  {func(l *client.LDAP) { l.URLs = []string{"ldaps://u:p@x"} }, "ldaps://HOST"},
		"a base in it":      {func(l *client.LDAP) { l.URLs = []string{"ldaps://x/dc=example"} }, "ldaps://HOST"},
		"no base":           {func(l *client.LDAP) { l.Base = "" }, "the base of users"},
		"a base that isn't": {func(l *client.LDAP) { l.Base = "people" }, "the base of users"},
		"no CA":             {func(l *client.LDAP) { l.CA = "x" }, "CA"},
		"no bind password":  {func(l *client.LDAP) { l.BindDN = "cn=x" }, "belong together"},
		"no bind DN":        {func(l *client.LDAP) { l.BindPassword = "x" }, "belong together"},
		"a filter":          {func(l *client.LDAP) { l.Filter = "(&(uid={user})(!(x=1)))" }, ""},
		"another name":      {func(l *client.LDAP) { l.Filter, l.NameAttribute = "(sAMAccountName={user})", "samaccountname" }, ""},
		"no filter":         {func(l *client.LDAP) { l.Filter = "uid={user}" + ")" }, "filter of users"},
		"for everybody":     {func(l *client.LDAP) { l.Filter = "(objectClass=person)" }, "(uid={user}) must be in it"},
		"not by the name":   {func(l *client.LDAP) { l.Filter = "(mail={user})" }, "(uid={user}) must be in it"},
		"groups":            {func(l *client.LDAP) { l.Groups.Map = map[string]string{"cn=x,dc=y": "dev"} }, ""},
		"groups by no DN":   {func(l *client.LDAP) { l.Groups.Map = map[string]string{"x": "dev"} }, "a group that is mapped"},
		"to no name":        {func(l *client.LDAP) { l.Groups.Map = map[string]string{"cn=x": "a b"} }, "name"},
		"groups anywhere":   {func(l *client.LDAP) { l.Groups.All = true }, "base"},
		"searched anywhere": {func(l *client.LDAP) { l.Groups.Filter = "(member={dn})" }, "base"},
		"of everybody":      {func(l *client.LDAP) { l.Groups.Base, l.Groups.Filter = "dc=x", "(cn=x)" }, "must be in it"},
		"a prefix":          {func(l *client.LDAP) { l.Groups.Prefix = "a:" }, "name"},
	} {
		l := example()
		x.change(&l)
		err := Check(client.Provider{Name: "corp", LDAP: &l})
		if x.fault == "" && err != nil || x.fault != "" && (err == nil || !strings.Contains(err.Error(), x.fault)) {
			t.Errorf("%s: %v, want %q", name, err, x.fault)
		}
	}
	l, o := example(), client.OIDC{Issuer: "https://login.example.org", ClientID: "pier"}
	for name, p := range map[string]client.Provider{
		"neither": {Name: "corp"}, "both": {Name: "corp", LDAP: &l, OIDC: &o}, "no name": {LDAP: &l}, "no client": {Name: "x", OIDC: &client.OIDC{Issuer: o.Issuer}},
	} {
		if Check(p) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for _, body := range []string{"", "{}", "[]", `{"ldap":{}}`, `{"ldap":{"urls":"x"}}`,
		`{"later":1,"ldap":{"urls":["ldaps://x"],"base":"dc=x","groups":{}}}`, `{"ldap":{"urls":["ldaps://x"],"base":"dc=x","later":1,"groups":{}}}`} {
		if p, err := Decode("corp", []byte(body), 1); err == nil {
			t.Errorf("%s is %+v", body, p)
		}
	}
	if p, err := Decode("corp", []byte(`{"name":"other","ldap":{"urls":["ldaps://x"],"base":"dc=x","groups":{}}}`), 3); err != nil || p.Name != "corp" || p.Generation != 3 {
		t.Errorf("%+v, %v", p, err)
	}
}

// server answers each connection with what serve does, until the test ends.
func server(t *testing.T, serve func(conn net.Conn)) (url string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer func() { _ = conn.Close() }()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = lis.Close()
		work.Wait()
	})
	return "ldap://" + lis.Addr().String()
}

func hang(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// Whatever a server does, a login ends in time, says that it can't be decided, and leaves nothing behind.
func TestServersThatAreNone(t *testing.T) {
	flood := bytes.Repeat([]byte{0}, 64<<10)
	before := runtime.NumGoroutine()
	for name, serve := range map[string]func(conn net.Conn){
		"hangs":         hang,
		"closes":        func(net.Conn) {},
		"talks HTTP":    func(conn net.Conn) { _, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n"); hang(conn) },
		"a huge answer": func(conn net.Conn) { _, _ = conn.Write([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff}); pour(conn, flood) },
		"never an end": func(conn net.Conn) {
			_, _ = conn.Write([]byte{0x30, 0x80})
			pour(conn, []byte{0x30, 0x80, 0x04, 0x01, 0x61})
		},
		"odd packets": func(conn net.Conn) {
			_, _ = conn.Write([]byte{0x30, 0x00, 0x30, 0x03, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01})
			hang(conn)
		},
		"another's ID": func(conn net.Conn) {
			pour(conn, []byte{0x30, 0x0c, 0x02, 0x01, 0x63, 0x61, 0x07, 0x0a, 0x01, 0x00, 0x04, 0x00, 0x04, 0x00})
		},
	} {
		for _, insecure := range []bool{true, false} { // in the open, and in answer to StartTLS
			l := example()
			l.URLs, l.Insecure = []string{server(t, serve)}, insecure
			d := newDirectory(l)
			d.each = 300 * time.Millisecond
			began := time.Now()
			_, err := d.ask(t.Context(), question{user: "alice", password: "x", note: func(string, ...any) {}})
			if !errors.Is(err, auth.ErrNoAnswer) || time.Since(began) > 5*time.Second {
				t.Errorf("%s: %v after %s", name, err, time.Since(began))
			}
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before+20 { // the servers' own are those that accept
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
		runtime.Gosched()
	}
}

// What a server may send is bounded, not only for how long.
func TestAnswersAreBounded(t *testing.T) {
	l := example()
	l.Insecure = true
	l.URLs = []string{server(t, func(conn net.Conn) {
		_, _ = conn.Write([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff})
		pour(conn, bytes.Repeat([]byte{0x04, 0x00}, 32<<10))
	})}
	d := newDirectory(l)
	d.whole, d.each = time.Minute, time.Minute
	_, err := d.ask(t.Context(), question{user: "alice", password: "x", note: func(string, ...any) {}})
	if !errors.Is(err, auth.ErrNoAnswer) || !strings.Contains(err.Error(), "more than") {
		t.Errorf("%v", err)
	}
}

func pour(conn net.Conn, data []byte) {
	for {
		if _, err := conn.Write(data); err != nil {
			return
		}
	}
}

// Silent servers are left alone for a time, and who waited for all of them goes first to the one that answers.
func TestSilentServersRest(t *testing.T) {
	var tries sync.Map
	silent := server(t, func(conn net.Conn) { tries.Store(conn.RemoteAddr().String(), true) })
	count := func() (n int) { tries.Range(func(any, any) bool { n++; return true }); return n }
	l := example()
	l.URLs, l.Insecure = []string{silent, silent}, true
	p := NewPeople()
	p.Set([]Provider{{Provider: client.Provider{Name: "corp", LDAP: &l}, Generation: 1}})
	for range 5 {
		if _, err := p.Check(t.Context(), "", "alice", "x"); !errors.Is(err, auth.ErrNoAnswer) || !strings.Contains(err.Error(), "corp") {
			t.Errorf("%v", err)
		}
	}
	if n := count(); n != 2 {
		t.Errorf("%d connections for five logins; two servers were asked once", n)
	}
	p.Set([]Provider{{Provider: client.Provider{Name: "corp", LDAP: &l}, Generation: 1}}) // the same, which goes on resting
	_, _ = p.Check(t.Context(), "", "alice", "x")
	if n := count(); n != 2 {
		t.Errorf("%d connections after the same settings again", n)
	}
	p.Set([]Provider{{Provider: client.Provider{Name: "corp", LDAP: &l}, Generation: 2}})
	_, _ = p.Check(t.Context(), "", "alice", "x")
	if n := count(); n != 4 {
		t.Errorf("%d connections after new settings", n)
	}
}

// A provider that is silent is not passed by for the next: its people may be others there.
func TestNoProviderIsPassedBy(t *testing.T) {
	first, second := example(), client.OIDC{Issuer: "https://x", ClientID: "x"}
	first.URLs = []string{server(t, func(net.Conn) {})}
	p := NewPeople()
	p.Set([]Provider{{Provider: client.Provider{Name: "a", OIDC: &second}}, {Provider: client.Provider{Name: "b", LDAP: &first}}})
	if _, err := p.Check(t.Context(), "", "alice", "x"); !errors.Is(err, auth.ErrNoAnswer) {
		t.Errorf("%v", err)
	}
	if _, err := p.Check(t.Context(), "a", "alice", "x"); !errors.Is(err, auth.ErrWrongLogin) {
		t.Errorf("at who checks no passwords: %v", err)
	}
	for _, name := range []string{"a", "none", ""} {
		if _, err := p.Again(t.Context(), auth.Caller{Name: "alice", Provider: name}); !errors.Is(err, auth.ErrWrongLogin) {
			t.Errorf("at %q: %v", name, err)
		}
	}
	if _, ok := p.Try(context.Background(), client.ProviderTest{Name: "none"}); ok {
		t.Error("a provider that isn't there is tried")
	}
}

// answering is a server that knows one person and answers each search below base with a result code.
func answering(t *testing.T, code map[string]int64) (url string, binds *atomic.Int64) {
	t.Helper()
	binds = &atomic.Int64{}
	str := func(s string) *ber.Packet {
		return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, s, "")
	}
	return server(t, func(conn net.Conn) {
		answer := func(id any, tag ber.Tag, parts ...*ber.Packet) {
			out := ber.NewSequence("")
			out.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
			op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, tag, nil, "")
			for _, p := range parts {
				op.AppendChild(p)
			}
			out.AppendChild(op)
			_, _ = conn.Write(out.Bytes())
		}
		result := func(id any, tag ber.Tag, code int64) {
			answer(id, tag, ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, code, ""), str(""), str(""))
		}
		for {
			p, err := ber.ReadPacket(conn)
			if err != nil {
				return
			}
			switch id, op := p.Children[0].Value, p.Children[1]; op.Tag {
			case 0: // bind
				binds.Add(1)
				result(id, 1, 0)
			case 3: // search
				base, _ := op.Children[0].Value.(string)
				if code[base] == 0 {
					values := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSet, nil, "")
					values.AppendChild(str("alice"))
					attribute, attributes := ber.NewSequence(""), ber.NewSequence("")
					attribute.AppendChild(str("uid"))
					attribute.AppendChild(values)
					attributes.AppendChild(attribute)
					answer(id, 4, str("uid=alice,"+base), attributes)
				}
				result(id, 5, code[base])
			}
		}
	}), binds
}

// A server that lists no groups for one person goes on deciding about the others: only silence of all lets them rest.
func TestDoubtIsNoSilence(t *testing.T) {
	silent := server(t, func(net.Conn) {})
	// A login binds before it searches, as alice, and again.
	for code, want := range map[int64]int64{ldap.LDAPResultSizeLimitExceeded: 6, ldap.LDAPResultAdminLimitExceeded: 6, ldap.LDAPResultBusy: 3, ldap.LDAPResultUnavailable: 3} {
		for _, others := range [][]string{nil, {silent}} {
			l := example()
			l.Insecure, l.Groups = true, client.LDAPGroups{Base: "ou=groups,dc=example,dc=org", Filter: "(member={dn})", All: true}
			url, binds := answering(t, map[string]int64{l.Groups.Base: code})
			l.URLs = append(others, url)
			p := NewPeople()
			p.Set([]Provider{{Provider: client.Provider{Name: "corp", LDAP: &l}, Generation: 1}})
			for range 2 {
				if _, err := p.Check(t.Context(), "", "alice", "x"); !errors.Is(err, auth.ErrNoAnswer) {
					t.Errorf("%d: %v", code, err)
				}
			}
			if n := binds.Load(); n != want {
				t.Errorf("%d, behind %d silent servers: %d binds for two logins, want %d", code, len(others), n, want)
			}
		}
	}
}

// What a server could take for no password is not sent to any.
func TestPasswordsThatAreNone(t *testing.T) {
	l := example()
	l.Insecure = true
	url, binds := answering(t, nil)
	l.URLs = []string{url}
	p := NewPeople()
	p.Set([]Provider{{Provider: client.Provider{Name: "corp", LDAP: &l}, Generation: 1}})
	if c, err := p.Check(t.Context(), "", "alice", "x"); err != nil || c.Name != "alice" {
		t.Fatalf("%+v, %v", c, err)
	}
	had := binds.Load()
	for _, password := range []string{"", "\x00", "\x00x", "x\x00", strings.Repeat("x", maxLDAPPassword+1)} {
		if _, err := p.Check(t.Context(), "", "alice", password); !errors.Is(err, auth.ErrWrongLogin) || binds.Load() != had {
			t.Errorf("%.10q: %v", password, err)
		}
	}
}

// A letter that is a plain one in lower case makes no group the same as another.
func TestGroupsThatLookAlike(t *testing.T) {
	m := newGroupMap(client.LDAPGroups{Base: "ou=groups,dc=x", All: true, Prefix: "Corp-"})
	if got := m.here("cn=DEV,ou=groups,dc=x"); len(got) != 1 || got[0] != "Corp-dev" {
		t.Errorf("%q", got)
	}
	if got := m.here("cn=\u212aernel,ou=groups,dc=x"); got != nil { // the sign for Kelvin
		t.Errorf("%q", got)
	}
}

// What a directory calls somebody moves no cursor of the administrator who tries a login.
func TestStepsArePlain(t *testing.T) {
	l := example()
	l.Insecure, l.Base = true, "ou=\x1b[2Jpeople\r\n,dc=x"
	url, _ := answering(t, nil)
	l.URLs = []string{url}
	p := NewPeople()
	p.Set([]Provider{{Provider: client.Provider{Name: "corp", LDAP: &l}, Generation: 1}})
	report, ok := p.Try(t.Context(), client.ProviderTest{Name: "corp", User: "alice", LookUp: true})
	said := strings.Join(report.Steps, "")
	if !ok || !report.OK || !strings.Contains(said, "[2Jpeople") || strings.ContainsAny(said, "\x1b\r\n") {
		t.Errorf("%+v, %t", report, ok)
	}
}
