package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pier/cluster/port"
)

// hasty is how soon old secrets are dropped when all use the new one.
const hasty = 300 * time.Millisecond

// hastily forms a cluster of n whose rotations end soon.
func (h *house) hastily(n int) []*member {
	h.t.Helper()
	h.cfg = func(c *Config) { c.SecretGrace = hasty }
	out := h.formed(n)
	h.settled(out)
	return out
}

// settled waits until every member answers every other: only then a rotation can begin.
func (h *house) settled(nodes []*member) {
	h.t.Helper()
	eventually(h.t, func() error {
		for _, m := range nodes {
			for _, r := range m.cluster.survey(h.t.Context(), false) {
				if r.err != nil {
					return r.err
				}
			}
		}
		return nil
	})
}

func (m *member) rotate(keep time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return m.cluster.RotateSecret(ctx, keep)
}

// reached waits until the nodes that run are through with a step.
func reached(t testing.TB, step string, nodes ...*member) Rotation {
	t.Helper()
	var r Rotation
	eventually(t, func() error {
		for _, m := range nodes {
			if m.cluster == nil {
				continue
			}
			var at uint64
			var err error
			if r, at, err = m.cluster.rotation(); err != nil || r.Step != step {
				return fmt.Errorf("%s is at %q, not %s: %v %s", m.name, r.Step, step, err, m.cluster.ownSecretReport(false).Fault)
			}
			if own := m.cluster.ownSecretReport(false); own.Done != at || !r.fulfilled(own.Secrets) {
				return fmt.Errorf("%s hasn't done %s: %+v", m.name, step, own)
			}
		}
		return nil
	})
	return r
}

// replaced checks that one secret is left everywhere, in the files and in force, and that the one before opens nothing.
func (h *house) replaced(nodes []*member, before []byte) {
	h.t.Helper()
	r := reached(h.t, StepDone, nodes...)
	if len(r.Secrets) != 1 || r.Secrets[0].Fingerprint == port.Fingerprint(before) || !slices.Contains(r.Dropped, port.Fingerprint(before)) {
		h.t.Fatalf("the rotation ended with %+v", r)
	}
	stranger, err := port.New(port.Config{ID: nodes[0].cluster.ID(), Listen: "127.0.0.1:0", Secrets: port.Secrets{before}, Network: port.System()})
	if err != nil {
		h.t.Fatal(err)
	}
	defer stranger.Close()
	for _, m := range nodes {
		stored, err := port.LoadSecrets(m.secretFile(m.config()))
		if err != nil || len(stored) != 1 || port.Fingerprint(stored[0]) != r.Secrets[0].Fingerprint {
			h.t.Errorf("%s: the file has %v, %v", m.name, stored.Fingerprints(), err)
		}
		if n := m.cluster.port.Under(port.Fingerprint(before)); n != 0 {
			h.t.Errorf("%s: %d connections live on under the old secret", m.name, n)
		}
		if keys := m.cluster.gossip.keys.GetKeys(); len(keys) != 1 || !bytes.Equal(keys[0], stored.GossipKeys()[0]) {
			h.t.Errorf("%s: gossip has %d keys", m.name, len(keys))
		}
		if c, err := stranger.Dial(h.t.Context(), port.ProtoPeer, "", m.address); !errors.Is(err, port.ErrOtherSecret) {
			h.t.Errorf("%s: a stranger with the old secret: %v, %v", m.name, c, err)
		}
		if _, err := port.DialJoin(h.t.Context(), port.System(), m.address, port.Fingerprint(before)); err == nil {
			h.t.Errorf("%s shows the old authority", m.name)
		}
	}
	h.settled(nodes)
	eventually(h.t, func() error {
		for _, m := range nodes {
			if s := status(h.t, m); !s.Healthy || len(s.Nodes) != len(nodes) {
				return fmt.Errorf("%s: %+v", m.name, s)
			}
		}
		return nil
	})
}

func TestTheSecretRotatesUnderLoad(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	nodes := h.hastily(3)
	stop := load(t, nodes...)
	var told sync.Map
	for _, by := range []int{0, 2} { // a second time, from another node
		before := nodes[0].cluster.own.now()[0]
		told.Store(by, before)
		if err := nodes[by].rotate(0); err != nil {
			t.Fatal(err)
		}
		h.replaced(nodes, before)
	}
	stop()
	for _, m := range nodes {
		m.stop()
	}
	startAll(nodes...)
	nodes[1].mustPut("after", "all")
}

// The old secret is accepted until its date, unless it is dropped before; another rotation may come between.
func TestOldSecretsAreKept(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	nodes := h.hastily(3)
	ctx := t.Context()
	if err := nodes[0].cluster.DropSecret(ctx); !errors.Is(err, ErrSecretAlone) {
		t.Fatalf("there is nothing to drop: %v", err)
	}
	if err := nodes[0].rotate(time.Hour); err != nil {
		t.Fatal(err)
	}
	first := reached(t, StepKeep, nodes...)
	if left := time.Until(time.UnixMilli(first.Secrets[1].Until)); left < 59*time.Minute || left > time.Hour {
		t.Errorf("the old secret ends in %s", left)
	}
	eventually(t, func() error { // long before the end nothing hangs on it any more
		for _, m := range nodes {
			if n := m.cluster.port.Under(port.Fingerprint(h.secrets[0])); n > 0 || m.cluster.port.Old() {
				return fmt.Errorf("%s: %d connections are still under the old secret", m.name, n)
			}
		}
		return nil
	})
	for _, m := range nodes {
		if got := m.cluster.own.now(); len(got) != 2 || !bytes.Equal(got[1], h.secrets[0]) {
			t.Errorf("%s accepts %v", m.name, got.Fingerprints())
		}
		if s, err := m.cluster.SecretStatus(ctx); err != nil || s.Step != StepKeep || len(s.Nodes) != 3 || !s.Nodes[2].Done {
			t.Errorf("status: %+v, %v", s, err)
		}
	}
	if err := nodes[1].rotate(time.Hour); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if r := reached(t, StepKeep, nodes...); len(r.Secrets) != 3 {
			return fmt.Errorf("kept: %+v", r)
		}
		return nil
	})
	said := h.whisper(nodes[0])
	if err := said(); err != nil {
		t.Errorf("gossip under the old key, while it is accepted: %v", err)
	}
	if err := nodes[2].cluster.DropSecret(ctx); err != nil {
		t.Fatal(err)
	}
	h.replaced(nodes, h.secrets[0])
	if err := said(); err == nil {
		t.Error("gossip under the old key is heard after its end")
	}
}

// whisper gives a function that asks a node something by UDP, encrypted with the first secret's key of the house. It could read
// an answer under any that is accepted now.
func (h *house) whisper(to *member) func() error {
	h.t.Helper()
	p, err := port.New(port.Config{ID: "whisperer", Listen: "127.0.0.1:0", Secrets: h.secrets, Network: port.System()})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(p.Close)
	keys := append(h.secrets.GossipKeys(), to.cluster.own.now().GossipKeys()...)
	g, err := newGossip(gossipConfig{id: "whisperer", port: p, advertise: p.Addr(), keys: keys, logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(g.kill)
	address, err := net.ResolveUDPAddr("udp", to.address)
	if err != nil {
		h.t.Fatal(err)
	}
	id := string(to.cluster.ID())
	return func() error {
		_, err := g.list.Ping(id, address)
		return err
	}
}

// A step waits for whoever is away, and goes on when it is back: nobody is ever cut off.
func TestRotationWaitsForWhoIsAway(t *testing.T) {
	for i, step := range []string{StepAdd, StepRoll, StepKeep, StepDrop} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			nodes := h.hastily(3)
			ldr := leader(t, nodes)
			away := others(nodes, ldr)[0]
			rest := others(nodes, away)
			leave, back := away.kill, func() { away.start(); away.ready() }
			if i%2 == 1 { // it lives on where nobody reaches it
				leave, back = func() { h.net.cut([]*member{away}, rest) }, h.net.heal
			}
			var once sync.Once
			proposing := func(next Rotation) error {
				if next.Step == step {
					once.Do(leave)
				}
				return nil
			}
			h.proposing.Store(&proposing)
			if err := ldr.rotate(0); err != nil {
				t.Fatal(err)
			}
			reached(t, step, rest...)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			for ctx.Err() == nil { // as long as it is away, for all of the time
				if r, _, err := ldr.cluster.rotation(); err != nil || r.Step != step {
					t.Fatalf("it went on to %s without a member, %v", r.Step, err)
				}
				s, err := ldr.cluster.SecretStatus(t.Context())
				if err != nil || !slices.ContainsFunc(s.Nodes, func(n SecretMember) bool { return n.Name == away.name && !n.Done && n.Fault != "" }) {
					t.Fatalf("status doesn't say for whom it waits: %+v, %v", s, err)
				}
			}
			back()
			h.replaced(nodes, h.secrets[0])
			away.mustPut("after", step)
		})
	}
}

// Removing a member that doesn't come back lets the rotation go on.
func TestRotationGoesOnWithoutWhoWasRemoved(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	nodes := h.hastily(4)
	ldr := leader(t, nodes)
	gone := others(nodes, ldr)[0]
	rest := others(nodes, gone)
	id := gone.cluster.ID()
	var once sync.Once
	proposing := func(Rotation) error {
		once.Do(gone.kill)
		return nil
	}
	h.proposing.Store(&proposing)
	if err := rest[1].rotate(0); err != nil {
		t.Fatal(err)
	}
	reached(t, StepAdd, rest...)
	if err := rest[1].rotate(0); !strings.Contains(fmt.Sprint(err), gone.name+" doesn't answer") {
		t.Errorf("another rotation without one of the members: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := rest[0].cluster.Remove(ctx, id, false); err != nil {
		t.Fatal(err)
	}
	h.replaced(rest, h.secrets[0])
}

// Whoever leads when the leader dies in a step finishes the rotation.
func TestRotationOutlivesItsLeader(t *testing.T) {
	for _, step := range []string{StepAdd, StepRoll, StepKeep, StepDrop} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			nodes := h.hastily(3)
			by := others(nodes, leader(t, nodes))[0]
			died := make(chan *member, 1)
			var once sync.Once
			proposed := func(next Rotation) {
				if next.Step != step {
					return
				}
				once.Do(func() {
					old := leader(t, nodes)
					go func() { // its own loop may be the one that is here
						old.kill()
						died <- old
					}()
				})
			}
			h.proposed.Store(&proposed)
			if err := by.rotate(0); err != nil {
				t.Fatal(err)
			}
			old := <-died
			others(nodes, old)[0].mustPut("without", "it")
			old.start()
			old.ready()
			h.replaced(nodes, h.secrets[0])
		})
	}
}

// Whoever began may die before others have the secret that only it has: they wait, and go on when it is back.
func TestRotationOutlivesWhoBeganIt(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	nodes := h.hastily(3)
	by := others(nodes, leader(t, nodes))[0]
	rest := others(nodes, by)
	proposing := func(Rotation) error {
		h.net.cutOneWay(rest, []*member{by}) // it can still propose, and nobody fetches anything from it
		return nil
	}
	h.proposing.Store(&proposing)
	asked := make(chan error, 1)
	go func() { asked <- by.rotate(0) }()
	eventually(t, func() error {
		for _, m := range rest {
			if f := m.cluster.ownSecretReport(false).Fault; !strings.Contains(f, "no member that answers has the secret") {
				return fmt.Errorf("%s: %q", m.name, f)
			}
		}
		return nil
	})
	by.kill()
	h.proposing.Store(nil)
	h.net.heal()
	rest[0].mustPut("they", "serve")
	by.start()
	by.ready()
	h.replaced(nodes, h.secrets[0])
	<-asked // it may not know how that ended
}

// Of two that begin at once one goes through, and the other is told.
func TestRotationsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	nodes := h.hastily(3)
	late, first := nodes[0], nodes[1].cluster
	fresh := port.NewSecret()
	var met atomic.Bool
	proposing := func(Rotation) error {
		if met.Swap(true) {
			return nil
		}
		// All is ready to be proposed when another is there before.
		if err := nodes[2].rotate(0); !strings.Contains(fmt.Sprint(err), late.name+": its secrets are being changed") {
			t.Errorf("while another node begins: %v", err)
		}
		begun := Rotation{Step: StepAdd, By: first.ID(), Keep: hasty.Milliseconds(), Secrets: []WantedSecret{
			{Fingerprint: port.Fingerprint(h.secrets[0])}, {Fingerprint: port.Fingerprint(fresh)},
		}}
		if err := errors.Join(first.own.adopt(port.Secrets{h.secrets[0], fresh}), first.records.PutRotation(t.Context(), begun, 0)); err != nil {
			t.Error(err)
		}
		return nil
	}
	h.proposing.Store(&proposing)
	if err := late.rotate(0); !errors.Is(err, ErrRotationChanged) {
		t.Fatalf("the second of two: %v", err)
	}
	h.replaced(nodes, h.secrets[0])
	if got := late.cluster.own.now(); !bytes.Equal(got[0], fresh) {
		t.Error("another secret than that of the first is used")
	}
}

// A crash between the file and the log leaves a secret that nobody else heard of: it does no harm, and goes with the next
// rotation.
func TestRotationThatNeverBegan(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	nodes := h.hastily(3)
	by := nodes[1]
	crash := errors.New("the power went")
	proposing := func(Rotation) error { return crash }
	h.proposing.Store(&proposing)
	if err := by.rotate(0); !errors.Is(err, crash) {
		t.Fatal(err)
	}
	h.proposing.Store(nil)
	by.kill()
	by.start()
	by.ready()
	orphaned := by.cluster.own.now()
	if len(orphaned) != 2 || !bytes.Equal(orphaned[0], h.secrets[0]) {
		t.Fatalf("the file has %v", orphaned.Fingerprints())
	}
	by.mustPut("still", "a member")
	h.settled(nodes)
	if err := nodes[0].rotate(0); err != nil {
		t.Fatal(err)
	}
	h.replaced(nodes, h.secrets[0])
	if r, _, _ := by.cluster.rotation(); r.Secrets[0].Fingerprint == orphaned.Fingerprints()[1] {
		t.Error("a secret that may have leaked from a crash is used")
	}
	by.cluster.own.note(0, errors.New("the state couldn't be read for a moment"))
	eventually(t, func() error {
		if f := by.cluster.ownSecretReport(false).Fault; f != "" {
			return fmt.Errorf("it still says: %s", f)
		}
		return nil
	})
}

// An attempt whose secret is lost with the only node that had it is replaced by another.
func TestRotationWhoseSecretIsLost(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	nodes := h.hastily(3)
	lost := port.Fingerprint(port.NewSecret())
	records := nodes[0].cluster.records
	err := records.PutRotation(t.Context(), Rotation{Step: StepAdd, By: "gone", Secrets: []WantedSecret{{Fingerprint: port.Fingerprint(h.secrets[0])}, {Fingerprint: lost}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		for _, m := range nodes {
			if f := m.cluster.ownSecretReport(false).Fault; !strings.Contains(f, "no member that answers has the secret") {
				return fmt.Errorf("%s doesn't say what it lacks: %q", m.name, f)
			}
		}
		return nil
	})
	if err := nodes[2].rotate(0); err != nil {
		t.Fatal(err)
	}
	h.replaced(nodes, h.secrets[0])
	if err := nodes[2].rotate(0); err != nil {
		t.Fatal(err)
	}
}

// A secret file that can't be replaced is found before anything changes.
func TestRotationNeedsFilesThatCanBeReplaced(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.cfg = func(c *Config) {
		if c.Name == "n2" {
			c.SecretFile = filepath.Join(c.DataDir, "nowhere", "secret")
		}
	}
	nodes := h.formed(3)
	h.settled(nodes)
	err := nodes[0].rotate(0)
	var no *NotReadyError
	if !errors.As(err, &no) || !strings.Contains(err.Error(), nodes[1].name+": its secret file") {
		t.Fatalf("the rotation began: %v", err)
	}
	if _, at, _ := nodes[0].cluster.rotation(); at != 0 || len(nodes[0].cluster.own.now()) != 1 {
		t.Error("something was changed")
	}
}

// Nodes that share one file on a volume rotate like others.
func TestRotationWithOneFileForAll(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	file := filepath.Join(t.TempDir(), "secret")
	if err := port.SaveSecrets(file, h.secrets); err != nil {
		t.Fatal(err)
	}
	h.cfg = func(c *Config) { c.SecretGrace, c.SecretFile = hasty, file }
	nodes := h.formed(3)
	h.settled(nodes)
	if err := nodes[2].rotate(0); err != nil {
		t.Fatal(err)
	}
	h.replaced(nodes, h.secrets[0])
}

// An invite from before a rotation brings nobody in: not while it runs, and not after it. Nor does the old secret.
func TestInvitesEndWithTheSecret(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	nodes := h.hastily(3)
	ldr := leader(t, nodes)
	away := others(nodes, ldr)[0]
	rest := others(nodes, away)
	ctx := t.Context()
	token, _, err := ldr.cluster.Invite(ctx, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	proposing := func(Rotation) error {
		once.Do(away.kill)
		return nil
	}
	h.proposing.Store(&proposing)
	if err := ldr.rotate(time.Hour); err != nil {
		t.Fatal(err)
	}
	reached(t, StepAdd, rest...)
	guest := h.add(nil)
	if err := guest.use(token); !errors.Is(err, ErrRotating) {
		t.Fatalf("an invite from before, while the secret is replaced: %v", err)
	}
	if _, _, err := rest[1].cluster.Invite(ctx, time.Hour); !errors.Is(err, ErrRotating) {
		t.Fatalf("an invite while the secret is replaced: %v", err)
	}
	// Who has the old secret alone is told to wait; who has all is taken in, and waited for.
	late := h.add(func(c *Config) { c.Join = []string{ldr.address} })
	late.start()
	eventually(t, func() error {
		err := leader(t, rest).cluster.takeIn(ctx, late.cluster.newcomer())
		if errors.Is(err, ErrRotating) {
			return nil
		}
		if !errors.Is(err, ErrUnavailable) {
			t.Fatalf("who has the old secret alone, while it is replaced: %v", err)
		}
		return err // on a busy machine two may elect once more
	})
	late.stop()
	late.secrets = ldr.cluster.own.now()
	late.start()
	late.ready()
	away.start()
	away.ready()
	nodes = append(nodes, late)
	reached(t, StepKeep, nodes...)
	if err := guest.use(token); err == nil {
		t.Fatal("an invite from before the rotation is good after it")
	}
	// Nor by whoever doesn't insist on the authority that it names.
	forged, err := parseToken(token, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	forged.Fingerprint = port.Fingerprint(ldr.cluster.own.now()[0])
	if err := guest.use(forged.String()); !errors.Is(err, ErrTokenUsed) {
		t.Fatalf("an invite from before, with the new authority's name: %v", err)
	}
	fresh, _, err := ldr.cluster.Invite(ctx, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := guest.use(fresh); err != nil {
		t.Fatal(err)
	}
	guest.start()
	guest.ready()
	reached(t, StepKeep, append(nodes, guest)...)
	if got := guest.cluster.own.now(); len(got) != 2 || port.Fingerprint(got[0]) != forged.Fingerprint {
		t.Errorf("the newcomer has %v", got.Fingerprints())
	}
	if err := ldr.cluster.DropSecret(ctx); err != nil {
		t.Fatal(err)
	}
	h.replaced(append(nodes, guest), h.secrets[0])
}
