package fsm

import (
	"errors"
	"path/filepath"
	"testing"
)

// The first user of all turns access control on; what is changed is changed only by who saw the last state of it.
func TestPrincipals(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	access := func() Access {
		t.Helper()
		a, err := s.Access()
		if err != nil {
			t.Fatal(err)
		}
		if v, err := s.AccessVersion(); err != nil || v != a.Version {
			t.Errorf("version %d, %v, of %d", v, err, a.Version)
		}
		return a
	}
	changes := func(c Command) Answer {
		t.Helper()
		answer := must(t, s, c)
		if v := access().Version; v != s.AppliedIndex() {
			t.Errorf("after %+v at %d the version is %d still", c, s.AppliedIndex(), v)
		}
		return answer
	}
	refused := func(c Command, want error) {
		t.Helper()
		before := access().Version
		if _, err := do(t, s, c); !errors.Is(err, want) {
			t.Errorf("%T: %v, want %v", c, err, want)
		}
		if access().Version != before {
			t.Errorf("%T was refused and changed something", c)
		}
	}
	changes(PutPrincipal{Principal: Principal{Name: "ci", Robot: true}})
	if access().On || access().Decided {
		t.Error("a robot turns access control on")
	}
	first := changes(PutPrincipal{Principal: Principal{Name: "root"}}).(PrincipalAnswer)
	a := access()
	if !first.First || !a.On || len(a.Principals) != 2 || len(a.Grants) != 1 || a.Grants[0] != firstGrant("root") {
		t.Errorf("after the first user: %+v, %+v", first, a)
	}
	second := changes(PutPrincipal{Principal: Principal{Name: "alice"}}).(PrincipalAnswer)
	if second.First || len(access().Grants) != 1 {
		t.Error("the second user is taken for the first")
	}
	refused(PutPrincipal{Principal: Principal{Name: "alice"}}, ErrPrincipalExists)
	refused(PutPrincipal{Principal: Principal{Name: "bob"}, Was: 1}, ErrPrincipalUnknown)
	refused(PutPrincipal{Principal: Principal{Name: "alice"}, Was: second.Generation - 1}, ErrPrincipalChanged)
	changed := changes(PutPrincipal{Principal: Principal{Name: "alice", Disabled: true}, Was: second.Generation}).(PrincipalAnswer)
	if changed.Generation <= second.Generation {
		t.Error("a change leaves the generation")
	}
	grant := Grant{Subject: "alice", Right: "push", Pattern: "team/**"}
	changes(PutGrant{Grant: grant})
	changes(PutGrant{Grant: grant})
	changes(PutGrant{Grant: Grant{Subject: "group:alice", Right: "pull", Pattern: "*"}})
	everybody := Grant{Subject: SubjectAnonymous, Right: "pull", Pattern: "public/*"}
	changes(PutGrant{Grant: everybody})
	changes(DeleteGrant{Grant: everybody})
	refused(DeleteGrant{Grant: everybody}, ErrGrantUnknown)
	refused(PutPrincipal{Principal: Principal{Name: ""}}, ErrIDInvalid)
	refused(PutGrant{Grant: Grant{Subject: "alice", Right: "", Pattern: "*"}}, ErrIDInvalid)
	refused(AddPrincipal{Principal: Principal{Name: "dave"}, Grants: []Grant{{Subject: "dave"}}}, ErrIDInvalid)
	refused(AddPrincipal{Principal: Principal{Name: "dave"}, Grants: []Grant{grant}}, ErrPrincipalUnknown)
	for _, nobody := range []string{"alice2", "group", "Anonymous"} {
		refused(PutGrant{Grant: Grant{Subject: nobody, Right: "pull", Pattern: "*"}}, ErrPrincipalUnknown)
	}
	refused(DeleteGrant{Grant: Grant{Subject: "alice", Right: "pull", Pattern: "team/**"}}, ErrGrantUnknown)
	changes(DeletePrincipal{Name: "alice"})
	refused(DeletePrincipal{Name: "alice"}, ErrPrincipalUnknown)
	refused(PutGrant{Grant: grant}, ErrPrincipalUnknown) // the next alice must not have it
	if a := access(); len(a.Grants) != 2 || len(a.Principals) != 2 {
		t.Errorf("with alice her grants go, and no others: %+v", a)
	}
	changes(DeletePrincipal{Name: "root"})
	if !access().On {
		t.Error("access control ends with the last user")
	}
	changes(SetSetting{Key: SettingAccess, Value: AccessOpen})
	changes(PutPrincipal{Principal: Principal{Name: "root"}})
	if access().On || !access().Decided {
		t.Error("what was opened by hand is closed by a new user")
	}
}
