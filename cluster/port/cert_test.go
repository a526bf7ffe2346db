package port

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// A guest with an invite talks to who has the CA's key: its certificate alone is known to all who ever asked.
func TestJoinNeedsTheKeyOfTheCA(t *testing.T) {
	secret := NewSecret()
	member, err := issue("a", secret)
	if err != nil {
		t.Fatal(err)
	}
	other, err := issue("a", NewSecret())
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		chain [][]byte
		good  bool
	}{
		"its own": {member.Certificate, true}, "another's leaf": {[][]byte{other.Certificate[0], member.Certificate[1]}, false}, "another's": {other.Certificate, false},
		"no CA": {member.Certificate[:1], false}, "too many": {append(member.Certificate[:2:2], member.Certificate[1]), false},
	} {
		key := other.PrivateKey
		if string(x.chain[0]) == string(member.Certificate[0]) {
			key = member.PrivateKey
		}
		lis, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: x.chain, PrivateKey: key}}, NextProtos: []string{ProtoJoin}})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, err := lis.Accept(); err == nil {
				_ = c.(*tls.Conn).Handshake()
				_ = c.Close()
			}
		}()
		c, err := DialJoin(t.Context(), System(), lis.Addr().String(), Fingerprint(secret))
		if (err == nil) != x.good {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			_ = c.Close()
		}
		<-done
		_ = lis.Close()
	}
}

// noTickets is a client's memory of handshakes, which must stay empty.
type noTickets struct{ t *testing.T }

func (noTickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }

func (n noTickets) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		n.t.Error("there is a ticket with which the next handshake could be cut short")
	}
}

// Nothing older than TLS 1.3 is spoken, and no handshake is cut short by one that was made under other secrets.
func TestEachHandshakeIsWhole(t *testing.T) {
	secrets := Secrets{NewSecret()}
	b, _ := start(t, "b", secrets, nil)
	member, err := issue("a", secrets[0])
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{ProtoPeer}, Certificates: []tls.Certificate{member}, ClientSessionCache: noTickets{t}, ServerName: "b",
	}
	c, err := tls.Dial("tcp", b.Addr(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	in, err := b.Listener(ProtoPeer).Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil { // a ticket would come before
		t.Fatal(err)
	}
	old := cfg.Clone()
	old.MaxVersion = tls.VersionTLS12
	if c, err := tls.Dial("tcp", b.Addr(), old); err == nil {
		t.Errorf("it speaks %x", c.ConnectionState().Version)
	}
}

// A connection is under the secrets of both its sides: with either of them it ends.
func TestConnectionsAreUnderBothSecrets(t *testing.T) {
	one, two := NewSecret(), NewSecret()
	a, _ := start(t, "a", Secrets{one, two}, nil)
	for _, x := range []struct {
		drop Secrets
		ends bool
	}{{Secrets{one}, true}, {Secrets{two}, true}, {Secrets{two, one}, false}} {
		b, _ := start(t, "b", Secrets{two, one}, nil)
		var in net.Conn
		for range 20 { // whose secret it is must not depend on the order in which they are looked at
			if _, err := a.Dial(t.Context(), ProtoPeer, "b", b.Addr()); err != nil {
				t.Fatal(err)
			}
			var err error
			if in, err = b.Listener(ProtoPeer).Accept(); err != nil {
				t.Fatal(err)
			}
			if under := in.(*tracked).under; under != [2]string{Fingerprint(two), Fingerprint(one)} {
				t.Fatalf("it is under %q", under)
			}
		}
		if !b.Old() || b.Under(Fingerprint(one)) != 20 || b.Under(Fingerprint(two)) != 20 || b.Under("another") != 0 {
			t.Errorf("under the one %d, the other %d, none %d", b.Under(Fingerprint(one)), b.Under(Fingerprint(two)), b.Under("another"))
		}
		if err := b.Swap(x.drop); err != nil {
			t.Fatal(err)
		}
		if n := b.Under(Fingerprint(two)); (n == 0) != x.ends {
			t.Errorf("%d of 20 go on", n)
		}
		_ = in.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := in.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) == x.ends {
			t.Errorf("it is read with %v", err)
		}
	}
}

// Guests and what is new already are neither old nor renewed, and a node that goes takes nobody with it.
func TestWhatGoesOn(t *testing.T) {
	secrets := Secrets{NewSecret()}
	a, _ := start(t, "a", secrets, nil)
	b, _ := start(t, "b", secrets, nil)
	if _, err := DialJoin(t.Context(), System(), b.Addr(), Fingerprint(secrets[0])); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Listener(ProtoJoin).Accept(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Dial(t.Context(), ProtoRaft, "b", b.Addr()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Listener(ProtoRaft).Accept(); err != nil {
		t.Fatal(err)
	}
	if b.Old() || b.Under(Fingerprint(secrets[0])) != 2 {
		t.Errorf("a guest and a member under the only secret: old %v, %d", b.Old(), b.Under(Fingerprint(secrets[0])))
	}
	if err := b.Swap(append(Secrets{NewSecret()}, secrets...)); err != nil {
		t.Fatal(err)
	}
	if n := b.Under(Fingerprint(secrets[0])); n != 2 || !b.Old() {
		t.Errorf("%d are left", n)
	}
}

// Drop ends what a node was reached by, also where nobody was asked for by name, and what it reached this one by.
func TestDropEndsBothSides(t *testing.T) {
	secrets := Secrets{NewSecret()}
	own := Fingerprint(secrets[0])
	a, _ := start(t, "a", secrets, nil)
	b, _ := start(t, "b", secrets, nil)
	for _, id := range []NodeID{"b", ""} {
		if _, err := a.Dial(t.Context(), ProtoPeer, id, b.Addr()); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Listener(ProtoPeer).Accept(); err != nil {
			t.Fatal(err)
		}
	}
	a.Drop("a")
	if a.Under(own) != 2 || b.Under(own) != 2 {
		t.Errorf("%d and %d connections", a.Under(own), b.Under(own))
	}
	a.Drop("b")
	b.Drop("a")
	if a.Under(own) != 0 || b.Under(own) != 0 {
		t.Errorf("%d and %d connections are left", a.Under(own), b.Under(own))
	}
}

// A handshake that ends after its secret did, or after the port, gives nothing.
func TestHandshakesThatEndTooLate(t *testing.T) {
	before, after := NewSecret(), NewSecret()
	drop := func(a running) { _ = a.Swap(Secrets{after}) }
	for name, x := range map[string]struct {
		own, others Secrets
		late        func(a running)
	}{
		"its own secret": {Secrets{before, after}, Secrets{after, before}, drop}, "the other's secret": {Secrets{after, before}, Secrets{before, after}, drop},
		"the port": {Secrets{after}, Secrets{after}, func(a running) { a.Close() }}, "nothing": {Secrets{after, before}, Secrets{after, before}, drop},
	} {
		a, _ := start(t, "a", x.own, nil)
		b, _ := start(t, "b", x.others, nil)
		shook := a.trusted()
		raw, err := System().Dial(t.Context(), b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, shook.client(ProtoPeer, "b"))
		ctx, cancel := context.WithTimeout(t.Context(), handshakeTimeout)
		if err := c.HandshakeContext(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		x.late(a)
		k := a.track(c, "b", shook)
		if _, err := k.Write([]byte("x")); (err == nil) != (name == "nothing") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
