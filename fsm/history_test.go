package fsm

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// history makes log entries, numbered and stamped as a leader would. Every second index stays free for a repetition.
type history struct {
	rnd  *rand.Rand
	logs []*raft.Log
	put  []digest.Digest // manifests that were proposed
	who  uint64          // the index of the last command about who may do what
	seq  map[NodeID]*Identity
}

func newHistory(seed uint64, n int) *history {
	h := &history{rnd: rand.New(rand.NewPCG(seed, 1)), seq: map[NodeID]*Identity{"n1": {Node: "n1"}, "n2": {Node: "n2"}}}
	for range n {
		node := one(h, NodeID("n1"), "n2")
		c := h.command(node)
		if h.rnd.IntN(3) == 0 {
			c = Admitted{Access: one(h, h.who, h.who, 0), Command: c}
		}
		id := h.seq[node]
		id.Seq++
		id.Done = max(id.Seq, 4) - 4
		h.add(*id, c)
		if h.rnd.IntN(20) == 0 { // a new boot counts anew
			*id = Identity{Node: node, Epoch: id.Epoch + 1}
		}
		if h.rnd.IntN(20) == 0 {
			h.configuration()
		}
	}
	return h
}

func one[T any](h *history, of ...T) T { return of[h.rnd.IntN(len(of))] }

func (h *history) add(id Identity, c Command) {
	data, err := Encode(id, c)
	if err != nil {
		panic(err) // only for a command that isn't in the table
	}
	h.log(raft.LogCommand, data)
}

func (h *history) configuration() {
	h.log(raft.LogConfiguration, raft.EncodeConfiguration(raft.Configuration{
		Servers: []raft.Server{{ID: "n1", Address: raft.ServerAddress(fmt.Sprintf("a:%d", h.rnd.IntN(3)))}},
	}))
}

// next is the index of the next entry.
func (h *history) next() uint64 { return uint64(2*len(h.logs) + 2) }

// log stamps with clocks that disagree by up to five seconds, as those of two leaders may.
func (h *history) log(kind raft.LogType, data []byte) {
	i := h.next()
	stamp := time.UnixMilli(int64(1e12 + i*1000 - h.rnd.Uint64N(5000)))
	h.logs = append(h.logs, &raft.Log{Index: i, Term: 1 + i/40, Type: kind, Data: data, AppendedAt: stamp})
}

// command makes one that often fits those before it, and sometimes one that no proposer of ours would make.
func (h *history) command(node NodeID) Command {
	repo := one(h, Repo("a"), "b", "a/b")
	tag := one(h, Tag("t"), "u", Tag("sha256-"+blobDigest(0).Encoded()))
	blob := blobDigest(h.rnd.IntN(4))
	switch h.rnd.IntN(18) {
	case 0, 1, 2:
		return LinkBlob{Repo: repo, Digest: blob, Size: 1, Origin: node}
	case 3:
		return MountBlob{Repo: repo, From: one(h, Repo(""), "a"), Digest: blob}
	case 4, 5, 6, 7, 8:
		return h.manifest(repo, blob, tag)
	case 9:
		return DeleteTag{Repo: repo, Tag: tag}
	case 10:
		return DeleteBlob{Repo: repo, Digest: blob}
	case 11:
		if len(h.put) > 0 {
			return DeleteManifest{Repo: repo, Digest: one(h, h.put...)}
		}
		return DeleteManifest{Repo: repo, Digest: blob}
	case 12:
		return one(h, []Command{
			BootNode{ID: node, Epoch: uint64(h.rnd.IntN(3)), Nonce: "x"}, ForgetNode{ID: node},
			MarkNode{ID: node, Away: true}, MarkNode{ID: node, Draining: true},
		}...)
	case 13:
		hash := []byte{byte(h.rnd.IntN(2))}
		return one(h, []Command{CreateInvite{Hash: hash, Expires: int64(1e12 + h.rnd.IntN(120000))}, RedeemInvite{Hash: hash}}...)
	case 14:
		return SetSetting{Key: one(h, "k", "l"), Value: one(h, "", "1", "2")}
	case 15, 16:
		h.who = h.next()
		return h.access()
	}
	return one(h, hostile()...)
}

// access makes a command about who may come in. Generations are indexes of the log, so that some guesses are right.
func (h *history) access() Command {
	name, was := one(h, "p", "q"), one(h, 0, 0, uint64(2*h.rnd.IntN(len(h.logs)+1)))
	grant := Grant{Subject: one(h, name, SubjectAnonymous, SubjectGroup+"g"), Right: one(h, "pull", "push"), Pattern: one(h, "a", "**")}
	kind := one(h, KindACME, KindProvider, KindTrust)
	return one(h, []Command{
		PutPrincipal{Principal: Principal{Name: name, Robot: h.rnd.IntN(2) == 0, Groups: []string{"g"}}, Was: was}, DeletePrincipal{Name: name},
		PutGrant{Grant: grant}, PutGrant{Grant: grant}, DeleteGrant{Grant: grant},
		PutDocument{Document: Document{Kind: kind, Name: name, Body: []byte(name)}, Was: was, Over: h.rnd.IntN(2) == 0},
		DeleteDocument{Kind: kind, Name: name, Was: was},
		AddPrincipal{Principal: Principal{Name: name, Robot: true}, Grants: []Grant{{Subject: name, Right: "pull", Pattern: "a"}, {Subject: one(h, name, "p"), Right: "push", Pattern: "b"}}},
		SetSetting{Key: SettingAccess, Value: one(h, AccessOn, AccessOpen)},
	}...)
}

func (h *history) manifest(repo Repo, blob digest.Digest, tag Tag) Command {
	var p PutManifest
	switch h.rnd.IntN(6) {
	case 0:
		p = image(repo, []digest.Digest{blob}, blobDigest(0))
	case 1: // the same bytes under three types
		body := fmt.Appendf(nil, `{"config":{"mediaType":"c","digest":%q,"size":1},"subject":{"digest":%q}}`, blob, blobDigest(0))
		p = PutManifest{Repo: repo, Digest: digest.FromBytes(body), Body: body, MediaType: one(h, TypeOCIManifest, TypeDockerManifest, "x/y")}
	case 2:
		var list []string
		for range h.rnd.IntN(3) {
			if len(h.put) > 0 {
				list = append(list, fmt.Sprintf(`{"digest":%q,"size":1,"artifactType":%q}`, one(h, h.put...), one(h, "", "x/y")))
			}
		}
		body := fmt.Appendf(nil, `{"manifests":[%s]}`, strings.Join(list, ","))
		p = PutManifest{Repo: repo, Digest: digest.FromBytes(body), Body: body, MediaType: one(h, TypeOCIIndex, TypeOCIIndex, TypeDockerList, "x/y")}
	default:
		p = image(repo, []digest.Digest{blob, blobDigest(h.rnd.IntN(4))}, "")
	}
	if p.Tags = []Tag{tag}; h.rnd.IntN(4) == 0 {
		p.Tags = one(h, nil, []Tag{"v", tag}, []Tag{tag, tag})
	}
	if h.rnd.IntN(8) == 0 {
		p.If = Condition{Absent: true}
	}
	h.put = append(h.put, p.Digest)
	return p
}

// hostile has commands that must be refused: an entry that can't be applied would stop every node, for ever.
func hostile() []Command {
	long := strings.Repeat("x", 40000)
	return []Command{
		BootNode{}, BootNode{ID: "a\x00b"}, BootNode{ID: NodeID(long)}, ForgetNode{}, MarkNode{ID: NodeID(long)},
		CreateInvite{}, CreateInvite{Hash: []byte(long)}, RedeemInvite{}, SetSetting{Value: "v"}, SetSetting{Key: long, Value: "v"},
		LinkBlob{Repo: "A", Digest: blobDigest(0)}, LinkBlob{Repo: "a", Digest: "sha256:0"}, LinkBlob{Repo: "a", Digest: blobDigest(0), Size: -1},
		MountBlob{Repo: "a", From: Repo(long), Digest: blobDigest(9)}, DeleteBlob{}, DeleteTag{}, DeleteTag{Repo: "a", Tag: Tag(long)},
		DeleteManifest{Digest: digest.Digest(long)}, PutManifest{}, PutManifest{Repo: "a", Digest: blobDigest(0), Body: []byte("{}")},
		AddPrincipal{}, AddPrincipal{Principal: Principal{Name: "p"}, Grants: []Grant{{}}}, PutGrant{}, DeleteGrant{}, DeletePrincipal{},
		PutManifest{Repo: "a", Digest: digest.FromString("{}"), MediaType: "x/y", Body: []byte("{}"), Tags: []Tag{"", "\x00"}},
		PutPrincipal{}, PutPrincipal{Principal: Principal{Name: long}}, DeletePrincipal{}, DeletePrincipal{Name: long}, PutGrant{}, DeleteGrant{},
		PutGrant{Grant: Grant{Subject: SubjectAnonymous, Right: "pull", Pattern: long}}, DeleteGrant{Grant: Grant{Pattern: long}},
		PutDocument{}, PutDocument{Document: Document{Kind: "k", Name: long}}, PutDocument{Document: Document{Kind: "a\x00b", Name: "n"}},
		PutDocument{Document: Document{Kind: "k", Name: "n", Body: make([]byte, maxDocument+1)}}, DeleteDocument{}, DeleteDocument{Name: long},
	}
}

// repeated puts copies of earlier commands between the entries: what a proposer that lost an answer sends, and what still
// travels when it has given up.
func (h *history) repeated() []*raft.Log {
	var out []*raft.Log
	for i, l := range h.logs {
		out = append(out, l)
		if again := *h.logs[h.rnd.IntN(i+1)]; again.Type == raft.LogCommand && h.rnd.IntN(2) == 0 {
			again.Index, again.Term = l.Index+1, l.Term
			out = append(out, &again)
		}
	}
	return out
}

// FuzzHistory: the same history gives the same content applied straight, with a snapshot and restore in the middle, with
// commands repeated, and in other batches.
func FuzzHistory(f *testing.F) {
	for i := range uint64(8) {
		f.Add(i, uint8(100), uint8(17*i))
	}
	f.Fuzz(func(t *testing.T, seed uint64, length, cut uint8) {
		n := int(length)%120 + 2
		h := newHistory(seed, n)
		logs := h.logs
		at := int(cut) % len(logs)
		dir := t.TempDir()
		straight := open(t, filepath.Join(dir, "straight"))
		configure(straight)
		for _, l := range logs {
			straight.Apply(l)
		}
		want := content(t, straight)
		checkWhole(t, straight)

		batched := open(t, filepath.Join(dir, "batched"))
		configure(batched)
		for done := 0; done < len(logs); {
			next := min(done+1+h.rnd.IntN(10), len(logs))
			batched.ApplyBatch(logs[done/2 : next]) // what is there already is passed over
			done = next
		}
		compare(t, "batched", want, content(t, batched))

		restored := open(t, filepath.Join(dir, "restored"))
		first := open(t, filepath.Join(dir, "first"))
		configure(first)
		first.ApplyBatch(logs[:at])
		_, src, err := first.Snapshots().Open(ownSnapshot)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(restored.Restore(src), src.Close()); err != nil {
			t.Fatal(err)
		}
		restored.ApplyBatch(logs[at:])
		compare(t, "restored", want, content(t, restored))

		repeated := open(t, filepath.Join(dir, "repeated"))
		configure(repeated)
		repeated.ApplyBatch(h.repeated())
		got := content(t, repeated)
		for _, m := range []map[string]string{got, want} {
			delete(m, string(bucketMeta)+"/"+string(keyApplied)) // the last entry may be a repetition
		}
		compare(t, "repeated", want, got)
	})
}

func compare(t *testing.T, how string, want, got map[string]string) {
	t.Helper()
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q is %q, not %q", how, k, got[k], v)
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("%s: %q is too much", how, k)
		}
	}
}

// checkWhole counts everything anew: what is kept in two places must agree.
func checkWhole(t *testing.T, s *State) {
	t.Helper()
	err := s.view(func(tx *bolt.Tx) error {
		w := &whole{tx: tx, repos: map[string]*repoRecord{}, links: map[string]uint64{}}
		for _, step := range []func() error{w.manifests, w.tags, w.blobs, w.records, w.referrers} {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// whole is what a look at every row finds.
type whole struct {
	tx     *bolt.Tx
	counts Counts
	repos  map[string]*repoRecord
	links  map[string]uint64
	owned  int // referrers by their own subject
}

func (w *whole) each(bucket []byte, fn func(parts []string, v []byte) error) error {
	return w.tx.Bucket(bucket).ForEach(func(k, v []byte) error {
		if err := fn(strings.Split(string(k), separator), v); err != nil {
			return fmt.Errorf("%s %q: %w", bucket, k, err)
		}
		return nil
	})
}

func (w *whole) size(bucket []byte) uint64 { return uint64(w.tx.Bucket(bucket).Stats().KeyN) }

func (w *whole) has(bucket []byte, parts ...string) bool {
	return w.tx.Bucket(bucket).Get(key(parts...)) != nil
}

func (w *whole) repo(name string) *repoRecord {
	if w.repos[name] == nil {
		w.repos[name] = &repoRecord{}
	}
	return w.repos[name]
}

func (w *whole) manifests() error {
	needs := map[string]bool{}
	err := w.each(bucketManifests, func(p []string, v []byte) error {
		var rec manifestRecord
		if err := decode(v, &rec); err != nil {
			return err
		}
		if body := w.tx.Bucket(bucketBodies).Get(key(p...)); int64(len(body)) != rec.Size {
			return fmt.Errorf("a body of %d bytes, not %d", len(body), rec.Size)
		}
		for _, b := range rec.Needs {
			if needs[string(key(p[0], string(b), p[1]))] = true; !w.has(bucketLinks, p[0], string(b)) {
				return fmt.Errorf("it needs %s, which isn't linked", b)
			}
		}
		if rec.Subject != "" {
			w.owned++
		}
		w.counts.Manifests++
		w.repo(p[0]).Manifests++
		return nil
	})
	if err != nil {
		return err
	}
	if n := w.size(bucketNeeds); n != uint64(len(needs)) || w.size(bucketBodies) != w.counts.Manifests {
		return fmt.Errorf("%d needs, not %d, or a body without a manifest", n, len(needs))
	}
	return w.each(bucketNeeds, func(p []string, _ []byte) error {
		if !needs[string(key(p...))] {
			return errors.New("no manifest says so")
		}
		return nil
	})
}

func (w *whole) tags() error {
	err := w.each(bucketTags, func(p []string, v []byte) error {
		w.counts.Tags++
		w.repo(p[0]).Tags++
		if !w.has(bucketManifests, p[0], string(v)) || !w.has(bucketTagged, p[0], string(v), p[1]) {
			return fmt.Errorf("no manifest %s, or it doesn't know", v)
		}
		return nil
	})
	if err != nil || w.size(bucketTagged) != w.counts.Tags {
		return fmt.Errorf("%d rows of tagged for %d tags, %v", w.size(bucketTagged), w.counts.Tags, err)
	}
	seen := map[string]int{}
	return w.tx.Bucket(bucketHistory).ForEach(func(k, v []byte) error {
		tag := string(k[:len(k)-9])
		var h HistoryEntry
		if err := decode(v, &h); err != nil {
			return err
		}
		if seen[tag]++; seen[tag] == 1 && string(w.tx.Bucket(bucketTags).Get([]byte(tag))) != string(h.Digest) || seen[tag] > maxHistory {
			return fmt.Errorf("the history of %q ends with %q or is too long", tag, h.Digest)
		}
		return nil
	})
}

func (w *whole) blobs() error {
	err := w.each(bucketLinks, func(p []string, _ []byte) error {
		w.links[p[1]]++
		w.repo(p[0]).Links++
		return nil
	})
	if err != nil {
		return err
	}
	return w.each(bucketBlobs, func(p []string, v []byte) error {
		var rec blobRecord
		if err := decode(v, &rec); err != nil {
			return err
		}
		w.counts.Blobs++
		w.counts.Bytes += rec.Size
		if rec.Links == 0 || rec.Links != w.links[p[0]] || w.tx.Bucket(bucketFeed).Get(feedKey(rec.Since, digest.Digest(p[0]))) == nil {
			return fmt.Errorf("%d links, not %d, or not in the feed", rec.Links, w.links[p[0]])
		}
		return nil
	})
}

func (w *whole) records() error {
	if w.size(bucketFeed) != w.counts.Blobs || len(w.links) != int(w.counts.Blobs) {
		return fmt.Errorf("%d in the feed, %d linked, %d blobs", w.size(bucketFeed), len(w.links), w.counts.Blobs)
	}
	w.counts.Repositories = uint64(len(w.repos))
	var kept Counts
	if err := decode(w.tx.Bucket(bucketMeta).Get(keyCounts), &kept); err != nil || kept != w.counts {
		return fmt.Errorf("the counts say %+v, not %+v, %v", kept, w.counts, err)
	}
	return w.each(bucketRepos, func(p []string, v []byte) error {
		var rec repoRecord
		if err := decode(v, &rec); err != nil || rec != *w.repo(p[0]) {
			return fmt.Errorf("it says %+v, not %+v, %w", rec, *w.repo(p[0]), err)
		}
		return nil
	})
}

// referrers are there because the manifest says so itself, or the index under the subject's fallback tag does.
func (w *whole) referrers() error {
	listed := map[string]bool{}
	err := w.each(bucketTags, func(p []string, v []byte) error {
		subject, ok := fallbackSubject(Tag(p[1]))
		if !ok {
			return nil
		}
		info, err := manifestInfo(w.tx, Repo(p[0]), digest.Digest(v))
		if err != nil || info.MediaType != TypeOCIIndex {
			return err
		}
		parsed, err := ParseManifest(info.MediaType, w.tx.Bucket(bucketBodies).Get(key(p[0], string(v))))
		for _, d := range parsed.Manifests {
			listed[string(key(p[0], string(subject), string(d.Digest)))] = true
		}
		return err
	})
	if err != nil {
		return err
	}
	err = w.each(bucketReferrers, func(p []string, v []byte) error {
		var rec referrer
		if err := decode(v, &rec); err != nil {
			return err
		}
		if rec.Own {
			w.owned--
		}
		if rec.Listed != listed[string(key(p...))] || !rec.Own && !rec.Listed {
			return fmt.Errorf("own %t, listed %t", rec.Own, rec.Listed)
		}
		if w.tx.Bucket(bucketKinds).Get(kindKey(Repo(p[0]), digest.Digest(p[1]), rec.ArtifactType, p[2])) == nil {
			return errors.New("not found by its artifact type")
		}
		delete(listed, string(key(p...)))
		return nil
	})
	if n := w.size(bucketKinds); err == nil && n != w.size(bucketReferrers) {
		return fmt.Errorf("%d rows by artifact type for %d referrers", n, w.size(bucketReferrers))
	}
	if err == nil && (w.owned != 0 || len(listed) != 0) {
		err = fmt.Errorf("%d referrers too few, unlisted %v", w.owned, slices.Collect(maps.Keys(listed)))
	}
	return err
}
