package auth

import (
	"slices"
	"strings"
)

// patterns holds one subject's grants as a tree of segments, so that a decision costs the depth of the repository's name
// and not the number of grants.
type patterns struct {
	grants []Grant // that end here
	exact  map[string]*patterns
	globs  []glob    // segments with a * in them
	deep   *patterns // what follows a **
	loops  bool      // this is what follows a **, which takes any segment
}

type glob struct {
	text string
	next *patterns
}

func (p *patterns) add(g Grant) {
	at := p
	for segment := range strings.SplitSeq(g.Pattern, "/") {
		at = at.child(segment)
	}
	at.grants = append(at.grants, g)
}

func (p *patterns) child(segment string) *patterns {
	switch {
	case segment == Everything:
		if p.deep == nil {
			p.deep = &patterns{loops: true}
		}
		return p.deep
	case strings.Contains(segment, "*"):
		i := slices.IndexFunc(p.globs, func(g glob) bool { return g.text == segment })
		if i < 0 {
			i = len(p.globs)
			p.globs = append(p.globs, glob{segment, &patterns{}})
		}
		return p.globs[i].next
	}
	if p.exact == nil {
		p.exact = make(map[string]*patterns)
	}
	next, ok := p.exact[segment]
	if !ok {
		next = &patterns{}
		p.exact[segment] = next
	}
	return next
}

// front is the set of places in the tree that a name's segments have led to. The array keeps usual cases off the heap.
type front struct {
	places []*patterns
	room   [16]*patterns
}

func (f *front) add(p *patterns) {
	if p != nil && !slices.Contains(f.places, p) {
		f.places = append(f.places, p)
	}
}

// match gives a grant of want on the repository. It follows all places at once, segment by segment: patterns that could be
// followed in many ways cost no more than the places that there are.
func (p *patterns) match(repo string, want Right) (Grant, bool) {
	var a, b front
	now, next := &a, &b
	now.places = append(now.room[:0], p)
	for rest, more := repo, true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		next.places = next.room[:0]
		for i := 0; i < len(now.places); i++ { // it grows: a ** may stand for nothing
			at := now.places[i]
			now.add(at.deep)
			if at.loops {
				next.add(at)
			}
			next.add(at.exact[segment])
			for _, g := range at.globs {
				if globMatches(g.text, segment) {
					next.add(g.next)
				}
			}
		}
		now, next = next, now
	}
	for _, at := range now.places {
		for _, g := range at.grants {
			if g.Right.includes(want) {
				return g, true
			}
		}
	}
	return Grant{}, false
}

// globMatches takes each * as early as it can: with only one kind of wildcard there is never a reason to try again.
func globMatches(pattern, s string) bool {
	head, rest, _ := strings.Cut(pattern, "*")
	if !strings.HasPrefix(s, head) {
		return false
	}
	s = s[len(head):]
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], after
	}
}
