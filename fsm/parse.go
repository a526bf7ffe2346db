package fsm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// MaxManifest is the size of the largest manifest, in bytes.
const MaxManifest = 4 << 20

const maxDepth = 64

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

// manifestFields are the parts of any of the four types; those of other types stay empty.
type manifestFields struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *Descriptor       `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Manifests     []Descriptor      `json:"manifests"`
	Subject       *Descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

// ParseManifest reads a manifest. It depends on its arguments alone, so that apply may trust it on every node. Types that
// the registry doesn't know are taken as they are when they are JSON objects, and require nothing.
func ParseManifest(mediaType string, body []byte) (Parsed, error) {
	if len(body) > MaxManifest {
		return Parsed{}, ErrManifestTooBig
	}
	if err := checkJSON(body); err != nil {
		return Parsed{}, &ManifestError{Reason: err.Error()}
	}
	var m manifestFields
	malformed := json.Unmarshal(body, &m) // what has the right shape is read in any case
	if m.MediaType != "" && mediaType != "" && m.MediaType != mediaType {
		return Parsed{}, &ManifestError{Reason: fmt.Sprintf("the body says mediaType %q, the Content-Type header %q", m.MediaType, mediaType)}
	}
	if mediaType == "" {
		mediaType = m.MediaType
	}
	if mediaType == "" {
		return Parsed{}, &ManifestError{Reason: "neither a Content-Type header nor a mediaType field says what it is"}
	}
	if malformed != nil && isKnownType(mediaType) {
		return Parsed{}, &ManifestError{Reason: malformed.Error()}
	}
	if malformed != nil {
		return Parsed{MediaType: mediaType, Size: int64(len(body))}, nil
	}
	p := Parsed{MediaType: mediaType, ArtifactType: m.ArtifactType, Annotations: m.Annotations, Size: int64(len(body))}
	return p, p.references(m)
}

func isKnownType(t string) bool {
	return slices.Contains([]string{TypeOCIManifest, TypeOCIIndex, TypeDockerManifest, TypeDockerList}, t)
}

func (p *Parsed) references(m manifestFields) error {
	if m.Subject != nil {
		if _, err := ParseDigest(string(m.Subject.Digest)); err != nil {
			return &ManifestError{Reason: "subject: " + err.Error()}
		}
		p.Subject = m.Subject.Digest
	}
	switch p.MediaType {
	case TypeOCIManifest, TypeDockerManifest:
		if len(m.Manifests) > 0 {
			return &ManifestError{Reason: "an image manifest has no field manifests"}
		}
		if m.Config == nil {
			return &ManifestError{Reason: "an image manifest needs a config"}
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
			return &ManifestError{Reason: "an index has no field layers"}
		}
		p.Manifests = m.Manifests
	}
	for _, d := range slices.Concat(p.Blobs, p.Manifests) {
		if _, err := ParseDigest(string(d.Digest)); err != nil {
			return &ManifestError{Reason: err.Error()}
		}
		if d.Size < 0 {
			return &ManifestError{Reason: fmt.Sprintf("%s has a negative size", d.Digest)}
		}
	}
	return nil
}

// checkJSON wants one object without repeated keys and of bounded depth: readers of a repeated key differ on which
// counts, and a digest must mean the same to all.
func checkJSON(body []byte) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	first, err := dec.Token()
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	if first != json.Delim('{') {
		return fmt.Errorf("not a JSON object")
	}
	if err := checkObject(dec, 1); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("something follows the JSON object")
	}
	return nil
}

func checkObject(dec *json.Decoder, depth int) error {
	seen := make(map[string]bool)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return fmt.Errorf("not JSON: %w", err)
		}
		name, ok := t.(string)
		if !ok {
			return fmt.Errorf("not JSON: a key that is no string")
		}
		if seen[name] {
			return fmt.Errorf("the key %.80q comes twice", name)
		}
		seen[name] = true
		if err := checkValue(dec, depth); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}

func checkValue(dec *json.Decoder, depth int) error {
	t, err := dec.Token()
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	if depth >= maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	switch t {
	case json.Delim('{'):
		return checkObject(dec, depth+1)
	case json.Delim('['):
		for dec.More() {
			if err := checkValue(dec, depth+1); err != nil {
				return err
			}
		}
		_, err := dec.Token()
		return err
	}
	return nil
}
