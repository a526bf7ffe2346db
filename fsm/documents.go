package fsm

import (
	bolt "go.etcd.io/bbolt"
)

// Document is a small record whose content means nothing to the state: who writes it says what is in it.
type Document struct {
	_msgpack struct{} `msgpack:",as_array"`
	Kind     string
	Name     string
	Body     []byte // at most 256 KiB
	// Generation is the index of the last change.
	Generation uint64
}

// The kinds of documents. A change of what says who may come in is a change of Access.
const (
	KindACME     = "acme"     // what an ACME client keeps: its account, certificates and challenges
	KindProvider = "provider" // where people who are no users of the state are known
	KindTrust    = "trust"    // which tokens of others stand for a robot
	KindRotation = "rotation" // how far the cluster's secret has been replaced
)

const maxDocument = 256 << 10

func documentKey(kind, name string) []byte { return key(kind, name) }

// changesAccess tells whether documents of the kind say who may come in.
func changesAccess(kind string) bool { return kind == KindProvider || kind == KindTrust }

func (p PutDocument) apply(c *change) (Answer, error) {
	d := p.Document
	for _, part := range []string{d.Kind, d.Name} {
		if err := checkID(part); err != nil {
			return nil, err
		}
	}
	if len(d.Body) > maxDocument {
		return nil, ErrDocumentTooBig
	}
	k := documentKey(d.Kind, d.Name)
	if err := c.expect(k, p.Was, p.Over); err != nil {
		return nil, err
	}
	d.Generation = c.index
	c.putRecord(bucketDocuments, k, &d)
	if changesAccess(d.Kind) {
		c.touchAccess()
	}
	return DocumentAnswer{Generation: d.Generation}, nil
}

func (d DeleteDocument) apply(c *change) (Answer, error) {
	k := documentKey(d.Kind, d.Name)
	if !c.has(bucketDocuments, k) {
		return nil, ErrDocumentUnknown
	}
	if err := c.expect(k, d.Was, d.Was == 0); err != nil {
		return nil, err
	}
	c.del(bucketDocuments, k)
	if changesAccess(d.Kind) {
		c.touchAccess()
	}
	return DocumentAnswer{}, nil
}

// expect refuses to replace another document than the one of a generation, of which 0 is none.
func (c *change) expect(k []byte, was uint64, over bool) error {
	if over {
		return nil
	}
	var known Document
	exists := c.record(bucketDocuments, k, &known)
	switch {
	case !exists && was != 0:
		return ErrDocumentUnknown
	case exists && was == 0:
		return ErrDocumentExists
	case exists && was != known.Generation:
		return ErrDocumentChanged
	}
	return nil
}

// Document gives one document; false where there is none.
func (s *State) Document(kind, name string) (Document, bool, error) {
	var out Document
	found := false
	err := s.view(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketDocuments).Get(documentKey(kind, name))
		if v == nil {
			return nil
		}
		found = true
		return decode(v, &out)
	})
	return out, found, err
}

// Documents gives all documents of a kind, by name.
func (s *State) Documents(kind string) ([]Document, error) {
	var out []Document
	err := s.view(func(tx *bolt.Tx) error {
		var err error
		out, err = documents(tx, kind)
		return err
	})
	return out, err
}

func documents(tx *bolt.Tx, kind string) ([]Document, error) {
	var out []Document
	for _, name := range keysBelow(tx, bucketDocuments, prefix(kind), 0) {
		var d Document
		if err := decode(tx.Bucket(bucketDocuments).Get(append(prefix(kind), name...)), &d); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}
