package fsm

import (
	"bytes"
	"path/filepath"
	"testing"
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
