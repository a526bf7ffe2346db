package promises

import (
	"fmt"
	"testing"

	"pier/test/harness"
)

// A push to any node can be pulled from every node as soon as it returns.
func TestPushToAnyPullFromAny(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	for i, x := range c.Nodes {
		img := harness.NewImage("team/app", fmt.Sprintf("v%d", i), 100, 300<<10, 0)
		c.Must(x.Push(img))
		for _, y := range c.Nodes {
			c.Must(y.Pull(img))
		}
	}
}

// An upload begun on one node goes on and ends through others.
func TestUploadThroughEveryNode(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	img := harness.NewImage("team/app", "1", 90)
	for d, data := range img.Blobs {
		resp, body, err := c.Nodes[0].Do("POST", "/v2/team/app/blobs/uploads/", nil)
		c.Must(err)
		location := resp.Header.Get("Location")
		if resp.StatusCode != 202 || location == "" {
			t.Fatalf("%s %s", resp.Status, body)
		}
		half := len(data) / 2
		resp, body, err = c.Nodes[1].Do("PATCH", location, data[:half], "Content-Range", fmt.Sprintf("0-%d", half-1))
		c.Must(err)
		if resp.StatusCode != 202 || resp.Header.Get("Range") != fmt.Sprintf("0-%d", half-1) {
			t.Fatalf("%s %v %s", resp.Status, resp.Header, body)
		}
		resp, body, err = c.Nodes[2].Do("PUT", resp.Header.Get("Location")+"?digest="+d.String(), data[half:])
		c.Must(err)
		if resp.StatusCode != 201 {
			t.Fatalf("%s %s", resp.Status, body)
		}
		for range 2 { // and the last request may be repeated
			resp, body, err = c.Nodes[1].Do("PUT", location+"?digest="+d.String(), nil)
			c.Must(err)
			if resp.StatusCode != 201 {
				t.Fatalf("%s %s", resp.Status, body)
			}
		}
	}
	c.Must(c.Nodes[1].Push(img))
	c.Whole(img)
}

// What is deleted on one node is gone on every node when the delete returns.
func TestDeleteIsImmediateEverywhere(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, 3)
	img := harness.NewImage("team/app", "1", 10)
	c.Must(c.Nodes[0].Push(img))
	resp, body, err := c.Nodes[1].Do("DELETE", "/v2/team/app/manifests/"+img.Digest.String(), nil)
	c.Must(err)
	if resp.StatusCode != 202 {
		t.Fatalf("%s %s", resp.Status, body)
	}
	for _, x := range c.Nodes {
		for _, ref := range []string{"1", img.Digest.String()} {
			resp, _, err := x.Do("GET", "/v2/team/app/manifests/"+ref, nil)
			c.Must(err)
			if resp.StatusCode != 404 {
				t.Errorf("%s still answers %s for %s", x.Name, resp.Status, ref)
			}
		}
	}
}
