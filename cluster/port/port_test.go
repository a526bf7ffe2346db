package port

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// log collects what a port says.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running is a port with its Run.
type running struct {
	*Port
	close func() error
}

func start(t *testing.T, id NodeID, secrets Secrets, admit func(string, NodeID) error) (running, *log) {
	t.Helper()
	out := &log{}
	p, err := New(Config{ID: id, Listen: "127.0.0.1:0", Secrets: secrets, Network: System(), Logger: slog.New(slog.NewTextHandler(out, nil)), Admit: admit})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	end := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	return running{p, end}, out
}

func TestMembersReachEachOtherByProtocol(t *testing.T) {
	secrets := Secrets{NewSecret()}
	a, _ := start(t, "a", secrets, nil)
	b, _ := start(t, "b", secrets, nil)
	for _, proto := range []string{ProtoRaft, ProtoPeer, ProtoGossip} {
		c, err := a.Dial(t.Context(), proto, "b", b.Addr())
		if err != nil {
			t.Fatal(proto, err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		in, err := b.Listener(proto).Accept()
		if err != nil {
			t.Fatal(err)
		}
		if id, ok := PeerID(in); !ok || id != "a" {
			t.Errorf("%s: the peer is %q", proto, id)
		}
		buf := make([]byte, 5)
		if _, err := io.ReadFull(in, buf); err != nil || string(buf) != "hello" {
			t.Errorf("%s: %q %v", proto, buf, err)
		}
		b.Drop("a")
		if _, err := c.Read(buf); err == nil {
			t.Error("a dropped connection lives")
		}
	}
	if _, err := a.Dial(t.Context(), ProtoPeer, "c", b.Addr()); !errors.Is(err, ErrOtherNode) {
		t.Errorf("b answered for c: %v", err)
	}
}

func TestStrangersAreRefusedAndLoggedOnce(t *testing.T) {
	p, out := start(t, "a", Secrets{NewSecret()}, nil)
	other, _ := start(t, "x", Secrets{NewSecret()}, nil)
	for range 3 {
		if c, err := other.Dial(t.Context(), ProtoPeer, "a", p.Addr()); err == nil {
			t.Error("a wrong secret got in")
			_ = c.Close()
		}
		raw, err := net.Dial("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ProtoPeer}})
		if err := c.Handshake(); err == nil {
			if _, err = c.Read(make([]byte, 1)); err == nil {
				t.Error("a stranger without a certificate got in")
			}
		}
		_ = c.Close()
	}
	if err := p.close(); err != nil { // every handshake has ended
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "refused a connection"); n != 1 {
		t.Errorf("logged %d times: %s", n, out)
	}
}

// The noise of one stranger hides no other, and however many there are, they fill neither the memory nor the log.
func TestEachStrangerIsLoggedOnce(t *testing.T) {
	s := &strangers{now: time.Now}
	told := 0
	for range 3 {
		for _, who := range []string{"10.0.0.1", "a removed member"} {
			if s.news(who) {
				told++
			}
		}
	}
	if told != 2 {
		t.Errorf("told of two strangers %d times", told)
	}
	for i := range 10 * maxStrangers {
		if s.news(fmt.Sprint(i)) {
			told++
		}
	}
	if told > 2*strangersBurst || len(s.known) > maxStrangers {
		t.Errorf("told %d times, remembers %d", told, len(s.known))
	}
	later := time.Now().Add(time.Minute)
	s.now = func() time.Time { return later }
	if !s.news("somebody else") {
		t.Error("one stranger's flood hides another for ever")
	}
	for i := range 2 * maxStrangers {
		if later = later.Add(time.Second); !s.news(fmt.Sprint("slow", i)) {
			t.Errorf("the slow stranger %d isn't told of", i)
		}
	}
	if later = later.Add(time.Hour); len(s.known) != maxStrangers || s.news(fmt.Sprint("slow", maxStrangers)) || !s.news("slow0") {
		t.Errorf("%d are remembered, and not the last of them", len(s.known))
	}
}

func TestJoinIsPinned(t *testing.T) {
	secrets := Secrets{NewSecret(), NewSecret()}
	p, _ := start(t, "a", secrets, nil)
	c, err := DialJoin(t.Context(), System(), p.Addr(), Fingerprint(secrets[0]))
	if err != nil {
		t.Fatal(err)
	}
	in, err := p.Listener(ProtoJoin).Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := PeerID(in); ok {
		t.Error("a guest has an ID")
	}
	_ = c.Close()
	if _, err := DialJoin(t.Context(), System(), p.Addr(), Fingerprint(NewSecret())); err == nil {
		t.Error("another cluster was taken for ours")
	}
}

func TestSecretRotates(t *testing.T) {
	before, after := NewSecret(), NewSecret()
	a, _ := start(t, "a", Secrets{before, after}, nil)
	b, _ := start(t, "b", Secrets{after, before}, nil)
	for _, pair := range [][2]running{{a, b}, {b, a}} {
		if _, err := pair[0].Dial(t.Context(), ProtoPeer, "", pair[1].Addr()); err != nil {
			t.Error(err)
		}
	}
}

// Secrets change while the port runs: connections live as long as their secret is known, then they are broken on both sides,
// and nobody comes in with it any more.
func TestSecretsAreSwapped(t *testing.T) {
	before, after := NewSecret(), NewSecret()
	a, _ := start(t, "a", Secrets{before}, nil)
	b, _ := start(t, "b", Secrets{before}, nil)
	late, _ := start(t, "late", Secrets{before}, nil)
	meet := func(proto string) (out, in net.Conn) {
		t.Helper()
		out, err := a.Dial(t.Context(), proto, "b", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if in, err = b.Listener(proto).Accept(); err != nil {
			t.Fatal(err)
		}
		return out, in
	}
	lives := func(out, in net.Conn) bool {
		t.Helper()
		if _, err := out.Write([]byte("x")); err != nil {
			return false
		}
		_, err := io.ReadFull(in, make([]byte, 1))
		return err == nil
	}
	swap := func(p running, s Secrets) {
		t.Helper()
		if err := p.Swap(s); err != nil {
			t.Fatal(err)
		}
	}
	out, in := meet(ProtoPeer)
	raftOut, raftIn := meet(ProtoRaft)
	for _, s := range []Secrets{{before, after}, {after, before}} {
		swap(a, s)
		swap(b, s)
		if !lives(out, in) || !lives(raftOut, raftIn) {
			t.Fatal("a connection ended before its secret")
		}
	}
	a.Renew(ProtoRaft)
	if lives(raftOut, raftIn) || !lives(out, in) {
		t.Error("the connections of one protocol are to be renewed, and no others")
	}
	old := Fingerprint(before)
	if a.Under(old) != 1 || !a.Old() {
		t.Errorf("%d connections are under the old secret", a.Under(old))
	}
	swap(a, Secrets{after})
	if lives(out, in) || a.Under(old) != 0 || a.Old() {
		t.Error("a connection outlives its secret")
	}
	fresh, freshIn := meet(ProtoPeer) // b still knows both
	swap(b, Secrets{after})
	if !lives(fresh, freshIn) {
		t.Error("a connection under the new secret ended with the old one")
	}
	if c, err := late.Dial(t.Context(), ProtoPeer, "b", b.Addr()); err == nil {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the old secret still opens the port")
		}
	}
	if _, err := b.Dial(t.Context(), ProtoPeer, "late", late.Addr()); !errors.Is(err, ErrOtherSecret) {
		t.Errorf("b trusts who has the old secret alone: %v", err)
	}
	if err := a.Swap(nil); err == nil {
		t.Error("a port without a secret")
	}
}

func TestAdmitDecides(t *testing.T) {
	secrets := Secrets{NewSecret()}
	a, _ := start(t, "a", secrets, nil)
	b, _ := start(t, "b", secrets, func(proto string, id NodeID) error {
		if proto == ProtoRaft {
			return errors.New("not in the configuration")
		}
		return nil
	})
	c, err := a.Dial(t.Context(), ProtoRaft, "b", b.Addr())
	if err == nil {
		if _, err = c.Read(make([]byte, 1)); err == nil {
			t.Error("it was admitted")
		}
	}
	if _, err := a.Dial(t.Context(), ProtoPeer, "b", b.Addr()); err != nil {
		t.Error(err)
	}
}

// A connection that says nothing must not keep others waiting.
func TestSilentHandshakeBlocksNobody(t *testing.T) {
	secrets := Secrets{NewSecret()}
	a, _ := start(t, "a", secrets, nil)
	b, _ := start(t, "b", secrets, nil)
	for range 2 * maxHandshakes {
		c, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	if _, err := a.Dial(t.Context(), ProtoPeer, "b", b.Addr()); err != nil {
		t.Error(err)
	}
}

func TestSecretsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	secrets := Secrets{NewSecret(), NewSecret()}
	if err := SaveSecrets(path, secrets); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	got, err := LoadSecrets(path)
	if err != nil || len(got) != 2 || !bytes.Equal(got[1], secrets[1]) {
		t.Errorf("%v, %v", got, err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.Chmod(path, 0o640), os.Symlink(path, link)); err != nil {
		t.Fatal(err)
	}
	if err := SaveSecrets(link, secrets[:1]); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link became %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("who may read the file changed: %v, %v", info.Mode(), err)
	}
	if got, err := LoadSecrets(path); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	prints := secrets.Fingerprints()
	if found, ok := secrets.Find(prints[1]); !ok || !bytes.Equal(found, secrets[1]) {
		t.Error("a secret isn't found by its fingerprint")
	}
	if _, ok := secrets.Find("other"); ok {
		t.Error("a secret that isn't there is found")
	}
	for text, want := range map[string]int{
		"# ours\n\n  MDEyMzQ1Njc4OWFiY2RlZg==\r\n#\nMDEyMzQ1Njc4OWFiY2RlZmc=": 2, "MDEyMzQ1Njc4OWFiY2RlZg==": 1,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadSecrets(path); err != nil || len(got) != want {
			t.Errorf("%q: %d, %v", text, len(got), err)
		}
	}
	if err := SaveSecrets(filepath.Join(t.TempDir(), "none", "secret"), secrets); err == nil {
		t.Error("it is written where there is no folder")
	}
	if _, err := LoadSecrets(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for _, bad := range []string{"", "# nothing\n", "not base64!\n", "c2hvcnQ=\n", "MDEyMzQ1Njc4OWFiY2Rl\n", "MDEyMzQ1Njc4OWFiY2RlZg==!\n"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadSecrets(path); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
