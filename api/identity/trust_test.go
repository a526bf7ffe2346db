package identity

import (
	"encoding/json"
	"strings"
	"testing"
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
		rule := TrustRule{Robot: "ci", Issuer: Issuer{URL: "https://a"}, Audience: "r", Claims: []Claim{{"c", x.pattern}}}
		if got := rule.Admits(c) == nil; got != x.want {
			t.Errorf("%s for %s: %v", x.pattern, x.value, got)
		}
	}
}

func TestAdmits(t *testing.T) {
	good := TrustRule{Robot: "ci", Issuer: Issuer{URL: "https://a"}, Audience: "r", Claims: []Claim{{"sub", "x:*"}, {"ref", "main"}}}
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
	at := Issuer{URL: "https://a"}
	claims := []Claim{{"sub", "x"}}
	for name, x := range map[string]struct {
		rule TrustRule
		ok   bool
	}{
		"good":              {TrustRule{Issuer: at, Audience: "r", Claims: claims}, true},
		"no claim":          {TrustRule{Issuer: at, Audience: "r"}, false},
		"a claim of *":      {TrustRule{Issuer: at, Audience: "r", Claims: []Claim{{"sub", "*"}}}, false},
		"* beside another":  {TrustRule{Issuer: at, Audience: "r", Claims: []Claim{{"sub", "*"}, {"ref", "x"}}}, true},
		"any job":           {TrustRule{Issuer: at, Audience: "r", AnyJob: true}, true},
		"no audience":       {TrustRule{Issuer: at, Claims: claims}, false},
		"**":                {TrustRule{Issuer: at, Audience: "r", Claims: []Claim{{"sub", "a**"}}}, false},
		"claim aud":         {TrustRule{Issuer: at, Audience: "r", Claims: []Claim{{"aud", "a"}}}, false},
		"no pattern":        {TrustRule{Issuer: at, Audience: "r", Claims: []Claim{{"sub", ""}}}, false},
		"no name":           {TrustRule{Issuer: at, Audience: "r", Claims: []Claim{{"", "x"}}}, false},
		"a long pattern":    {TrustRule{Issuer: at, Audience: "r", Claims: []Claim{{"sub", strings.Repeat("x", maxPattern+1)}}}, false},
		"many claims":       {TrustRule{Issuer: at, Audience: "r", Claims: make([]Claim, maxClaims+1)}, false},
		"http":              {TrustRule{Issuer: Issuer{URL: "http://gitlab.lan"}, Audience: "r", Claims: claims}, false},
		"http, explicitly":  {TrustRule{Issuer: Issuer{URL: "http://gitlab.lan", Insecure: true}, Audience: "r", Claims: claims}, true},
		"a CA that is none": {TrustRule{Issuer: Issuer{URL: "https://a", CA: "x"}, Audience: "r", Claims: claims}, false},
	} {
		if err := x.rule.Validate(); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	for text, want := range map[string]Claim{"sub=a=b": {"sub", "a=b"}, "https://x/y=z": {"https://x/y", "z"}} {
		if c, err := ParseClaim(text); err != nil || c != want {
			t.Errorf("%s: %+v %v", text, c, err)
		}
	}
	for _, text := range []string{"", "sub", "=x", "sub=", "exp=1"} {
		if c, err := ParseClaim(text); err == nil {
			t.Errorf("%q: %+v", text, c)
		}
	}
}

// What is kept reads back as it was, and its issuer stands beside the rest.
func TestTrustRuleAsJSON(t *testing.T) {
	rule := TrustRule{Robot: "ci", Issuer: Issuer{URL: "https://a", CA: "pem"}, Audience: "r", Claims: []Claim{{"sub", "x:*"}}}
	data, err := json.Marshal(rule)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"robot":"ci","issuer":"https://a","ca":"pem","audience":"r","claims":[{"name":"sub","pattern":"x:*"}]}`; string(data) != want {
		t.Errorf("%s", data)
	}
	var back TrustRule
	if err := json.Unmarshal(data, &back); err != nil || back.URL != rule.URL || back.Claims[0] != rule.Claims[0] {
		t.Errorf("%+v %v", back, err)
	}
}
