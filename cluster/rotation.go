package cluster

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"pier/cluster/port"
)

// The steps of a rotation. Each begins when every member has finished the one before.
const (
	StepAdd  = "add"  // everybody is to accept the new secret
	StepRoll = "roll" // everybody is to use it
	StepKeep = "keep" // the ones before it are accepted until their dates
	StepDrop = "drop" // everybody is to forget what has reached its date
	StepDone = "done"
)

const (
	// maxSecrets bounds the secrets in force at once: each makes what clients are sent longer.
	maxSecrets = 4
	// maxDropped bounds the names that are remembered of secrets that ended: only a node that was away has one.
	maxDropped = 32
)

// What a rotation refuses.
var (
	ErrRotating       = errors.New("the cluster's secret is being replaced: try again when `pier cluster secret status` says that all use the new one")
	ErrSecretAlone    = errors.New("the cluster has one secret: there is no old one to drop")
	ErrSecretsDiffer  = errors.New("the members have different secrets")
	ErrTooManySecrets = errors.New("too many old secrets are accepted still: drop them first (`pier cluster secret drop`)")
	// ErrRotationChanged is Records' word that the rotation isn't the one that was read.
	ErrRotationChanged = errors.New("the rotation has gone on meanwhile: look at `pier cluster secret status` and try again")
)

// NotReadyError says why a rotation can't begin: each member must answer and be able to write its secret file.
type NotReadyError struct{ Faults []error }

func (e *NotReadyError) Error() string {
	return "nothing was changed: " + errors.Join(e.Faults...).Error()
}

// Rotation is what the replicated state says of the cluster's secrets: their names and what is to become of them. A secret
// is never in it.
type Rotation struct {
	Step  string `json:"step"`
	Begun int64  `json:"begun"` // milliseconds, as all times here
	By    NodeID `json:"by"`    // the node that made the newest secret
	// Secrets are in the order that each member is to have: the first signs and encrypts, all verify.
	Secrets []WantedSecret `json:"secrets"`
	// Dropped are the fingerprints that nobody is to accept any more.
	Dropped []string `json:"dropped,omitempty"`
	// Keep is how long a secret is accepted once everybody uses the next.
	Keep int64 `json:"keep"`
}

// WantedSecret names a secret. Until is its end; 0 where that isn't settled.
type WantedSecret struct {
	Fingerprint string `json:"fingerprint"`
	Until       int64  `json:"until,omitempty"`
}

// spreading tells whether some may know the newest secret and others not, or use it and others not: nobody may come in then
// who doesn't have all.
func (r Rotation) spreading() bool { return r.Step == StepAdd || r.Step == StepRoll }

func (r Rotation) wants(fingerprint string) bool {
	return slices.ContainsFunc(r.Secrets, func(s WantedSecret) bool { return s.Fingerprint == fingerprint })
}

// newest is the fingerprint of the secret that the rotation brings.
func (r Rotation) newest() string {
	if r.Step == StepAdd {
		return r.Secrets[len(r.Secrets)-1].Fingerprint
	}
	return r.Secrets[0].Fingerprint
}

// fulfilled tells whether a node with these secrets has nothing to change. What the state never heard of does no harm: a
// secret that was made when a rotation could not begin.
func (r Rotation) fulfilled(fingerprints []string) bool {
	if len(fingerprints) == 0 || fingerprints[0] != r.Secrets[0].Fingerprint {
		return false
	}
	for _, s := range r.Secrets {
		if !slices.Contains(fingerprints, s.Fingerprint) {
			return false
		}
	}
	return !slices.ContainsFunc(r.Dropped, func(d string) bool { return slices.Contains(fingerprints, d) })
}

// next is the step after this one, once every member has finished this; false where it isn't time yet.
func (r Rotation) next(now time.Time) (Rotation, bool) {
	r.Secrets, r.Dropped = slices.Clone(r.Secrets), slices.Clone(r.Dropped)
	switch r.Step {
	case StepAdd:
		last := len(r.Secrets) - 1
		r.Secrets = append([]WantedSecret{r.Secrets[last]}, r.Secrets[:last]...)
		r.Step = StepRoll
	case StepRoll:
		r.end(now.Add(time.Duration(r.Keep) * time.Millisecond))
		r.Step = StepKeep
	case StepKeep:
		before := len(r.Secrets)
		r.Secrets = slices.DeleteFunc(r.Secrets, func(s WantedSecret) bool {
			over := s.Until != 0 && s.Until <= now.UnixMilli()
			if over {
				r.Dropped = append(r.Dropped, s.Fingerprint)
			}
			return over
		})
		if len(r.Secrets) == before {
			return r, false
		}
		r.Dropped = r.Dropped[max(0, len(r.Dropped)-maxDropped):]
		r.Step = StepDrop
	case StepDrop:
		r.Step = StepDone
		if len(r.Secrets) > 1 {
			r.Step = StepKeep
		}
	default:
		return r, false
	}
	return r, true
}

// end lets the secrets before the first end at a time, or sooner where that was settled.
func (r *Rotation) end(at time.Time) {
	for i := range r.Secrets {
		if s := &r.Secrets[i]; i > 0 && (s.Until == 0 || s.Until > at.UnixMilli()) {
			s.Until = at.UnixMilli()
		}
	}
}

// begin is the rotation that brings a new secret, from the one that the state has and from what the members say. Without a
// rotation before, those of this node's secrets count that all members have.
func begin(was Rotation, known bool, own port.Secrets, members []secretReport) (Rotation, error) {
	var r Rotation
	first := port.Fingerprint(own[0])
	if !known {
		for _, f := range own.Fingerprints() {
			if !slices.ContainsFunc(members, func(m secretReport) bool { return !slices.Contains(m.Secrets, f) }) {
				r.Secrets = append(r.Secrets, WantedSecret{Fingerprint: f})
			}
		}
		for _, m := range members {
			if m.Secrets[0] != first {
				return r, fmt.Errorf("%w: give all the same secret file and restart them", ErrSecretsDiffer)
			}
		}
		return r, nil
	}
	r.Secrets, r.Dropped = slices.Clone(was.Secrets), slices.Clone(was.Dropped)
	switch was.Step {
	case StepRoll, StepDrop:
		return r, ErrRotating
	case StepAdd:
		// An attempt whose secret nobody has any more can go no further, and is replaced.
		if slices.ContainsFunc(members, func(m secretReport) bool { return slices.Contains(m.Secrets, was.newest()) }) {
			return r, ErrRotating
		}
		r.Secrets = r.Secrets[:len(r.Secrets)-1]
		r.Dropped = append(r.Dropped, was.newest())
	default:
		if slices.ContainsFunc(members, func(m secretReport) bool { return !was.fulfilled(m.Secrets) }) {
			return r, fmt.Errorf("%w: not all have finished the last rotation (`pier cluster secret status`)", ErrSecretsDiffer)
		}
	}
	if len(r.Secrets) >= maxSecrets {
		return r, ErrTooManySecrets
	}
	return r, nil
}
