package identity

import (
	"slices"
	"strings"
	"testing"

	"pier/api/client"
)

func TestClaimPatterns(t *testing.T) {
	for _, x := range []struct {
		pattern, value string
		want           bool
	}{
		{"repo:team/app:*", `"repo:team/app:ref:refs/heads/main"`, true},
		{"repo:team/app:*", `"repo:team/app:"`, true},
		{"repo:team/app:*", `"repo:team/app"`, false},
		{"repo:team/app:*", `"repo:team/app-evil:ref:refs/heads/main"`, false},
		{"repo:team/app:*", `"xrepo:team/app:y"`, false},
		{"repo:team/app:*", `"REPO:TEAM/APP:x"`, false},
		{"repo:team/app:*", `"repo:team/app:\nrepo:x"`, true},
		{"repo:team/app:ref:refs/heads/main", `"repo:team/app:ref:refs/heads/main"`, true},
		{"repo:team/app:ref:refs/heads/main", `"repo:team/app:ref:refs/heads/main\n"`, false},
		{"repo:team/*:ref:refs/heads/main", `"repo:team/app:ref:refs/heads/main"`, true},
		{"repo:team/*:ref:refs/heads/main", `"repo:team/evil:environment:a:ref:refs/heads/main"`, false},
		{"repo:*/app:x", `"repo:evil/team/app:x"`, false},
		{"repo:*/app:x", `"repo:evil:team/app:x"`, false},
		{"*", `""`, true},
		{"*", `"a/b:c"`, true},
		{"*x", `"a/x"`, false},
		{"*x", `"ax"`, true},
		{"a*b*c", `"abbc"`, true},
		{"a*b*", `"ab/c:d"`, true},
		{"a.c", `"abc"`, false},
		{"(a|b)*", `"a"`, false},
		{`\d`, `"1"`, false},
		{"main", `["dev","main"]`, true},
		{"main", `["maintenance"]`, false},
		{"main", `[["main"]]`, false},
		{"main", `{"main":"main"}`, false},
		{"main", `null`, false},
		{"true", `true`, true},
		{"true", `"true"`, true},
		{"true", `1`, false},
		{"12", `12`, true},
		{"12", `12.0`, false},
		{"*", `{}`, false},
		{"*", `null`, false},
		{"*", `[]`, false},
	} {
		c, err := parseClaims([]byte(`{"iss":"https://a","aud":"r","c":` + x.value + `}`))
		if err != nil {
			t.Fatal(err)
		}
		rule, err := ParseRule(client.TrustRule{Issuer: "https://a", Audience: "r", Claims: []string{"c=" + x.pattern}, AnyJob: true}, 1)
		if err != nil {
			t.Fatal(err)
		}
		if got := rule.Admits(c) == nil; got != x.want {
			t.Errorf("%s for %s: %v", x.pattern, x.value, got)
		}
	}
}

func TestAdmits(t *testing.T) {
	good, err := ParseRule(client.TrustRule{Issuer: "https://a", Audience: "r", Claims: []string{"sub=x:*", "ref=main"}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for payload, want := range map[string]string{
		`{"iss":"https://a","aud":"r","sub":"x:1","ref":"main"}`:         "",
		`{"iss":"https://a","aud":["q","r"],"sub":"x:1","ref":"main"}`:   "",
		`{"iss":"https://b","aud":"r","sub":"x:1","ref":"main"}`:         "issuer",
		`{"iss":"https://a","aud":"q","sub":"x:1","ref":"main"}`:         "audience",
		`{"iss":"https://a","AUD":"r","sub":"x:1","ref":"main"}`:         "audience",
		`{"iss":"https://a","aud":{"r":1},"sub":"x:1","ref":"main"}`:     "audience",
		`{"iss":"https://a","sub":"x:1","ref":"main"}`:                   "audience",
		`{"iss":"https://a","aud":"r","sub":"x:1"}`:                      "no claim ref",
		`{"iss":"https://a","aud":"r","ref":"main"}`:                     "no claim sub",
		`{"iss":"https://a","aud":"r","sub":"y:1","ref":"main"}`:         "claim sub",
		`{"iss":"https://a","aud":"r","sub":"x:1","ref":"maintenance"}`:  "claim ref",
		`{"iss":"https://a","aud":"r","SUB":"x:1","sub":7,"ref":"main"}`: "claim sub",
	} {
		c, err := parseClaims([]byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		err = good.Admits(c)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", payload, err)
		}
	}
}

func TestTrustRulesThatAreRefused(t *testing.T) {
	good := client.TrustRule{Issuer: "https://a", Audience: "r", Claims: []string{"sub=x"}}
	for name, x := range map[string]struct {
		change func(r *client.TrustRule)
		ok     bool
	}{
		"good":              {func(*client.TrustRule) {}, true},
		"no claim":          {func(r *client.TrustRule) { r.Claims = nil }, false},
		"a claim of *":      {func(r *client.TrustRule) { r.Claims = []string{"sub=*"} }, false},
		"* beside another":  {func(r *client.TrustRule) { r.Claims = []string{"sub=*", "ref=x"} }, true},
		"any job":           {func(r *client.TrustRule) { r.Claims, r.AnyJob = nil, true }, true},
		"no audience":       {func(r *client.TrustRule) { r.Audience = "" }, false},
		"**":                {func(r *client.TrustRule) { r.Claims = []string{"sub=a**"} }, false},
		"claim aud":         {func(r *client.TrustRule) { r.Claims = []string{"aud=a"} }, false},
		"no pattern":        {func(r *client.TrustRule) { r.Claims = []string{"sub="} }, false},
		"no name":           {func(r *client.TrustRule) { r.Claims = []string{"=x"} }, false},
		"a name alone":      {func(r *client.TrustRule) { r.Claims = []string{"sub"} }, false},
		"an = in it":        {func(r *client.TrustRule) { r.Claims = []string{"https://x/y=a=b"} }, true},
		"a long pattern":    {func(r *client.TrustRule) { r.Claims = []string{"sub=" + strings.Repeat("x", maxPattern+1)} }, false},
		"many claims":       {func(r *client.TrustRule) { r.Claims = slices.Repeat([]string{"sub=x"}, maxClaims+1) }, false},
		"http":              {func(r *client.TrustRule) { r.Issuer = "http://gitlab.lan" }, false},
		"http, explicitly":  {func(r *client.TrustRule) { r.Issuer, r.Insecure = "http://gitlab.lan", true }, true},
		"a CA that is none": {func(r *client.TrustRule) { r.CA = "x" }, false},
	} {
		rule := good
		x.change(&rule)
		if _, err := ParseRule(rule, 1); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	worst := client.TrustRule{Issuer: "https://a", Audience: "r", Claims: []string{"sub=x" + strings.Repeat("*a", maxPattern/2-1)}}
	rule, err := ParseRule(worst, 1)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseClaims([]byte(`{"iss":"https://a","aud":"r","sub":"x` + strings.Repeat("a", maxToken) + `b"}`))
	if err != nil {
		t.Fatal(err)
	}
	if rule.Admits(c) == nil {
		t.Error("a nasty pattern matches")
	}
}
