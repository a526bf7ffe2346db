package promises

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"pier/fsm"
	"pier/test/harness"
)

// The same story of the whole API, against one node, against three through one of them, and against three with another node
// for every request: nobody can tell which it is.
func TestAPI(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		nodes  int
		random bool
	}{{"one node", 1, false}, {"three nodes", 3, false}, {"a random node per request", 3, true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := &suite{T: t, cluster: harness.Start(t, c.nodes), random: c.random}
			for range 2 {
				s.round++
				s.pushInEveryWay()
				s.refusedUploads()
				s.mounts()
				s.manifests()
				s.lists()
				s.referrers()
				s.deletes()
			}
		})
	}
}

type suite struct {
	*testing.T
	cluster *harness.Cluster
	random  bool
	round   int
}

func (s *suite) repo(name string) string { return fmt.Sprintf("suite%d/%s", s.round, name) }

// do sends one request to whichever node it falls to; anything but the status ends the test.
func (s *suite) do(status int, method, path string, body []byte, header ...string) (http.Header, []byte) {
	s.Helper()
	x := s.cluster.Nodes[0]
	if s.random {
		x = s.cluster.Nodes[rand.IntN(len(s.cluster.Nodes))]
	}
	resp, answer, err := x.Send(s.Context(), method, path, bytes.NewReader(body), header...)
	if err != nil {
		s.Fatal(err)
	}
	if resp.StatusCode != status {
		s.Fatalf("%s: %s %s: %s, want %d: %.300s", x.Name, method, path, resp.Status, status, answer)
	}
	if status >= 400 && method != "HEAD" && !strings.Contains(string(answer), `{"errors":[{"code":"`) {
		s.Fatalf("%s %s: %s without an OCI error: %.300s", method, path, resp.Status, answer)
	}
	return resp.Header, answer
}

func (s *suite) begin(repo string) string {
	s.Helper()
	h, _ := s.do(202, "POST", "/v2/"+repo+"/blobs/uploads/", nil)
	return h.Get("Location")
}

func (s *suite) blob(repo string, data []byte) digest.Digest {
	s.Helper()
	d := digest.FromBytes(data)
	s.do(201, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), data)
	return d
}

// holds pulls a blob whole, in part and conditionally.
func (s *suite) holds(repo string, d digest.Digest, data []byte) {
	s.Helper()
	path := "/v2/" + repo + "/blobs/" + d.String()
	h, body := s.do(200, "GET", path, nil)
	if !bytes.Equal(body, data) || h.Get("Docker-Content-Digest") != d.String() {
		s.Fatalf("%s: other bytes, digest %s", path, h.Get("Docker-Content-Digest"))
	}
	if h, _ := s.do(200, "HEAD", path, nil); h.Get("Content-Length") != fmt.Sprint(len(data)) {
		s.Errorf("HEAD says %s of %d bytes", h.Get("Content-Length"), len(data))
	}
	s.do(304, "GET", path, nil, "If-None-Match", h.Get("ETag"))
	if len(data) > 10 {
		if _, part := s.do(206, "GET", path, nil, "Range", "bytes=3-9"); !bytes.Equal(part, data[3:10]) {
			s.Errorf("a range has other bytes")
		}
		s.do(416, "GET", path, nil, "Range", fmt.Sprintf("bytes=%d-", len(data)))
	}
}

func (s *suite) pushInEveryWay() {
	repo := s.repo("ways")
	data := bytes.Repeat([]byte(fmt.Sprintf("round %d ", s.round)), 30000)
	for i, way := range []func(data []byte, d digest.Digest){
		func(data []byte, d digest.Digest) { s.blob(repo, data) },
		func(data []byte, d digest.Digest) { s.do(201, "PUT", s.begin(repo)+"?digest="+d.String(), data) },
		func(data []byte, d digest.Digest) {
			at := s.begin(repo)
			s.do(202, "PATCH", at, data)
			s.do(201, "PUT", at+"?digest="+d.String(), nil)
			s.do(201, "PUT", at+"?digest="+d.String(), nil) // the answer was lost
		},
		func(data []byte, d digest.Digest) {
			at := s.begin(repo)
			third := len(data) / 3
			s.do(202, "PATCH", at, data[:third], "Content-Range", fmt.Sprintf("0-%d", third-1))
			s.do(416, "PATCH", at, data[third+5:], "Content-Range", fmt.Sprintf("%d-%d", third+5, len(data)-1))
			if h, _ := s.do(204, "GET", at, nil); h.Get("Range") != fmt.Sprintf("0-%d", third-1) {
				s.Errorf("the upload says it has %s", h.Get("Range"))
			}
			s.do(202, "PATCH", at, data[third:2*third], "Content-Range", fmt.Sprintf("%d-%d", third, 2*third-1))
			s.do(201, "PUT", at+"?digest="+d.String(), data[2*third:], "Content-Range", fmt.Sprintf("%d-%d", 2*third, len(data)-1))
		},
	} {
		for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			own := append([]byte(fmt.Sprint(i, algorithm)), data...)
			if d := algorithm.FromBytes(own); i > 0 || algorithm == digest.SHA256 {
				way(own, d)
				s.holds(repo, d, own)
			}
		}
	}
}

func (s *suite) refusedUploads() {
	repo := s.repo("refused")
	wrong := digest.FromString("wrong").String()
	at := s.begin(repo)
	s.do(400, "PUT", at+"?digest="+wrong, []byte("right"))
	s.do(400, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+wrong, []byte("right"))
	at = s.begin(repo)
	s.do(404, "PATCH", strings.Replace(at, repo, s.repo("other"), 1), []byte("x"))
	s.do(204, "DELETE", at, nil)
	s.do(404, "GET", at, nil)
	s.do(404, "PATCH", at, []byte("x"))
	s.do(404, "GET", "/v2/"+repo+"/blobs/"+wrong, nil)
	s.do(404, "HEAD", "/v2/"+repo+"/blobs/"+wrong, nil)
	s.do(400, "POST", "/v2/Upper/blobs/uploads/", nil)
}

func (s *suite) mounts() {
	data := []byte("mounted in round " + fmt.Sprint(s.round))
	from, to := s.repo("from"), s.repo("to")
	d := s.blob(from, data)
	uploads := "/v2/" + to + "/blobs/uploads/?mount=" + d.String()
	s.do(404, "HEAD", "/v2/"+to+"/blobs/"+d.String(), nil)
	s.do(202, "POST", uploads+"&from="+s.repo("elsewhere"), nil)
	s.do(201, "POST", uploads+"&from="+from, nil)
	s.holds(to, d, data)
}

func (s *suite) image(repo, note string) ([]byte, digest.Digest) {
	config := s.blob(repo, []byte("{}"))
	layer := s.blob(repo, []byte("layer of "+repo+note))
	m := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]%s}`, fsm.TypeOCIManifest, config, layer, len("layer of "+repo+note), note)
	return m, digest.FromBytes(m)
}

func (s *suite) manifests() {
	repo := s.repo("images")
	path := "/v2/" + repo + "/manifests/"
	kind := []string{"Content-Type", fsm.TypeOCIManifest}
	s.do(404, "GET", path+"latest", nil)
	for _, note := range []string{"", `,"annotations":{"n":"2"}`} {
		m, d := s.image(repo, note)
		s.do(201, "PUT", path+"latest", m, kind...)
		for _, ref := range []string{"latest", d.String()} { // a tag that moved is seen moved by all
			h, body := s.do(200, "GET", path+ref, nil)
			if !bytes.Equal(body, m) || h.Get("Docker-Content-Digest") != d.String() || h.Get("Content-Type") != fsm.TypeOCIManifest || h.Get("Warning") != "" {
				s.Fatalf("%s: %v %s", ref, h, body)
			}
			s.do(200, "HEAD", path+ref, nil)
		}
		s.do(412, "PUT", path+"latest", m, append([]string{"If-None-Match", "*"}, kind...)...)
	}
	m, _ := s.image(repo, "")
	s.do(400, "PUT", path+"latest", []byte("no JSON"), kind...)
	s.do(400, "PUT", path+digest.FromString("wrong").String(), m, kind...)
	s.do(400, "PUT", "/v2/"+s.repo("empty")+"/manifests/latest", m, kind...) // its blobs aren't in this repository
	s.do(413, "PUT", path+"big", bytes.Repeat([]byte(" "), 5<<20), kind...)
}

func (s *suite) lists() {
	repo := s.repo("lists")
	m, _ := s.image(repo, "")
	var want []string
	for i := range 7 {
		tag := fmt.Sprintf("v%d", i)
		want = append(want, tag)
		s.do(201, "PUT", "/v2/"+repo+"/manifests/"+tag, m, "Content-Type", fsm.TypeOCIManifest)
	}
	s.do(202, "DELETE", "/v2/"+repo+"/manifests/v3", nil)
	want = slices.Delete(want, 3, 4)
	if got := s.follow("/v2/"+repo+"/tags/list?n=2", "tags"); !slices.Equal(got, want) {
		s.Errorf("tags: %v, want %v", got, want)
	}
	if got := s.follow("/v2/_catalog?n=3", "repositories"); !slices.Contains(got, repo) || !slices.IsSorted(got) {
		s.Errorf("catalog: %v", got)
	}
	s.do(404, "GET", "/v2/"+s.repo("none")+"/tags/list", nil)
	s.do(400, "GET", "/v2/"+repo+"/tags/list?n=-1", nil)
}

// follow reads a listing page by page.
func (s *suite) follow(path, field string) (all []string) {
	s.Helper()
	for path != "" {
		h, body := s.do(200, "GET", path, nil)
		var list map[string]json.RawMessage
		var page []string
		if json.Unmarshal(body, &list) != nil || json.Unmarshal(list[field], &page) != nil {
			s.Fatalf("%s: %s", path, body)
		}
		all = append(all, page...)
		path, _, _ = strings.Cut(strings.TrimPrefix(h.Get("Link"), "<"), ">")
	}
	return all
}

func (s *suite) referrers() {
	repo := s.repo("referrers")
	m, subject := s.image(repo, "")
	path := "/v2/" + repo + "/referrers/" + subject.String()
	s.do(200, "GET", path, nil)
	var want []string
	for i := range 3 { // the first one comes before its subject
		a, d := s.image(repo, fmt.Sprintf(`,"artifactType":"a/b%d","subject":{"mediaType":%q,"digest":%q,"size":%d}`, i%2, fsm.TypeOCIManifest, subject, len(m)))
		h, _ := s.do(201, "PUT", "/v2/"+repo+"/manifests/"+d.String(), a, "Content-Type", fsm.TypeOCIManifest)
		if h.Get("OCI-Subject") != subject.String() {
			s.Errorf("OCI-Subject is %q", h.Get("OCI-Subject"))
		}
		want = append(want, d.String())
		if i == 0 {
			s.do(201, "PUT", "/v2/"+repo+"/manifests/subject", m, "Content-Type", fsm.TypeOCIManifest)
		}
		h, body := s.do(200, "GET", path, nil)
		for _, d := range want {
			if !bytes.Contains(body, []byte(d)) {
				s.Errorf("after %d: no %s in %s", i+1, d, body)
			}
		}
		if h.Get("Content-Type") != fsm.TypeOCIIndex {
			s.Errorf("referrers come as %s", h.Get("Content-Type"))
		}
	}
	if _, body := s.do(200, "GET", path+"?artifactType=a/b1", nil); bytes.Count(body, []byte(`"digest"`)) != 1 {
		s.Errorf("filtered: %s", body)
	}
}

func (s *suite) deletes() {
	repo := s.repo("deletes")
	m, d := s.image(repo, "")
	layer := digest.FromString("layer of " + repo)
	at := func(what string, ref any) string { return fmt.Sprintf("/v2/%s/%s/%s", repo, what, ref) }
	for range 2 { // and what was deleted can be pushed again
		s.image(repo, "")
		s.do(201, "PUT", at("manifests", "one"), m, "Content-Type", fsm.TypeOCIManifest)
		s.do(201, "PUT", at("manifests", "two"), m, "Content-Type", fsm.TypeOCIManifest)
		s.do(202, "DELETE", at("manifests", "one"), nil)
		s.do(404, "GET", at("manifests", "one"), nil)
		s.do(200, "GET", at("manifests", "two"), nil)
		s.do(202, "DELETE", at("manifests", d), nil)
		s.do(404, "GET", at("manifests", "two"), nil)
		s.do(404, "GET", at("manifests", d), nil)
		s.do(404, "DELETE", at("manifests", d), nil)
		s.do(202, "DELETE", at("blobs", layer), nil)
		s.do(404, "GET", at("blobs", layer), nil)
		s.do(404, "DELETE", at("blobs", layer), nil)
	}
}
