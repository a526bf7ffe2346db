package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// A damaged file must not stand in the way of the good bytes that a client brings again.
func TestAGoodUploadReplacesADamagedFile(t *testing.T) {
	dir := t.TempDir()
	d := upload(t, open(t, dir), []byte("hello"))
	s := open(t, dir) // has verified nothing yet
	if err := os.WriteFile(s.blobPath(d), []byte("hellp"), 0o600); err != nil {
		t.Fatal(err)
	}
	upload(t, s, []byte("hello"))
	if got := read(t, s, d); string(got) != "hello" || leftovers(t, s, "quarantine") != 1 {
		t.Errorf("%q, %d in quarantine", got, leftovers(t, s, "quarantine"))
	}
	if blobs, size := s.Count(); blobs != 1 || size != 5 {
		t.Errorf("%d blobs, %d bytes", blobs, size)
	}
}

// Whoever holds a damaged file open while another heals it gets the healed one.
func TestAnOpenDamagedFileIsNotHandedOut(t *testing.T) {
	dir := t.TempDir()
	d := upload(t, open(t, dir), []byte("hello"))
	s := open(t, dir)
	if err := os.WriteFile(s.blobPath(d), []byte("hellp"), 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(s.blobPath(d))
	if err != nil {
		t.Fatal(err)
	}
	upload(t, s, []byte("hello"))
	if f, err := s.vouch(d, old); err != nil || f != nil {
		t.Errorf("the damaged file passes as the healed one: %v", err)
	}
}

func TestAFailedFsyncLosesTheUpload(t *testing.T) {
	for _, folder := range []bool{false, true} {
		s := open(t, t.TempDir())
		u, err := s.NewUpload("r", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Append(t.Context(), -1, strings.NewReader("hello")); err != nil {
			t.Fatal(err)
		}
		broken := true
		s.fsync = func(f *os.File) error {
			info, err := f.Stat()
			if err == nil && broken && info.IsDir() == folder && (!folder || len(info.Name()) == 2) {
				return syscall.EIO
			}
			return err
		}
		d := digest.FromString("hello")
		if _, err := u.Commit(t.Context(), d); !errors.Is(err, ErrLost) || !errors.Is(err, syscall.EIO) {
			t.Errorf("folder %v: %v", folder, err)
		}
		broken = false // the kernel has dropped the pages and says so once
		if _, err := u.Commit(t.Context(), d); !errors.Is(err, ErrUploadUnknown) {
			t.Errorf("folder %v: committed what the disk lost: %v", folder, err)
		}
		if _, err := s.Stat(d); !errors.Is(err, ErrUnknown) || leftovers(t, s, "uploads") != 0 {
			t.Errorf("folder %v: it is a blob all the same: %v", folder, err)
		}
		upload(t, s, []byte("hello"))
		if got := read(t, s, d); string(got) != "hello" {
			t.Errorf("folder %v: %q", folder, got)
		}
	}
}

func TestAFailedFsyncLosesTheFetch(t *testing.T) {
	s := open(t, t.TempDir())
	d := digest.FromString("hello")
	p, err := s.NewPartial(d, 5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	s.fsync = func(*os.File) error { return syscall.EIO }
	if err := p.Finish(); !errors.Is(err, ErrLost) || leftovers(t, s, "fetches") != 0 {
		t.Errorf("%v, %d left", err, leftovers(t, s, "fetches"))
	}
	p.End(nil)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// A copy counts only when its name is durable too.
func TestABlobIsUnknownUntilItsNameIsDurable(t *testing.T) {
	s := open(t, t.TempDir())
	d := digest.FromString("hello")
	synced, parent := 0, 0
	s.fsync = func(f *os.File) error {
		switch f.Name() {
		case filepath.Dir(s.blobPath(d)):
			synced++
			if _, err := s.Stat(d); synced == 1 && !errors.Is(err, ErrUnknown) {
				t.Errorf("known before its folder is durable: %v", err)
			}
		case s.path("blobs", "sha256"):
			parent++
		}
		return nil
	}
	upload(t, s, []byte("hello"))
	if _, err := s.Stat(d); err != nil || synced != 1 || parent != 1 {
		t.Errorf("%v; %d and %d fsyncs", err, synced, parent)
	}
	upload(t, s, []byte("hello")) // may be of a process that was killed before its fsync
	if synced != 2 || parent != 1 {
		t.Errorf("acknowledged again without an fsync: %d and %d", synced, parent)
	}
}

// What is let go of stays in the trash for its time, however old the blob is.
func TestTrashIsKept(t *testing.T) {
	now := time.Now()
	s, err := Open(Config{Dir: t.TempDir(), ReserveBytes: 1, TrashKeep: time.Hour, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	d := upload(t, s, []byte("hello"))
	long := now.Add(-1000 * time.Hour)
	if err := os.Chtimes(s.blobPath(d), long, long); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(d); err != nil {
		t.Fatal(err)
	}
	now = now.Add(59 * time.Minute)
	if s.emptyTrash(); leftovers(t, s, "trash") != 1 {
		t.Fatal("gone before its time")
	}
	now = now.Add(2 * time.Minute)
	if s.emptyTrash(); leftovers(t, s, "trash") != 0 {
		t.Error("still there after its time")
	}
}

// Where room is short the trash makes way at once.
func TestTrashMakesWay(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Release(upload(t, s, []byte("hello"))); err != nil {
		t.Fatal(err)
	}
	if err := s.Room(1); err != nil || leftovers(t, s, "trash") != 1 {
		t.Fatalf("with room enough: %v", err)
	}
	s.cfg.ReserveBytes = 1 << 62
	if err := s.Room(1); !errors.Is(err, ErrNoSpace) || leftovers(t, s, "trash") != 0 {
		t.Errorf("without room: %v, and the trash is still there", err)
	}
}

// A repeated commit doesn't vouch for a blob that has gone since.
func TestACommitIsNotRepeatedForABlobThatWent(t *testing.T) {
	s := open(t, t.TempDir())
	u, err := s.NewUpload("r", "")
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("")
	if _, err := u.Commit(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if err := s.Quarantine(d); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(t.Context(), d); !errors.Is(err, ErrUploadUnknown) {
		t.Errorf("committed what isn't there: %v", err)
	}
}

func TestCrashedLeftoversGo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	u, err := s.NewUpload("r", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(u.path()+".tmp", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s = open(t, dir); leftovers(t, s, "uploads") != 2 {
		t.Errorf("%d files of one upload", leftovers(t, s, "uploads"))
	}
	keep, drop := digest.FromString("keep"), digest.FromString("drop")
	for _, d := range []digest.Digest{keep, drop} {
		p, err := s.NewPartial(d, 5)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SweepFetches(func(d digest.Digest) bool { return d == keep }); err != nil || leftovers(t, s, "fetches") != 1 {
		t.Errorf("%v, %d fetches", err, leftovers(t, s, "fetches"))
	}
}
