package fsm

import (
	"encoding/binary"
	"encoding/hex"

	bolt "go.etcd.io/bbolt"
)

// Node is what the state knows of a member.
type Node struct {
	_msgpack                    struct{} `msgpack:",as_array"`
	ID                          NodeID
	Name, API, Cluster, Version string
	Epoch, Level                uint64
	Nonce                       string
	Away, Draining              bool
}

func (b BootNode) apply(c *change) (Answer, error) {
	if err := checkID(string(b.ID)); err != nil {
		return nil, err
	}
	var known Node
	if c.record(bucketNodes, []byte(b.ID), &known) {
		if b.Epoch < known.Epoch || b.Epoch == known.Epoch && b.Nonce != known.Nonce {
			return nil, &EpochError{Known: known.Epoch}
		}
	}
	c.putRecord(bucketNodes, []byte(b.ID), &Node{
		ID: b.ID, Name: b.Name, API: b.API, Cluster: b.Cluster, Version: b.Version, Epoch: b.Epoch, Level: b.Level, Nonce: b.Nonce,
		Draining: known.Draining,
	})
	return NodeAnswer{}, nil
}

func (f ForgetNode) apply(c *change) (Answer, error) {
	c.del(bucketNodes, []byte(f.ID))
	return NodeAnswer{}, nil
}

func (m MarkNode) apply(c *change) (Answer, error) {
	var n Node
	if c.record(bucketNodes, []byte(m.ID), &n) {
		n.Away, n.Draining = m.Away, m.Draining
		c.putRecord(bucketNodes, []byte(m.ID), &n)
	}
	return NodeAnswer{}, nil
}

// Nodes lists the members that have announced themselves, by ID.
func (s *State) Nodes() ([]Node, error) {
	var out []Node
	err := s.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketNodes).ForEach(func(_, v []byte) error {
			var n Node
			if err := decode(v, &n); err != nil {
				return err
			}
			out = append(out, n)
			return nil
		})
	})
	return out, err
}

// newestVersion is the version of a member that understands more commands than this build, if there is one. A newer command
// is in the log only because all members had announced that they understand it.
func newestVersion(tx *bolt.Tx) string {
	version, level := "", CurrentLevel
	_ = tx.Bucket(bucketNodes).ForEach(func(_, v []byte) error {
		var n Node
		if decode(v, &n) == nil && n.Level > level {
			version, level = n.Version, n.Level
		}
		return nil
	})
	return version
}

// understood refuses a file that newer commands than this build's have changed: what they left in it may mean anything.
func understood(tx *bolt.Tx) error {
	if level := readNumber(tx, keyLevel); level > CurrentLevel {
		return &NewerStateError{Level: level, Newest: newestVersion(tx)}
	}
	return nil
}

func (i CreateInvite) apply(c *change) (Answer, error) {
	if err := checkID(hex.EncodeToString(i.Hash)); err != nil {
		return nil, err
	}
	for _, hash := range keysBelow(c.tx, bucketInvites, nil, 0) {
		if binary.BigEndian.Uint64(c.get(bucketInvites, []byte(hash))) < c.now {
			c.del(bucketInvites, []byte(hash))
		}
	}
	c.put(bucketInvites, i.Hash, number(uint64(max(i.Expires, 0))))
	return InviteAnswer{}, nil
}

func (r RedeemInvite) apply(c *change) (Answer, error) {
	v := c.get(bucketInvites, r.Hash)
	if len(v) != 8 {
		return nil, ErrInviteUnknown
	}
	expires := binary.BigEndian.Uint64(v)
	if expires < c.now {
		return nil, ErrInviteExpired
	}
	c.del(bucketInvites, r.Hash)
	return InviteAnswer{}, nil
}

// Invited tells whether an invite with this hash waits to be used.
func (s *State) Invited(hash []byte) (bool, error) {
	var found bool
	err := s.view(func(tx *bolt.Tx) error {
		found = tx.Bucket(bucketInvites).Get(hash) != nil
		return nil
	})
	return found, err
}

// SettingClusterID is the cluster's own name, which is given once: a leader that is deposed while it gives one must not
// replace another's.
const SettingClusterID = "cluster_id"

func (s SetSetting) apply(c *change) (Answer, error) {
	if err := checkID(s.Key); err != nil {
		return nil, err
	}
	switch {
	case s.Key == SettingClusterID && c.has(bucketSettings, []byte(s.Key)):
	case s.Value == "":
		c.del(bucketSettings, []byte(s.Key))
	default:
		c.put(bucketSettings, []byte(s.Key), []byte(s.Value))
	}
	if s.Key == SettingAccess {
		c.touchAccess()
	}
	return SettingAnswer{}, nil
}

// Setting gives a cluster-wide setting, empty when it isn't set.
func (s *State) Setting(name string) (string, error) {
	var out string
	err := s.view(func(tx *bolt.Tx) error {
		out = string(tx.Bucket(bucketSettings).Get([]byte(name)))
		return nil
	})
	return out, err
}

// Level is the highest level of the commands that made the state. Every member has to understand those anyway.
func (s *State) Level() (uint64, error) {
	var level uint64
	err := s.view(func(tx *bolt.Tx) error {
		level = readNumber(tx, keyLevel)
		return nil
	})
	return level, err
}
