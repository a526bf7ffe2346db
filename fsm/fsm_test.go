package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

func open(t testing.TB, path string) *State {
	t.Helper()
	s, err := Open(Config{Path: path, Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// do applies one command and gives its answer.
func do(t testing.TB, s *State, c Command) (Answer, error) {
	t.Helper()
	data, err := Encode(Identity{}, c)
	if err != nil {
		t.Fatal(err)
	}
	index := s.AppliedIndex() + 1
	l := &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data, AppendedAt: time.UnixMilli(int64(1e12 + index))}
	return DecodeAnswer(s.Apply(l).([]byte))
}

func must(t testing.TB, s *State, c Command) Answer {
	t.Helper()
	a, err := do(t, s, c)
	if err != nil {
		t.Fatalf("%T: %v", c, err)
	}
	return a
}

func configure(s *State) {
	s.StoreConfiguration(1, raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "a:1"}}})
}

func blobDigest(i int) digest.Digest { return digest.FromString(fmt.Sprintf("blob %d", i)) }

func image(repo Repo, blobs []digest.Digest, subject digest.Digest, tags ...Tag) PutManifest {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"c","digest":%q,"size":1},"layers":[`, TypeOCIManifest, blobs[0])
	for i, d := range blobs[1:] {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"mediaType":"l","digest":%q,"size":1}`, d)
	}
	b.WriteByte(']')
	if subject != "" {
		fmt.Fprintf(&b, `,"subject":{"mediaType":"m","digest":%q,"size":1},"annotations":{"b":"2","a":"1"}`, subject)
	}
	b.WriteByte('}')
	return PutManifest{Repo: repo, Digest: digest.FromBytes(b.Bytes()), MediaType: TypeOCIManifest, Body: b.Bytes(), Tags: tags}
}

// content is everything in the file but what Raft's own position says.
func content(t testing.TB, s *State) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := s.view(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			err := tx.Bucket(name).ForEach(func(k, v []byte) error {
				out[string(name)+"/"+string(k)] = string(v)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestManifestNeedsItsBlobs(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	put := image("team/app", []digest.Digest{blobDigest(1), blobDigest(2)}, "", "latest")
	_, err := do(t, s, put)
	var missing *MissingError
	if !errors.As(err, &missing) || len(missing.Digests) != 2 {
		t.Fatalf("want two missing digests, got %v", err)
	}
	must(t, s, LinkBlob{Repo: "team/app", Digest: blobDigest(1), Size: 1, Origin: "n1"})
	must(t, s, LinkBlob{Repo: "other", Digest: blobDigest(2), Size: 1, Origin: "n1"})
	if _, err := do(t, s, put); !errors.As(err, &missing) || len(missing.Digests) != 1 {
		t.Fatalf("a blob of another repository was good enough: %v", err)
	}
	must(t, s, MountBlob{Repo: "team/app", From: "other", Digest: blobDigest(2)})
	must(t, s, put)
	if d, err := s.ResolveTag("team/app", "latest"); err != nil || d != put.Digest {
		t.Errorf("latest is %s, %v", d, err)
	}
	var needed *ReferencedError
	if _, err := do(t, s, DeleteBlob{Repo: "team/app", Digest: blobDigest(1)}); !errors.As(err, &needed) || needed.Manifests[0] != put.Digest {
		t.Errorf("a needed blob went: %v", err)
	}
	must(t, s, DeleteManifest{Repo: "team/app", Digest: put.Digest})
	must(t, s, DeleteBlob{Repo: "team/app", Digest: blobDigest(1)})
	if _, err := s.ResolveTag("team/app", "latest"); !errors.Is(err, ErrManifestUnknown) {
		t.Errorf("the tag outlived its manifest: %v", err)
	}
	if h, err := s.History("team/app", "latest", 10); err != nil || len(h) != 2 || h[0].Digest != "" || h[1].Digest != put.Digest {
		t.Errorf("history %v, %v", h, err)
	}
}

// The answer is remembered and sent around: it must not be as long as the manifest.
func TestMissingAreNamedOnceAndNotAll(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	var blobs []digest.Digest
	for i := range 300 {
		blobs = append(blobs, blobDigest(i), blobDigest(i))
	}
	_, err := do(t, s, image("a", blobs, ""))
	var missing *MissingError
	if !errors.As(err, &missing) || len(missing.Digests) != maxMissing || len(slices.Compact(slices.Clone(missing.Digests))) != maxMissing {
		t.Errorf("%v", err)
	}
}

func TestHistoryKeepsAHundred(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	for i := range 130 {
		must(t, s, LinkBlob{Repo: "a", Digest: blobDigest(i), Size: 1})
		must(t, s, image("a", []digest.Digest{blobDigest(i)}, "", "t"))
	}
	h, err := s.History("a", "t", 1000)
	if err != nil || len(h) != maxHistory {
		t.Fatalf("%d entries, %v", len(h), err)
	}
	if now, _ := s.ResolveTag("a", "t"); h[0].Digest != now {
		t.Error("the newest entry isn't the first")
	}
}

func TestPages(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	must(t, s, LinkBlob{Repo: "a", Digest: blobDigest(0), Size: 1})
	must(t, s, image("a", []digest.Digest{blobDigest(0)}, "", "A", "b", "a", "a-1", "a.1"))
	must(t, s, LinkBlob{Repo: "a/b", Digest: blobDigest(0), Size: 1})
	var all []Tag
	after, more := "", true
	for more {
		var got []Tag
		var err error
		if got, more, err = s.Tags("a", after, 2); err != nil || len(got) == 0 {
			t.Fatal(got, err)
		}
		all, after = append(all, got...), string(got[len(got)-1])
	}
	if want := []Tag{"A", "a", "a-1", "a.1", "b"}; !slices.Equal(all, want) {
		t.Errorf("%v, not %v", all, want)
	}
	if got, more, err := s.Tags("a", "aa", 10); err != nil || more || !slices.Equal(got, []Tag{"b"}) {
		t.Errorf("after a tag that isn't there: %v %v %v", got, more, err)
	}
	if _, _, err := s.Tags("nobody", "", 10); !errors.Is(err, ErrNameUnknown) {
		t.Error(err)
	}
	if got, _, err := s.Repositories("", 10); err != nil || !slices.Equal(got, []Repo{"a", "a/b"}) {
		t.Error(got, err)
	}
}

func TestReferrersHoweverPushed(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	must(t, s, LinkBlob{Repo: "a", Digest: blobDigest(0), Size: 1})
	base := image("a", []digest.Digest{blobDigest(0)}, "", "v1")
	must(t, s, base)
	own := image("a", []digest.Digest{blobDigest(0)}, base.Digest)
	if got := must(t, s, own).(PutManifestAnswer); got.Subject != base.Digest {
		t.Errorf("subject %s", got.Subject)
	}
	plain := image("a", []digest.Digest{blobDigest(0), blobDigest(0)}, "")
	must(t, s, plain)
	index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":3,"artifactType":"x/y"},{"mediaType":%q,"digest":%q,"size":4}]}`,
		TypeOCIIndex, TypeOCIManifest, plain.Digest, TypeOCIManifest, own.Digest)
	fallback := Tag("sha256-" + base.Digest.Encoded())
	must(t, s, PutManifest{Repo: "a", Digest: digest.FromBytes(index), MediaType: TypeOCIIndex, Body: index, Tags: []Tag{fallback}})
	list := func(kind string) []Descriptor {
		got, _, err := s.Referrers("a", base.Digest, kind, "", 10)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := list(""); len(got) != 2 {
		t.Errorf("%d referrers: %v", len(got), got)
	}
	if got := list("x/y"); len(got) != 1 || got[0].Digest != plain.Digest {
		t.Errorf("filtered: %v", got)
	}
	must(t, s, DeleteTag{Repo: "a", Tag: fallback})
	if got := list(""); len(got) != 1 || got[0].Digest != own.Digest || got[0].Annotations["a"] != "1" {
		t.Errorf("after the fallback tag went: %v", got)
	}
	must(t, s, DeleteManifest{Repo: "a", Digest: own.Digest})
	if got := list(""); len(got) != 0 {
		t.Errorf("after the manifest went: %v", got)
	}
}

// A deleted manifest isn't found, though the index that lists it is still there.
func TestDeletedReferrerIsNotListed(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	must(t, s, LinkBlob{Repo: "a", Digest: blobDigest(0), Size: 1})
	own, plain := image("a", []digest.Digest{blobDigest(0)}, blobDigest(9)), image("a", []digest.Digest{blobDigest(0), blobDigest(0)}, "")
	must(t, s, own)
	must(t, s, plain)
	index := fmt.Appendf(nil, `{"manifests":[{"mediaType":"m","digest":%q,"size":3,"artifactType":"x/y"},{"mediaType":"m","digest":%q,"size":4}]}`, plain.Digest, own.Digest)
	fallback := Tag("sha256-" + blobDigest(9).Encoded())
	must(t, s, PutManifest{Repo: "a", Digest: digest.FromBytes(index), MediaType: TypeOCIIndex, Body: index, Tags: []Tag{fallback}})
	for _, step := range []struct {
		c    Command
		want int
	}{{DeleteManifest{Repo: "a", Digest: own.Digest}, 1}, {own, 2}, {DeleteManifest{Repo: "a", Digest: plain.Digest}, 1}, {plain, 2}} {
		must(t, s, step.c)
		if got, more, err := s.Referrers("a", blobDigest(9), "", "", 10); err != nil || more || len(got) != step.want {
			t.Errorf("after %T: %v, %v", step.c, got, err)
		}
	}
	if got, _, err := s.Referrers("a", blobDigest(9), "x/y", "", 10); err != nil || len(got) != 1 || got[0].Digest != plain.Digest {
		t.Errorf("by type: %v, %v", got, err)
	}
}

// Bytes that don't say what they are can be pushed under several types: the last push says what they are.
func TestTheSameBytesUnderAnotherType(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	must(t, s, LinkBlob{Repo: "a", Digest: blobDigest(0), Size: 1})
	body := fmt.Appendf(nil, `{"config":{"mediaType":"c","digest":%q,"size":1},"subject":{"digest":%q}}`, blobDigest(0), blobDigest(9))
	put := PutManifest{Repo: "a", Digest: digest.FromBytes(body), MediaType: "x/y", Body: body, Tags: []Tag{"t"}}
	must(t, s, put)
	put.MediaType = TypeOCIManifest
	must(t, s, put)
	if m, err := s.StatManifest("a", put.Digest); err != nil || m.MediaType != TypeOCIManifest {
		t.Errorf("%+v, %v", m, err)
	}
	var needed *ReferencedError
	if _, err := do(t, s, DeleteBlob{Repo: "a", Digest: blobDigest(0)}); !errors.As(err, &needed) {
		t.Errorf("a needed blob went: %v", err)
	}
	if got, _, err := s.Referrers("a", blobDigest(9), "c", "", 10); err != nil || len(got) != 1 || got[0].MediaType != TypeOCIManifest {
		t.Errorf("referrers: %+v, %v", got, err)
	}
	if c, err := s.Counts(); err != nil || c.Manifests != 1 || c.Tags != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	checkWhole(t, s)
}

// A page with a filter costs the page, not all referrers of the subject.
func TestReferrersByTypeInPages(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	var want []string
	for i := range 12 {
		kind := []string{"a/b", `a/b\u0000`, "c/d"}[i%3]
		body := fmt.Appendf(nil, `{"n":%d,"artifactType":"%s","subject":{"digest":%q}}`, i, kind, blobDigest(9))
		p := PutManifest{Repo: "a", Digest: digest.FromBytes(body), MediaType: "x/y", Body: body}
		must(t, s, p)
		if kind == "a/b" {
			want = append(want, p.Digest.String())
		}
	}
	slices.Sort(want)
	var got []string
	after, more := "", true
	for more {
		var page []Descriptor
		var err error
		if page, more, err = s.Referrers("a", blobDigest(9), "a/b", after, 3); err != nil || len(page) == 0 {
			t.Fatal(page, err)
		}
		for _, d := range page {
			got = append(got, d.Digest.String())
		}
		after = got[len(got)-1]
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
	if page, more, err := s.Referrers("a", blobDigest(9), "no/such", "", 3); err != nil || more || len(page) != 0 {
		t.Errorf("%v %t %v", page, more, err)
	}
}

func TestRepeatedCommandGetsTheFirstAnswer(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	apply := func(index uint64, id Identity, c Command) error {
		data, err := Encode(id, c)
		if err != nil {
			t.Fatal(err)
		}
		_, err = DecodeAnswer(s.Apply(&raft.Log{Index: index, Type: raft.LogCommand, Data: data}).([]byte))
		return err
	}
	invite := RedeemInvite{Hash: []byte("h")}
	if err := apply(1, Identity{Node: "n", Epoch: 1, Seq: 1}, CreateInvite{Hash: []byte("h"), Expires: 5}); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(3) {
		if err := apply(2+i, Identity{Node: "n", Epoch: 1, Seq: 2}, invite); err != nil {
			t.Errorf("time %d: %v", i, err)
		}
	}
	if err := apply(5, Identity{Node: "n", Epoch: 1, Seq: 3, Done: 2}, invite); !errors.Is(err, ErrInviteUnknown) {
		t.Errorf("a second use: %v", err)
	}
	if err := apply(6, Identity{Node: "n", Epoch: 1, Seq: 2}, invite); !errors.Is(err, ErrStale) {
		t.Errorf("a command that was given up: %v", err)
	}
	if err := apply(7, Identity{Node: "n", Epoch: 2, Seq: 1}, SetSetting{Key: "k", Value: "v"}); err != nil {
		t.Errorf("a new boot: %v", err)
	}
	if err := apply(8, Identity{Node: "n", Epoch: 1, Seq: 9}, SetSetting{Key: "k", Value: "old"}); !errors.Is(err, ErrStale) {
		t.Errorf("a command of the boot before: %v", err)
	}
}

func TestBootEpochs(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	must(t, s, BootNode{ID: "n", Epoch: 3, Nonce: "a"})
	must(t, s, BootNode{ID: "n", Epoch: 3, Nonce: "a"})
	var used *EpochError
	if _, err := do(t, s, BootNode{ID: "n", Epoch: 3, Nonce: "b"}); !errors.As(err, &used) || used.Known != 3 {
		t.Error(err)
	}
	if _, err := do(t, s, BootNode{ID: "n", Epoch: 2, Nonce: "a"}); !errors.As(err, &used) {
		t.Error(err)
	}
}

// stopping opens a state whose end the test looks at.
func stopping(t *testing.T, path string) (*State, *error) {
	t.Helper()
	fatal := new(error)
	s, err := Open(Config{Path: path, Fatal: func(err error) { *fatal = err }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, fatal
}

func TestUnknownCommandStops(t *testing.T) {
	s, fatal := stopping(t, filepath.Join(t.TempDir(), "s"))
	must(t, s, BootNode{ID: "n1", Version: "v1.0.0", Level: CurrentLevel})
	must(t, s, BootNode{ID: "n2", Version: "v1.7.0", Level: CurrentLevel + 2})
	must(t, s, BootNode{ID: "n3", Version: "v1.6.0", Level: CurrentLevel + 1})
	before := s.AppliedIndex()
	s.Apply(&raft.Log{Index: before + 1, Type: raft.LogCommand, Data: []byte{200, 1, 2}})
	var unknown *UnknownCommandError
	if !errors.As(*fatal, &unknown) || unknown.Type != 200 || !strings.Contains(unknown.Error(), "version v1.7.0") {
		t.Errorf("fatal: %v", *fatal)
	}
	// The next one is committed all the same. Bytes would be taken for its answer.
	answer := s.Apply(&raft.Log{Index: before + 2, Type: raft.LogCommand})
	if err, ok := answer.(error); !ok || !errors.Is(err, ErrHalted) || s.AppliedIndex() != before {
		t.Errorf("it goes on: %v", answer)
	}
	if _, err := s.Snapshot(); !errors.Is(err, ErrHalted) {
		t.Errorf("a snapshot of what wasn't applied: %v", err)
	}
}

// A batch that can't be written is applied whole after a restart.
func TestFailedWriteLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, fatal := stopping(t, path)
	must(t, s, SetSetting{Key: "k", Value: "v"})
	want := content(t, s)
	if err := s.db.Close(); err != nil { // the disk is gone
		t.Fatal(err)
	}
	data, err := Encode(Identity{}, SetSetting{Key: "k", Value: "w"})
	if err != nil {
		t.Fatal(err)
	}
	l := &raft.Log{Index: 2, Term: 1, Type: raft.LogCommand, Data: data}
	if _, ok := s.Apply(l).(error); !ok || *fatal == nil {
		t.Errorf("an answer without a write, fatal: %v", *fatal)
	}
	again := open(t, path)
	compare(t, "reopened", want, content(t, again))
	again.Apply(l)
	if v, err := again.Setting("k"); err != nil || v != "w" {
		t.Errorf("%q, %v", v, err)
	}
}

func TestNewerStateIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "newer")
	newer, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	configure(newer)
	must(t, newer, BootNode{ID: "n2", Version: "v9", Level: CurrentLevel + 1})
	err = newer.db.Update(func(tx *bolt.Tx) error {
		putNumber(tx, keyLevel, CurrentLevel+1)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, data := snapshotOf(t, newer)
	if err := newer.Close(); err != nil {
		t.Fatal(err)
	}
	var refused *NewerStateError
	if _, err := Open(Config{Path: path}); !errors.As(err, &refused) || !strings.Contains(err.Error(), "version v9") {
		t.Errorf("opened: %v", err)
	}
	s, fatal := stopping(t, filepath.Join(t.TempDir(), "s"))
	if err := s.Restore(nopCloser{bytes.NewReader(data)}); !errors.As(err, &refused) || !errors.As(*fatal, &refused) {
		t.Errorf("installed: %v, fatal: %v", err, *fatal)
	}
}

// Clocks of leaders differ, and time in the state goes on all the same.
func TestTimeNeverRunsBackwards(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	at := func(index uint64, stamp time.Time, c Command) error {
		data, err := Encode(Identity{}, c)
		if err != nil {
			t.Fatal(err)
		}
		_, err = DecodeAnswer(s.Apply(&raft.Log{Index: index, Type: raft.LogCommand, Data: data, AppendedAt: stamp}).([]byte))
		return err
	}
	early, late := time.UnixMilli(1e12), time.UnixMilli(2e12)
	manifest := func(n int) PutManifest {
		body := fmt.Appendf(nil, `{"n":%d}`, n)
		return PutManifest{Repo: "a", Digest: digest.FromBytes(body), MediaType: "x/y", Body: body, Tags: []Tag{"t"}}
	}
	err := errors.Join(at(1, late, manifest(1)), at(2, early, manifest(2)), at(3, time.Time{}, manifest(3)),
		at(4, early, CreateInvite{Hash: []byte("h"), Expires: late.UnixMilli() - 1}))
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.History("a", "t", 10)
	if err != nil || len(h) != 3 {
		t.Fatal(h, err)
	}
	for _, e := range h {
		if !e.When().Equal(late) {
			t.Errorf("an entry of %s", e.When())
		}
	}
	if err := at(5, early, RedeemInvite{Hash: []byte("h")}); !errors.Is(err, ErrInviteExpired) {
		t.Errorf("an invite came back to life: %v", err)
	}
	if err := at(6, early, CreateInvite{Hash: []byte("next"), Expires: late.UnixMilli() + 1}); err != nil {
		t.Fatal(err)
	}
	for hash, want := range map[string]bool{"h": false, "next": true} { // who makes one clears away what has expired
		if kept, err := s.Invited([]byte(hash)); err != nil || kept != want {
			t.Errorf("the invite %q is kept: %t, %v", hash, kept, err)
		}
	}
}
