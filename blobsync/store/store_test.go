package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
)

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir, ReserveBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func upload(t testing.TB, s *Store, data []byte) digest.Digest {
	t.Helper()
	u, err := s.NewUpload("repo", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), -1, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	if _, err := u.Commit(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	return d
}

func read(t testing.TB, s *Store, d digest.Digest) []byte {
	t.Helper()
	f, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// leftovers counts files in a folder of the store.
func leftovers(t testing.TB, s *Store, folder string) int {
	t.Helper()
	entries, err := os.ReadDir(s.path(folder))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestUploadInPieces(t *testing.T) {
	s := open(t, t.TempDir())
	u, err := s.NewUpload("team/app", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	broken := io.MultiReader(strings.NewReader("hel"), iotest.ErrReader(io.ErrUnexpectedEOF))
	if n, err := u.Append(t.Context(), 0, broken); n != 3 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	var offset *OffsetError
	if _, err := u.Append(t.Context(), 1, strings.NewReader("x")); !errors.As(err, &offset) || offset.Size != 3 {
		t.Errorf("a chunk in the wrong place: %v", err)
	}
	if _, err := u.Append(t.Context(), 3, strings.NewReader("lo")); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(t.Context(), digest.FromString("other")); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("a wrong digest: %v", err)
	}
	d := digest.SHA512.FromString("hello") // another algorithm than the session's
	for range 2 {
		if size, err := u.Commit(t.Context(), d); err != nil || size != 5 {
			t.Fatalf("commit: %d, %v", size, err)
		}
	}
	if got := read(t, s, d); string(got) != "hello" {
		t.Errorf("%q", got)
	}
	if blobs, size := s.Count(); blobs != 1 || size != 5 || s.OpenUploads() != 0 {
		t.Errorf("%d blobs, %d bytes, %d uploads", blobs, size, s.OpenUploads())
	}
}

func TestUploadOutlivesARestart(t *testing.T) {
	dir := t.TempDir()
	u, err := open(t, dir).NewUpload("team/app", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), -1, strings.NewReader("hel")); err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("hello")
	for i := range 3 {
		s := open(t, dir)
		u, err := s.FindUpload(u.ID())
		if err != nil || u.Label() != "team/app" {
			t.Fatalf("start %d: %v", i, err)
		}
		if i == 0 {
			if _, err := u.Append(t.Context(), 3, strings.NewReader("lo")); err != nil {
				t.Fatal(err)
			}
		}
		if size, err := u.Commit(t.Context(), d); err != nil || size != 5 {
			t.Fatalf("start %d: %d, %v", i, size, err)
		}
	}
}

func TestOneWriterAtATime(t *testing.T) {
	s := open(t, t.TempDir())
	u, err := s.NewUpload("r", "")
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := u.Append(t.Context(), -1, r)
		done <- err
	}()
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), -1, strings.NewReader("y")); !errors.Is(err, ErrUploadBusy) {
		t.Errorf("a second writer: %v", err)
	}
	if err := errors.Join(w.Close(), <-done, u.Cancel()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.FindUpload(u.ID()); !errors.Is(err, ErrUploadUnknown) || leftovers(t, s, "uploads") != 0 {
		t.Errorf("after cancelling: %v, %d files", err, leftovers(t, s, "uploads"))
	}
}

func TestIdleUploadsExpire(t *testing.T) {
	now := time.Unix(1e9, 0)
	s, err := Open(Config{Dir: t.TempDir(), ReserveBytes: 1, UploadTTL: time.Hour, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.NewUpload("r", "")
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(59 * time.Minute)
	s.expireUploads()
	if _, err := s.FindUpload(u.ID()); err != nil {
		t.Fatal("it went too early")
	}
	now = now.Add(2 * time.Minute)
	s.expireUploads()
	if _, err := s.FindUpload(u.ID()); !errors.Is(err, ErrUploadUnknown) || leftovers(t, s, "uploads") != 0 {
		t.Errorf("it stays: %v", err)
	}
}

func TestDamageIsFoundBeforeItIsServed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	d := upload(t, s, []byte("hello"))
	path := s.blobPath(d)
	if err := os.WriteFile(path, []byte("hellp"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	var damaged *DamagedError
	if _, err := s.Open(d); !errors.As(err, &damaged) || damaged.Digest != d {
		t.Fatalf("it was opened: %v", err)
	}
	if _, err := s.Stat(d); !errors.Is(err, ErrUnknown) || leftovers(t, s, "quarantine") != 1 {
		t.Errorf("not in quarantine: %v", err)
	}
	if blobs, size := s.Count(); blobs != 0 || size != 0 {
		t.Errorf("still counted: %d, %d", blobs, size)
	}
	upload(t, s, []byte("hello"))
	if got := read(t, open(t, dir), d); string(got) != "hello" {
		t.Errorf("%q", got)
	}
}

// Damage that leaves no trace in the file's stamp is found once somebody doubts the file.
func TestDoubtedFileIsVerifiedAnew(t *testing.T) {
	s := open(t, t.TempDir())
	d := upload(t, s, []byte("hello"))
	info, err := os.Stat(s.blobPath(d))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(s.blobPath(d), []byte("hellO"), 0o600), os.Chtimes(s.blobPath(d), time.Time{}, info.ModTime())); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, d); string(got) != "hellO" {
		t.Fatalf("read %q: this tests nothing", got)
	}
	s.Doubt(d)
	var damaged *DamagedError
	if _, err := s.Open(d); !errors.As(err, &damaged) {
		t.Errorf("it was opened: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	u, err := s.NewUpload("r", "")
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.ReserveBytes = math.MaxInt64 / 2
	if _, err := s.NewUpload("r", ""); !errors.Is(err, ErrNoSpace) {
		t.Errorf("begun on a full disk: %v", err)
	}
	if _, err := u.Append(t.Context(), -1, strings.NewReader("hello")); !errors.Is(err, ErrNoSpace) {
		t.Errorf("went on on a full disk: %v", err)
	}
	p, err := s.NewPartial(digest.FromString("hello"), 5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("hello")); !errors.Is(err, ErrNoSpace) {
		t.Errorf("fetched onto a full disk: %v", err)
	}
	s.cfg.ReserveBytes = 1
	if _, err := u.Append(t.Context(), 0, strings.NewReader("hello")); err != nil {
		t.Errorf("after space was made: %v", err)
	}
	if _, err := u.Commit(t.Context(), digest.FromString("hello")); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestFetchGoesOnAndIsChecked(t *testing.T) {
	dir := t.TempDir()
	d := digest.FromString("hello")
	p, err := open(t, dir).NewPartial(d, 5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("hel")); err != nil {
		t.Fatal(err)
	}
	p.End(errors.New("cut"))
	again, err := p.s.NewPartial(d, 5)
	if err != nil || again.Size() != 3 {
		t.Fatalf("the hash state is lost: %d bytes, %v", again.Size(), err)
	}
	if err := errors.Join(p.Close(), again.Close()); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if p, err = s.NewPartial(d, 5); err != nil {
		t.Fatal(err)
	}
	if err := p.Resume(t.Context()); err != nil || p.Size() != 3 {
		t.Fatalf("resumed at %d, %v", p.Size(), err)
	}
	waited := make(chan int64, 1)
	go func() {
		size, _, _ := p.WaitFor(context.WithoutCancel(t.Context()), 3)
		waited <- size
	}()
	if _, err := p.Write([]byte("lo")); err != nil {
		t.Fatal(err)
	}
	if size := <-waited; size != 5 {
		t.Errorf("a reader saw %d bytes", size)
	}
	if _, err := p.Write([]byte("!")); err == nil {
		t.Error("more bytes than the blob has were taken")
	}
	if err := p.Finish(); err != nil {
		t.Fatal(err)
	}
	p.End(nil)
	if _, done, err := p.WaitFor(t.Context(), 5); !done || err != nil {
		t.Errorf("not done: %v", err)
	}
	if got := read(t, s, d); string(got) != "hello" || leftovers(t, s, "fetches") != 0 {
		t.Errorf("%q, %d files", got, leftovers(t, s, "fetches"))
	}
	bad, err := s.NewPartial(digest.FromString("other"), 5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bad.Write([]byte("wrong")); err != nil {
		t.Fatal(err)
	}
	var damaged *DamagedError
	if err := bad.Finish(); !errors.As(err, &damaged) || leftovers(t, s, "fetches") != 0 {
		t.Errorf("wrong bytes: %v", err)
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	s := open(t, t.TempDir())
	d := upload(t, s, nil) // zero bytes are a blob
	before, err := os.Stat(s.blobPath(d))
	if err != nil {
		t.Fatal(err)
	}
	upload(t, s, nil)
	after, err := os.Stat(s.blobPath(d))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("another file stands there: %v", err)
	}
	if blobs, _ := s.Count(); blobs != 1 {
		t.Errorf("%d blobs", blobs)
	}
	if err := s.Release(d); err != nil || leftovers(t, s, "trash") != 1 {
		t.Errorf("released: %v", err)
	}
}

// No digest or ID that a client sends may reach outside the store's folders.
func FuzzPaths(f *testing.F) {
	f.Add("sha256:../../etc/passwd")
	f.Add("../../x")
	f.Add("sha256:" + strings.Repeat("a", 64))
	f.Fuzz(func(t *testing.T, name string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, filepath.Join(dir, "store"))
		if _, err := s.Stat(digest.Digest(name)); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q is there: %v", name, err)
		}
		if f, err := s.Open(digest.Digest(name)); err == nil {
			_ = f.Close()
			t.Errorf("%q opens", name)
		}
		if _, err := s.FindUpload(name); !errors.Is(err, ErrUploadUnknown) {
			t.Errorf("%q is an upload: %v", name, err)
		}
	})
}

func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 20} {
		b.Run(digestSize(size), func(b *testing.B) {
			s := open(b, b.TempDir())
			data := bytes.Repeat([]byte("pier"), size/4)
			b.SetBytes(int64(size))
			for i := 0; b.Loop(); i++ {
				copy(data, time.Now().String()) // a blob that isn't there yet
				upload(b, s, data)
			}
		})
	}
}

func digestSize(n int) string {
	if n < 1<<20 {
		return "4KiB"
	}
	return "64MiB"
}

func BenchmarkRead(b *testing.B) {
	s := open(b, b.TempDir())
	data := bytes.Repeat([]byte("pier"), 16<<20)
	d := upload(b, s, data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		f, err := s.Open(d)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, f); err != nil {
			b.Fatal(err)
		}
		_ = f.Close()
	}
}
