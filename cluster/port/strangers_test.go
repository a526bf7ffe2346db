package port

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// knock tries to get in as the certificate's owner, for protocols that it names, and waits until it is told what came of it.
func knock(t *testing.T, address string, cert *tls.Certificate, protos []string) error {
	t.Helper()
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: protos}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	c := tls.Client(raw, cfg)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if err := c.Handshake(); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1)) // with TLS 1.3 a refusal comes after the client's own end of the handshake
	return err
}

// No stranger gets a connection to any protocol, whatever it shows and asks for, and no member one to a protocol that there isn't.
func TestStrangersOnEveryProtocol(t *testing.T) {
	secrets := Secrets{NewSecret()}
	var admitted atomic.Int64
	b, _ := start(t, "b", secrets, func(string, NodeID) error { admitted.Add(1); return nil })
	issued := func(secrets Secrets) *tls.Certificate {
		t.Helper()
		trust, err := newTrust("a", secrets)
		if err != nil {
			t.Fatal(err)
		}
		return &trust.cert
	}
	member, other := issued(secrets), issued(Secrets{NewSecret()})
	posing := &tls.Certificate{Certificate: append(append([][]byte{}, other.Certificate[0]), member.Certificate[1]), PrivateKey: other.PrivateKey} // our CA behind it
	for name, cert := range map[string]*tls.Certificate{"nothing": nil, "another cluster's certificate": other, "another's with our CA": posing} {
		for _, protos := range [][]string{{ProtoRaft}, {ProtoPeer}, {ProtoGossip}, nil, {"none"}, {"h2"}, {ProtoJoin, ProtoPeer}, {ProtoPeer, ProtoJoin}, {ProtoJoin, "none"}} {
			if err := knock(t, b.Addr(), cert, protos); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("with %s for %v: %v", name, protos, err)
			}
		}
	}
	for _, protos := range [][]string{nil, {"none"}, {"h2", "http/1.1"}} {
		if err := knock(t, b.Addr(), member, protos); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a member for %v: %v", protos, err)
		}
	}
	if n := admitted.Load(); n != 0 {
		t.Errorf("%d came to be decided on", n)
	}
	for proto, l := range b.lanes {
		if n := len(l.conns); n != 0 {
			t.Errorf("%d connections wait for %q", n, proto)
		}
	}
	_ = b.close()
	if n := len(b.conns); n != 0 {
		t.Errorf("%d connections are kept", n)
	}
}

// Thousands of handshakes that begin and stop cost a bounded number of goroutines, and members get in meanwhile.
func TestThousandsOfHalfOpenHandshakes(t *testing.T) {
	secrets := Secrets{NewSecret()}
	a, _ := start(t, "a", secrets, nil)
	b, _ := start(t, "b", secrets, nil)
	before := runtime.NumGoroutine()
	slowest, most := time.Duration(0), 0
	for i := range 5000 {
		c, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_, _ = io.WriteString(c, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03half") // the oldest are closed by now
		if i%250 != 0 {
			continue
		}
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if _, err := a.Dial(ctx, ProtoPeer, "b", b.Addr()); err != nil {
			t.Errorf("after %d: %v", i, err)
		}
		cancel()
		slowest, most = max(slowest, time.Since(begun)), max(most, runtime.NumGoroutine()-before)
		in, err := b.Listener(ProtoPeer).Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = in.Close()
	}
	t.Logf("%d goroutines more; the slowest member took %v", most, slowest)
	if most > 4*maxHandshakes {
		t.Errorf("%d goroutines more", most)
	}
}

func TestNewcomers(t *testing.T) {
	n := NewNewcomers(2)
	var ends []net.Conn
	var conns []net.Conn
	for range 3 {
		here, there := net.Pipe()
		t.Cleanup(func() { _, _ = here.Close(), there.Close() })
		conns, ends = append(conns, here), append(ends, there)
		n.Expect(here)
	}
	_ = ends[0].SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := ends[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) || n.Shown(conns[0]) {
		t.Errorf("the oldest is still there: %v", err)
	}
	if !n.Shown(conns[2]) || n.Shown(conns[2]) || len(n.all()) != 1 {
		t.Error("who has shown what it wants still counts")
	}
}
