package promises

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pier/api/client"
	"pier/cmd/pier/node"
	"pier/test/harness"
)

// clock is the nodes' time for tokens and certificates; a test makes it pass.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *clock) pass(d time.Duration) { c.ahead.Add(int64(d)) }

// someone is a user or a robot and all that it can come in with.
type someone struct {
	name, secret   string
	token, refresh string
}

// guarded is a cluster with access control on, and an image that those may pull who were granted it.
type guarded struct {
	*harness.Cluster
	img  harness.Image
	root *someone
}

func startGuarded(t testing.TB, tune node.Tuning) *guarded {
	t.Helper()
	return closeDoor(t, harness.StartTuned(t, 3, tune), nil)
}

// closeDoor makes the first user, root, and an image. The CA, PEM, is what the nodes' certificates come from.
func closeDoor(t testing.TB, c *harness.Cluster, ca []byte) *guarded {
	t.Helper()
	g := &guarded{Cluster: c, img: harness.NewImage("team/app", "1", 100<<10)}
	if ca != nil {
		c.Trust(ca)
	}
	g.root = g.user("root")
	g.Must(g.Nodes[0].As(g.root.basic()).Push(g.img))
	for _, x := range g.Nodes {
		g.Eventually(x.Name+" knows root", func() bool { return x.As(g.root.basic()).Pull(g.img) == nil })
	}
	return g
}

// user makes a user with what was granted, as RIGHT:PATTERN.
func (g *guarded) user(name string, grants ...string) *someone {
	g.T.Helper()
	s := &someone{name: name, secret: name + "'s password"}
	_, err := g.Nodes[0].Control().AddUser(g.T.Context(), client.UserRequest{Name: name, Password: s.secret})
	g.Must(err)
	for _, text := range grants {
		g.Must(g.Nodes[0].Control().Grant(g.T.Context(), grant(name, text)))
	}
	return s
}

func (g *guarded) robot(name, text string) *someone {
	g.T.Helper()
	made, err := g.Nodes[0].Control().AddRobot(g.T.Context(), client.RobotRequest{Name: name, Grants: []client.Grant{grant(name, text)}})
	g.Must(err)
	return &someone{name: name, secret: made.Secret}
}

func grant(subject, text string) client.Grant {
	right, pattern, _ := strings.Cut(text, ":")
	return client.Grant{Subject: subject, Right: right, Pattern: pattern}
}

func (s *someone) basic() string { return harness.Basic(s.name, s.secret) }

func (s *someone) bearer() string { return "Bearer " + s.token }

// logIn gets tokens at a node, once that one knows who it is.
func (g *guarded) logIn(x *harness.Node, s *someone) {
	g.T.Helper()
	g.Eventually(x.Name+" gives "+s.name+" tokens", func() bool {
		var err error
		s.token, s.refresh, err = tokens(x.Client, "pull", url.Values{"grant_type": {"password"}, "username": {s.name}, "password": {s.secret}, "access_type": {"offline"}})
		return err == nil
	})
}

// errRefused is an answer that keeps somebody out.
var errRefused = errors.New("refused")

// tokens asks for an access token for actions, and for one that stands for the password where the form says so.
func tokens(x *harness.Client, actions string, form url.Values) (access, refresh string, err error) {
	form.Set("service", "pier")
	form.Set("scope", "repository:team/app:"+actions)
	resp, body, err := x.Do("POST", "/token", []byte(form.Encode()), "Content-Type", "application/x-www-form-urlencoded")
	if err == nil {
		err = verdict(resp, body)
	}
	var out struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	if err == nil {
		err = json.Unmarshal(body, &out)
	}
	return out.Access, out.Refresh, err
}

func verdict(resp *http.Response, body []byte) error {
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return errRefused
	}
	return fmt.Errorf("%s %s: %s %s", resp.Request.Method, resp.Request.URL.Path, resp.Status, body)
}

// ways are how a caller comes in: what it shows is still good, or errRefused.
func (g *guarded) ways(s *someone) map[string]func(x *harness.Client) error {
	pull := func(x *harness.Client, credentials string) error {
		resp, body, err := x.As(credentials).Do("GET", "/v2/team/app/manifests/"+g.img.Digest.String(), nil)
		if err != nil {
			return err
		}
		return verdict(resp, body)
	}
	password, token, refresh := s.basic(), s.bearer(), s.refresh // what it had before it was changed
	out := map[string]func(x *harness.Client) error{
		"token":    func(x *harness.Client) error { return pull(x, token) },
		"password": func(x *harness.Client) error { return pull(x, password) },
		"refresh": func(x *harness.Client) error {
			fresh, _, err := tokens(x, "pull", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}})
			if err != nil {
				return err
			}
			return pull(x, "Bearer "+fresh)
		},
	}
	if refresh == "" { // a job's ID token is all that it gets
		delete(out, "refresh")
	}
	return out
}

// endings are all that ends somebody's being let in, each with who it happens to.
func (g *guarded) endings() map[string]func(ctl *client.Client) (*someone, func() error) {
	ctx, yes := g.T.Context(), true
	user := func(do func(ctl *client.Client, name string) error) func(ctl *client.Client) (*someone, func() error) {
		return func(ctl *client.Client) (*someone, func() error) {
			s := g.user(fmt.Sprintf("user%d", time.Now().UnixNano()), "pull:team/*")
			return s, func() error { return do(ctl, s.name) }
		}
	}
	robot := func(do func(ctl *client.Client, name string) error) func(ctl *client.Client) (*someone, func() error) {
		return func(ctl *client.Client) (*someone, func() error) {
			s := g.robot(fmt.Sprintf("robot%d", time.Now().UnixNano()), "pull:team/app")
			return s, func() error { return do(ctl, s.name) }
		}
	}
	remove := func(ctl *client.Client, name string) error {
		return ctl.RemovePrincipal(ctx, client.RemovalRequest{Name: name})
	}
	disable := func(ctl *client.Client, name string) error {
		return ctl.ChangePrincipal(ctx, client.PrincipalChange{Name: name, Disabled: &yes})
	}
	job, _ := g.jobs()
	return map[string]func(ctl *client.Client) (*someone, func() error){
		"a trust rule that goes": func(ctl *client.Client) (*someone, func() error) {
			s := job("job-a", "pull:team/app")
			return s, func() error { return ctl.RemoveTrust(ctx, client.NameRequest{Name: s.name}) }
		},
		"a job's robot that is disabled": func(ctl *client.Client) (*someone, func() error) {
			s := job("job-b", "pull:team/app")
			return s, func() error { return disable(ctl, s.name) }
		},
		"a disabled user": user(disable), "a removed user": user(remove), "a disabled robot": robot(disable), "a removed robot": robot(remove),
		"a changed password": user(func(ctl *client.Client, name string) error {
			other := "another password"
			return ctl.ChangePrincipal(ctx, client.PrincipalChange{Name: name, Password: &other})
		}),
		"a lost grant": user(func(ctl *client.Client, name string) error { return ctl.Revoke(ctx, grant(name, "pull:team/*")) }),
		"a replaced secret": robot(func(ctl *client.Client, name string) error {
			_, err := ctl.RotateRobot(ctx, client.RotateRequest{Name: name})
			return err
		}),
	}
}

// What is decided about somebody at one node ends, at every other one, each way in which that somebody came in.
func TestWhatEndsAtOneNodeEndsAtAll(t *testing.T) {
	t.Parallel()
	g := startGuarded(t, node.Tuning{})
	var all []time.Duration
	for what, prepare := range g.endings() {
		s, change := prepare(g.Nodes[0].Control())
		g.logIn(g.Nodes[0], s)
		watch := g.watch(s, g.Nodes[1:])
		g.Must(change())
		took := watch(time.Now())
		t.Logf("%s was let in for another %s", what, slices.Max(took))
		all = append(all, took...)
		for way, try := range g.ways(s) {
			if err := try(g.Nodes[1].Client); way != "password" && !errors.Is(err, errRefused) { // its password may be new by now
				t.Errorf("%s, once refused, comes in by %s: %v", what, way, err)
			}
		}
	}
	g.letInAgain()
	slices.Sort(all)
	t.Logf("let in after the change was answered: for %s (median), at most %s, of %d", all[len(all)/2], all[len(all)-1], len(all))
}

// letInAgain disables and enables somebody: what was given out before stays ended, which is how a stolen login ends whose
// password is still secret.
func (g *guarded) letInAgain() {
	g.T.Helper()
	s := g.user("again", "pull:team/*")
	g.logIn(g.Nodes[1], s)
	for _, disabled := range []bool{true, false} {
		g.Must(g.Nodes[0].Control().ChangePrincipal(g.T.Context(), client.PrincipalChange{Name: s.name, Disabled: &disabled}))
	}
	ways := g.ways(s)
	for _, x := range g.Nodes {
		g.Eventually(x.Name+" has heard of it", func() bool { return errors.Is(ways["token"](x.Client), errRefused) })
		g.Eventually(x.Name+" lets in again by password", func() bool { return ways["password"](x.Client) == nil })
		for _, way := range []string{"token", "refresh"} {
			if err := ways[way](x.Client); !errors.Is(err, errRefused) {
				g.T.Errorf("%s lets in by a %s from before: %v", x.Name, way, err)
			}
		}
	}
}

// watch tries each way in at each node again and again. It returns once all of them have been let in; what it gives waits
// until all are refused, and says for how long after a moment each was still let in. How long a refusal takes, by bcrypt, is
// no part of it.
func (g *guarded) watch(s *someone, nodes []*harness.Node) func(since time.Time) []time.Duration {
	g.T.Helper()
	ctx, cancel := context.WithTimeout(g.T.Context(), time.Minute)
	var in, out sync.WaitGroup
	var mu sync.Mutex
	var ends []time.Time
	for _, x := range nodes {
		for way, try := range g.ways(s) {
			g.Eventually(x.Name+" knows "+s.name, func() bool { return !errors.Is(try(x.Client), errRefused) })
			in.Add(1)
			out.Go(func() {
				first := sync.OnceFunc(in.Done)
				defer first()
				var last time.Time
				tick := time.NewTicker(2 * time.Millisecond)
				defer tick.Stop()
				for ctx.Err() == nil {
					err := try(x.Client)
					if errors.Is(err, errRefused) {
						mu.Lock()
						ends = append(ends, last)
						mu.Unlock()
						return
					}
					if err != nil {
						g.T.Errorf("%s, by %s: %v", x.Name, way, err)
						return
					}
					last = time.Now()
					first()
					<-tick.C
				}
				g.T.Errorf("%s still lets %s in by %s", x.Name, s.name, way)
			})
		}
	}
	in.Wait()
	return func(since time.Time) (took []time.Duration) {
		g.T.Helper()
		defer cancel()
		out.Wait()
		for _, end := range ends {
			took = append(took, max(0, end.Sub(since)))
		}
		if len(took) == 0 {
			g.T.FailNow()
		}
		return took
	}
}

// A node that is cut off from the majority hasn't heard. There a token ends when it says so, and no later; who has the
// password or a refresh token gets another, until the node hears.
func TestCutOffNodeRefusesAtTheTokensEnd(t *testing.T) {
	t.Parallel()
	var at clock
	g := startGuarded(t, node.Tuning{Clock: at.now})
	s := g.user("alice", "pull:team/*")
	g.logIn(g.Nodes[0], s)
	lone := g.Nodes[2]
	ways := g.ways(s)
	for way, try := range ways {
		g.Eventually("alice comes in by "+way, func() bool { return try(lone.Client) == nil })
	}
	for _, x := range others(g.Cluster, lone) {
		g.Net.Cut(lone.Name, x.Name)
	}
	yes := true
	g.Eventually("the majority disables her", func() bool {
		return g.Nodes[0].Control().ChangePrincipal(t.Context(), client.PrincipalChange{Name: s.name, Disabled: &yes}) == nil
	})
	g.Eventually("the majority refuses her", func() bool { return errors.Is(ways["token"](g.Nodes[1].Client), errRefused) })
	for way, try := range ways {
		if err := try(lone.Client); err != nil {
			t.Errorf("the node that hasn't heard, by %s: %v", way, err)
		}
	}
	later, _, err := tokens(lone.Client, "pull", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {s.refresh}})
	g.Must(err)
	at.pass(5 * time.Minute)
	if err := ways["token"](lone.Client); !errors.Is(err, errRefused) {
		t.Errorf("a token is good beyond its end: %v", err)
	}
	for _, way := range []string{"password", "refresh"} {
		if err := ways[way](lone.Client); err != nil {
			t.Errorf("what the documents say of a node that is cut off is not so, by %s: %v", way, err)
		}
	}
	g.Net.Heal()
	s.token = later
	for way, try := range g.ways(s) {
		g.Eventually("once it has heard, it refuses her by "+way, func() bool { return errors.Is(try(lone.Client), errRefused) })
	}
}
