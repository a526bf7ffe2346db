package fsm

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"github.com/opencontainers/go-digest"

	// The two algorithms that the registry takes.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

// Repo is the name of a repository, in the grammar of the distribution spec.
type Repo string

// Tag names a manifest within a repository.
type Tag string

// NodeID is the ID under which a node takes part in the cluster.
type NodeID string

const (
	maxRepo = 255
	maxID   = 255
)

var (
	repoGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// ParseRepo checks a repository's name: at most 255 bytes of the spec's grammar.
func ParseRepo(s string) (Repo, error) {
	if len(s) > maxRepo || !repoGrammar.MatchString(s) {
		return "", fmt.Errorf("%w: %.80q", ErrNameInvalid, s)
	}
	return Repo(s), nil
}

// ParseTag checks a tag: at most 128 bytes of the spec's grammar.
func ParseTag(s string) (Tag, error) {
	if !tagGrammar.MatchString(s) {
		return "", fmt.Errorf("%w: %.80q", ErrTagInvalid, s)
	}
	return Tag(s), nil
}

// checkID refuses an ID or a name that can't be a key of the file: an entry of the log that can't be applied would stop
// every node, at each start anew.
func checkID(s string) error {
	if len(s) == 0 || len(s) > maxID || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%w: %.80q", ErrIDInvalid, s)
	}
	return nil
}

// ParseDigest checks a digest: sha256 or sha512 with as many hex digits as that takes.
func ParseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 && d.Algorithm() != digest.SHA512 {
		return "", fmt.Errorf("%w: %.160q", ErrDigestInvalid, s)
	}
	return d, nil
}
