package api

import (
	"fmt"
	"io"
	"net/http"
	"net/url"

	"pier/blobsync"
)

// hopHeaders belong to one connection and are not passed on.
var hopHeaders = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect"}

// relay sends a request for an upload to the node that has the session, and its answer back. An owner that is gone is an
// upload that nobody knows: clients begin that blob again.
func (a *API) relay(w http.ResponseWriter, r *http.Request, rt route) error {
	if a.cfg.Relay == nil || !a.cfg.Alive(rt.owner) {
		return blobsync.ErrUploadUnknown
	}
	body := &relayBody{src: r.Body}
	out := r.Clone(r.Context())
	out.URL = &url.URL{Scheme: "http", Host: string(rt.owner), Path: "/relay" + rt.path(), RawQuery: r.URL.RawQuery}
	out.Host, out.RequestURI = "", ""
	out.Header.Set(headerRequestID, exchangeOf(r.Context()).id)
	for _, name := range hopHeaders {
		out.Header.Del(name)
	}
	out.Body = body
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	resp, err := a.cfg.Relay.RoundTrip(out)
	if err != nil {
		if body.err != nil {
			return body.err
		}
		if r.Context().Err() != nil {
			return r.Context().Err()
		}
		a.logger.Warn("the owner of an upload does not answer", "peer", rt.owner, "request", exchangeOf(r.Context()).id, "err", err)
		return fmt.Errorf("%w: its node %s does not answer", blobsync.ErrUploadUnknown, rt.owner)
	}
	defer func() { _ = resp.Body.Close() }()
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	for _, name := range hopHeaders {
		w.Header().Del(name)
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("copy the answer of %s: %w", rt.owner, err)
	}
	return nil
}

// relayBody remembers the client's own failure, to tell it from the owner's.
type relayBody struct {
	src io.ReadCloser
	err error
}

func (b *relayBody) Read(p []byte) (int, error) {
	n, err := b.src.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

func (b *relayBody) Close() error { return b.src.Close() }
