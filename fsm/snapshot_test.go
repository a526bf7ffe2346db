package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

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
	if info, err := os.Stat(filepath.Join(dir, "f")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the installed file, with the hashes of passwords in it, has the mode %v, %v", info.Mode(), err)
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

// files lists what lies beside the state file and in its place.
func files(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// snapshotOf gives a snapshot's description and bytes.
func snapshotOf(t *testing.T, s *State) (*raft.SnapshotMeta, []byte) {
	t.Helper()
	meta, src, err := s.Snapshots().Open(ownSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(src)
	if err := errors.Join(err, src.Close()); err != nil {
		t.Fatal(err)
	}
	return meta, all
}

// receive takes a snapshot in, up to where Raft restores it.
func receive(t *testing.T, s *State, meta *raft.SnapshotMeta, data []byte) raft.SnapshotSink {
	t.Helper()
	sink, err := s.Snapshots().Create(1, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	return sink
}

// A disk that is full while a snapshot is installed must not stay full of what was tried.
func TestFailedInstallsLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	leader, follower := open(t, filepath.Join(t.TempDir(), "l")), open(t, filepath.Join(dir, "f"))
	configure(leader)
	must(t, leader, SetSetting{Key: "k", Value: "v"})
	must(t, follower, SetSetting{Key: "k", Value: "old"})
	meta, data := snapshotOf(t, leader)
	damaged := bytes.Clone(data)
	damaged[len(damaged)/2] ^= 1
	for range 3 {
		_, in, err := follower.Snapshots().Open(receive(t, follower, meta, damaged).ID())
		if err != nil {
			t.Fatal(err)
		}
		if err := follower.Restore(in); err == nil {
			t.Fatal("a damaged snapshot was installed")
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		if all := files(t, dir); len(all) != 1 {
			t.Fatalf("after a failed install: %v", all)
		}
	}
	if v, err := follower.Setting("k"); err != nil || v != "old" {
		t.Errorf("%q, %v", v, err)
	}
	if err := follower.Restore(nopCloser{bytes.NewReader(data)}); err != nil {
		t.Fatal(err)
	}
	if all := files(t, dir); len(all) != 1 {
		t.Errorf("after an install: %v", all)
	}
}

// The state file is the snapshot: taking one needs no room, so that a full disk doesn't keep the log from being cut.
func TestOwnSnapshotWritesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "s"))
	configure(s)
	sink, err := s.Snapshots().Create(1, 1, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if all := files(t, dir); len(all) != 1 {
		t.Errorf("%v", all)
	}
	snap, err := s.Snapshot()
	if err := errors.Join(err, snap.Persist(sink), sink.Close()); err != nil {
		t.Error(err)
	}
}

func TestReadsEndOnTheOldFile(t *testing.T) {
	leader, follower := open(t, filepath.Join(t.TempDir(), "l")), open(t, filepath.Join(t.TempDir(), "f"))
	configure(leader)
	must(t, leader, SetSetting{Key: "k", Value: "new"})
	must(t, follower, SetSetting{Key: "k", Value: "old"})
	_, data := snapshotOf(t, leader)
	installed := make(chan error, 1)
	err := follower.view(func(tx *bolt.Tx) error {
		next := follower.Changed()
		go func() { installed <- follower.Restore(nopCloser{bytes.NewReader(data)}) }()
		<-next
		if v, err := follower.Setting("k"); err != nil || v != "new" {
			t.Errorf("a query after the install: %q, %v", v, err)
		}
		if v := tx.Bucket(bucketSettings).Get([]byte("k")); string(v) != "old" {
			t.Errorf("the query under way sees %q", v)
		}
		return nil
	})
	if err := errors.Join(err, <-installed); err != nil {
		t.Error(err)
	}
}

// Copying the state for a follower is one long read, and must not hold up what is applied.
func TestApplyGrowsBesideALongRead(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s"))
	must(t, s, LinkBlob{Repo: "a", Digest: blobDigest(0), Size: 1})
	err := s.view(func(*bolt.Tx) error {
		for i := range 8 {
			body := fmt.Appendf(nil, `{"n":%d,"x":%q}`, i, bytes.Repeat([]byte("x"), 100<<10))
			must(t, s, PutManifest{Repo: "a", Digest: digest.FromBytes(body), MediaType: "x/y", Body: body})
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCrashLeftoversGo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	s, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	configure(s)
	must(t, s, SetSetting{Key: "k", Value: "v"})
	meta, data := snapshotOf(t, s)
	receive(t, s, meta, data)
	// A crash while the next file is being written: the process's files stay as they are.
	left, err := os.ReadFile(path)
	if err := errors.Join(err, s.Close(), os.WriteFile(path, left, 0o600), os.WriteFile(path+receivedSuffix+"next", data[:100], 0o600),
		os.WriteFile(path+receivedSuffix+"x", data, 0o600)); err != nil {
		t.Fatal(err)
	}
	again := open(t, path)
	if v, err := again.Setting("k"); err != nil || v != "v" {
		t.Errorf("%q, %v", v, err)
	}
	if all := files(t, dir); len(all) != 1 {
		t.Errorf("%v", all)
	}
}
