package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"pier/api"
	"pier/api/acme"
	"pier/api/client"
	"pier/fsm"
)

var _ acme.Store = (*acmeStore)(nil)

// acmeReadWait bounds the wait for a quorum before a question of an ACME server is answered from this node's own state.
const acmeReadWait = 5 * time.Second

// keeper gets certificates from an ACME server, as the settings say.
func (n *Node) keeper() (*acme.Keeper, error) {
	a := n.cfg.Access
	cfg := acme.Config{
		Names: a.PublicNames, Directory: a.ACMEDirectory, Email: a.ACMEEmail, Web: a.HTTPListen != "",
		Node: func() string { return n.cfg.Name + " " + n.ID() }, Gone: n.gone, UserAgent: "pier/" + n.opts.Version, Store: &acmeStore{node: n}, Logger: n.logger,
	}
	if a.ACMECAFile != "" {
		pem, err := os.ReadFile(a.ACMECAFile)
		if err != nil {
			return nil, fmt.Errorf("acme-ca-file: %w", err)
		}
		if cfg.Roots, err = x509.SystemCertPool(); err != nil {
			cfg.Roots = x509.NewCertPool() // a system without any
		}
		if !cfg.Roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("acme-ca-file: %s holds no certificate in PEM", a.ACMECAFile)
		}
	}
	return acme.New(cfg)
}

// RenewCertificates has certificates of the ACME server replaced before they are due, and waits for the new ones.
func (c *control) RenewCertificates(ctx context.Context, r client.RenewRequest) (client.Renewed, error) {
	keeper, ok := c.node.certs.(*acme.Keeper)
	if !ok {
		return client.Renewed{}, refuse(http.StatusConflict, "CONFLICT", errors.New("this node gets no certificates from an ACME server (its setting tls)"))
	}
	ends, err := keeper.Renew(ctx, r.Names)
	switch {
	case errors.Is(err, acme.ErrNotKept):
		return client.Renewed{}, refuse(http.StatusNotFound, "NAME_UNKNOWN", err)
	case errors.Is(err, acme.ErrNotIssued):
		return client.Renewed{}, refuse(http.StatusBadGateway, "NOT_ISSUED", fmt.Errorf("%w; the nodes try again by themselves, and `pier doctor` says how it goes", err))
	}
	return client.Renewed{Ends: ends}, err
}

// gone tells by gossip whether the node of an order, called as keeper calls nodes, is down or no member any more.
func (n *Node) gone(node string) bool {
	words := strings.Fields(node)
	inst := n.instance()
	select {
	case <-inst.cluster.Ready():
		return len(words) > 0 && !inst.alive(fsm.NodeID(words[len(words)-1]))
	default:
		return false // and has heard of nobody yet
	}
}

// acmeStore keeps what belongs to certificates in the replicated state of whatever cluster the node is in.
type acmeStore struct{ node *Node }

func (s *acmeStore) Local(name string) ([]byte, uint64, error) {
	doc, _, err := s.node.instance().state.Document(fsm.KindACME, name)
	return doc.Body, doc.Generation, err
}

func (s *acmeStore) Current(ctx context.Context, name string) ([]byte, uint64, error) {
	bounded, cancel := context.WithTimeout(ctx, acmeReadWait)
	defer cancel()
	if err := s.node.instance().log.Current(bounded); err != nil && ctx.Err() != nil {
		return nil, 0, ctx.Err()
	}
	return s.Local(name)
}

func (s *acmeStore) Put(ctx context.Context, name string, body []byte, was uint64) (uint64, error) {
	inst := s.node.instance()
	select {
	case <-inst.cluster.Ready():
	default:
		return 0, api.ErrStarting
	}
	answer, err := inst.log.Propose(ctx, fsm.PutDocument{Document: fsm.Document{Kind: fsm.KindACME, Name: name, Body: body}, Was: was})
	if err != nil {
		return 0, changed(err)
	}
	return answer.(fsm.DocumentAnswer).Generation, nil
}

func (s *acmeStore) Delete(ctx context.Context, name string, was uint64) error {
	_, err := s.node.instance().log.Propose(ctx, fsm.DeleteDocument{Kind: fsm.KindACME, Name: name, Was: was})
	return changed(err)
}

func changed(err error) error {
	for _, is := range []error{fsm.ErrDocumentExists, fsm.ErrDocumentUnknown, fsm.ErrDocumentChanged} {
		if errors.Is(err, is) {
			return acme.ErrChanged
		}
	}
	return err
}
