package harness

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/fsm"
)

// Image is what a test pushes: random layers, so that nothing is there before.
type Image struct {
	Repo, Tag string
	Blobs     map[digest.Digest][]byte
	Manifest  []byte
	Digest    digest.Digest
}

// NewImage makes an image with a config and layers of the given sizes.
func NewImage(repo, tag string, sizes ...int) Image {
	img := Image{Repo: repo, Tag: tag, Blobs: map[digest.Digest][]byte{}}
	add := func(mediaType string, data []byte) fsm.Descriptor {
		d := digest.FromBytes(data)
		img.Blobs[d] = data
		return fsm.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // never fails
	m := struct {
		SchemaVersion int              `json:"schemaVersion"`
		MediaType     string           `json:"mediaType"`
		Config        fsm.Descriptor   `json:"config"`
		Layers        []fsm.Descriptor `json:"layers"`
	}{SchemaVersion: 2, MediaType: fsm.TypeOCIManifest}
	m.Config = add("application/vnd.oci.image.config.v1+json", fmt.Appendf(nil, `{"nonce":"%x"}`, nonce))
	for _, size := range sizes {
		layer := make([]byte, size)
		_, _ = rand.Read(layer) // never fails
		m.Layers = append(m.Layers, add("application/vnd.oci.image.layer.v1.tar", layer))
	}
	img.Manifest, _ = json.Marshal(m) // strings and numbers
	img.Digest = digest.FromBytes(img.Manifest)
	return img
}

// AnyBlob is one of the image's blobs.
func (img Image) AnyBlob() digest.Digest {
	for d := range img.Blobs {
		return d
	}
	return ""
}

// Client speaks to one node, as somebody or as nobody in particular.
type Client struct {
	name        string
	url         func() string
	http        *http.Client
	credentials string // the Authorization header; empty: none
}

// As is a client that shows these credentials, such as a BasicAuth, with each request.
func (c *Client) As(credentials string) *Client {
	as := *c
	as.credentials = credentials
	return &as
}

// Over is the same client over other connections.
func (c *Client) Over(h *http.Client) *Client {
	over := *c
	over.http = h
	return &over
}

// Basic is a name and a password as a request shows them.
func Basic(name, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
}

// Do sends a request to the node and gives the answer with its body read.
func (c *Client) Do(method, path string, body []byte, header ...string) (*http.Response, []byte, error) {
	return c.Send(context.Background(), method, path, bytes.NewReader(body), header...)
}

// Send is Do with a body that streams, for as long as ctx lets it.
func (c *Client) Send(ctx context.Context, method, path string, body io.Reader, header ...string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url()+path, body)
	if err != nil {
		return nil, nil, err
	}
	if c.credentials != "" {
		req.Header.Set("Authorization", c.credentials)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	return resp, data, err
}

// Want sends a request and makes any answer but the status an error.
func (c *Client) Want(status int, method, path string, body []byte, header ...string) ([]byte, *http.Response, error) {
	resp, data, err := c.Do(method, path, body, header...)
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s %s: %w", c.name, method, path, err)
	}
	if resp.StatusCode != status {
		return data, resp, fmt.Errorf("%s %s %s: %s, not %d: %s", c.name, method, path, resp.Status, status, data)
	}
	return data, resp, nil
}

// Push pushes through the node as a plain client would, without retries.
func (c *Client) Push(img Image) error {
	for d, data := range img.Blobs {
		if err := c.PushBlob(img.Repo, d, data); err != nil {
			return err
		}
	}
	_, _, err := c.Want(http.StatusCreated, http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", img.Repo, img.Tag), img.Manifest,
		"Content-Type", fsm.TypeOCIManifest)
	return err
}

// PushBlob uploads one blob in two requests.
func (c *Client) PushBlob(repo string, d digest.Digest, data []byte) error {
	_, resp, err := c.Want(http.StatusAccepted, http.MethodPost, "/v2/"+repo+"/blobs/uploads/", nil)
	if err != nil {
		return err
	}
	_, _, err = c.Want(http.StatusCreated, http.MethodPut, resp.Header.Get("Location")+"?digest="+d.String(), data)
	return err
}

// Pull fetches the image by its tag and checks every byte.
func (c *Client) Pull(img Image) error {
	body, resp, err := c.Want(http.StatusOK, http.MethodGet, fmt.Sprintf("/v2/%s/manifests/%s", img.Repo, img.Tag), nil)
	if err != nil {
		return err
	}
	if w := resp.Header.Get("Warning"); w != "" {
		return fmt.Errorf("%s answered the tag with a warning: %s", c.name, w)
	}
	if !bytes.Equal(body, img.Manifest) {
		return fmt.Errorf("%s serves another manifest for %s: %.200s", c.name, img.Tag, body)
	}
	return c.PullDigests(img)
}

// PullDigests fetches manifest and blobs by digest alone.
func (c *Client) PullDigests(img Image) error {
	body, _, err := c.Want(http.StatusOK, http.MethodGet, fmt.Sprintf("/v2/%s/manifests/%s", img.Repo, img.Digest), nil)
	if err != nil {
		return err
	}
	if !bytes.Equal(body, img.Manifest) {
		return fmt.Errorf("%s serves other bytes under %s", c.name, img.Digest)
	}
	for d, data := range img.Blobs {
		got, _, err := c.Want(http.StatusOK, http.MethodGet, fmt.Sprintf("/v2/%s/blobs/%s", img.Repo, d), nil)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, data) {
			return fmt.Errorf("%s serves other bytes under %s", c.name, d)
		}
	}
	return nil
}

// PushPatiently pushes as docker does: it begins again after an answer that says that trying again may help.
func (c *Client) PushPatiently(img Image) error {
	return again(func() error { return c.Push(img) }, whereTryingHelps...)
}

// PullPatiently pulls again when the node says that it can't be sure of the tag now, or is away. It takes no 404 for an answer
// that may change.
func (c *Client) PullPatiently(img Image) error {
	return again(func() error { return c.Pull(img) }, ": 503 ", "EOF", "reset", "refused", "with a warning")
}

// Patiently does something again as long as its error is one on which clients that push try again.
func (c *Cluster) Patiently(do func() error) error {
	return again(do, whereTryingHelps...)
}

// whereTryingHelps is what the errors say on which clients that push try again. A node that stops closes the connections that
// nobody uses, and a request that is just about to use one hears of it in words of its own.
var whereTryingHelps = []string{": 503 ", ": 404 ", "EOF", "reset", "refused", "closed idle connection"}

func again(do func() error, on ...string) error {
	deadline := time.Now().Add(patience)
	for {
		err := do()
		if err == nil || time.Now().After(deadline) || !slices.ContainsFunc(on, func(s string) bool { return strings.Contains(err.Error(), s) }) {
			return err
		}
		wait(context.Background(), 50*time.Millisecond)
	}
}

// Trust makes the cluster's own clients trust a CA, PEM, in place of any other. It comes before their first request.
func (c *Cluster) Trust(ca []byte) {
	c.T.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		c.T.Fatal("the CA's PEM is no certificate")
	}
	c.http.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: roots}
}

// Must ends the test when err isn't nil.
func (c *Cluster) Must(err error) {
	c.T.Helper()
	if err != nil {
		c.T.Fatal(err)
	}
}

// Whole waits until every running node holds every blob of the images on its own disk, then pulls each image everywhere.
func (c *Cluster) Whole(images ...Image) {
	c.T.Helper()
	c.Eventually("every node holds every blob", func() bool {
		for _, x := range c.Nodes {
			if !x.Running() {
				continue
			}
			for _, img := range images {
				for d := range img.Blobs {
					if !x.Holds(d) {
						return false
					}
				}
			}
		}
		return true
	})
	for _, x := range c.Nodes {
		if !x.Running() {
			continue
		}
		for _, img := range images {
			c.Must(x.PullPatiently(img))
		}
	}
}

// HoldConnections opens n connections to an address that say nothing until the test ends.
func HoldConnections(t testing.TB, address string, n int) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
}
