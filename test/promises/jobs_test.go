package promises

import (
	"net/http"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"pier/api/client"
	"pier/cmd/pier/node"
	"pier/test/harness"
	"pier/test/oidc"
)

// jobs starts an issuer, until it is stopped, and gives robots whose jobs come in by its ID tokens, with what was granted.
func (g *guarded) jobs() (job func(robot, granted string) *someone, stop func()) {
	g.T.Helper()
	issuer := oidc.New(g.T, nil)
	return func(robot, granted string) *someone {
		g.T.Helper()
		admin := g.Nodes[0].Control()
		_, err := admin.AddRobot(g.T.Context(), client.RobotRequest{Name: robot, NoSecret: true, Grants: []client.Grant{grant(robot, granted)}})
		g.Must(err)
		g.Must(admin.AddTrust(g.T.Context(), client.TrustRequest{Rule: client.TrustRule{
			Name: robot, Robot: robot, Issuer: issuer.Issuer(), Audience: "registry", Claims: []string{"sub=repo:team/app:*"},
		}}))
		return &someone{name: robot, secret: issuer.Token(time.Now(), jwt.MapClaims{"exp": time.Now().Add(time.Hour).Unix()})}
	}, func() { issuer.Down(true) }
}

// A job comes in at every node by its own ID token: with two of three nodes and its issuer gone too, where the node has seen the
// issuer's keys. A rule that is taken ends it on the nodes that hear of that.
func TestJobsComeInEverywhere(t *testing.T) {
	t.Parallel()
	g := startGuarded(t, node.Tuning{})
	robot, stop := g.jobs()
	job := robot("ci", "push:team/**").basic()
	img := harness.NewImage("team/app", "job", 100<<10)
	for _, x := range g.Nodes {
		g.Eventually(x.Name+" knows the rule", func() bool {
			resp, _, err := x.Do("GET", "/v2/", nil, "Authorization", job)
			return err == nil && resp.StatusCode == http.StatusOK
		})
	}
	g.Must(g.Nodes[0].As(job).Push(img))
	for _, x := range g.Nodes {
		g.Must(x.As(job).Pull(img))
	}
	last := g.Nodes[2]
	g.Eventually("the last node has it all", func() bool {
		for d := range img.Blobs {
			if !last.Holds(d) {
				return false
			}
		}
		return true
	})
	stop()
	g.Nodes[1].Stop()
	g.Must(g.Nodes[2].As(job).Pull(img))
	g.Must(g.Nodes[0].As(job).Push(harness.NewImage("team/app", "more", 1000)))
	g.Nodes[0].Stop()
	g.Must(last.As(job).PullDigests(img))
	g.Nodes[0].Start()
	g.Nodes[1].Start()
	g.WaitReady()
	g.Must(g.Nodes[1].Control().RemoveTrust(t.Context(), client.NameRequest{Name: "ci"}))
	for _, x := range g.Nodes {
		g.Eventually(x.Name+" refuses the job", func() bool {
			resp, _, err := x.Do("GET", "/v2/", nil, "Authorization", job)
			return err == nil && resp.StatusCode == http.StatusUnauthorized
		})
	}
}
