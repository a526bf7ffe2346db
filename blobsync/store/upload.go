package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
)

const (
	metaSuffix = ".json"
	nextSuffix = ".tmp"
	bufferSize = 128 << 10
	// roomEvery is how many bytes may be written between two looks at the free space.
	roomEvery = 8 << 20
	// rememberCommitted is how long a finished upload answers a repeated commit.
	rememberCommitted = 2 * time.Hour
)

// Upload is a blob on its way in: a file that is hashed as it is written. It survives a restart. One writer at a time;
// the rest is safe for concurrent use.
type Upload struct {
	s    *Store
	id   string
	meta uploadMeta

	mu       sync.Mutex
	busy     bool
	size     int64
	hash     hash.Hash // of the first size bytes; nil when they must be read again
	lastUsed time.Time
	gone     bool
}

// uploadMeta is what must outlive a restart beside the bytes.
type uploadMeta struct {
	Label     string           `json:"label"`
	Algorithm digest.Algorithm `json:"algorithm"`
	Started   time.Time        `json:"started"`
	Committed digest.Digest    `json:"committed,omitempty"`
	Size      int64            `json:"size,omitempty"`
}

// NewUpload begins an upload. The label is the caller's own; the algorithm is what its bytes are hashed with as they come.
func (s *Store) NewUpload(label string, alg digest.Algorithm) (*Upload, error) {
	if alg == "" {
		alg = digest.SHA256
	}
	if err := s.Room(0); err != nil {
		return nil, err
	}
	u := &Upload{s: s, id: uuid.NewString(), hash: alg.Hash(), lastUsed: s.cfg.Now()}
	u.meta = uploadMeta{Label: label, Algorithm: alg, Started: u.lastUsed}
	f, err := os.OpenFile(u.path(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("begin an upload: %w", noSpace(err))
	}
	if err := errors.Join(f.Close(), u.saveMeta()); err != nil {
		u.remove()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uploads[u.id] = u
	return u, nil
}

// FindUpload finds an upload that is open, or committed not long ago.
func (s *Store) FindUpload(id string) (*Upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u, ok := s.uploads[id]; ok {
		return u, nil
	}
	return nil, ErrUploadUnknown
}

// OpenUploads counts the uploads that are neither committed nor cancelled.
func (s *Store) OpenUploads() int {
	n := 0
	for _, u := range s.listUploads() {
		u.mu.Lock()
		if u.meta.Committed == "" {
			n++
		}
		u.mu.Unlock()
	}
	return n
}

func (s *Store) listUploads() []*Upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Upload, 0, len(s.uploads))
	for _, u := range s.uploads {
		out = append(out, u)
	}
	return out
}

// openUploads finds the uploads of the process before.
func (s *Store) openUploads() error {
	entries, err := os.ReadDir(s.path("uploads"))
	if err != nil {
		return fmt.Errorf("look for open uploads: %w", err)
	}
	for _, e := range entries {
		id, isMeta := strings.CutSuffix(e.Name(), metaSuffix)
		if isMeta {
			s.openUpload(id)
		}
	}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".")
		if s.uploads[id] == nil || strings.HasSuffix(e.Name(), nextSuffix) {
			_ = os.Remove(s.path("uploads", e.Name()))
		}
	}
	return nil
}

func (s *Store) openUpload(id string) {
	u := &Upload{s: s, id: id}
	data, err := os.ReadFile(u.path() + metaSuffix)
	if err != nil || json.Unmarshal(data, &u.meta) != nil {
		return
	}
	info, err := os.Stat(u.path())
	switch {
	case err == nil:
		u.size, u.lastUsed = info.Size(), info.ModTime()
	case u.meta.Committed != "":
		u.size, u.lastUsed = u.meta.Size, u.meta.Started
	default:
		return
	}
	s.uploads[id] = u
}

func (s *Store) expireUploads() {
	now := s.cfg.Now()
	for _, u := range s.listUploads() {
		u.mu.Lock()
		idle := now.Sub(u.lastUsed)
		old := idle > s.cfg.UploadTTL || u.meta.Committed != "" && idle > rememberCommitted
		if old = old && !u.busy; old {
			u.gone = true
		}
		u.mu.Unlock()
		if old {
			u.drop()
		}
	}
}

func (u *Upload) path() string { return u.s.path("uploads", u.id) }

func (u *Upload) saveMeta() error {
	data, err := json.Marshal(u.meta)
	if err != nil {
		return err
	}
	next := u.path() + nextSuffix
	err = os.WriteFile(next, data, 0o600)
	if err == nil {
		err = os.Rename(next, u.path()+metaSuffix)
	}
	if err != nil {
		return fmt.Errorf("keep the upload's record: %w", noSpace(err))
	}
	return nil
}

// ID names the upload on this node.
func (u *Upload) ID() string { return u.id }

// Label is what the upload was begun with.
func (u *Upload) Label() string { return u.meta.Label }

// Size is how many bytes have come.
func (u *Upload) Size() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size
}

// take makes the caller the one writer.
func (u *Upload) take() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gone {
		return ErrUploadUnknown
	}
	if u.busy {
		return ErrUploadBusy
	}
	u.busy = true
	u.lastUsed = u.s.cfg.Now()
	return nil
}

func (u *Upload) giveBack() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.busy = false
	u.lastUsed = u.s.cfg.Now()
}

// Append writes what r has at the given offset, -1 for the end, and gives how many bytes were kept. Bytes of a body that
// breaks stay: the upload goes on behind them.
func (u *Upload) Append(ctx context.Context, at int64, r io.Reader) (int64, error) {
	if err := u.take(); err != nil {
		return 0, err
	}
	defer u.giveBack()
	size := u.Size()
	if u.meta.Committed != "" || at >= 0 && at != size {
		return 0, &OffsetError{Size: size}
	}
	if err := u.rehash(); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(u.path(), os.O_WRONLY, 0)
	if err != nil {
		return 0, fmt.Errorf("open the upload: %w", err)
	}
	w := &uploadWriter{ctx: ctx, u: u, f: f, room: 0}
	buf := make([]byte, bufferSize)
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buf)
	return n, errors.Join(err, noSpace(f.Close()))
}

// uploadWriter writes behind the upload's end, and keeps size and hash in step with the file.
type uploadWriter struct {
	ctx  context.Context
	u    *Upload
	f    *os.File
	room int64
}

func (w *uploadWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	if w.room < int64(len(p)) {
		if err := w.u.s.Room(roomEvery); err != nil {
			return 0, err
		}
		w.room = roomEvery
	}
	w.room -= int64(len(p))
	n, err := w.f.WriteAt(p, w.u.Size())
	w.u.mu.Lock()
	defer w.u.mu.Unlock()
	w.u.hash.Write(p[:n])
	w.u.size += int64(n)
	return n, noSpace(err)
}

// rehash reads the upload's bytes again where their hash state was lost with a restart.
func (u *Upload) rehash() error {
	if u.hash != nil {
		return nil
	}
	h, err := hashFile(u.path(), u.meta.Algorithm, u.Size())
	if err != nil {
		return err
	}
	u.hash = h
	return nil
}

func hashFile(path string, alg digest.Algorithm, size int64) (hash.Hash, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read an upload again: %w", err)
	}
	defer func() { _ = f.Close() }()
	h := alg.Hash()
	if _, err := io.CopyN(h, f, size); err != nil {
		return nil, fmt.Errorf("read an upload again: %w", err)
	}
	return h, nil
}

// Commit checks the digest and makes the bytes a blob. ErrDigestMismatch leaves the upload as it is. Committing again with
// the same digest succeeds.
func (u *Upload) Commit(ctx context.Context, d digest.Digest) (int64, error) {
	if err := d.Validate(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrDigestMismatch, err)
	}
	if err := u.take(); err != nil {
		return 0, err
	}
	defer u.giveBack()
	if u.meta.Committed != "" {
		if _, err := u.s.Stat(d); u.meta.Committed != d || errors.Is(err, ErrUnknown) {
			return 0, ErrUploadUnknown // another one, or a blob that has gone since
		}
		return u.meta.Size, nil
	}
	if err := u.check(d); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	size := u.Size()
	err := u.sync()
	if err == nil {
		err = u.s.adopt(u.path(), d, size)
	}
	if errors.Is(err, ErrLost) {
		u.mu.Lock()
		u.gone = true
		u.mu.Unlock()
		u.drop()
	}
	if err != nil {
		return 0, err
	}
	u.mu.Lock()
	u.meta.Committed, u.meta.Size = d, size
	u.mu.Unlock()
	_ = u.saveMeta() // only a repeated commit after a crash would miss it
	return size, nil
}

func (u *Upload) check(d digest.Digest) error {
	if err := u.rehash(); err != nil {
		return err
	}
	h := u.hash
	if d.Algorithm() != u.meta.Algorithm {
		var err error
		if h, err = hashFile(u.path(), d.Algorithm(), u.Size()); err != nil {
			return err
		}
	}
	if got := digest.NewDigest(d.Algorithm(), h); got != d {
		return fmt.Errorf("%w: the %d bytes have %s", ErrDigestMismatch, u.Size(), got)
	}
	return nil
}

func (u *Upload) sync() error {
	f, err := os.OpenFile(u.path(), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the upload: %w", err)
	}
	return errors.Join(u.s.syncFile(f), f.Close())
}

// Cancel ends the upload and drops its bytes.
func (u *Upload) Cancel() error {
	if err := u.take(); err != nil {
		return err
	}
	u.mu.Lock()
	if u.meta.Committed != "" {
		u.busy = false
		u.mu.Unlock()
		return ErrUploadUnknown
	}
	u.gone = true
	u.mu.Unlock()
	u.drop()
	return nil
}

func (u *Upload) drop() {
	u.s.mu.Lock()
	delete(u.s.uploads, u.id)
	u.s.mu.Unlock()
	u.remove()
}

func (u *Upload) remove() {
	_ = os.Remove(u.path())
	_ = os.Remove(u.path() + metaSuffix)
	_ = os.Remove(u.path() + nextSuffix)
}
