package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestBadManifests(t *testing.T) {
	config := fmt.Sprintf(`"config":{"mediaType":"c","digest":%q,"size":1}`, blobDigest(0))
	deep := bytes.Repeat([]byte("["), 100)
	for name, body := range map[string]string{
		"not JSON":      "hello",
		"no object":     "[]",
		"twice":         `{` + config + `,` + config + `}`,
		"deep":          `{"a":` + string(deep) + string(bytes.Repeat([]byte("]"), 100)) + `,` + config + `}`,
		"other type":    `{"mediaType":"application/x",` + config + `}`,
		"no config":     `{"layers":[]}`,
		"both":          `{` + config + `,"manifests":[{"digest":"` + string(blobDigest(1)) + `"}]}`,
		"bad digest":    `{"config":{"digest":"sha256:12","size":1}}`,
		"bad subject":   `{` + config + `,"subject":{"digest":"x"}}`,
		"more behind":   `{` + config + `} {}`,
		"negative size": `{"config":{"digest":"` + string(blobDigest(1)) + `","size":-1}}`,
	} {
		if _, err := ParseManifest(TypeOCIManifest, []byte(body)); !errors.Is(err, ErrManifestInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseManifest(TypeOCIManifest, make([]byte, MaxManifest+1)); !errors.Is(err, ErrManifestTooBig) {
		t.Error(err)
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add(TypeOCIManifest, image("a", []digest.Digest{blobDigest(1), blobDigest(2)}, blobDigest(3)).Body)
	f.Add(TypeOCIIndex, []byte(`{"schemaVersion":2,"manifests":[]}`))
	f.Add("application/x", []byte(`{"a":{"a":[[1]]}}`))
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		p, err := ParseManifest(mediaType, body)
		if err != nil {
			return
		}
		for _, d := range slices.Concat(p.Blobs, p.Manifests) {
			if _, err := ParseDigest(string(d.Digest)); err != nil {
				t.Error(err)
			}
		}
	})
}
