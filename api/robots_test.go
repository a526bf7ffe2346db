package api

import (
	"encoding/json"
	"net/url"
	"testing"
	"time"

	"pier/api/client"
)

// A robot's new secret comes beside the old one for as long as is said, and no robot has many.
func TestRobotSecretsRotate(t *testing.T) {
	now := time.Now()
	f := withAccess(t, 1, func(c *Config) { c.Access.Now = func() time.Time { return now } })
	f.user("root")
	made := func(path string, in any) client.RobotSecret {
		t.Helper()
		var out client.RobotSecret
		f.must(nil, json.Unmarshal(f.want(f.order(path, in), 200, "").body, &out))
		return out
	}
	good := func(when string, want bool, secrets ...client.RobotSecret) {
		t.Helper()
		for i, s := range secrets {
			if got := f.do("GET", "/v2/", nil, basicOf("ci", s.Secret)).StatusCode == 200; got != want {
				t.Errorf("%s: secret %d lets in: %v", when, i, got)
			}
		}
	}
	first := made("/access/robot/add", client.RobotRequest{Name: "ci"})
	second := made("/access/robot/rotate", client.RotateRequest{Name: "ci", Keep: "1h"})
	good("beside each other", true, first, second)
	now = now.Add(time.Hour)
	good("after an hour", false, first)
	good("after an hour", true, second)
	third := made("/access/robot/rotate", client.RotateRequest{Name: "ci", Keep: "10h"})
	fourth := made("/access/robot/rotate", client.RotateRequest{Name: "ci", Keep: "1h"})
	good("three", true, second, third, fourth)
	fifth := made("/access/robot/rotate", client.RotateRequest{Name: "ci", Keep: "10h"})
	good("one too many", false, second)
	good("one too many", true, third, fourth, fifth)
	now = now.Add(time.Hour)
	good("what was to end in an hour lives no longer for a later word", false, third)
	good("what was to end in an hour lives no longer for a later word", true, fourth, fifth)
	sixth := made("/access/robot/rotate", client.RotateRequest{Name: "ci"})
	good("at once", false, fourth, fifth)
	good("at once", true, sixth)
	f.want(f.order("/access/robot/rotate", client.RotateRequest{Name: "ci", Keep: "x"}), 400, codeInvalid)
	f.want(f.order("/access/robot/rotate", client.RotateRequest{Name: "root"}), 400, codeInvalid)
	f.want(f.order("/access/robot/rotate", client.RotateRequest{Name: "none"}), 404, codeNameUnknown)
	password := "a password"
	f.want(f.order("/access/change", client.PrincipalChange{Name: "ci", Password: &password}), 400, codeInvalid)
}

// A robot ends when that was said, and may have no secret at all.
func TestRobotsEnd(t *testing.T) {
	now := time.Now()
	f := withAccess(t, 1, func(c *Config) { c.Access.Now = func() time.Time { return now } })
	f.user("root")
	for _, x := range []struct {
		in     client.RobotRequest
		secret bool
		ends   bool
	}{{client.RobotRequest{Name: "ci", TTL: "1h"}, true, true}, {client.RobotRequest{Name: "always"}, true, false}, {client.RobotRequest{Name: "job", NoSecret: true}, false, false}} {
		var out client.RobotSecret
		f.must(nil, json.Unmarshal(f.want(f.order("/access/robot/add", x.in), 200, "").body, &out))
		if (out.Secret != "") != x.secret || (out.Expires != nil) != x.ends {
			t.Errorf("%+v gives %+v", x.in, out)
		}
		in := func() bool { return f.do("GET", "/v2/", nil, basicOf(x.in.Name, out.Secret)).StatusCode == 200 }
		if in() != x.secret {
			t.Errorf("%s comes in: %v", x.in.Name, !x.secret)
		}
		if now = now.Add(time.Hour); in() != (x.secret && !x.ends) {
			t.Errorf("%s comes in after an hour, or doesn't", x.in.Name)
		}
	}
	f.want(f.order("/access/robot/add", client.RobotRequest{Name: "bad", TTL: "x"}), 400, codeInvalid)
}

// What stands for a password is given to who asks for it with one: not unasked, and not for itself.
func TestRefreshTokensAreAskedFor(t *testing.T) {
	f := withAccess(t, 1, nil)
	f.user("root")
	root := "Authorization: " + basic(f, "root")
	var ci client.RobotSecret
	f.must(nil, json.Unmarshal(f.want(f.order("/access/robot/add", client.RobotRequest{Name: "ci"}), 200, "").body, &ci))
	password := url.Values{"grant_type": {"password"}, "username": {"root"}, "password": {"root's-password"}}
	offline := f.given(f.postToken(f.nodes[0], with(password, "access_type", "offline")))
	refresh := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {offline.RefreshToken}, "access_type": {"offline"}}
	for name, x := range map[string]struct {
		got  answer
		want bool
	}{
		"offline": {f.do("GET", "/token?offline_token=true", nil, root), true}, "not said": {f.do("GET", "/token", nil, root), false}, "no": {f.do("GET", "/token?offline_token=false", nil, root), false},
		"a form": {f.postToken(f.nodes[0], with(password, "access_type", "online")), false}, "by itself": {f.postToken(f.nodes[0], refresh), false}, "nobody": {f.do("GET", "/token?offline_token=true", nil), false},
		"a robot, whose secret lasts as long as was said": {f.do("GET", "/token?offline_token=true", nil, basicOf("ci", ci.Secret)), false},
	} {
		if got := f.given(x.got); (got.RefreshToken != "") != x.want {
			t.Errorf("%s: a refresh token comes: %v", name, !x.want)
		}
	}
	if offline.RefreshToken == "" {
		t.Error("none for a form")
	}
}
