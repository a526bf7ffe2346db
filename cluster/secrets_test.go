package cluster

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"pier/cluster/port"
)

// Only members get a secret, and only one that the state wants.
func TestSecretsAreHandedToMembersOnly(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	nodes := h.hastily(2)
	if err := nodes[0].rotate(time.Hour); err != nil {
		t.Fatal(err)
	}
	r := reached(t, StepKeep, nodes...)
	stranger, err := port.New(port.Config{ID: "stranger", Listen: "127.0.0.1:0", Secrets: nodes[0].cluster.own.now(), Network: port.System()})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	asker := &Cluster{port: stranger}
	var handed secretHanded
	for _, s := range r.Secrets {
		err := asker.askAddress(t.Context(), nodes[1].address, "GET", "/cluster/secrets/"+s.Fingerprint, nil, &handed)
		var refused *statusError
		if !errors.As(err, &refused) || refused.code != 403 || handed.Secret != nil {
			t.Errorf("whoever can speak to members and is none got %s: %v", s.Fingerprint, err)
		}
	}
	if _, err := nodes[0].cluster.fetchSecret(t.Context(), "unknown"); err == nil {
		t.Error("a secret that nobody wants was handed out")
	}
	got, err := nodes[0].cluster.fetchSecret(t.Context(), r.Secrets[0].Fingerprint)
	if err != nil || !bytes.Equal(got, nodes[0].cluster.own.now()[0]) {
		t.Errorf("a member gets %v", err)
	}
}
