package blobsync

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/blobsync/store"
)

const maxList = 16 << 20

// Handler is what the other nodes ask, mounted at /blobs/.
func (s *Sync) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /blobs/{digest}", s.serveBlob)
	mux.HandleFunc("POST /blobs/has", s.serveHas)
	mux.HandleFunc("POST /blobs/keeps", s.serveKeeps)
	mux.HandleFunc("POST /blobs/ensure", s.serveEnsure)
	return mux
}

func (s *Sync) serveHas(w http.ResponseWriter, r *http.Request) {
	if list, ok := readList(w, r); ok {
		_ = json.NewEncoder(w).Encode(s.have(list))
	}
}

func (s *Sync) serveKeeps(w http.ResponseWriter, r *http.Request) {
	if list, ok := readList(w, r); ok {
		_ = json.NewEncoder(w).Encode(s.keeps(list))
	}
}

func readList(w http.ResponseWriter, r *http.Request) ([]Blob, bool) {
	var list []Blob
	if err := json.NewDecoder(io.LimitReader(r.Body, maxList)).Decode(&list); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil, false
	}
	return list, true
}

// serveEnsure writes a line for each blob as it comes to be on this disk.
func (s *Sync) serveEnsure(w http.ResponseWriter, r *http.Request) {
	list, ok := readList(w, r)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.EnsureTimeout)
	defer cancel()
	flush := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	_ = flush.Flush()
	s.ensureHere(ctx, list, func(d digest.Digest) {
		_, _ = fmt.Fprintln(w, d)
		_ = flush.Flush()
	})
}

// serveBlob sends a blob, from disk or as it comes. With join=1 the peer comes later in the chain: it may follow this
// node's fetch, and a node that has it not begins to. To others only what is there already is sent: two nodes that follow
// each other would both wait.
func (s *Sync) serveBlob(w http.ResponseWriter, r *http.Request) {
	d := digest.Digest(r.PathValue("digest"))
	if d.Validate() != nil {
		http.Error(w, "not a digest", http.StatusBadRequest)
		return
	}
	f, err := s.store.Open(d)
	if err == nil {
		defer func() { _ = f.Close() }()
		s.sendFile(w, r, f)
		return
	}
	s.mend(d, err)
	join := r.URL.Query().Get("join") != ""
	fl := s.underWay(d)
	if fl == nil && join {
		fl = s.joinFetch(d)
	}
	if fl == nil {
		http.Error(w, store.ErrUnknown.Error(), http.StatusNotFound)
		return
	}
	defer fl.release()
	end := fl.blob.Size
	if !join {
		end = fl.partial.Size()
	}
	s.sendGrowing(w, r, fl, end)
}

// mend has a damaged blob fetched again.
func (s *Sync) mend(d digest.Digest, err error) {
	var damaged *DamagedError
	if !errors.As(err, &damaged) {
		return
	}
	if b, err := s.index.Blob(d); err == nil {
		s.consider(b, s.peers.Nodes())
	}
}

func (s *Sync) sendFile(w http.ResponseWriter, r *http.Request, f *os.File) {
	w.Header().Set("Content-Type", "application/octet-stream")
	counted := &countingWriter{ResponseWriter: w, s: s}
	http.ServeContent(counted, r, "", time.Time{}, f)
}

type countingWriter struct {
	http.ResponseWriter
	s *Sync
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.s.served.Add(int64(n))
	return n, err
}

func (s *Sync) underWay(d digest.Digest) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[d]; f != nil && f.hold() {
		return f
	}
	return nil
}

// joinFetch begins to fetch what the state wants and this node is to hold.
func (s *Sync) joinFetch(d digest.Digest) *flight {
	b, err := s.index.Blob(d)
	if err != nil || !s.mine(b, s.peers.Nodes()) {
		return nil
	}
	f, err := s.board(b)
	if err != nil {
		return nil
	}
	return f
}

// sendGrowing follows a fetch. The peer checks the digest itself, so it gets bytes as they come.
func (s *Sync) sendGrowing(w http.ResponseWriter, r *http.Request, f *flight, end int64) {
	at := rangeStart(r)
	if at >= end {
		http.Error(w, "not that far yet", http.StatusNotFound)
		return
	}
	if _, _, err := f.partial.WaitFor(r.Context(), at); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(end-at, 10))
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, end-1, f.blob.Size))
	w.WriteHeader(http.StatusPartialContent)
	flush := http.NewResponseController(w)
	buf := make([]byte, copyBuffer)
	for at < end {
		have, _, err := f.partial.WaitFor(r.Context(), at)
		if err != nil || have <= at {
			panic(http.ErrAbortHandler) // the agreed way to break a body that can't be finished
		}
		n, err := f.partial.ReadAt(buf[:min(int64(len(buf)), have-at, end-at)], at)
		if n == 0 && err != nil {
			panic(http.ErrAbortHandler)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return
		}
		_ = flush.Flush()
		at += int64(n)
		s.served.Add(int64(n))
	}
}

func rangeStart(r *http.Request) int64 {
	text, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	text, _, found := strings.Cut(text, "-")
	n, err := strconv.ParseInt(text, 10, 64)
	if !ok || !found || err != nil || n < 0 {
		return 0
	}
	return n
}
