package auth

import (
	"errors"
	"fmt"
	"strings"
)

// Right is what a grant gives on the repositories of its pattern.
type Right uint8

// Push includes Pull; Admin includes all, and on the pattern ** it is the right to change the cluster.
const (
	Pull Right = 1 << iota
	Push
	Delete
	Admin
)

type rightName struct {
	right Right
	name  string
}

// rightNames are the words that people write.
var rightNames = []rightName{{Pull, "pull"}, {Push, "push"}, {Delete, "delete"}, {Admin, "admin"}}

// ParseRight reads pull, push, delete or admin.
func ParseRight(s string) (Right, error) {
	for _, n := range rightNames {
		if n.name == s {
			return n.right, nil
		}
	}
	return 0, fmt.Errorf("right %q: pull, push, delete or admin", s)
}

func (r Right) String() string {
	for _, n := range rightNames {
		if n.right == r {
			return n.name
		}
	}
	return "none"
}

// includes tells whether holding r is enough where want is needed.
func (r Right) includes(want Right) bool {
	return r == want || r == Admin || r == Push && want == Pull
}

// Everything is the pattern of all repositories, and of the cluster itself.
const Everything = "**"

// Anonymous is the name that grants for everybody carry, callers without a name included.
const Anonymous = "anonymous"

const (
	groupPrefix = "group:"
	maxPattern  = 255
	maxName     = 64
)

// Grant gives a subject a right on the repositories that a pattern names. The subject is a user, a robot, group:NAME or
// anonymous.
type Grant struct {
	Subject string
	Right   Right
	Pattern string
}

func (g Grant) String() string { return g.Subject + " " + g.Right.String() + " " + g.Pattern }

// Validate checks the grammar; whether the subject exists is the state's business.
func (g Grant) Validate() error {
	var faults []error
	if g.Right.String() == "none" {
		faults = append(faults, fmt.Errorf("right %d is unknown", g.Right))
	}
	if g.Subject == Anonymous && g.Right == Admin {
		faults = append(faults, errors.New("anonymous can't have admin: everybody could change everything"))
	}
	return errors.Join(append(faults, checkSubject(g.Subject), checkPattern(g.Pattern))...)
}

// GroupSubject is the subject of a group's grants.
func GroupSubject(group string) string { return groupPrefix + group }

// checkSubject accepts a name, group:NAME or anonymous.
func checkSubject(s string) error {
	if s == Anonymous {
		return nil
	}
	return CheckName(strings.TrimPrefix(s, groupPrefix))
}

// CheckName accepts what users, robots and groups may be called: 1 to 64 letters, digits and . _ @ - that begin with a
// letter or a digit. A colon can't be in it: HTTP's Basic credentials split there.
func CheckName(s string) error {
	bad := func(i int, c byte) bool {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		return !alnum && (i == 0 || strings.IndexByte("._@-", c) < 0)
	}
	if s == "" || len(s) > maxName {
		return fmt.Errorf("name %.80q: 1 to %d letters, digits and . _ @ -", s, maxName)
	}
	if strings.EqualFold(s, Anonymous) || strings.EqualFold(s, string(KindOperator)) {
		return fmt.Errorf("name %q: everybody without a name and whoever has a node's socket are called that", s)
	}
	for i := range len(s) {
		if bad(i, s[i]) {
			return fmt.Errorf("name %.80q: letters, digits and . _ @ - only, a letter or a digit first", s)
		}
	}
	return nil
}

// checkPattern accepts a repository name in which * stands for any characters of one segment, and a segment ** for any
// number of segments, at the end for at least one.
func checkPattern(p string) error {
	if p == "" || len(p) > maxPattern {
		return fmt.Errorf("pattern %.80q: 1 to %d characters", p, maxPattern)
	}
	before := ""
	for segment := range strings.SplitSeq(p, "/") {
		switch {
		case segment == "":
			return fmt.Errorf("pattern %q: an empty segment; a repository has no leading, trailing or double slash", p)
		case segment == Everything && before == Everything:
			return fmt.Errorf("pattern %q: one ** is enough", p)
		case segment != Everything && strings.Contains(segment, "**"):
			return fmt.Errorf("pattern %q: ** stands alone between slashes; * is for a part of a segment", p)
		}
		for _, c := range []byte(segment) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("._-*", c) < 0 {
				return fmt.Errorf("pattern %q: lower-case letters, digits and . _ - / * only", p)
			}
		}
		before = segment
	}
	return nil
}
