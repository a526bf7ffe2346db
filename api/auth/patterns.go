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
	globs  map[string][]glob // segments with a * in them, by what stands before the first one
	head   int               // the longest of that
	deep   *patterns         // what follows a **
	loops  bool              // this is what follows a **, which takes any segment
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
		return p.glob(segment)
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

func (p *patterns) glob(segment string) *patterns {
	head, _, _ := strings.Cut(segment, "*")
	alike := p.globs[head]
	if i := slices.IndexFunc(alike, func(g glob) bool { return g.text == segment }); i >= 0 {
		return alike[i].next
	}
	if p.globs == nil {
		p.globs = make(map[string][]glob)
	}
	next := &patterns{}
	p.globs[head] = append(alike, glob{segment, next})
	p.head = max(p.head, len(head))
	return next
}

// step adds the places to which a segment leads. Each place has one that leads there, so none comes twice.
func (p *patterns) step(to []*patterns, segment string) []*patterns {
	if p.loops {
		to = append(to, p)
	}
	if next := p.exact[segment]; next != nil {
		to = append(to, next)
	}
	if p.globs == nil {
		return to
	}
	for i := range min(p.head, len(segment)) + 1 { // whoever has thousands of them is asked for the few that begin like this
		for _, g := range p.globs[segment[:i]] {
			if globMatches(g.text, segment) {
				to = append(to, g.next)
			}
		}
	}
	return to
}

// match gives a grant of want on the repository. It follows all places at once, segment by segment: patterns that could be
// followed in many ways cost no more than the places that there are.
func (p *patterns) match(repo string, want Right) (Grant, bool) {
	var a, b [16]*patterns // keep usual cases off the heap
	now, next := append(a[:0], p), b[:0]
	for rest, more := repo, true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		next = next[:0]
		for i := 0; i < len(now); i++ { // it grows: a ** may stand for nothing
			if deep := now[i].deep; deep != nil && !slices.Contains(now, deep) {
				now = append(now, deep)
			}
			next = now[i].step(next, segment)
		}
		now, next = next, now
	}
	for _, at := range now {
		for _, g := range at.grants {
			if g.Right.includes(want) {
				return g, true
			}
		}
	}
	return Grant{}, false
}

// globMatches is for what begins as the pattern does. It takes each * as early as it can: with only one kind of wildcard there
// is never a reason to try again.
func globMatches(pattern, s string) bool {
	head, rest, _ := strings.Cut(pattern, "*")
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
