package cluster

import (
	"testing"
	"time"
)

func TestDecide(t *testing.T) {
	const delay, repair = 10 * time.Second, 15 * time.Minute
	up := func(id NodeID, voter bool) view {
		return view{id: id, voter: voter, well: true, wellFor: time.Minute, caughtUp: true, known: true, address: string(id) + ":7000"}
	}
	down := func(id NodeID, voter bool, gone time.Duration) view {
		return view{id: id, voter: voter, goneFor: gone, known: true, address: string(id) + ":7000"}
	}
	edit := func(v view, f func(*view)) view { f(&v); return v }
	tests := map[string]struct {
		nodes []view
		max   int
		want  act
	}{
		"nothing to do":                 {nodes: []view{up("a", true), up("b", true), up("c", true)}},
		"a newcomer votes":              {nodes: []view{up("a", true), up("b", false)}, want: act{"promote", "b"}},
		"not while it lags":             {nodes: []view{up("a", true), edit(up("b", false), func(v *view) { v.caughtUp = false })}},
		"not before it was well a time": {nodes: []view{up("a", true), edit(up("b", false), func(v *view) { v.wellFor = time.Second })}},
		"not while it drains":           {nodes: []view{up("a", true), edit(up("b", false), func(v *view) { v.draining = true })}},
		"not beyond the limit":          {max: 1, nodes: []view{up("a", true), up("b", false)}},
		"beyond it when a voter is dead": {
			max: 3, nodes: []view{up("a", true), up("b", true), down("c", true, time.Minute), up("d", false)}, want: act{"promote", "d"},
		},
		"the dead one goes when it was replaced": {
			max: 3, nodes: []view{up("a", true), up("b", true), down("c", true, time.Minute), up("d", true)}, want: act{"retire", "c"},
		},
		"a dead voter alone is kept": {nodes: []view{up("a", true), up("b", true), down("c", true, time.Minute)}},
		"and in four":                {nodes: []view{up("a", true), up("b", true), up("c", true), down("d", true, time.Minute)}},
		"a lost disk's old self goes once the new one votes": {
			nodes: []view{up("a", true), up("b", true), edit(down("c", true, time.Minute), func(v *view) { v.address = string(replacedBy("d")) }), up("d", true)},
			want:  act{"retire", "c"},
		},
		"not before": {
			nodes: []view{up("a", true), up("b", true), edit(down("c", true, time.Minute), func(v *view) { v.address = string(replacedBy("d")) }),
				edit(up("d", false), func(v *view) { v.caughtUp = false })},
		},
		"a lost disk's old self that never voted goes too": {
			nodes: []view{up("a", true), edit(down("b", false, time.Minute), func(v *view) { v.address = string(replacedBy("c")) }), up("c", true)},
			want:  act{"retire", "b"},
		},
		"a disk lost twice goes from the first on": {
			nodes: []view{up("a", true), up("b", true),
				edit(down("d", false, time.Minute), func(v *view) { v.address = string(replacedBy("e")) }),
				edit(down("c", true, time.Minute), func(v *view) { v.address = string(replacedBy("d")) }), up("e", true)},
			want: act{"retire", "c"},
		},
		"what a removal left is cleared": {nodes: []view{up("a", true), {id: "x", known: true, gone: true}}, want: act{"forget", "x"}},
		"absence is marked":              {nodes: []view{up("a", true), up("b", true), down("c", true, time.Hour)}, want: act{"away", "c"}},
		"and unmarked":                   {nodes: []view{up("a", true), up("b", true), edit(up("c", true), func(v *view) { v.away = true })}, want: act{"back", "c"}},
		"no mark without a record":       {nodes: []view{up("a", true), up("b", true), edit(down("c", true, time.Hour), func(v *view) { v.known = false })}},
		"a leader never retires itself":  {max: 1, nodes: []view{edit(down("a", true, time.Minute), func(v *view) { v.self = true }), up("b", true)}},
		"voters alive are never retired": {max: 1, nodes: []view{up("a", true), up("b", true), up("c", true)}},
	}
	for name, x := range tests {
		t.Run(name, func(t *testing.T) {
			limit := x.max
			if limit == 0 {
				limit = 5
			}
			got, ok := decide(x.nodes, limit, delay, repair)
			if ok != (x.want != act{}) || got != x.want {
				t.Fatalf("decided %v, want %v", got, x.want)
			}
		})
	}
}
