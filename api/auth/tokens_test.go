package auth

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func seed(b byte) []byte { return bytes.Repeat([]byte{b}, ed25519.SeedSize) }

func keys(t testing.TB, seeds ...byte) *Keys {
	t.Helper()
	var all [][]byte
	for _, b := range seeds {
		all = append(all, seed(b))
	}
	k, err := NewKeys(all)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestTokenSaysWhatWasGranted(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	k := keys(t, 1)
	alice := Caller{Kind: KindUser, Name: "alice", Generation: 7}
	token, err := k.Issue(alice, "pier", []Scope{{"repository", "team/app", []string{"pull", "push"}}, CatalogScope()}, now, 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []*Keys{k, keys(t, 1), keys(t, 2, 1)} { // this node, another one, one after a new secret
		c, err := other.Verify(token.Text, "pier", now.Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if c.Name != "alice" || c.Generation != 7 || c.Limit.Repositories["team/app"] != Pull|Push || !c.Limit.Catalog || c.Limit.Cluster {
			t.Errorf("the token says %+v", c)
		}
	}
	both := keys(t, 2, 1)
	next, err := both.Issue(alice, "pier", nil, now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	_, err = keys(t, 2).Verify(next.Text, "pier", now)
	if _, oldErr := keys(t, 1).Verify(next.Text, "pier", now); err != nil || !errors.Is(oldErr, ErrTokenInvalid) {
		t.Errorf("another than the first key signs: %v, %v", err, oldErr)
	}
	if text, ok := keys(t, 2).Unseal(both.Seal("x")); !ok || text != "x" {
		t.Error("another than the first key seals")
	}
	d := NewDirectory(true, []Principal{{Name: "alice", Kind: KindUser, Generation: 7, Groups: []string{"x"}}}, nil)
	if c, ok := d.Renew(alice, now); !ok || !slices.Equal(c.Groups, []string{"x"}) {
		t.Errorf("renewed to %+v, %v", c, ok)
	}
	for what, p := range map[string]Principal{
		"changed": {Name: "alice", Kind: KindUser, Generation: 8}, "disabled": {Name: "alice", Kind: KindUser, Generation: 7, Disabled: true},
		"another kind": {Name: "alice", Kind: KindRobot, Generation: 7}, "gone": {Name: "bob", Kind: KindUser, Generation: 7},
	} {
		if _, ok := NewDirectory(true, []Principal{p}, nil).Renew(alice, now); ok {
			t.Errorf("a caller that is %s is renewed", what)
		}
	}
}

// A token that another one's hash stands for is not that one.
func TestAnotherTokenOfTheSameHash(t *testing.T) {
	v := shown{"abc", "pier", &claims{}}
	for _, x := range []struct {
		v             shown
		text, service string
		want          bool
	}{{v, "abc", "pier", true}, {v, "abd", "pier", false}, {v, "bbc", "pier", false}, {v, "ab", "pier", false}, {v, "abcd", "pier", false}, {v, "abc", "other", false}, {shown{}, "", "", false}} {
		if got := x.v.is(x.text, x.service); got != x.want {
			t.Errorf("%q for %q: %v", x.text, x.service, got)
		}
	}
}

func TestKeysNeedSeeds(t *testing.T) {
	for _, seeds := range [][][]byte{nil, {seed(1)[1:]}, {seed(1), nil}} {
		if _, err := NewKeys(seeds); err == nil {
			t.Errorf("keys come from %x", seeds)
		}
	}
}

// A token is taken from when it was made, less what clocks may differ by, until its end: by a node that knows it and by one that
// doesn't.
func TestTokensHaveTheirTime(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	k := keys(t, 1)
	token, err := k.Issue(Caller{Kind: KindUser, Name: "alice"}, "pier", nil, now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Verify(token.Text, "pier", now); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		at   time.Duration
		want error
	}{
		{-time.Hour, ErrTokenInvalid}, {-clockSlack - 1, ErrTokenInvalid}, {-clockSlack, nil}, {time.Minute - 1, nil}, {time.Minute, ErrTokenExpired}, {time.Hour, ErrTokenExpired},
	} {
		for _, k := range []*Keys{k, keys(t, 1)} {
			if _, err := k.Verify(token.Text, "pier", now.Add(x.at)); !errors.Is(err, x.want) {
				t.Errorf("after %s: %v", x.at, err)
			}
		}
	}
}

func TestSeenTokensAreBounded(t *testing.T) {
	k := keys(t, 1)
	for i := range maxSeen + 10 {
		k.keep(uint64(i), shown{})
	}
	if n := len(k.seen); n != 10 {
		t.Errorf("%d are kept of those since there were too many", n)
	}
}

// What one node seals another reads, and nobody else.
func TestSeal(t *testing.T) {
	k := keys(t, 1)
	sealed := k.Seal("secret/app")
	if sealed == k.Seal("secret/app") || strings.Contains(sealed, "app") {
		t.Errorf("it shows: %s", sealed)
	}
	for _, other := range []*Keys{keys(t, 1), keys(t, 2, 1)} {
		if text, ok := other.Unseal(sealed); !ok || text != "secret/app" {
			t.Errorf("%q, %v", text, ok)
		}
	}
	for _, bad := range []string{"", "!", "aaaa", sealed[1:], sealed + "AAAA"} {
		if text, ok := k.Unseal(bad); ok {
			t.Errorf("%q is %q", bad, text)
		}
	}
	if _, ok := keys(t, 2).Unseal(sealed); ok {
		t.Error("another cluster reads it")
	}
}

// Strangers can't fill memory with large tokens that they have asked for.
func TestLargeTokensAreNotKept(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	k := keys(t, 1)
	var scopes []Scope
	for range maxScopes {
		scopes = append(scopes, Scope{"repository", strings.Repeat("a", 100), []string{"pull"}})
	}
	large, err := k.Issue(Anybody(), "pier", scopes, now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if c, err := k.Verify(large.Text, "pier", now); err != nil || c.Limit.Repositories[scopes[0].Name] != Pull {
			t.Errorf("%+v, %v", c, err)
		}
	}
	if len(k.seen) != 0 {
		t.Errorf("%d bytes are kept", len(large.Text))
	}
	usual, err := k.Issue(Anybody(), "pier", scopes[:1], now, time.Minute)
	if _, verifyErr := k.Verify(usual.Text, "pier", now); err != nil || verifyErr != nil || len(k.seen) != 1 {
		t.Errorf("a usual one is not kept: %v, %v", err, verifyErr)
	}
}

// Everything that an attacker may try with a token ends in the same refusal.
func TestForgedTokens(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	k := keys(t, 1)
	alice := Caller{Kind: KindUser, Name: "alice"}
	good, _ := k.Issue(alice, "pier", nil, now, time.Minute)
	refresh, _ := k.IssueRefresh(alice, "pier", now, time.Hour)
	foreign, _ := keys(t, 2).Issue(alice, "pier", nil, now, time.Minute)
	early, _ := k.Issue(alice, "pier", nil, now.Add(time.Hour), time.Hour)
	audience, _ := k.Issue(alice, "other", nil, now, time.Minute)
	parts := strings.Split(good.Text, ".")
	header := func(h map[string]string) string {
		b, _ := json.Marshal(h)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	hmacKey := k.verifies[k.signID]
	swapped := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"iss": issuer, "aud": "pier", "exp": now.Add(time.Minute).Unix(), "nbf": now.Unix(), "use": useAccess})
	swapped.Header["kid"] = k.signID
	hs, err := swapped.SignedString([]byte(hmacKey))
	if err != nil {
		t.Fatal(err)
	}
	endless := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{"iss": issuer, "aud": "pier", "nbf": now.Unix(), "use": useAccess})
	endless.Header["kid"] = k.signID
	noEnd, err := endless.SignedString(k.sign)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"empty": "", "garbage": "a.b.c", "a megabyte": strings.Repeat("a", 1<<20), "another cluster's": foreign.Text, "not yet valid": early.Text,
		"another audience": audience.Text, "refresh": refresh.Text, "truncated": good.Text[:len(good.Text)-2], "without signature": parts[0] + "." + parts[1] + ".",
		"alg none": header(map[string]string{"alg": "none", "kid": k.signID}) + "." + parts[1] + ".", "alg swapped": hs, "without end": noEnd,
		"other payload": parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"root"}`)) + "." + parts[2], "padded": good.Text + "=",
	} {
		if _, err := k.Verify(text, "pier", now); !errors.Is(err, ErrTokenInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, k := range []*Keys{k, keys(t, 1)} { // one that has seen it, one that hasn't
		if _, err := k.Verify(good.Text, "pier", good.Expiry); !errors.Is(err, ErrTokenExpired) {
			t.Errorf("at its end: %v", err)
		}
	}
	if left := good.Expiry.Sub(good.Issued) - good.Lasts(); left != clockSlack {
		t.Errorf("a client asks for the next token %s before the end", left)
	}
	if _, err := k.Verify(good.Text, "other", now); !errors.Is(err, ErrTokenInvalid) {
		t.Errorf("one that was seen, for another audience: %v", err)
	}
	if _, err := k.VerifyRefresh(good.Text, "pier", now); !errors.Is(err, ErrTokenInvalid) {
		t.Errorf("access token as refresh token: %v", err)
	}
	if c, err := k.VerifyRefresh(refresh.Text, "pier", now); err != nil || c.Name != "alice" {
		t.Errorf("refresh: %v %v", c, err)
	}
}

func TestGrantable(t *testing.T) {
	d := NewDirectory(true, []Principal{{Name: "alice", Kind: KindUser}}, []Grant{{"alice", Pull, "a/*"}, {"alice", Delete, "a/b"}})
	alice, _ := d.Active("alice", time.Now())
	asked, err := ParseScopes([]string{"repository:a/b:pull,push,push repository:x:pull", "repository:a/b:*", "registry:catalog:*", "repository:host:5000/a:pull", "strange:x:y", "cluster:this:admin"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range d.Grantable(alice, asked) {
		got = append(got, s.String())
	}
	want := []string{"repository:a/b:pull", "repository:a/b:pull,delete", "registry:catalog:*"}
	if !slices.Equal(got, want) {
		t.Errorf("granted %q, want %q", got, want)
	}
	asked, err = ParseScopes([]string{strings.Repeat("registry:catalog:* ", 60), "repository:" + strings.Repeat("a/", 200) + "a:pull"})
	all := NewDirectory(true, nil, []Grant{{Anonymous, Pull, "**"}})
	if got := all.Grantable(Anybody(), asked); err != nil || len(got) != 1 {
		t.Errorf("strangers get a token with %d scopes, %v", len(got), err)
	}
	root := Caller{Kind: KindUser, Name: "root"}
	chief := NewDirectory(true, nil, []Grant{{"root", Admin, "**"}})
	longest := strings.Repeat("a", maxPattern)
	asked, err = ParseScopes([]string{"strange:pier:admin registry:other:* strange:catalog:* registry:catalog:* cluster:pier:admin repository:" + longest + ":pull repository:" + longest + "a:pull"})
	got = nil
	for _, s := range chief.Grantable(root, asked) {
		got = append(got, s.String())
	}
	if want := []string{"registry:catalog:*", "cluster:pier:admin", "repository:" + longest + ":pull"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("an administrator gets %q, %v", got, err)
	}
	if got := chief.Grantable(root, []Scope{{"strange", "catalog", []string{"*"}}, {"registry", "other", []string{"*"}}}); len(got) != 0 {
		t.Errorf("what there is not is granted: %v", got)
	}
	l := limitOf([]Scope{{"strange", "catalog", []string{"*"}}, {"registry", "other", []string{"*"}}, {"strange", "pier", []string{"admin"}}, {"repository", "a", []string{"pull", "later"}}})
	if l.Catalog || l.Cluster || len(l.Repositories) != 1 || l.Repositories["a"] != Pull {
		t.Errorf("strange scopes allow %+v", l)
	}
	if _, err := ParseScopes([]string{strings.Repeat("repository:a:pull ", maxScopes)}); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"repository", "repository:", ":x:pull", "repository::pull", strings.Repeat("repository:a:pull ", maxScopes+1)} {
		if _, err := ParseScopes([]string{bad}); err == nil {
			t.Errorf("scope %.40q is accepted", bad)
		}
	}
}

// A stranger's request is read in no time, however many actions it makes up.
func TestMadeUpActions(t *testing.T) {
	var actions []string
	for i := range 10_000 {
		actions = append(actions, strconv.Itoa(i))
	}
	asked, err := ParseScopes([]string{"repository:a:push," + strings.Join(actions, ",") + ",pull,push"})
	if err != nil || len(asked) != 1 || !slices.Equal(asked[0].Actions, []string{"push", "pull"}) {
		t.Errorf("of the actions %d are kept, %v", len(asked[0].Actions), err)
	}
	d := NewDirectory(true, []Principal{{Name: "root", Kind: KindUser}}, []Grant{{"root", Admin, Everything}})
	root, _ := d.Active("root", time.Now())
	if got := d.Grantable(root, []Scope{{"cluster", "made up", []string{"admin", "more"}}}); len(got) != 1 || got[0].String() != ClusterScope().String() {
		t.Errorf("granted %v", got)
	}
}

// Whatever may be asked for at once, what is given for it is taken.
func TestTheLargestToken(t *testing.T) {
	var asked []Scope
	for i := range maxScopes {
		asked = append(asked, Scope{"repository", strings.Repeat("a", maxPattern-2) + strconv.Itoa(10+i), []string{"*"}})
	}
	var groups []string
	for range maxTokenGroups {
		groups = append(groups, strings.Repeat("g", maxTokenGroupBytes/maxTokenGroups))
	}
	d := NewDirectory(true, []Principal{{Name: "root", Kind: KindUser}}, []Grant{{"root", Admin, Everything}})
	root := Caller{Kind: KindUser, Name: "root", Provider: strings.Repeat("p", maxName), ProviderGeneration: 1 << 62, Generation: 1 << 62, Groups: groups}
	k, now := keys(t, 1), time.Unix(1_000_000, 0)
	token, err := k.Issue(root, "pier", d.Grantable(root, asked), now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c, err := k.Verify(token.Text, "pier", now)
	if err != nil || len(c.Limit.Repositories) != maxScopes {
		t.Errorf("a token of %d bytes for %d repositories: %v", len(token.Text), maxScopes, err)
	}
}

func FuzzScope(f *testing.F) {
	f.Add("repository:a/b:pull,push registry:catalog:*")
	f.Fuzz(func(t *testing.T, text string) {
		scopes, err := ParseScopes([]string{text})
		if err != nil {
			return
		}
		d := NewDirectory(true, nil, []Grant{{Anonymous, Pull, "public/**"}})
		for _, s := range d.Grantable(Anybody(), scopes) {
			if s.Type == "repository" && (!strings.HasPrefix(s.Name, "public/") || !slices.Equal(s.Actions, []string{"pull"})) {
				t.Errorf("%q was granted for %q", s, text)
			}
		}
	})
}

func FuzzToken(f *testing.F) {
	k, err := NewKeys([][]byte{seed(1)})
	if err != nil {
		f.Fatal(err)
	}
	now := time.Unix(1_000_000, 0)
	good, err := k.Issue(Caller{Kind: KindUser, Name: "alice"}, "pier", nil, now, time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.Text)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := k.Verify(text, "pier", now)
		if err != nil {
			return
		}
		// Each process of the fuzzer has signed a token of its own, so it is the signature that tells.
		parts := strings.Split(text, ".")
		signature, err := base64.RawURLEncoding.DecodeString(parts[len(parts)-1])
		if err != nil || !ed25519.Verify(k.verifies[k.signID], []byte(strings.Join(parts[:len(parts)-1], ".")), signature) {
			t.Errorf("%q is taken for a token of %+v", text, c)
		}
	})
}

// BenchmarkVerify is the check of a token, the first time that a node sees it and each time after that, with what makes the
// caller today's.
func BenchmarkVerify(b *testing.B) {
	now := time.Unix(1_000_000, 0)
	k := keys(b, 1)
	d := population(10_000, populations["own"])
	c, _ := d.Active("user5", now)
	token, err := k.Issue(c, "pier", []Scope{{"repository", "team/app", []string{"pull"}}}, now, time.Minute)
	if err != nil {
		b.Fatal(err)
	}
	check := func(b *testing.B) {
		c, err := k.Verify(token.Text, "pier", now)
		if _, ok := d.Renew(c, now); err != nil || !ok {
			b.Fatal(err, ok)
		}
	}
	b.Run("first", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			clear(k.seen)
			check(b)
		}
	})
	b.Run("again", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			check(b)
		}
	})
}
