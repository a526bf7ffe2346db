package fsm

import "bytes"

// proposer is what the state remembers of one node's proposals: the boot it is in, and up to where its answers may be
// forgotten (the scheme of RIFL, SOSP 2015).
type proposer struct {
	_msgpack    struct{} `msgpack:",as_array"`
	Epoch, Done uint64
}

func answerKey(id Identity) []byte {
	return append(prefix(string(id.Node)), append(number(id.Epoch), number(id.Seq)...)...)
}

// recall gives the remembered answer of a command that comes again. A command of an earlier boot, or one that its proposer
// has given up, is refused: applying it now could undo something newer.
func (c *change) recall(id Identity) ([]byte, error) {
	if id.Node == "" {
		return nil, nil
	}
	if err := checkID(string(id.Node)); err != nil {
		return nil, err
	}
	var p proposer
	c.record(bucketProposers, []byte(id.Node), &p)
	if id.Epoch < p.Epoch {
		return nil, ErrStale
	}
	if known := c.get(bucketAnswers, answerKey(id)); known != nil {
		return bytes.Clone(known), nil
	}
	if id.Epoch == p.Epoch && id.Seq <= p.Done {
		return nil, ErrStale
	}
	return nil, nil
}

// remember keeps the answer until the proposer says that it has it.
func (c *change) remember(id Identity, answer []byte) error {
	if id.Node == "" {
		return nil
	}
	var p proposer
	c.record(bucketProposers, []byte(id.Node), &p)
	if id.Epoch > p.Epoch {
		c.forget(id.Node, append(number(id.Epoch), number(0)...))
		p = proposer{Epoch: id.Epoch}
	}
	if id.Done > p.Done {
		c.forget(id.Node, append(number(id.Epoch), number(id.Done+1)...))
		p.Done = id.Done
	}
	c.putRecord(bucketProposers, []byte(id.Node), &p)
	c.put(bucketAnswers, answerKey(id), answer)
	return c.err
}

// forget drops a node's answers before the given epoch and sequence.
func (c *change) forget(node NodeID, before []byte) {
	p := prefix(string(node))
	for _, k := range keysBelow(c.tx, bucketAnswers, p, 0) {
		if bytes.Compare([]byte(k), before) >= 0 {
			return
		}
		c.del(bucketAnswers, append(bytes.Clone(p), k...))
	}
}
