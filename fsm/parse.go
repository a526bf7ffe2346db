package fsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// MaxManifest is the size of the largest manifest, in bytes.
const MaxManifest = 4 << 20

const (
	maxDepth     = 64
	maxObjects   = 50_000 // in a manifest; the shortest descriptor has 84 bytes, so that 4 MiB have fewer of them
	maxMediaType = 255
	maxReason    = 300
)

// The media types whose references the registry understands.
const (
	TypeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	TypeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	TypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	TypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Descriptor points at content, as in the OCI image spec.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       digest.Digest     `json:"digest"`
	Size         int64             `json:"size"`
	URLs         []string          `json:"urls,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
}

// Parsed is what the registry needs to know of a manifest.
type Parsed struct {
	MediaType string
	// Blobs and Manifests must be in the repository; layers that come from elsewhere are left out.
	Blobs, Manifests []Descriptor
	Subject          digest.Digest
	ArtifactType     string
	Annotations      map[string]string
	Size             int64
}

// manifestFields are the parts of any of the four types.
type manifestFields struct {
	commonFields
	Config    *Descriptor  `json:"config"`
	Layers    []Descriptor `json:"layers"`
	Manifests []Descriptor `json:"manifests"`
}

// commonFields are what counts in a manifest of any type.
type commonFields struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Subject      *Descriptor       `json:"subject"`
	Annotations  map[string]string `json:"annotations"`
}

// keys are the names that mean something in an object, and those in the objects below them. Go's decoder reads "Layers" for
// "layers", which decoders of other languages don't.
type keys map[string]keys

var (
	descriptorKeys = keys{"mediaType": nil, "digest": nil, "size": nil, "urls": nil, "annotations": nil, "artifactType": nil}
	manifestKeys   = keys{
		"mediaType": nil, "artifactType": nil, "annotations": nil,
		"config": descriptorKeys, "layers": descriptorKeys, "manifests": descriptorKeys, "subject": descriptorKeys,
	}
)

// ParseManifest reads a manifest. It depends on its arguments alone, so that apply may trust it on every node. Types that
// the registry doesn't know are taken as they are when they are JSON objects, and require nothing.
func ParseManifest(mediaType string, body []byte) (Parsed, error) {
	if len(body) > MaxManifest {
		return Parsed{}, ErrManifestTooBig
	}
	var m manifestFields
	var into any = &m
	if mediaType != "" && !isKnownType(mediaType) {
		into = &m.commonFields
	} else if hasMoreObjects(body, maxObjects) {
		return Parsed{}, invalid("it has more than %d objects", maxObjects)
	}
	var odd *json.UnmarshalTypeError // a field of another type than ours, past which the decoder goes on
	err := json.Unmarshal(body, into)
	if err != nil && !errors.As(err, &odd) {
		return Parsed{}, invalid("not JSON: %s", err)
	}
	if m.MediaType != "" && mediaType != "" && m.MediaType != mediaType {
		return Parsed{}, invalid("the body says mediaType %.80q, the Content-Type header %.80q", m.MediaType, mediaType)
	}
	if mediaType == "" {
		mediaType = m.MediaType
	}
	switch {
	case mediaType == "":
		return Parsed{}, invalid("neither a Content-Type header nor a mediaType field says what it is")
	case len(mediaType) > maxMediaType || strings.ContainsFunc(mediaType, func(r rune) bool { return r <= ' ' || r > '~' }):
		return Parsed{}, invalid("%.80q is not a media type", mediaType)
	}
	known := isKnownType(mediaType)
	if known && odd != nil {
		return Parsed{}, invalid("%s", odd)
	}
	var names keys
	if known {
		names = manifestKeys
	}
	if err := checkJSON(body, names); err != nil {
		return Parsed{}, invalid("%s", err)
	}
	p := Parsed{MediaType: mediaType, ArtifactType: m.ArtifactType, Annotations: m.Annotations, Size: int64(len(body))}
	if m.Subject != nil {
		d, err := ParseDigest(string(m.Subject.Digest))
		if known && err != nil {
			return Parsed{}, invalid("subject: %s", err)
		}
		p.Subject = d
	}
	return p, p.references(m)
}

// invalid makes a ManifestError. Its reason is answered and remembered, so it must not be as long as the manifest, of which
// the decoder quotes whole numbers.
func invalid(format string, args ...any) error {
	reason := fmt.Sprintf(format, args...)
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
	}
	return &ManifestError{Reason: reason}
}

// hasMoreObjects counts before anything is made of them: an empty object takes two bytes of JSON and a hundred of memory.
func hasMoreObjects(body []byte, limit int) bool {
	if bytes.Count(body, []byte{'{'}) <= limit {
		return false
	}
	objects, quoted, escaped := 0, false, false
	for _, c := range body {
		switch {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case !quoted && c == '{':
			objects++
		}
	}
	return objects > limit
}

func isKnownType(t string) bool {
	return slices.Contains([]string{TypeOCIManifest, TypeOCIIndex, TypeDockerManifest, TypeDockerList}, t)
}

func (p *Parsed) references(m manifestFields) error {
	switch p.MediaType {
	case TypeOCIManifest, TypeDockerManifest:
		if len(m.Manifests) > 0 {
			return invalid("an image manifest has no field manifests")
		}
		if m.Config == nil {
			return invalid("an image manifest needs a config")
		}
		p.Blobs = []Descriptor{*m.Config}
		if p.ArtifactType == "" {
			p.ArtifactType = m.Config.MediaType
		}
		for _, l := range m.Layers {
			if len(l.URLs) == 0 && !strings.Contains(l.MediaType, "nondistributable") && !strings.Contains(l.MediaType, "foreign") {
				p.Blobs = append(p.Blobs, l)
			}
		}
	case TypeOCIIndex, TypeDockerList:
		if len(m.Layers) > 0 {
			return invalid("an index has no field layers")
		}
		p.Manifests = m.Manifests
	}
	for _, d := range slices.Concat(p.Blobs, p.Manifests) {
		if _, err := ParseDigest(string(d.Digest)); err != nil {
			return invalid("%s", err)
		}
		if d.Size < 0 {
			return invalid("%s has a negative size", d.Digest)
		}
	}
	return nil
}

// spelled refuses a key that differs from one of the names in the case of its letters alone.
func (k keys) spelled(key string) error {
	if _, right := k[key]; right {
		return nil
	}
	for name := range k {
		if strings.EqualFold(name, key) {
			return fmt.Errorf("the key %.80q must be written %q", key, name)
		}
	}
	return nil
}
