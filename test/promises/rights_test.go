package promises

import (
	"encoding/base64"
	"net/http"
	"testing"

	"pier/api/client"
	"pier/fsm"
	"pier/test/harness"
)

// A node that is deaf to the leader, and that the leader still hears, doesn't know yet that a right was taken. What it lets
// in by that reaches the log and changes nothing; once it hears again, the caller is refused.
func TestDeafNodeUsesNoRightThatWasTaken(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	admin := c.Nodes[0].Control()
	for _, name := range []string{"root", "alice"} {
		_, err := admin.AddUser(t.Context(), client.UserRequest{Name: name, Password: name + "'s password"})
		c.Must(err)
	}
	grant := client.Grant{Subject: "alice", Right: "push", Pattern: "team/**"}
	c.Must(admin.Grant(t.Context(), grant))
	basic := func(name string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+name+"'s password"))
	}
	index := []byte(`{"schemaVersion":2,"manifests":[]}`)
	put := func(x *harness.Node, tag, name string) (int, string) {
		resp, body, err := x.Do("PUT", "/v2/team/app/manifests/"+tag, index, "Content-Type", fsm.TypeOCIIndex, "Authorization", basic(name))
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		return resp.StatusCode, string(body)
	}
	leader, deaf := c.Leader(), c.Follower()
	c.Eventually("the follower knows alice, and the way to the leader", func() bool {
		status, _ := put(deaf, "before", "alice")
		return status == http.StatusCreated
	})
	c.Net.CutOneWay(leader.Name, deaf.Name)
	c.Must(leader.Control().Revoke(t.Context(), grant))
	revoked := leader.State().AppliedIndex()
	done := make(chan int, 1)
	go func() {
		status, body := put(deaf, "after", "alice")
		t.Logf("the deaf node answers %d %s", status, body)
		done <- status
	}()
	c.Eventually("what the deaf node let in reaches the log", func() bool { return leader.State().AppliedIndex() > revoked })
	if status, body := put(leader, "other", "root"); status != http.StatusCreated {
		t.Errorf("the others don't go on: %d %s", status, body)
	}
	c.Net.Heal()
	if status := <-done; status != http.StatusUnauthorized && status != http.StatusForbidden {
		t.Errorf("alice, whose right was taken, is answered with %d", status)
	}
	if tags, _, err := leader.State().Tags("team/app", "", 10); err != nil || len(tags) != 2 {
		t.Errorf("the tags are %v, %v: a right that was taken was used", tags, err)
	}
}
