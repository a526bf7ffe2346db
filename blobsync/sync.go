package blobsync

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"pier/blobsync/store"
)

// NodeID is the ID of a node of the cluster.
type NodeID string

// What api needs of the store comes through here.
type (
	Upload       = store.Upload
	OffsetError  = store.OffsetError
	DamagedError = store.DamagedError
)

// Errors of the store, and of what may be beyond this node.
var (
	ErrUploadUnknown  = store.ErrUploadUnknown
	ErrUploadBusy     = store.ErrUploadBusy
	ErrDigestMismatch = store.ErrDigestMismatch
	ErrNoSpace        = store.ErrNoSpace
	ErrLost           = store.ErrLost
	ErrUnwanted       = errors.New("no repository has this blob")
	ErrNoHolder       = errors.New("no node that can be reached holds this blob")
)

// ShortError says that blobs don't have enough copies yet. The copying goes on.
type ShortError struct {
	Digests []digest.Digest
	Need    int
}

func (e *ShortError) Error() string {
	return fmt.Sprintf("%d blobs do not have %d copies yet; the copying goes on, try again", len(e.Digests), e.Need)
}

// Blob is a digest that the state wants.
type Blob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Origin NodeID        `json:"origin"`
	Since  uint64        `json:"since"`
}

// Node is a member and what is thought of it.
type Node struct {
	ID             NodeID
	Up             bool // a hint
	Away, Draining bool
}

// Index is the replicated state as blobsync sees it.
type Index interface {
	Blob(d digest.Digest) (Blob, error) // ErrUnwanted
	// Wanted pages through the blobs in the order of (Since, Digest), from `since` on and after `after` within it.
	Wanted(since uint64, after digest.Digest, n int) ([]Blob, bool, error)
	Changed() <-chan struct{}
	Installs() uint64
}

// Peers are the members, and how to reach them: the host of a URL is a node's ID.
type Peers interface {
	Self() NodeID
	Nodes() []Node
	Transport() http.RoundTripper
}

// Config bounds the copying. Zero values mean the defaults.
type Config struct {
	Replicas        int   // nodes that hold a blob; 0: all
	WriteCopies     int   // copies that a push waits for; 0: a majority of those that are to hold it
	Workers         int   // fetches at a time, those that somebody waits for aside; 4
	Rate            int64 // bytes per second that this node fetches; 0: no limit
	EnsureTimeout   time.Duration
	IdleTimeout     time.Duration
	CompareInterval time.Duration
	Logger          *slog.Logger
}

// Sync is safe for concurrent use.
type Sync struct {
	cfg     Config
	store   *store.Store
	index   Index
	peers   Peers
	limit   *rate.Limiter
	fetched atomic.Int64
	served  atomic.Int64
	trust   trust
	hurried chan struct{} // a place for each fetch that a push waits for
	letting sync.Mutex    // one promises to keep, or lets go

	mu      sync.Mutex
	running context.Context // of Run; fetches live in it
	work    sync.WaitGroup
	flights map[digest.Digest]*flight
	missing queue
	surplus map[digest.Digest]Blob // held, though others are to hold it
	poke    chan struct{}
	began   chan struct{} // closed when Run has begun
}

const (
	pageSize   = 1000
	firstPause = 250 * time.Millisecond
	lastPause  = 30 * time.Second
	// lastEnsurePause is shorter, since a push waits.
	lastEnsurePause = 4 * time.Second
	// compareAll is how many intervals pass before everything is compared though nothing seems to have changed.
	compareAll = 60
)

// New wires a Sync; nothing runs yet.
func New(cfg Config, st *store.Store, index Index, peers Peers) (*Sync, error) {
	if cfg.Replicas < 0 || cfg.WriteCopies < 0 || cfg.Rate < 0 {
		return nil, errors.New("replicas, write copies and the rate can't be negative")
	}
	orDefault(&cfg.Workers, 4)
	orDefault(&cfg.EnsureTimeout, 30*time.Second)
	orDefault(&cfg.IdleTimeout, 20*time.Second)
	orDefault(&cfg.CompareInterval, time.Minute)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Sync{
		cfg: cfg, store: st, index: index, peers: peers, flights: make(map[digest.Digest]*flight),
		missing: newQueue(), surplus: make(map[digest.Digest]Blob), poke: make(chan struct{}, 1), began: make(chan struct{}),
		hurried: make(chan struct{}, ensureAtOnce),
	}
	if cfg.Rate > 0 {
		s.limit = rate.NewLimiter(rate.Limit(cfg.Rate), max(int(min(cfg.Rate, 4<<20)), copyBuffer))
	}
	return s, nil
}

func orDefault[T int | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Run follows the state and fetches until ctx ends, once; no goroutine is left when it returns.
func (s *Sync) Run(ctx context.Context) error {
	s.mu.Lock()
	s.running = ctx
	s.mu.Unlock()
	close(s.began)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.compare(ctx) })
	group.Go(func() error { return s.dispatch(ctx) })
	err := group.Wait()
	s.mu.Lock()
	s.running = nil
	s.mu.Unlock()
	s.work.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// compare reads the feed from where it stands, and from the beginning after an installed snapshot, when nodes came or went,
// and now and then for what no hint tells: a tick costs what changed.
func (s *Sync) compare(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.CompareInterval)
	defer tick.Stop()
	var since uint64
	var after digest.Digest
	var placed []Node
	installs, ticks := s.index.Installs(), compareAll
	for {
		changed := s.index.Changed()
		nodes := placing(s.peers.Nodes())
		if n := s.index.Installs(); n != installs || ticks >= compareAll || s.moved(placed, nodes) {
			installs, since, after, ticks, placed = n, 0, "", 0, nodes
			s.sweep()
		}
		for ctx.Err() == nil {
			blobs, more, err := s.index.Wanted(since, after, pageSize)
			if err != nil {
				s.cfg.Logger.Error("can't read what is wanted", "err", err)
				break
			}
			nodes := s.peers.Nodes()
			for _, b := range blobs {
				s.consider(b, nodes)
				since, after = b.Since, b.Digest
			}
			if !more {
				break
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
			ticks++
			s.handOver(ctx)
		}
	}
}

// placing leaves of the nodes what decides on places.
func placing(nodes []Node) []Node {
	for i := range nodes {
		nodes[i].Up = false
	}
	return nodes
}

// moved tells whether other blobs may be this node's now.
func (s *Sync) moved(before, now []Node) bool {
	if s.cfg.Replicas > 0 {
		return !slices.Equal(before, now)
	}
	self := func(n Node) bool { return n.ID == s.peers.Self() }
	i, j := slices.IndexFunc(before, self), slices.IndexFunc(now, self)
	return i < 0 != (j < 0) || i >= 0 && before[i] != now[j]
}

// sweep drops the beginnings of blobs that nobody wants any more.
func (s *Sync) sweep() {
	err := s.store.SweepFetches(func(d digest.Digest) bool {
		_, err := s.index.Blob(d)
		return !errors.Is(err, ErrUnwanted)
	})
	if err != nil {
		s.cfg.Logger.Warn("can't drop unfinished fetches", "err", err)
	}
}

// consider puts a blob on the list of what is missing when this node should have it and hasn't, and on the list of what is
// to go when it is the other way round.
func (s *Sync) consider(b Blob, nodes []Node) {
	mine, has := s.mine(b, nodes), s.has(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case mine && !has:
		if s.missing.add(b, time.Now()) {
			s.wake()
		}
	case has && !mine && s.cfg.Replicas > 0:
		s.surplus[b.Digest] = b
	}
}

func (s *Sync) wake() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// dispatch fetches what is missing, the smallest first, with as many workers as the setting says.
func (s *Sync) dispatch(ctx context.Context) error {
	slots := make(chan struct{}, s.cfg.Workers)
	for {
		select {
		case <-ctx.Done():
			return nil
		case slots <- struct{}{}:
		}
		p, err := s.await(ctx)
		if err != nil {
			return nil
		}
		s.work.Go(func() {
			defer func() { <-slots }()
			s.fill(ctx, p)
		})
	}
}

// await takes the next blob to fetch.
func (s *Sync) await(ctx context.Context) (*pending, error) {
	for {
		s.mu.Lock()
		p, wait := s.missing.take(time.Now())
		s.mu.Unlock()
		if p != nil {
			return p, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.poke:
		case <-time.After(wait):
		}
	}
}

// fill fetches one missing blob; a failure is tried again after a growing pause.
func (s *Sync) fill(ctx context.Context, p *pending) {
	current, err := s.index.Blob(p.blob.Digest)
	gone := errors.Is(err, ErrUnwanted) || err == nil && !s.mine(current, s.peers.Nodes())
	if !gone && err == nil {
		err = s.fetch(ctx, current)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if gone || err == nil {
		s.missing.done(p)
		return
	}
	before := p.pause
	s.missing.again(p, time.Now())
	if before < lastPause && p.pause == lastPause && ctx.Err() == nil {
		s.cfg.Logger.Warn("a blob is still missing here", "digest", p.blob.Digest, "err", err) // once, not at every try
	}
	s.wake()
}

// NewUpload begins an upload on this node.
func (s *Sync) NewUpload(label string, alg digest.Algorithm) (*Upload, error) {
	return s.store.NewUpload(label, alg)
}

// FindUpload finds one.
func (s *Sync) FindUpload(id string) (*Upload, error) { return s.store.FindUpload(id) }

// Figures are what metrics and status show.
type Figures struct {
	Blobs, Bytes, Wanted, Missing, FetchedBytes, ServedBytes int64
	OldestMissing                                            time.Duration
	DiskFree, UploadsOpen                                    int64
}

// Figures counts.
func (s *Sync) Figures() Figures {
	f := Figures{FetchedBytes: s.fetched.Load(), ServedBytes: s.served.Load(), UploadsOpen: int64(s.store.OpenUploads())}
	f.Blobs, f.Bytes = s.store.Count()
	f.DiskFree, _, _ = s.store.Space()
	s.mu.Lock()
	defer s.mu.Unlock()
	f.Missing = int64(len(s.missing.all))
	f.Wanted = f.Blobs + f.Missing
	for _, p := range s.missing.all {
		f.OldestMissing = max(f.OldestMissing, time.Since(p.since))
	}
	return f
}
