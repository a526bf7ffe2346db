//go:build docker

package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// A fourth and a fifth node join by invite while pushes run, the leader is removed and a third leaves, all by the command
// line that people use and with a client that they use. No push fails, no blob is missing, and at each step every member's
// status tells the truth.
func TestMembershipUnderPushes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c := startCluster(ctx, t, 3)
	p := newPusher(ctx, t)
	for _, n := range c.Nodes {
		p.start(n)
	}
	for range 2 {
		token := pier(ctx, t, c.Nodes[0], "cluster", "invite")
		n, err := c.StartAlone(ctx)
		if err != nil {
			t.Fatal(err)
		}
		pier(ctx, t, n, "cluster", "join", token)
		if out, err := n.Pier(ctx, "cluster", "join", token); err == nil {
			t.Errorf("a token was good twice: %s", out)
		}
		p.start(n)
		waitStatus(ctx, t, c.Nodes)
	}

	first, err := c.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	leader := c.Nodes[first]
	rest := slices.Delete(slices.Clone(c.Nodes), first, first+1)
	p.stop(leader) // whoever pushes to a node that goes moves to another first
	pier(ctx, t, rest[0], "cluster", "remove", leader.Name)
	waitStatus(ctx, t, rest)
	wantOutside(ctx, t, leader)
	if err := leader.Stop(); err != nil {
		t.Errorf("the removed node: %v", err)
	}

	leaver := rest[1]
	rest = slices.Delete(rest, 1, 2)
	p.stop(leaver)
	pier(ctx, t, leaver, "cluster", "leave")
	if err := leaver.WaitEnd(ctx); err != nil {
		t.Errorf("the node that left: %v", err)
	}
	waitStatus(ctx, t, rest)

	for _, n := range rest {
		p.stop(n)
	}
	waitStatus(ctx, t, rest, nothingMissing)
	for _, img := range p.images {
		for _, n := range rest {
			if err := pull(ctx, n, img); err != nil {
				t.Errorf("%s from %s: %v", img.ref, n.Name, err)
			}
		}
	}
	t.Logf("%d images were pushed", len(p.images))
}

// startCluster builds the program and starts n nodes, which end with the test.
func startCluster(ctx context.Context, t *testing.T, n int) *Cluster {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "pier")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "pier/cmd/pier")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c, err := Start(ctx, Config{Binary: binary, Dir: filepath.Join(dir, "cluster"), Nodes: n})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		c.client.CloseIdleConnections()
	})
	return c
}

// pier runs a command on a node and ends the test when that fails.
func pier(ctx context.Context, t *testing.T, n *Node, args ...string) string {
	t.Helper()
	out, err := n.Pier(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// status is what pier cluster status -o json prints.
type status struct {
	Leader          string
	Quorum, Healthy bool
	Nodes           []struct {
		ID, Name, API, Role, State string
		Missing                    int `json:"blobs_missing"`
	}
}

// ask gives a node's status; the error says too when the command's exit code isn't that of a healthy cluster.
func ask(ctx context.Context, n *Node) (status, error) {
	var s status
	out, err := n.Pier(ctx, "cluster", "status", "-o", "json")
	if jsonErr := json.Unmarshal([]byte(out), &s); jsonErr != nil {
		return s, errors.Join(err, jsonErr)
	}
	return s, err
}

// waitStatus waits until every one of the members says that exactly they are the cluster, healthy, each with a vote, and all
// follow the same leader. What else must hold is more.
func waitStatus(ctx context.Context, t *testing.T, members []*Node, more ...func(status) error) {
	t.Helper()
	err := poll(ctx, func() error {
		leaders := map[string]bool{}
		for _, n := range members {
			s, err := ask(ctx, n)
			if err == nil {
				err = check(s, members)
			}
			for _, f := range more {
				err = errors.Join(err, f(s))
			}
			if err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
			leaders[s.Leader] = true
		}
		if len(leaders) != 1 {
			return fmt.Errorf("they follow %v", leaders)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func check(s status, members []*Node) error {
	var want, got []string
	for _, m := range members {
		want = append(want, m.Name+" "+m.URL)
	}
	leads := 0
	for _, m := range s.Nodes {
		got = append(got, m.Name+" http://"+m.API)
		if m.Role == "leader" && m.ID == s.Leader {
			leads++
		} else if m.Role != "voter" {
			return fmt.Errorf("%s is %s", m.Name, m.Role)
		}
		if m.State != "alive" {
			return fmt.Errorf("%s is %s", m.Name, m.State)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) || leads != 1 || !s.Quorum || !s.Healthy {
		return fmt.Errorf("want %v, it says %+v", want, s)
	}
	return nil
}

func nothingMissing(s status) error {
	for _, m := range s.Nodes {
		if m.Missing > 0 {
			return fmt.Errorf("%s misses %d blobs", m.Name, m.Missing)
		}
	}
	return nil
}

// wantOutside checks that a node that was removed knows it: it calls nothing healthy and takes no push.
func wantOutside(ctx context.Context, t *testing.T, n *Node) {
	t.Helper()
	err := poll(ctx, func() error {
		var exit *exec.ExitError
		if s, err := ask(ctx, n); !errors.As(err, &exit) || s.Healthy || s.Quorum {
			return fmt.Errorf("the removed node says %+v (%v)", s, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if img, err := push(ctx, n, 0); err == nil {
		t.Errorf("a removed node took %s", img.ref)
	}
}

// pushed is an image that a node has acknowledged.
type pushed struct {
	ref    name.Tag
	digest v1.Hash
}

// in gives the image's reference at another node.
func (p pushed) in(n *Node) (name.Tag, error) {
	return name.NewTag(strings.TrimPrefix(n.URL, "http://")+"/"+p.ref.RepositoryStr()+":"+p.ref.TagStr(), name.Insecure)
}

// push sends a new image through a node as crane does, with the retries that crane makes and no others.
func push(ctx context.Context, n *Node, number int) (pushed, error) {
	img, err := random.Image(20<<10, 3)
	if err != nil {
		return pushed{}, err
	}
	var p pushed
	if p.digest, err = img.Digest(); err != nil {
		return p, err
	}
	p.ref, err = name.NewTag(fmt.Sprintf("%s/team/%s:%d", strings.TrimPrefix(n.URL, "http://"), n.Name, number), name.Insecure)
	if err != nil {
		return p, err
	}
	return p, remote.Write(p.ref, img, remote.WithContext(ctx))
}

// pull gets an image from a node and reads every byte of it.
func pull(ctx context.Context, n *Node, p pushed) error {
	ref, err := p.in(n)
	if err != nil {
		return err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	if got, err := img.Digest(); err != nil || got != p.digest {
		return fmt.Errorf("it has %s (%v), pushed was %s", got, err, p.digest)
	}
	return validate.Image(img)
}

// pusher pushes through several nodes at once, each until it is told to stop.
type pusher struct {
	ctx   context.Context
	t     *testing.T
	stops map[*Node]func()

	mu     sync.Mutex // guards what follows
	images []pushed
}

func newPusher(ctx context.Context, t *testing.T) *pusher {
	p := &pusher{ctx: ctx, t: t, stops: map[*Node]func(){}}
	t.Cleanup(func() {
		for n := range p.stops {
			p.stop(n)
		}
	})
	return p
}

func (p *pusher) start(n *Node) {
	stop, ended := make(chan struct{}), make(chan struct{})
	p.stops[n] = func() { close(stop); <-ended }
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			img, err := push(p.ctx, n, i)
			if err != nil {
				p.t.Errorf("push %d through %s: %v", i, n.Name, err)
				return
			}
			p.mu.Lock()
			p.images = append(p.images, img)
			p.mu.Unlock()
		}
	}()
}

// stop ends the pushes through a node once the one under way is done.
func (p *pusher) stop(n *Node) {
	p.stops[n]()
	delete(p.stops, n)
}
