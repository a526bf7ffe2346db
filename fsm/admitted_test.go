package fsm

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/vmihailenco/msgpack/v5"
)

// What was let in by an older view of who may do what changes nothing; the same command again gets the same answer, whatever
// has happened since.
func TestAdmitted(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	put := func(access uint64) error {
		t.Helper()
		_, err := do(t, s, Admitted{Access: access, Command: SetSetting{Key: "k", Value: "v"}})
		return err
	}
	version := s.AccessVersion
	if err := put(0); err != nil {
		t.Fatalf("as open as when it was let in: %v", err)
	}
	must(t, s, PutPrincipal{Principal: Principal{Name: "root"}})
	must(t, s, SetSetting{Key: "k"})
	for _, old := range []uint64{0, version() - 1, version() + 1} {
		if err := put(old); !errors.Is(err, ErrAccessChanged) {
			t.Errorf("let in by version %d of %d: %v", old, version(), err)
		}
	}
	if v, err := s.Setting("k"); err != nil || v != "" {
		t.Errorf("it was refused and changed something: %q, %v", v, err)
	}
	if err := put(version()); err != nil {
		t.Errorf("let in by what holds: %v", err)
	}

	data, err := Encode(Identity{Node: "n", Epoch: 1, Seq: 1}, Admitted{Access: version(), Command: SetSetting{Key: "k"}})
	if err != nil {
		t.Fatal(err)
	}
	apply := func() []byte {
		l := &raft.Log{Index: s.AppliedIndex() + 1, Term: 1, Type: raft.LogCommand, Data: data}
		answer, _ := s.Apply(l).([]byte)
		return answer
	}
	first := apply()
	must(t, s, PutPrincipal{Principal: Principal{Name: "bob"}})
	if again := apply(); !bytes.Equal(first, again) {
		t.Errorf("first %x, again %x", first, again)
	}
}

// What can't be let in can't be read from a log either.
func TestAdmittedHoldsAPlainCommand(t *testing.T) {
	for _, bad := range []Command{nil, Admitted{Command: DeleteTag{}}} {
		if _, err := Encode(Identity{}, Admitted{Command: bad}); err == nil {
			t.Errorf("%T is let in", bad)
		}
	}
	encode := func(kind uint64, parts int, inside any) []byte {
		t.Helper()
		var b bytes.Buffer
		b.WriteByte(typeByte(commandTypes, Admitted{}))
		enc := msgpack.NewEncoder(&b)
		err := errors.Join(enc.Encode(&Identity{}), enc.EncodeArrayLen(parts), enc.EncodeUint(7), enc.EncodeUint(kind), enc.Encode(inside))
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	var unknown *UnknownCommandError
	for _, kind := range []byte{0, 200} {
		if _, _, err := Decode(encode(uint64(kind), 3, &DeleteTag{})); !errors.As(err, &unknown) || unknown.Type != kind {
			t.Errorf("a type %d inside: %v", kind, err)
		}
	}
	good, err := Encode(Identity{}, Admitted{Access: 7, Command: DeleteTag{Repo: "a", Tag: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, c, err := Decode(good[:n]); err == nil {
			t.Errorf("the first %d bytes are read as %+v", n, c)
		}
	}
	another := uint64(typeByte(commandTypes, Admitted{}))
	for _, bad := range [][]byte{encode(another, 3, &DeleteTag{}), encode(another, 3, &Admitted{Command: DeleteTag{}}), encode(uint64(typeByte(commandTypes, DeleteTag{})), 2, &DeleteTag{})} {
		if _, c, err := Decode(bad); err == nil || errors.As(err, &unknown) {
			t.Errorf("%x is read as %+v, %v", bad, c, err)
		}
	}
	if Level(Admitted{Command: DeleteTag{}}) != 3 || Level(Admitted{Command: struct{ Command }{}}) <= CurrentLevel {
		t.Error("a command gets a lower level by being let in")
	}
}

// A robot comes with its grants or not at all.
func TestAddPrincipal(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	robot := Principal{Name: "ci", Robot: true}
	for _, bad := range [][]Grant{{{Subject: "other", Right: "pull", Pattern: "a"}}, {{Subject: "ci", Right: "pull", Pattern: "a"}, {Subject: "ci"}}} {
		if _, err := do(t, s, AddPrincipal{Principal: robot, Grants: bad}); err == nil {
			t.Errorf("%+v", bad)
		}
	}
	if a, err := s.Access(); err != nil || a.Version != 0 || len(a.Principals)+len(a.Grants) != 0 {
		t.Errorf("what was refused has changed %+v, %v", a, err)
	}
	must(t, s, AddPrincipal{Principal: robot, Grants: []Grant{{Subject: "ci", Right: "pull", Pattern: "a"}}})
	if _, err := do(t, s, AddPrincipal{Principal: robot}); !errors.Is(err, ErrPrincipalExists) {
		t.Errorf("a second one: %v", err)
	}
	if a, err := s.Access(); err != nil || len(a.Grants) != 1 || len(a.Principals) != 1 {
		t.Errorf("%+v, %v", a, err)
	}
}
