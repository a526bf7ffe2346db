package promises

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/cmd/pier/node"
	"pier/fsm"
	"pier/test/harness"
)

// The moments of a push at which a node may die.
const (
	afterPost      = "after POST"
	midPatch       = "in the middle of PATCH"
	afterPatch     = "after PATCH"
	afterPut       = "after the blob's PUT"
	beforeManifest = "before the manifest's PUT"
	afterManifest  = "after the manifest's PUT"
)

var moments = []string{afterPost, midPatch, afterPatch, afterPut, beforeManifest, afterManifest}

// killer kills a node when a push has come to the moment.
type killer struct {
	moment string
	victim *harness.Node
	mu     sync.Mutex // a request may fail before the node it went to is quite dead
	done   bool
}

func (k *killer) at(moment string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if moment == k.moment && !k.done {
		k.victim.Kill()
		k.done = true
	}
}

// struck tells whether the node is dead, once it isn't about to die.
func (k *killer) struck() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.done
}

// docker pushes as docker does: POST, PATCH and PUT for each blob.
type docker struct {
	*killer
	begin   *harness.Node // takes the POSTs, as long as it lives
	through *harness.Node // takes everything else
	again   func(func() error) error
}

func once(do func() error) error { return do() }

func (d docker) push(img harness.Image) error {
	for dgst, data := range img.Blobs {
		if err := d.again(func() error { return d.blob(img.Repo, dgst, data) }); err != nil {
			return err
		}
	}
	d.at(beforeManifest)
	err := d.again(func() error { return d.manifest(img) })
	if err == nil {
		d.at(afterManifest)
	}
	return err
}

// manifest pushes the manifest. One that is refused for now makes a client look again at the blobs: of one that had no copy
// but on the node that died it hears that it is unknown.
func (d docker) manifest(img harness.Image) error {
	_, _, err := d.through.Want(http.StatusCreated, "PUT", "/v2/"+img.Repo+"/manifests/"+img.Tag, img.Manifest, "Content-Type", fsm.TypeOCIManifest)
	if err == nil {
		return nil
	}
	for dgst, data := range img.Blobs {
		resp, _, headErr := d.through.Do("HEAD", "/v2/"+img.Repo+"/blobs/"+dgst.String(), nil)
		if headErr == nil && resp.StatusCode == http.StatusNotFound {
			headErr = d.blob(img.Repo, dgst, data)
		}
		err = errors.Join(err, headErr)
	}
	return err
}

func (d docker) blob(repo string, dgst digest.Digest, data []byte) error {
	begin := d.begin
	if d.struck() && begin == d.victim {
		begin = d.through
	}
	_, resp, err := begin.Want(http.StatusAccepted, "POST", "/v2/"+repo+"/blobs/uploads/", nil)
	if err != nil {
		return err
	}
	d.at(afterPost)
	location := resp.Header.Get("Location")
	half := len(data) / 2
	body := io.MultiReader(bytes.NewReader(data[:half]), pause{func() { d.at(midPatch) }}, bytes.NewReader(data[half:]))
	resp, answer, err := d.through.Send(context.Background(), "PATCH", location, body)
	d.struck()
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("PATCH: %s %s", resp.Status, answer)
	}
	d.at(afterPatch)
	_, _, err = d.through.Want(http.StatusCreated, "PUT", location+"?digest="+dgst.String(), nil)
	if err == nil {
		d.at(afterPut)
	}
	return err
}

// pause is a reader without bytes that does something when its turn comes.
type pause struct{ do func() }

func (p pause) Read([]byte) (int, error) {
	p.do()
	return 0, io.EOF
}

// Any node is killed at any moment of a push through another: the push ends with success, and the image is whole on the
// survivors, and on the victim when it is back.
func TestKillAnyNodeAtAnyMoment(t *testing.T) {
	t.Parallel()
	for role, cast := range map[string]func(*harness.Cluster, int) (victim, begin, through *harness.Node){
		"leader": func(c *harness.Cluster, i int) (_, _, _ *harness.Node) {
			victim := c.Leader()
			through := others(c, victim)[i%2]
			return victim, through, through
		},
		"follower": func(c *harness.Cluster, i int) (_, _, _ *harness.Node) {
			victim := others(c, c.Leader())[i%2]
			through := others(c, victim)[i/2%2]
			return victim, through, through
		},
		"owner": func(c *harness.Cluster, i int) (_, _, _ *harness.Node) {
			owner := c.Nodes[i%3]
			return owner, owner, others(c, owner)[i%2]
		},
	} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			c := harness.StartTuned(t, 3, node.Tuning{EnsureTimeout: 2 * time.Second})
			var images []harness.Image
			for i, moment := range moments {
				victim, begin, through := cast(c, i)
				img := harness.NewImage("team/app", fmt.Sprint(i), 300<<10)
				k := &killer{moment: moment, victim: victim}
				if err := (docker{k, begin, through, c.Patiently}).push(img); err != nil || !k.struck() {
					t.Fatalf("%s was killed %s: %v: %v", victim.Name, moment, k.struck(), err)
				}
				images = append(images, img)
				c.Whole(images...)
				victim.Start()
				c.WaitReady()
				c.Whole(images...)
			}
		})
	}
}

// The node that is talked to is killed at any moment: the same push to another node succeeds, and what was acknowledged is
// there.
func TestKillTheNodeThatIsPushedTo(t *testing.T) {
	t.Parallel()
	c := harness.StartTuned(t, 3, node.Tuning{EnsureTimeout: 2 * time.Second})
	var images []harness.Image
	for i, moment := range moments {
		victim := c.Nodes[i%3]
		if i >= 3 {
			victim = c.Leader()
		}
		img := harness.NewImage("team/app", fmt.Sprint(i), 300<<10)
		k := &killer{moment: moment, victim: victim}
		err := docker{k, victim, victim, once}.push(img)
		if !k.struck() || (err == nil) != (moment == afterManifest) {
			t.Fatalf("%s was killed %s: %v: %v", victim.Name, moment, k.struck(), err)
		}
		images = append(images, img)
		other := others(c, victim)[i%2]
		if err == nil {
			c.Must(other.PullPatiently(img))
		}
		c.Must(other.PushPatiently(img))
		c.Whole(images...)
		victim.Start()
		c.WaitReady()
		c.Whole(images...)
	}
}

// others are the nodes but one.
func others(c *harness.Cluster, but *harness.Node) []*harness.Node {
	var out []*harness.Node
	for _, x := range c.Nodes {
		if x != but {
			out = append(out, x)
		}
	}
	return out
}
