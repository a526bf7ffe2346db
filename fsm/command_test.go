package fsm

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/opencontainers/go-digest"
)

var update = flag.Bool("update", false, "write the golden files anew")

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
		PutPrincipal{Was: 3, Principal: Principal{Name: "a", Robot: true, Password: []byte("h"), Secrets: []RobotSecret{{ID: "s", Hash: []byte("h"), Expires: 1e12}}, Groups: []string{"g"}, Disabled: true, Expires: 1e12, Generation: 3, Provider: "p"}},
		DeletePrincipal{Name: "a"}, PutGrant{Grant: firstGrant("a")}, DeleteGrant{Grant: firstGrant("a")},
		PutDocument{Document: Document{Kind: "k", Name: "n", Body: []byte("b"), Generation: 3}, Was: 3, Over: true}, DeleteDocument{Kind: "k", Name: "n", Was: 3},
		Admitted{Access: 7, Command: DeleteTag{Repo: "team/app", Tag: "a"}},
		AddPrincipal{Principal: Principal{Name: "a", Robot: true}, Grants: []Grant{firstGrant("a")}},
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

// A type that is added later must have a later level, or nodes of the first release would stop at it.
func TestNewCommandsHaveALevel(t *testing.T) {
	const first = 12 // types of level 1
	highest := uint64(1)
	for i, k := range commandTypes[1:] {
		c, ok := reflect.Zero(k).Interface().(Command)
		if !ok {
			t.Fatalf("%s is no command", k)
		}
		if level := Level(c); (level == 1) != (i < first) || level > CurrentLevel {
			t.Errorf("%s has level %d, and this build announces %d", k, level, CurrentLevel)
		}
		highest = max(highest, Level(c))
	}
	if highest != CurrentLevel {
		t.Errorf("this build announces level %d and knows commands up to %d", CurrentLevel, highest)
	}
	if got := Level(struct{ Command }{SetSetting{}}); got <= CurrentLevel {
		t.Errorf("a command that isn't in the table has level %d", got)
	}
}

// The cluster's name is given once; other settings change as often as somebody likes.
func TestTheClusterIsNamedOnce(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	for _, key := range []string{SettingClusterID, "other"} {
		must(t, s, SetSetting{Key: key, Value: "first"})
		must(t, s, SetSetting{Key: key, Value: "second"})
	}
	id, err := s.Setting(SettingClusterID)
	other, otherErr := s.Setting("other")
	if id != "first" || other != "second" || errors.Join(err, otherErr) != nil {
		t.Errorf("the cluster is %q, the other setting %q, %v, %v", id, other, err, otherErr)
	}
}
