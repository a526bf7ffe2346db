package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// memory is a store in which everything is current, but for what is written to it as late.
type memory struct {
	mu   sync.Mutex
	next uint64
	docs map[string]kept
	late map[string]kept // seen by Current only
}

type kept struct {
	body       []byte
	generation uint64
}

func (m *memory) Local(name string) ([]byte, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.docs[name].body, m.docs[name].generation, nil
}

func (m *memory) Current(_ context.Context, name string) ([]byte, uint64, error) {
	m.mu.Lock()
	if doc, ok := m.late[name]; ok {
		m.docs[name] = doc
	}
	m.mu.Unlock()
	return m.Local(name)
}

func (m *memory) Put(_ context.Context, name string, body []byte, was uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.docs[name].generation != was {
		return 0, ErrChanged
	}
	m.next++
	m.docs[name] = kept{body, m.next}
	return m.next, nil
}

func (m *memory) Delete(_ context.Context, name string, was uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.docs[name].generation != was {
		return ErrChanged
	}
	delete(m.docs, name)
	return nil
}

func (m *memory) write(t *testing.T, name string, v any) {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next++
	m.docs[name] = kept{body, m.next}
}

const (
	host      = "registry.example.org"
	directory = "https://acme.example/directory"
)

func newStore() *memory { return &memory{docs: map[string]kept{}, late: map[string]kept{}} }

func newKeeper(t *testing.T, store Store, node string) *Keeper {
	t.Helper()
	k, err := New(Config{
		Names: []string{host, "other.example.org"}, Directory: directory, Node: func() string { return node },
		Store: store, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// selfMade is a certificate for the name, good for so long from then on.
func selfMade(t *testing.T, name string, from time.Time, life time.Duration) *certificate {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name}, NotBefore: from, NotAfter: from.Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := encode([][]byte{der}, key)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestOneNodeOrdersAtATime(t *testing.T) {
	store := newStore()
	a, b := newKeeper(t, store, "a"), newKeeper(t, store, "b")
	first, err := a.claim(t.Context(), host)
	if first == nil || err != nil {
		t.Fatalf("nobody is at it: %v", err)
	}
	if again, err := b.claim(t.Context(), host); again != nil || err != nil {
		t.Errorf("a second node orders too: %v", err)
	}
	if other, _ := b.claim(t.Context(), "other.example.org"); other == nil {
		t.Error("one name's order keeps another's from being made")
	}
	// Who was stopped in the middle goes on when it is back; the others wait for the end of its time.
	if again, _ := newKeeper(t, store, "a").claim(t.Context(), host); again == nil {
		t.Error("a node waits for itself")
	}
	store.write(t, a.docs.order(host), order{By: "a", Until: time.Now().Add(-time.Second)})
	if taken, _ := b.claim(t.Context(), host); taken == nil {
		t.Error("the order of a node that is gone is never taken over")
	}
	if err := first.save(t.Context()); !errors.Is(err, ErrChanged) {
		t.Errorf("the one that was thought gone goes on as well: %v", err)
	}
	store.write(t, a.docs.order(host), order{By: "a", Until: time.Now().Add(time.Minute)})
	b.cfg.Gone = func(node string) bool { return node == "a" }
	if taken, _ := b.claim(t.Context(), host); taken == nil {
		t.Error("a node that is known to be gone is waited for")
	}
	// Somebody was faster: what was seen before the claim is no longer so.
	store.write(t, a.docs.order(host), order{By: "c", Until: time.Now().Add(-time.Second)})
	store.write(t, a.docs.certificate(host), selfMade(t, host, time.Now(), time.Hour))
	if late, err := b.claim(t.Context(), host); late != nil || err != nil {
		t.Errorf("a certificate that is there is ordered again: %v", err)
	}
	if _, generation, _ := store.Local(a.docs.order(host)); generation != 0 {
		t.Error("the order that came to nothing is still there")
	}
}

// All nodes wait together after a failure, longer each time, and as long as the server says.
func TestFailuresAreShared(t *testing.T) {
	for n, want := range map[int]time.Duration{1: time.Minute, 2: 4 * time.Minute, 3: 16 * time.Minute, 4: time.Hour, 5: time.Hour, 1000: time.Hour} {
		if got := wait(n); got != want {
			t.Errorf("after %d failures: %v, not %v", n, got, want)
		}
	}
	store := newStore()
	a, b := newKeeper(t, store, "a"), newKeeper(t, store, "b")
	attempt, err := a.claim(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	limited := &acme.Error{StatusCode: 429, ProblemType: "urn:ietf:params:acme:error:rateLimited", Detail: "too\nmany", Header: http.Header{"Retry-After": {"7200"}}}
	if err := attempt.fail(t.Context(), limited, false); err != nil {
		t.Fatal(err)
	}
	var o order
	body, _, _ := store.Local(a.docs.order(host))
	if err := json.Unmarshal(body, &o); err != nil || o.Fails != 1 || time.Until(o.Next) < 119*time.Minute || strings.Contains(o.Error, "\n") {
		t.Errorf("%+v (%v)", o, err)
	}
	for _, k := range []*Keeper{a, b} {
		if again, err := k.claim(t.Context(), host); again != nil || err != nil {
			t.Errorf("tried again at once: %v", err)
		}
		k.look()
		if fault := k.Fault(); fault == nil || !strings.Contains(fault.Error(), "too many") || !strings.Contains(fault.Error(), "node a") {
			t.Errorf("the fault: %v", fault)
		}
	}
	a.block(host, errors.New("no majority"))
	if fault := a.Fault(); fault == nil || !strings.Contains(fault.Error(), "no majority") {
		t.Errorf("the fault: %v", fault)
	}
	// Who starts later may have been set right, and tries at once.
	o.Next, o.Fails = time.Now().Add(59*time.Second), 1
	store.write(t, a.docs.order(host), o)
	late := newKeeper(t, store, "c")
	late.started = time.Now().Add(time.Second)
	if now, _ := late.claim(t.Context(), host); now == nil {
		t.Error("a start changes nothing")
	}
	// A node that is told to stop has not failed.
	if attempt, err = late.claim(t.Context(), host); err != nil || attempt == nil {
		t.Fatal(err)
	}
	if err := attempt.fail(t.Context(), context.Canceled, true); err != nil {
		t.Fatal(err)
	}
	if now, _ := b.claim(t.Context(), host); now == nil {
		t.Error("an order that was given back can't be taken")
	}
}

// A certificate that is to be replaced is due on every node until another one has taken its place, and a failure from before
// holds nobody up.
func TestReplacedBeforeItIsDue(t *testing.T) {
	store := newStore()
	for _, name := range []string{host, "other.example.org"} {
		store.write(t, namesOf(directory).certificate(name), selfMade(t, name, time.Now(), time.Hour))
	}
	a, b := newKeeper(t, store, "a"), newKeeper(t, store, "b")
	if _, err := a.Renew(t.Context(), []string{"evil.example.org"}); !errors.Is(err, ErrNotKept) {
		t.Errorf("another name: %v", err)
	}
	if b.due(host) {
		t.Fatal("it is due by itself")
	}
	store.write(t, a.docs.order(host), order{By: "c", Fails: 3, Next: time.Now().Add(time.Hour), Error: "no way"})
	if err := a.mark(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	b.look()
	if !b.due(host) || b.due("other.example.org") {
		t.Error("not that one is due elsewhere")
	}
	attempt, err := b.claim(t.Context(), host)
	if attempt == nil || err != nil {
		t.Fatalf("the failure from before keeps it from being tried: %v", err)
	}
	// Who asks meanwhile takes no order away that somebody is at.
	if err := a.mark(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if err := attempt.fail(t.Context(), errors.New("no, really"), false); err != nil {
		t.Fatal(err)
	}
	if _, err := a.marked(t.Context(), host); !errors.Is(err, ErrNotIssued) || !strings.Contains(err.Error(), "node b: no, really") {
		t.Errorf("who waits hears %v", err)
	}
	if fault := a.Fault(); fault == nil || !strings.Contains(fault.Error(), "is to be replaced") {
		t.Errorf("the fault: %v", fault)
	}
	if err := a.mark(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if attempt, err = b.claim(t.Context(), host); attempt == nil || err != nil {
		t.Fatalf("who asks again waits for the next try: %v", err)
	}
	fresh := selfMade(t, host, time.Now(), 2*time.Hour)
	pair, _ := fresh.parse(host)
	if err := attempt.keep(t.Context(), fresh, pair); err != nil {
		t.Fatal(err)
	}
	if end, err := a.marked(t.Context(), host); err != nil || !end.Equal(pair.Leaf.NotAfter) || a.due(host) {
		t.Errorf("the new one ends at %v (%v), due: %v", end, err, a.due(host))
	}
}

func TestDueInTheLastThird(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		life, age time.Duration
		want      bool
	}{
		{90 * 24 * time.Hour, 59 * 24 * time.Hour, false}, {90 * 24 * time.Hour, 61 * 24 * time.Hour, true},
		{6 * time.Hour, 3 * time.Hour, false}, {6 * time.Hour, 5 * time.Hour, true}, {time.Hour, 2 * time.Hour, true},
		{365 * 24 * time.Hour, 334 * 24 * time.Hour, false}, {365 * 24 * time.Hour, 336 * 24 * time.Hour, true},
	} {
		leaf := &x509.Certificate{NotBefore: now.Add(-c.age), NotAfter: now.Add(c.life - c.age)}
		if got := isDue(leaf, now); got != c.want {
			t.Errorf("%v of %v: %v", c.age, c.life, got)
		}
	}
}

// A question may have been asked a moment ago, at another node, and the one before it may still be here.
func TestAnswersAreCurrent(t *testing.T) {
	store := newStore()
	k := newKeeper(t, store, "a")
	old, fresh := selfMade(t, host, time.Now(), time.Hour), selfMade(t, host, time.Now(), 2*time.Hour)
	store.write(t, k.docs.order(host), order{By: "b", Token: "old", Answer: "old answer", Proof: old})
	body, err := json.Marshal(order{By: "b", Token: "fresh", Answer: "fresh answer", Proof: fresh})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(target, host string) (int, string) {
		r := httptest.NewRequest("GET", target, nil)
		r.Host = host
		w := httptest.NewRecorder()
		k.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if code, text := ask(challengePath+"old", host); code != 200 || text != "old answer" {
		t.Errorf("what is here: %d %s", code, text)
	}
	was := store.docs[k.docs.order(host)]
	store.late[k.docs.order(host)] = kept{body, 1 << 20}
	proof, err := k.proof(t.Context(), host)
	want, _ := fresh.parse(host)
	if err != nil || !proof.Leaf.Equal(want.Leaf) {
		t.Errorf("an old proof (%v)", err)
	}
	store.docs[k.docs.order(host)] = was
	if code, text := ask(challengePath+"fresh", strings.ToUpper(host)+":80"); code != 200 || text != "fresh answer" {
		t.Errorf("what just came: %d %s", code, text)
	}
	for _, c := range [][2]string{
		{challengePath + "other", host}, {challengePath, host}, {challengePath + "fresh", "evil.example.org"}, {challengePath + "fresh", "other.example.org"},
		{challengePath + strings.Repeat("x", 300), host}, {challengePath + "../" + "fresh", host},
	} {
		if code, text := ask(c[0], c[1]); code != 404 || strings.Contains(text, "answer") {
			t.Errorf("%v: %d %s", c, code, text)
		}
	}
	if _, err := k.proof(t.Context(), "other.example.org"); err == nil {
		t.Error("a proof for a name that nobody asked about")
	}
}

// A damaged document neither ends what works nor shows what is in it.
func TestDamagedDocuments(t *testing.T) {
	store := newStore()
	store.write(t, namesOf(directory).certificate(host), selfMade(t, host, time.Now(), time.Hour))
	k := newKeeper(t, store, "a")
	hello := &tls.ClientHelloInfo{ServerName: host}
	before, err := k.TLS().GetCertificate(hello)
	if err != nil || before == k.stopgap {
		t.Fatalf("no certificate: %v", err)
	}
	key, _ := newKey()
	text, _ := encodeKey(key)
	for i, bad := range []any{
		"geheim", map[string]any{"chain": 1, "key": text}, certificate{Chain: "geheim", Key: text}, certificate{Key: text},
		selfMade(t, "evil.example.org", time.Now(), time.Hour), certificate{Chain: selfMade(t, host, time.Now(), time.Hour).Chain, Key: text},
	} {
		store.write(t, k.docs.certificate(host), bad)
		k.look()
		after, err := k.TLS().GetCertificate(hello)
		if err != nil || after != before {
			t.Errorf("%d: the certificate from before is gone: %v", i, err)
		}
		fault := k.Fault()
		if fault == nil || strings.Contains(fault.Error(), "geheim") || strings.Contains(fault.Error(), "PRIVATE") {
			t.Errorf("%d: %v", i, fault)
		}
	}
	store.write(t, k.docs.order(host), 17)
	if a, err := k.claim(t.Context(), host); a != nil || err != nil {
		t.Errorf("a good certificate is ordered again: %v", err)
	}
	store.write(t, k.docs.account(), account{Key: "geheim"})
	if _, err := k.accountKey(t.Context()); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Error(err)
	}
}

// behind is a store that doesn't show yet what another node has just written.
type behind struct {
	*memory
	looked bool
}

func (b *behind) Current(ctx context.Context, name string) ([]byte, uint64, error) {
	if !b.looked {
		b.looked = true
		return nil, 0, nil
	}
	return b.memory.Current(ctx, name)
}

// Nodes that begin together end up with one account, and nodes with different servers share nothing.
func TestOneAccount(t *testing.T) {
	store := newStore()
	first, err := newKeeper(t, store, "a").accountKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []Store{store, &behind{memory: store}} {
		again, err := newKeeper(t, s, "b").accountKey(t.Context())
		if err != nil || !again.Public().(*ecdsa.PublicKey).Equal(first.Public()) {
			t.Errorf("two accounts (%v)", err)
		}
	}
	here, there := namesOf(directory), namesOf(directory+"2")
	if here.account() == there.account() || here.order(host) == there.order(host) {
		t.Error("two servers share an account or an order")
	}
	if namesOf(directory).certificate(host) == namesOf(directory+"2").certificate(host) {
		t.Error("a test server's certificate is taken for the other's")
	}
	if long := len(namesOf(directory).certificate(strings.Repeat("a", 200))); long > 255 {
		t.Errorf("the document of a long name has a name of %d bytes", long)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"registry.example.org": true, "registry": true, "xn--bcher-kva.example": true, "a-b.c": true, "": false, ".a": false, "a.": false, "a..b": false,
		"*.example.org": false, "Registry.lan": false, "192.0.2.1": false, "2001:db8::1": false, "-a.b": false, "a-.b": false, "a_b": false, "a b": false,
		strings.Repeat("a", 64) + ".b": false, strings.Repeat("a.", 150) + "b": false, "büro.example": false,
	} {
		if IsName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("nothing at all was taken")
	}
}
