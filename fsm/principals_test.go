package fsm

import (
	"bytes"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
)

// accessState is a state whose access a test changes, command by command.
type accessState struct {
	*testing.T
	state *State
}

func (s accessState) access() Access {
	s.Helper()
	a, err := s.state.Access()
	if err != nil {
		s.Fatal(err)
	}
	if v := s.state.AccessVersion(); v != a.Version {
		s.Errorf("version %d of %d", v, a.Version)
	}
	return a
}

// changes applies a command that must change the version, and refused one that must not.
func (s accessState) changes(c Command) Answer {
	s.Helper()
	answer := must(s.T, s.state, c)
	if v := s.access().Version; v != s.state.AppliedIndex() {
		s.Errorf("after %+v at %d the version is %d still", c, s.state.AppliedIndex(), v)
	}
	return answer
}

func (s accessState) refused(c Command, want error) {
	s.Helper()
	before := s.access().Version
	if _, err := do(s.T, s.state, c); !errors.Is(err, want) {
		s.Errorf("%T: %v, want %v", c, err, want)
	}
	if s.access().Version != before {
		s.Errorf("%T was refused and changed something", c)
	}
}

// The first user of all turns access control on; what is changed is changed only by who saw the last state of it.
func TestPrincipals(t *testing.T) {
	s := accessState{t, open(t, filepath.Join(t.TempDir(), "state.db"))}
	s.changes(PutPrincipal{Principal: Principal{Name: "ci", Robot: true}})
	if s.access().On || s.access().Decided {
		t.Error("a robot turns access control on")
	}
	first := s.changes(PutPrincipal{Principal: Principal{Name: "root"}}).(PrincipalAnswer)
	a := s.access()
	if !first.First || !a.On || len(a.Principals) != 2 || len(a.Grants) != 1 || a.Grants[0] != firstGrant("root") {
		t.Errorf("after the first user: %+v, %+v", first, a)
	}
	second := s.changes(PutPrincipal{Principal: Principal{Name: "alice"}}).(PrincipalAnswer)
	if second.First || len(s.access().Grants) != 1 {
		t.Error("the second user is taken for the first")
	}
	s.refused(PutPrincipal{Principal: Principal{Name: "alice"}}, ErrPrincipalExists)
	s.refused(PutPrincipal{Principal: Principal{Name: "bob"}, Was: 1}, ErrPrincipalUnknown)
	s.refused(PutPrincipal{Principal: Principal{Name: "alice"}, Was: second.Generation - 1}, ErrPrincipalChanged)
	changed := s.changes(PutPrincipal{Principal: Principal{Name: "alice", Disabled: true}, Was: second.Generation}).(PrincipalAnswer)
	if changed.Generation <= second.Generation {
		t.Error("a change leaves the generation")
	}
	grant := Grant{Subject: "alice", Right: "push", Pattern: "team/**"}
	s.changes(PutGrant{Grant: grant})
	s.changes(PutGrant{Grant: grant})
	s.changes(PutGrant{Grant: Grant{Subject: "group:alice", Right: "pull", Pattern: "*"}})
	everybody := Grant{Subject: SubjectAnonymous, Right: "pull", Pattern: "public/*"}
	s.changes(PutGrant{Grant: everybody})
	s.changes(DeleteGrant{Grant: everybody})
	s.refused(DeleteGrant{Grant: everybody}, ErrGrantUnknown)
	for _, name := range []string{"", SubjectAnonymous, SubjectGroup + "alice"} { // who was called so would have others' rights
		s.refused(PutPrincipal{Principal: Principal{Name: name}}, ErrIDInvalid)
		s.refused(AddPrincipal{Principal: Principal{Name: name, Robot: true}}, ErrIDInvalid)
	}
	s.refused(PutGrant{Grant: Grant{Subject: "alice", Right: "", Pattern: "*"}}, ErrIDInvalid)
	s.refused(AddPrincipal{Principal: Principal{Name: "dave"}, Grants: []Grant{{Subject: "dave"}}}, ErrIDInvalid)
	s.refused(AddPrincipal{Principal: Principal{Name: "dave"}, Grants: []Grant{grant}}, ErrPrincipalUnknown)
	for _, nobody := range []string{"alice2", "group", "Anonymous"} {
		s.refused(PutGrant{Grant: Grant{Subject: nobody, Right: "pull", Pattern: "*"}}, ErrPrincipalUnknown)
	}
	s.refused(DeleteGrant{Grant: Grant{Subject: "alice", Right: "pull", Pattern: "team/**"}}, ErrGrantUnknown)
	s.changes(DeletePrincipal{Name: "alice"})
	s.refused(DeletePrincipal{Name: "alice"}, ErrPrincipalUnknown)
	s.refused(PutGrant{Grant: grant}, ErrPrincipalUnknown) // the next alice must not have it
	if a := s.access(); len(a.Grants) != 2 || len(a.Principals) != 2 {
		t.Errorf("with alice her grants go, and no others: %+v", a)
	}
	s.changes(DeletePrincipal{Name: "root"})
	if !s.access().On {
		t.Error("access control ends with the last user")
	}
	s.changes(SetSetting{Key: SettingAccess, Value: AccessOpen})
	s.changes(PutPrincipal{Principal: Principal{Name: "root"}})
	if s.access().On || !s.access().Decided {
		t.Error("what was opened by hand is closed by a new user")
	}
}

// Whoever has read a change finds the version moved, however close behind, and after a snapshot and a restart too.
func TestAccessVersionNeverLags(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	leader, s := open(t, filepath.Join(t.TempDir(), "l")), open(t, path)
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			a, err := s.Access()
			if v := s.AccessVersion(); err != nil || v < a.Version {
				t.Errorf("version %d after an answer of %d, %v", v, a.Version, err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	toggle := func(s *State, i int) {
		must(t, s, SetSetting{Key: SettingAccess, Value: []string{AccessOn, AccessOpen}[i%2]})
	}
	for i := range 200 {
		toggle(s, i)
	}
	leader.StoreConfiguration(1000, raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "a:1"}}}) // ahead of it
	for i := range 10 {
		toggle(leader, i)
		_, data := snapshotOf(t, leader)
		if err := s.Restore(nopCloser{bytes.NewReader(data)}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	reader.Wait()
	last := s.AccessVersion()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if v := open(t, path).AccessVersion(); v != last || v <= 1000 {
		t.Errorf("version %d before a restart, %d after it", last, v)
	}
}
