package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
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
		"huge number":   `{"config":{"digest":"` + string(blobDigest(1)) + `","size":` + strings.Repeat("9", 1<<20) + `}}`,
		"fraction":      `{"config":{"digest":"` + string(blobDigest(1)) + `","size":1.5}}`,
		"long type":     `{"mediaType":"` + strings.Repeat("x", 1<<20) + `",` + config + `}`,
		"NUL in digest": `{"config":{"digest":"` + string(blobDigest(1)[:70]) + `\u0000","size":1}}`,
		"comma":         `{` + config + `,}`,
		"no colon":      `{"a" 1,` + config + `}`,
		// Go's clients read these keys, others don't: a digest must mean the same to all.
		"LAYERS":           `{` + config + `,"LAYERS":[]}`,
		"layers, Layers":   `{` + config + `,"layers":[],"Layers":[{"digest":"` + string(blobDigest(1)) + `","size":1}]}`,
		"layerſ":           `{` + config + `,"layerſ":[]}`,
		"Digest":           `{` + config + `,"layers":[{"Digest":"` + string(blobDigest(1)) + `","size":1}]}`,
		"SIZE in a config": `{"config":{"digest":"` + string(blobDigest(1)) + `","size":1,"SIZE":2}}`,
	} {
		_, err := ParseManifest(TypeOCIManifest, []byte(body))
		if !errors.Is(err, ErrManifestInvalid) {
			t.Errorf("%s: %v", name, err)
		} else if len(err.Error()) > 1000 {
			t.Errorf("%s: a reason of %d bytes, which would be answered and remembered", name, len(err.Error()))
		}
	}
	for _, kind := range []string{"", "x/y\n", "x/é", "x/" + strings.Repeat("y", 300)} {
		if p, err := ParseManifest(kind, []byte(`{}`)); !errors.Is(err, ErrManifestInvalid) {
			t.Errorf("media type %.80q: %.80q, %v", kind, p.MediaType, err)
		}
	}
	if _, err := ParseManifest(TypeOCIManifest, make([]byte, MaxManifest+1)); !errors.Is(err, ErrManifestTooBig) {
		t.Error(err)
	}
}

// What isn't one of ours is somebody's: any JSON object will do, and a subject is one if it has a digest.
func TestOtherTypesAreTakenAsTheyAre(t *testing.T) {
	subject := fmt.Sprintf(`"subject":{"digest":%q,"size":3}`, blobDigest(1))
	for body, want := range map[string]digest.Digest{
		`{}`: "",
		`{"schemaVersion":"1.0","config":"none","layers":{"a":1},"LAYERS":2,` + subject + `}`: blobDigest(1),
		`{"subject":[{"name":"x"}]}`:           "",
		`{"subject":{"name":"x"}}`:             "",
		`{"subject":{"digest":"sha256:12"}}`:   "",
		`{"annotations":{"a":{"b":1}}}`:        "",
		`{"manifests":[{"digest":"no such"}]}`: "",
	} {
		p, err := ParseManifest("application/vnd.example+json", []byte(body))
		if err != nil || p.Subject != want || len(p.Blobs)+len(p.Manifests) > 0 {
			t.Errorf("%s: %+v, %v", body, p, err)
		}
	}
}

func TestUnknownFieldsOfImages(t *testing.T) {
	body := fmt.Sprintf(`{"config":{"mediaType":"c","digest":%q,"size":1,"platform":{"OS":"x","os":"y"}},"annotations":{"digest":"1","Digest":"2"},
		"layers":[{"digest":%q,"size":1e0,"data":"eA==","annotations":{"Size":"1","size":"2"}},{"mediaType":"l","digest":%q,"size":1,"urls":["x"]}],
		"x":{"Layers":[],"layers":[]}}`, blobDigest(0), blobDigest(1), blobDigest(2))
	if _, err := ParseManifest(TypeOCIManifest, []byte(body)); !errors.Is(err, ErrManifestInvalid) {
		t.Errorf("a size that not all readers take for a number: %v", err)
	}
	p, err := ParseManifest(TypeOCIManifest, []byte(strings.ReplaceAll(body, "1e0", "1")))
	if err != nil || len(p.Blobs) != 2 || len(p.Annotations) != 2 || p.ArtifactType != "c" {
		t.Errorf("%+v, %v", p, err)
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

// A manifest of 4 MiB of empty descriptors would take half a gigabyte, on every node. What no manifest needs is refused before
// anything is made of it, and of types that the registry doesn't know only what counts is read.
func TestManifestsThatUnfold(t *testing.T) {
	many := func(n int) []byte { return []byte(`{"layers":[` + strings.Repeat("{},", n) + `{}]}`) }
	for _, kind := range []string{TypeOCIManifest, TypeOCIIndex, TypeDockerManifest, TypeDockerList, ""} {
		if _, err := ParseManifest(kind, many(maxObjects)); err == nil || !strings.Contains(err.Error(), "objects") {
			t.Errorf("%q: %v", kind, err)
		}
	}
	quoted := fmt.Sprintf(`{"config":{"mediaType":"c","digest":%q,"size":1},"annotations":{"a":"%s"}}`, blobDigest(0), strings.Repeat(`{\"`, maxObjects))
	if _, err := ParseManifest(TypeOCIManifest, []byte(quoted)); err != nil {
		t.Errorf("what stands in a string is no object: %v", err)
	}
	body := many(MaxManifest/3 - 100)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := ParseManifest("application/x", body); err != nil {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if made := (after.TotalAlloc - before.TotalAlloc) >> 20; made > 400 {
		t.Errorf("%d MiB are made of a manifest of another type", made)
	}
}
