package node

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pier/api/client"
	"pier/cluster"
	"pier/cluster/port"
	"pier/fsm"
)

// A rotation that can't go on is found, and one that is over is fine.
func TestDoctorLooksAtTheRotation(t *testing.T) {
	dir := t.TempDir()
	n := run(t, func(cfg *Config) { cfg.DataDir = dir; cfg.Access.TLS = "auto" })
	<-n.Ready()
	d := &doctor{node: n, inst: n.instance()}
	if f := d.rotation(); f.Check != "" {
		t.Errorf("without a rotation: %+v", f)
	}
	stored, err := port.LoadSecrets(filepath.Join(dir, secretFile))
	if err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	put := func(r cluster.Rotation) {
		t.Helper()
		body, err := json.Marshal(r)
		if err == nil {
			_, err = d.inst.log.Propose(t.Context(), fsm.PutDocument{Document: fsm.Document{Kind: fsm.KindRotation, Name: rotationName, Body: body}, Over: true})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	own := cluster.WantedSecret{Fingerprint: port.Fingerprint(stored[0])}
	lost := cluster.WantedSecret{Fingerprint: "lost"}
	ends := cluster.WantedSecret{Fingerprint: own.Fingerprint, Until: time.Now().Add(2 * day).UnixMilli()}
	for _, c := range []struct {
		name, level, says string
		r                 cluster.Rotation
	}{
		{"nobody has the secret", client.LevelProblem, "no member that answers has the secret lost", cluster.Rotation{Step: cluster.StepAdd, Secrets: []cluster.WantedSecret{own, lost}}},
		{"the old CA ends soon", client.LevelWarning, "are cut off at", cluster.Rotation{Step: cluster.StepKeep, Secrets: []cluster.WantedSecret{own, ends}, Keep: (30 * day).Milliseconds()}},
		{"over", client.LevelOK, "has the secrets", cluster.Rotation{Step: cluster.StepDone, Secrets: []cluster.WantedSecret{own}}},
	} {
		put(c.r)
		deadline := time.After(20 * time.Second)
		for {
			f := d.rotation()
			if f.Level == c.level && strings.Contains(f.Message, c.says) {
				break
			}
			select {
			case <-deadline:
				t.Fatalf("%s: %+v", c.name, f)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	s, err := client.New(client.Options{Socket: filepath.Join(dir, SocketName)}).RotateSecret(t.Context(), client.RotateSecretRequest{})
	if err != nil || len(s.Secrets) != 2 {
		t.Errorf("a rotation after one that was lost: %+v, %v", s, err)
	}
}

// All are waited for while a step needs them, and while old secrets are kept only once one has reached its end.
func TestRotationWaitsForAll(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	secret := func(until int64) cluster.Rotation {
		return cluster.Rotation{Step: cluster.StepKeep, Secrets: []cluster.WantedSecret{{Fingerprint: "new"}, {Fingerprint: "old", Until: until}}}
	}
	for _, x := range []struct {
		r    cluster.Rotation
		want bool
	}{
		{cluster.Rotation{Step: cluster.StepAdd}, true}, {cluster.Rotation{Step: cluster.StepRoll}, true}, {cluster.Rotation{Step: cluster.StepDrop}, true}, {cluster.Rotation{Step: cluster.StepDone}, false},
		{cluster.Rotation{}, false}, {secret(0), false}, {secret(1_000_001), false}, {secret(1_000_000), true}, {secret(1), true},
	} {
		if waits(x.r, now) != x.want {
			t.Errorf("%+v waits for all: %v", x.r, !x.want)
		}
	}
	if moment(0) != nil || !moment(1_000_000).Equal(now) {
		t.Error("a time is another")
	}
}

// What a rotation refuses is the caller's to change, and a conflict; other faults are the cluster's.
func TestRotationRefuses(t *testing.T) {
	for _, err := range []error{&cluster.NotReadyError{}, cluster.ErrRotating, cluster.ErrSecretAlone, cluster.ErrSecretsDiffer, cluster.ErrTooManySecrets, cluster.ErrRotationChanged} {
		if !refusesRotation(fmt.Errorf("x: %w", err)) {
			t.Errorf("%v is no refusal", err)
		}
	}
	if refusesRotation(cluster.ErrNotMember) || refusesRotation(nil) {
		t.Error("every fault is a refusal")
	}
}
