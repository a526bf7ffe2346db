package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"pier/fsm"
)

// end is the last clean-up of every cluster: it takes the faults away, checks what must always hold, and ends the nodes.
func (c *Cluster) end() {
	c.Net.Heal()
	if !c.T.Failed() {
		c.check()
	}
	var all sync.WaitGroup
	for _, x := range c.Nodes {
		all.Go(x.Kill)
	}
	all.Wait()
}

var errUnequal = errors.New("two states at the same index differ")

// check holds the running nodes to what must always be true: once they have applied equally much their states are equal key
// by key, each holds every blob that its state wants, and each blob's bytes have its digest.
func (c *Cluster) check() {
	deadline := time.Now().Add(patience)
	for {
		groups := c.groups()
		fault := errors.New("nobody leads")
		if len(groups) > 0 {
			fault = nil
		}
		for _, members := range groups {
			fault = errors.Join(fault, c.alike(members))
		}
		if fault == nil {
			break
		}
		if errors.Is(fault, errUnequal) || time.Now().After(deadline) {
			c.T.Errorf("what must always hold does not: %v", fault)
			return
		}
		wait(context.Background(), 50*time.Millisecond)
	}
	for _, members := range c.groups() {
		for _, x := range members {
			if err := x.whole(); err != nil {
				c.T.Errorf("what must always hold does not: %v", err)
			}
		}
	}
}

// groups are the running members of each cluster that has a leader. A node that was removed is in none.
func (c *Cluster) groups() [][]*Node {
	var groups [][]*Node
	for _, leader := range c.Nodes {
		if leader.Ended() || leader.Cluster().Role() != "leader" {
			continue
		}
		in := map[string]bool{}
		for _, m := range leader.Cluster().Members() {
			in[string(m.ID)] = true
		}
		var group []*Node
		for _, x := range c.Nodes {
			if !x.Ended() && in[x.ID()] {
				group = append(group, x)
			}
		}
		groups = append(groups, group)
	}
	return groups
}

// alike compares consistent copies of the states, and what each wants with what it has.
func (c *Cluster) alike(members []*Node) error {
	var first map[string]string
	var index uint64
	for i, x := range members {
		at, content, err := x.content()
		if err != nil {
			return err
		}
		if i == 0 {
			first, index = content, at
			continue
		}
		if at != index {
			return fmt.Errorf("%s has applied %d, %s %d", x.Name, at, members[0].Name, index)
		}
		for k := range content {
			if first[k] != content[k] {
				return fmt.Errorf("%w: %s and %s, entry %d, key %q", errUnequal, members[0].Name, x.Name, at, k)
			}
		}
		if len(first) != len(content) {
			return fmt.Errorf("%w: %s has %d keys, %s %d", errUnequal, members[0].Name, len(first), x.Name, len(content))
		}
	}
	for _, x := range members {
		wanted, err := x.wanted()
		if err != nil {
			return err
		}
		for _, b := range wanted {
			if !x.Holds(b.Digest) {
				return fmt.Errorf("%s wants %s and has it not", x.Name, b.Digest)
			}
		}
	}
	return nil
}

// content copies the state as a follower that was away would get it, and reads every key of it.
func (x *Node) content() (index uint64, keys map[string]string, err error) {
	meta, r, err := x.State().Snapshots().Open("state")
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = r.Close() }()
	path := filepath.Join(x.cluster.dir, x.Name+".copy")
	f, err := os.Create(path)
	if err != nil {
		return 0, nil, err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, nil, err
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return 0, nil, err
	}
	keys = map[string]string{}
	err = db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				keys[string(name)+" "+string(k)] = string(v)
				return nil
			})
		})
	})
	return meta.Index, keys, errors.Join(err, db.Close(), os.Remove(path))
}

func (x *Node) wanted() ([]fsm.Blob, error) {
	var all []fsm.Blob
	var last fsm.Blob
	for {
		page, more, err := x.State().Wanted(last.Since, last.Digest, 1000)
		all = append(all, page...)
		if err != nil || !more {
			return all, err
		}
		last = page[len(page)-1]
	}
}

// whole reads every wanted blob on the node's disk.
func (x *Node) whole() error {
	wanted, err := x.wanted()
	if err != nil {
		return err
	}
	for _, b := range wanted {
		f, err := os.Open(x.BlobPath(b.Digest))
		if err != nil {
			return err
		}
		got, err := b.Digest.Algorithm().FromReader(f)
		_ = f.Close()
		if err != nil {
			return err
		}
		if got != b.Digest {
			return fmt.Errorf("%s has bytes of %s under %s", x.Name, got, b.Digest)
		}
	}
	return nil
}
