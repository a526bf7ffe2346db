package fsm

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

var update = flag.Bool("update", false, "write the golden files anew")

func open(t testing.TB, path string) *State {
	t.Helper()
	s, err := Open(Config{Path: path, Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// history makes log entries, numbered and stamped as a leader would.
type history struct{ logs []*raft.Log }

func (h *history) add(id Identity, c Command) {
	data, err := Encode(id, c)
	if err != nil {
		panic(err) // only for a command that isn't in the table
	}
	i := uint64(len(h.logs) + 2)
	h.logs = append(h.logs, &raft.Log{Index: i, Term: 1, Type: raft.LogCommand, Data: data, AppendedAt: time.UnixMilli(int64(1e12 + i*1000))})
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

func TestUnknownCommandStops(t *testing.T) {
	var fatal error
	s, err := Open(Config{Path: filepath.Join(t.TempDir(), "s"), Fatal: func(err error) { fatal = err }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	s.Apply(&raft.Log{Index: 1, Type: raft.LogCommand, Data: []byte{200, 1, 2}})
	var unknown *UnknownCommandError
	if !errors.As(fatal, &unknown) || unknown.Type != 200 {
		t.Errorf("fatal: %v", fatal)
	}
	if _, err := do(t, s, SetSetting{Key: "k", Value: "v"}); !errors.Is(err, ErrHalted) || s.AppliedIndex() != 0 {
		t.Errorf("it goes on: %v", err)
	}
}

// goldens has one of each command.
func goldens() []Command {
	d := digest.FromString("x")
	return []Command{
		PutManifest{Repo: "team/app", Digest: d, MediaType: TypeOCIManifest, Body: []byte(`{}`), Tags: []Tag{"a", "b"}, If: Condition{Digest: d}},
		DeleteManifest{Repo: "team/app", Digest: d}, DeleteTag{Repo: "team/app", Tag: "a"},
		LinkBlob{Repo: "team/app", Digest: d, Size: 1 << 40, Origin: "n1"}, MountBlob{Repo: "a", From: "b", Digest: d},
		DeleteBlob{Repo: "a", Digest: d},
		BootNode{ID: "n1", Name: "one", API: "a:1", Cluster: "a:2", Version: "v1", Epoch: 7, Level: 1, Nonce: "x"},
		ForgetNode{ID: "n1"}, MarkNode{ID: "n1", Away: true, Draining: true},
		CreateInvite{Hash: []byte("h"), Expires: 1e12}, RedeemInvite{Hash: []byte("h")},
		SetSetting{Key: "k", Value: "v"},
	}
}

// The bytes of a command are in logs that outlive the process that wrote them.
func TestGoldenBytes(t *testing.T) {
	covered := map[reflect.Type]bool{}
	for _, c := range goldens() {
		covered[reflect.TypeOf(c)] = true
		name := filepath.Join("testdata", "golden", reflect.TypeOf(c).Name())
		data, err := Encode(Identity{Node: "n1", Epoch: 2, Seq: 3, Done: 1}, c)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(data, want) {
			t.Errorf("%T is written as %x, was %x", c, data, want)
		}
		id, back, err := Decode(want)
		again, againErr := Encode(id, back)
		if err != nil || againErr != nil || !bytes.Equal(again, want) {
			t.Errorf("%T reads back as %+v, %+v, %v", c, id, back, err)
		}
	}
	for _, k := range commandTypes[1:] {
		if !covered[k] {
			t.Errorf("%s has no golden bytes", k)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range goldens() {
		data, err := Encode(Identity{Node: "n"}, c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		id, c, err := Decode(data)
		if err != nil {
			return
		}
		if _, err := Encode(id, c); err != nil {
			t.Error(err)
		}
	})
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

// randomHistory makes commands that often fit each other.
func randomHistory(r *rand.Rand, n int) *history {
	h := &history{}
	repos, tags := []Repo{"a", "b", "a/b"}, []Tag{"t", "u", Tag("sha256-" + blobDigest(0).Encoded())}
	var put []digest.Digest
	seq := map[NodeID]uint64{}
	for range n {
		repo := repos[r.IntN(len(repos))]
		tag := tags[r.IntN(len(tags))]
		blob := blobDigest(r.IntN(4))
		node := NodeID([]string{"n1", "n2"}[r.IntN(2)])
		var c Command
		switch r.IntN(10) {
		case 0, 1:
			c = LinkBlob{Repo: repo, Digest: blob, Size: 1, Origin: node}
		case 2:
			c = MountBlob{Repo: repo, Digest: blob}
		case 3, 4, 5:
			m := image(repo, []digest.Digest{blob, blobDigest(r.IntN(4))}, "", tag)
			put = append(put, m.Digest)
			c = m
		case 6:
			c = DeleteTag{Repo: repo, Tag: tag}
		case 7:
			c = DeleteBlob{Repo: repo, Digest: blob}
		case 8:
			c = BootNode{ID: node, Epoch: uint64(r.IntN(3)), Nonce: "x"}
		default:
			c = SetSetting{Key: string(tag), Value: fmt.Sprint(r.IntN(3))}
			if len(put) > 0 {
				c = DeleteManifest{Repo: repo, Digest: put[r.IntN(len(put))]}
			}
		}
		seq[node]++
		h.add(Identity{Node: node, Epoch: 1, Seq: seq[node], Done: max(seq[node], 3) - 3}, c)
	}
	return h
}

// FuzzHistory: the same history gives the same content applied straight, with a snapshot and restore in the middle, with
// entries repeated, and in other batches.
func FuzzHistory(f *testing.F) {
	for i := range uint64(4) {
		f.Add(i, uint8(40), uint8(17))
	}
	f.Fuzz(func(t *testing.T, seed uint64, length, cut uint8) {
		n := int(length)%60 + 2
		at := int(cut) % n
		logs := randomHistory(rand.New(rand.NewPCG(seed, 1)), n).logs
		dir := t.TempDir()
		straight := open(t, filepath.Join(dir, "straight"))
		configure(straight)
		for _, l := range logs {
			straight.Apply(l)
		}
		want := content(t, straight)

		batched := open(t, filepath.Join(dir, "batched"))
		configure(batched)
		batched.ApplyBatch(logs[:at])
		batched.ApplyBatch(logs[at/2:]) // what is there already is passed over
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
		compareRepeated(t, dir, logs, at, want)
	})
}

// compareRepeated proposes an entry a second time at once: but for the positions, nothing may differ.
func compareRepeated(t *testing.T, dir string, logs []*raft.Log, at int, want map[string]string) {
	s := open(t, filepath.Join(dir, "repeated"))
	configure(s)
	s.ApplyBatch(logs[:at])
	last := logs[len(logs)-1]
	s.ApplyBatch(logs[at:])
	again := *last
	again.Index++
	s.Apply(&again)
	got := content(t, s)
	for _, m := range []map[string]string{got, want} {
		delete(m, string(bucketMeta)+"/"+string(keyApplied))
	}
	compare(t, "repeated", want, got)
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

func TestReceivedSnapshotIsInstalledByItsID(t *testing.T) {
	dir := t.TempDir()
	leader, follower := open(t, filepath.Join(dir, "l")), open(t, filepath.Join(dir, "f"))
	configure(leader)
	must(t, leader, SetSetting{Key: "k", Value: "v"})
	meta, src, err := leader.Snapshots().Open(ownSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := follower.Snapshots().Create(1, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	if _, err := all.ReadFrom(src); err != nil || int64(all.Len()) != meta.Size {
		t.Fatalf("%d bytes of %d, %v", all.Len(), meta.Size, err)
	}
	if _, err := sink.Write(all.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	got, in, err := follower.Snapshots().Open(sink.ID())
	if err != nil || got.Index != meta.Index {
		t.Fatal(got, err)
	}
	before := follower.Installs()
	if err := follower.Restore(in); err != nil {
		t.Fatal(err)
	}
	if v, _ := follower.Setting("k"); v != "v" || follower.Installs() != before+1 || follower.AppliedIndex() != meta.Index {
		t.Errorf("%q at %d", v, follower.AppliedIndex())
	}
	damaged := bytes.Clone(all.Bytes())
	damaged[len(damaged)/2] ^= 1
	if err := follower.Restore(nopCloser{bytes.NewReader(damaged)}); err == nil {
		t.Error("a damaged snapshot was installed")
	}
}

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }

func TestReopenKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	configure(s)
	must(t, s, LinkBlob{Repo: "a", Digest: blobDigest(0), Size: 5, Origin: "n1"})
	want := content(t, s)
	index := s.AppliedIndex()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, path)
	compare(t, "reopened", want, content(t, again))
	if again.AppliedIndex() != index {
		t.Errorf("applied %d, not %d", again.AppliedIndex(), index)
	}
	blobs, _, err := again.Wanted(0, "", 10)
	if err != nil || len(blobs) != 1 || blobs[0].Size != 5 || blobs[0].Since != index {
		t.Errorf("wanted %v, %v", blobs, err)
	}
}

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
	} {
		if _, err := ParseManifest(TypeOCIManifest, []byte(body)); !errors.Is(err, ErrManifestInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseManifest(TypeOCIManifest, make([]byte, MaxManifest+1)); !errors.Is(err, ErrManifestTooBig) {
		t.Error(err)
	}
}
