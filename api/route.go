package api

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"pier/fsm"
)

// kind says which endpoint of /v2 a path names.
type kind int

const (
	kindRoot kind = iota
	kindCatalog
	kindTags
	kindReferrers
	kindManifest
	kindBlob
	kindUploads
	kindUpload
)

// String is the kind's name in metrics and logs.
func (k kind) String() string {
	return [...]string{"root", "catalog", "tags", "referrers", "manifest", "blob", "uploads", "upload"}[k]
}

// route is a path of /v2, parsed. Only the fields of its kind are set.
type route struct {
	kind   kind
	repo   fsm.Repo
	tag    fsm.Tag       // kindManifest, unless by digest
	digest digest.Digest // kindBlob, kindReferrers, kindManifest by digest
	owner  fsm.NodeID    // kindUpload: the node that has the session
	upload string        // kindUpload: the session's ID at its owner
}

const (
	prefix   = "/v2"
	maxPath  = 1024 // longer than any legal path: 255 of name, 135 of digest, the words between
	maxOwner = 64
	maxID    = 128
)

// parseRoute parses the escaped path of a request. Repository names contain slashes, so it reads from the right. The name
// has no character that needs escaping: a % in it is refused. The last segment may be escaped, since some clients escape
// the colon of a digest; it is checked after that like any other.
func parseRoute(escaped string) (route, error) {
	rest, ok := strings.CutPrefix(escaped, prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return route{}, errNoEndpoint
	}
	if rest == "" || rest == "/" {
		return route{kind: kindRoot}, nil
	}
	if rest == "/_catalog" {
		return route{kind: kindCatalog}, nil
	}
	if len(escaped) > maxPath {
		return route{}, fmt.Errorf("%w: the path has %d bytes", fsm.ErrNameInvalid, len(escaped))
	}
	return parseNamed(rest[1:])
}

// errNoEndpoint answers a path that is nothing of ours.
var errNoEndpoint error = refuse(http.StatusNotFound, codeUnsupported, "no such endpoint: the registry answers below /v2/ as in the OCI distribution spec")

// parseNamed parses NAME/… , what comes after /v2/.
func parseNamed(path string) (route, error) {
	head, last, _ := cutLast(path)
	if name, ok := strings.CutSuffix(path, "/blobs/uploads/"); ok {
		return named(kindUploads, name, route{})
	}
	if name, ok := strings.CutSuffix(path, "/blobs/uploads"); ok {
		return named(kindUploads, name, route{})
	}
	if name, ok := strings.CutSuffix(path, "/tags/list"); ok {
		return named(kindTags, name, route{})
	}
	ref, err := url.PathUnescape(last)
	if err != nil {
		return route{}, fmt.Errorf("%w: %.80q", fsm.ErrNameInvalid, last)
	}
	if name, ok := strings.CutSuffix(head, "/blobs/uploads"); ok {
		return parseUpload(name, ref)
	}
	name, word, _ := cutLast(head)
	switch word {
	case "blobs":
		return parseDigested(kindBlob, name, ref)
	case "referrers":
		return parseDigested(kindReferrers, name, ref)
	case "manifests":
		return parseReference(name, ref)
	}
	if _, err := fsm.ParseRepo(path); err != nil {
		return route{}, err
	}
	return route{}, errNoEndpoint
}

// cutLast splits at the last slash.
func cutLast(s string) (head, last string, found bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}

func named(k kind, name string, rt route) (route, error) {
	repo, err := fsm.ParseRepo(name)
	if err != nil {
		return route{}, err
	}
	rt.kind, rt.repo = k, repo
	return rt, nil
}

func parseDigested(k kind, name, ref string) (route, error) {
	rt, err := named(k, name, route{})
	if err != nil {
		return route{}, err
	}
	rt.digest, err = fsm.ParseDigest(ref)
	return rt, err
}

// parseReference takes what has a colon for a digest: no tag has one.
func parseReference(name, ref string) (route, error) {
	if strings.Contains(ref, ":") {
		return parseDigested(kindManifest, name, ref)
	}
	rt, err := named(kindManifest, name, route{})
	if err != nil {
		return route{}, err
	}
	rt.tag, err = fsm.ParseTag(ref)
	return rt, err
}

// parseUpload splits OWNER.ID. What nobody can have handed out is an unknown upload, not bad grammar: a client can do no
// more about it than start again.
func parseUpload(name, ref string) (route, error) {
	owner, id, ok := strings.Cut(ref, ".")
	if !ok || !isToken(owner, maxOwner) || !isToken(id, maxID) {
		rt, err := named(kindUpload, name, route{})
		if err != nil {
			return route{}, err
		}
		return rt, refuse(http.StatusNotFound, codeUploadUnknown, adviceUploadUnknown)
	}
	return named(kindUpload, name, route{owner: fsm.NodeID(owner), upload: id})
}

// isToken reports whether s is what IDs are made of: 1 to limit letters, digits, - and _.
func isToken(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// path is the canonical path of the route: what parseRoute makes the same route of.
func (rt route) path() string {
	switch rt.kind {
	case kindCatalog:
		return prefix + "/_catalog"
	case kindTags:
		return prefix + "/" + string(rt.repo) + "/tags/list"
	case kindReferrers:
		return prefix + "/" + string(rt.repo) + "/referrers/" + rt.digest.String()
	case kindManifest:
		return prefix + "/" + string(rt.repo) + "/manifests/" + rt.reference()
	case kindBlob:
		return prefix + "/" + string(rt.repo) + "/blobs/" + rt.digest.String()
	case kindUploads:
		return prefix + "/" + string(rt.repo) + "/blobs/uploads/"
	case kindUpload:
		return prefix + "/" + string(rt.repo) + "/blobs/uploads/" + string(rt.owner) + "." + rt.upload
	default:
		return prefix + "/"
	}
}

// reference is the tag or the digest of a manifest's route.
func (rt route) reference() string {
	if rt.tag != "" {
		return string(rt.tag)
	}
	return rt.digest.String()
}
