package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	// The two algorithms that the registry takes.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

// What the store refuses.
var (
	ErrUnknown        = errors.New("no such blob on this disk")
	ErrUploadUnknown  = errors.New("no such upload")
	ErrUploadBusy     = errors.New("another request is writing to this upload")
	ErrDigestMismatch = errors.New("the content does not have the digest")
	ErrNoSpace        = errors.New("the disk is full up to its reserve: delete images, or give it more room")
	ErrLost           = errors.New("the disk did not keep the bytes: send them again")
)

// DamagedError says that a file's content hasn't its digest. The file is in quarantine.
type DamagedError struct{ Digest digest.Digest }

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the copy of %s on this disk is damaged", e.Digest)
}

// OffsetError says that a chunk doesn't begin where the upload ends.
type OffsetError struct{ Size int64 }

func (e *OffsetError) Error() string {
	return fmt.Sprintf("the upload has %d bytes; the next chunk must begin there", e.Size)
}

// Config says where blobs live and what room stays free.
type Config struct {
	Dir          string
	Reserve      float64 // share of the disk that is never used, 0.05 when zero
	ReserveBytes int64   // in its place, when above zero
	UploadTTL    time.Duration
	TrashKeep    time.Duration
	Now          func() time.Time
	Logger       *slog.Logger
}

// Store is safe for concurrent use.
type Store struct {
	cfg      Config
	verified sync.Map // digest → stamp: the file as it was when its digest was last checked
	checks   singleflight.Group
	fsync    func(*os.File) error
	syncs    dirSyncer
	durable  sync.Map // folder → true: its name has been fsynced
	halves   sync.Map // digest → half: how far a fetch came that ended
	blobs    atomic.Int64
	bytes    atomic.Int64

	mu       sync.Mutex
	changed  chan struct{}
	uploads  map[string]*Upload
	settling map[digest.Digest]*settling
}

// settling is a blob that is being made final; hidden while its name isn't durable.
type settling struct {
	done   chan struct{}
	hidden bool
}

// stamp tells whether a file is the one that was verified.
type stamp struct {
	inode uint64
	size  int64
	mtime int64
}

// openTries is how often a file may be replaced while it is opened.
const openTries = 5

var folders = []string{"blobs/sha256", "blobs/sha512", "uploads", "fetches", "quarantine", "trash"}

// Open prepares the folders and counts what is there.
func Open(cfg Config) (*Store, error) {
	if cfg.Reserve == 0 {
		cfg.Reserve = 0.05
	}
	if cfg.UploadTTL == 0 {
		cfg.UploadTTL = 24 * time.Hour
	}
	if cfg.TrashKeep == 0 {
		cfg.TrashKeep = 24 * time.Hour
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		cfg: cfg, fsync: (*os.File).Sync, changed: make(chan struct{}), uploads: make(map[string]*Upload),
		settling: make(map[digest.Digest]*settling),
	}
	s.syncs.folder = s.syncFolder
	for _, f := range folders {
		if err := os.MkdirAll(s.path(f), 0o700); err != nil {
			return nil, fmt.Errorf("make the folder for blobs: %w", err)
		}
	}
	if err := errors.Join(s.syncFolder(s.path("blobs")), s.syncFolder(s.cfg.Dir)); err != nil {
		return nil, fmt.Errorf("make the folder for blobs durable: %w", err)
	}
	err := s.Walk(context.Background(), func(_ digest.Digest, size int64) error {
		s.count(1, size)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, s.openUploads()
}

// Run expires idle uploads and empties old trash until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.expireUploads()
			s.emptyTrash()
		}
	}
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Dir}, parts...)...)
}

func (s *Store) blobPath(d digest.Digest) string {
	return s.path("blobs", string(d.Algorithm()), d.Encoded()[:2], d.Encoded())
}

// Stat gives a blob's size, ErrUnknown when it isn't here.
func (s *Store) Stat(d digest.Digest) (int64, error) {
	if d.Validate() != nil {
		return 0, ErrUnknown
	}
	info, err := os.Stat(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) || s.hidden(d) {
		return 0, ErrUnknown
	}
	if err != nil {
		return 0, fmt.Errorf("look for %s: %w", d, err)
	}
	return info.Size(), nil
}

// Open gives a blob's file, verified. A damaged one goes to quarantine and is a *DamagedError.
func (s *Store) Open(d digest.Digest) (*os.File, error) {
	if d.Validate() != nil {
		return nil, ErrUnknown
	}
	for range openTries {
		f, err := os.Open(s.blobPath(d))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, ErrUnknown
		}
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", d, err)
		}
		if f, err = s.vouch(d, f); f != nil || err != nil {
			return f, err
		}
	}
	return nil, fmt.Errorf("open %s: its file changes all the time", d)
}

// vouch gives f back when it is the file that was verified. Nil means that another stands in its place now: a damaged one
// may have been healed meanwhile.
func (s *Store) vouch(d digest.Digest, f *os.File) (*os.File, error) {
	now, err := stampOf(f)
	for tries := 0; err == nil && tries < 2; tries++ {
		if known, ok := s.verified.Load(d); ok && known == now {
			return f, nil
		}
		if tries == 0 {
			err = s.verify(d)
		}
	}
	_ = f.Close()
	return nil, err
}

// verify hashes the blob's file, once for all who ask at the same time.
func (s *Store) verify(d digest.Digest) error {
	_, err, _ := s.checks.Do(string(d), func() (any, error) {
		f, err := os.Open(s.blobPath(d))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, ErrUnknown
		}
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", d, err)
		}
		defer func() { _ = f.Close() }()
		before, err := stampOf(f)
		if err != nil {
			return nil, err
		}
		v := d.Verifier()
		_, err = io.Copy(v, f)
		if err != nil && !errors.Is(err, syscall.EIO) {
			return nil, fmt.Errorf("read %s: %w", d, err)
		}
		if err != nil || !v.Verified() {
			s.cfg.Logger.Error("a blob's file is damaged; moving it to quarantine", "digest", d)
			return nil, errors.Join(&DamagedError{Digest: d}, s.Quarantine(d))
		}
		s.verified.Store(d, before)
		return nil, nil
	})
	return err
}

func stampOf(f *os.File) (stamp, error) {
	info, err := f.Stat()
	if err != nil {
		return stamp{}, err
	}
	st := stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		st.inode = uint64(sys.Ino)
	}
	return st, nil
}

// Quarantine takes a blob out of service and keeps its bytes for whoever wants to know what happened.
func (s *Store) Quarantine(d digest.Digest) error { return s.moveOut(d, "quarantine") }

// Doubt has a blob's file verified again before the next reader gets it.
func (s *Store) Doubt(d digest.Digest) { s.verified.Delete(d) }

// Release moves a blob that this node needn't hold to the trash.
func (s *Store) Release(d digest.Digest) error { return s.moveOut(d, "trash") }

// ReleaseAll moves every blob to the trash.
func (s *Store) ReleaseAll(ctx context.Context) error {
	err := s.Walk(ctx, func(d digest.Digest, size int64) error { return s.move(d, size, "trash") })
	return errors.Join(err, s.syncs.sync(s.path("trash")))
}

func (s *Store) moveOut(d digest.Digest, folder string) error {
	size, err := s.Stat(d)
	if err != nil {
		return err
	}
	if err := s.move(d, size, folder); err != nil {
		return err
	}
	return errors.Join(s.syncs.sync(s.path(folder)), s.syncs.sync(filepath.Dir(s.blobPath(d))))
}

func (s *Store) move(d digest.Digest, size int64, folder string) error {
	name := fmt.Sprintf("%s-%s-%d", d.Algorithm(), d.Encoded(), s.cfg.Now().UnixNano())
	if err := os.Rename(s.blobPath(d), s.path(folder, name)); err != nil {
		return fmt.Errorf("move %s to %s: %w", d, folder, err)
	}
	s.verified.Delete(d)
	s.count(-1, -size)
	s.notify()
	return nil
}

// emptyTrash removes what has been there for long.
func (s *Store) emptyTrash() {
	for _, name := range s.trash() {
		if s.cfg.Now().Sub(movedAt(name)) <= s.cfg.TrashKeep {
			return
		}
		_ = os.Remove(s.path("trash", name))
	}
}

// trash lists the files in it, those that were moved there first first.
func (s *Store) trash() []string {
	entries, _ := os.ReadDir(s.path("trash"))
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.SortFunc(names, func(a, b string) int { return movedAt(a).Compare(movedAt(b)) })
	return names
}

// movedAt is when a file came into the trash, which its name says: the file itself is as old as the blob.
func movedAt(name string) time.Time {
	ns, _ := strconv.ParseInt(name[strings.LastIndexByte(name, '-')+1:], 10, 64)
	return time.Unix(0, ns)
}

// Walk calls fn for every blob; its error ends the walk.
func (s *Store) Walk(ctx context.Context, fn func(d digest.Digest, size int64) error) error {
	return filepath.WalkDir(s.path("blobs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return errors.Join(err, ctx.Err())
		}
		algorithm := filepath.Base(filepath.Dir(filepath.Dir(path)))
		d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), e.Name())
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || d.Validate() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		return fn(d, info.Size())
	})
}

// Count gives the number of blobs and their bytes.
func (s *Store) Count() (blobs, bytes int64) { return s.blobs.Load(), s.bytes.Load() }

func (s *Store) count(blobs, bytes int64) {
	s.blobs.Add(blobs)
	s.bytes.Add(bytes)
}

// Changed is closed when the next blob comes or goes.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *Store) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// noSpace gives a full disk its own name.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (%w)", ErrNoSpace, err)
	}
	return err
}

// Space gives the free bytes of the disk, and how many must stay free.
func (s *Store) Space() (free, reserve int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.cfg.Dir, &st); err != nil {
		return 0, 0, fmt.Errorf("measure the disk: %w", err)
	}
	block := int64(st.Bsize)
	reserve = s.cfg.ReserveBytes
	if reserve <= 0 {
		reserve = int64(float64(st.Blocks) * float64(block) * s.cfg.Reserve)
	}
	return int64(st.Bavail) * block, reserve, nil
}

// Room refuses n more bytes when they would touch the reserve, and when the trash has nothing left to make way: what lies
// there is with the nodes that are to hold it.
func (s *Store) Room(n int64) error {
	if err := s.room(n); !errors.Is(err, ErrNoSpace) {
		return err
	}
	for _, name := range s.trash() {
		if err := os.Remove(s.path("trash", name)); err != nil {
			return err
		}
		if err := s.room(n); !errors.Is(err, ErrNoSpace) {
			return err
		}
	}
	return ErrNoSpace
}

func (s *Store) room(n int64) error {
	free, reserve, err := s.Space()
	if err == nil && free-n < reserve {
		err = ErrNoSpace
	}
	return err
}
