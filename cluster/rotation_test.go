package cluster

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pier/cluster/port"
)

func named(r Rotation) []string {
	var out []string
	for _, s := range r.Secrets {
		out = append(out, s.Fingerprint)
	}
	return out
}

// Each step is what everybody's finishing the one before makes safe, and the dates hold.
func TestStepsOfARotation(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	r := Rotation{Step: StepAdd, Keep: time.Hour.Milliseconds(), Secrets: []WantedSecret{{"old", 0}, {"older", now.Add(time.Minute).UnixMilli()}, {"new", 0}}}
	if r.newest() != "new" || !r.spreading() {
		t.Error("the new secret isn't the one that is added")
	}
	step := func(want string, order ...string) {
		t.Helper()
		was := fmt.Sprint(r)
		next, ok := r.next(now)
		if is := fmt.Sprint(r); is != was {
			t.Errorf("the step before was %s and is %s", was, is)
		}
		if !ok || next.Step != want || !slices.Equal(named(next), order) {
			t.Fatalf("after %s comes %s %v, %t; want %s %v", r.Step, next.Step, named(next), ok, want, order)
		}
		r = next
	}
	step(StepRoll, "new", "old", "older")
	if r.newest() != "new" || !r.spreading() {
		t.Error("the new secret isn't the one that is rolled out")
	}
	step(StepKeep, "new", "old", "older")
	if r.spreading() || !r.wants("older") || r.wants("another") {
		t.Error("what is kept is still on its way, or isn't what is wanted")
	}
	for _, have := range [][]string{{"old", "new", "older"}, {"new", "old"}, {"new", "older"}} {
		if r.fulfilled(have) {
			t.Errorf("with %v all is kept in its order", have)
		}
	}
	if !r.fulfilled([]string{"new", "older", "old"}) {
		t.Error("the order of the old ones counts")
	}
	if r.Secrets[0].Until != 0 || r.Secrets[1].Until != now.Add(time.Hour).UnixMilli() || r.Secrets[2].Until != now.Add(time.Minute).UnixMilli() {
		t.Errorf("the ends are %+v", r.Secrets)
	}
	if _, due := r.next(now.Add(time.Second)); due {
		t.Error("a secret is dropped before its date")
	}
	now = now.Add(time.Minute)
	step(StepDrop, "new", "old")
	if !slices.Equal(r.Dropped, []string{"older"}) {
		t.Errorf("dropped %v", r.Dropped)
	}
	step(StepKeep, "new", "old")
	r.end(now)
	step(StepDrop, "new")
	step(StepDone, "new")
	if _, due := r.next(now.Add(1000 * time.Hour)); due {
		t.Error("something comes after the end")
	}
	for _, c := range []struct {
		have []string
		want bool
	}{
		{[]string{"new"}, true},
		{[]string{"new", "never heard of"}, true},
		{[]string{"old", "new"}, false},
		{[]string{"new", "old"}, false},
		{[]string{"old"}, false},
		{nil, false},
	} {
		if got := r.fulfilled(c.have); got != c.want {
			t.Errorf("with %v the rotation is fulfilled: %t", c.have, got)
		}
	}
}

// Of secrets that ended the last are remembered.
func TestDroppedSecretsAreBounded(t *testing.T) {
	r := Rotation{Step: StepKeep, Secrets: []WantedSecret{{"new", 0}, {"old", 1}}}
	for i := range maxDropped {
		r.Dropped = append(r.Dropped, fmt.Sprint(i))
	}
	next, ok := r.next(time.UnixMilli(1))
	if !ok || len(next.Dropped) != maxDropped || next.Dropped[0] != "1" || next.Dropped[maxDropped-1] != "old" {
		t.Errorf("%t, %v", ok, next.Dropped)
	}
}

func TestWhatARotationBeginsFrom(t *testing.T) {
	own := port.Secrets{port.NewSecret(), port.NewSecret()}
	all := own.Fingerprints()
	reports := func(lists ...[]string) []secretReport {
		var out []secretReport
		for _, l := range lists {
			out = append(out, secretReport{Secrets: l})
		}
		return out
	}
	wanted := func(prints ...string) (out []WantedSecret) {
		for _, f := range prints {
			out = append(out, WantedSecret{Fingerprint: f})
		}
		return out
	}
	for _, c := range []struct {
		name    string
		was     Rotation
		known   bool
		members []secretReport
		want    []string
		err     error
	}{
		{"the first, all alike", Rotation{}, false, reports(all, all), all, nil},
		{"a secret that only this node has", Rotation{}, false, reports(all, all[:1]), all[:1], nil},
		{"another first secret somewhere", Rotation{}, false, reports(all, []string{all[1], all[0]}), nil, ErrSecretsDiffer},
		{"somebody without the first", Rotation{}, false, reports(all, all[1:]), nil, ErrSecretsDiffer},
		{"none in common", Rotation{}, false, reports(all, []string{"x"}), nil, ErrSecretsDiffer},
		{"after another", Rotation{Step: StepDone, Secrets: wanted(all[0])}, true, reports(all[:1], all[:1]), all[:1], nil},
		{"while old ones are kept", Rotation{Step: StepKeep, Secrets: wanted(all...)}, true, reports(all, all), all, nil},
		{"somebody isn't through with the last", Rotation{Step: StepDone, Secrets: wanted(all[0])}, true, reports(all[:1], []string{"x"}), nil, ErrSecretsDiffer},
		{"as many as may be", Rotation{Step: StepKeep, Secrets: wanted(all[0], "b", "c")}, true, reports([]string{all[0], "b", "c"}), []string{all[0], "b", "c"}, nil},
		{"too many", Rotation{Step: StepKeep, Secrets: wanted(all[0], "b", "c", "d")}, true, reports([]string{all[0], "b", "c", "d"}), nil, ErrTooManySecrets},
		{"in the middle", Rotation{Step: StepRoll, Secrets: wanted(all...)}, true, reports(all, all), nil, ErrRotating},
		{"under way", Rotation{Step: StepAdd, Secrets: wanted(all[0], "fresh")}, true, reports(all[:1], []string{all[0], "fresh"}), nil, ErrRotating},
		{"lost", Rotation{Step: StepAdd, Secrets: wanted(all[0], "lost")}, true, reports(all[:1], all[:1]), all[:1], nil},
	} {
		r, err := begin(c.was, c.known, own, c.members)
		if !errors.Is(err, c.err) || err == nil && !slices.Equal(named(r), c.want) {
			t.Errorf("%s: %v, %v", c.name, named(r), err)
		}
		if c.name == "lost" && !slices.Contains(r.Dropped, "lost") {
			t.Error("the secret of the lost attempt may come back")
		}
	}
}
