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

// Nothing older than TLS 1.3 is spoken, and no handshake is cut short by one that was made under other secrets.
func TestEachHandshakeIsWhole(t *testing.T) {
	secrets := Secrets{NewSecret()}
	b, _ := start(t, "b", secrets, nil)
	member, err := issue("a", secrets[0])
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{ProtoPeer}, Certificates: []tls.Certificate{member}, ClientSessionCache: tls.NewLRUClientSessionCache(1), ServerName: "b",
	}
	for range 2 {
		c, err := tls.Dial("tcp", b.Addr(), cfg)
		if err != nil {
			t.Fatal(err)
		}
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
		if c.ConnectionState().DidResume {
			t.Error("a handshake rests on one before")
		}
		_ = c.Close()
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
	b.Renew(ProtoRaft)
	b.Drop("c")
	if err := b.Swap(append(Secrets{NewSecret()}, secrets...)); err != nil {
		t.Fatal(err)
	}
	if n := b.Under(Fingerprint(secrets[0])); n != 2 || !b.Old() {
		t.Errorf("%d are left", n)
	}
}

// A handshake that ends after its secret did, or after the port, gives nothing.
func TestHandshakesThatEndTooLate(t *testing.T) {
	before, after := NewSecret(), NewSecret()
	b, _ := start(t, "b", Secrets{before, after}, nil)
	for name, late := range map[string]func(a running, t *trust) *trust{
		"its own secret": func(a running, was *trust) *trust { _ = a.Swap(Secrets{after}); return was },
		"the other's secret": func(a running, was *trust) *trust {
			was.signs = Fingerprint(after)
			_ = a.Swap(Secrets{after})
			return was
		},
		"the port": func(a running, was *trust) *trust { a.Close(); return was },
		"nothing":  func(_ running, was *trust) *trust { return was },
	} {
		a, _ := start(t, "a", Secrets{before, after}, nil)
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
		k := a.track(c, "b", late(a, shook))
		if _, err := k.Write([]byte("x")); (err == nil) != (name == "nothing") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
