package fsm

import (
	"errors"
	"path/filepath"
	"testing"
)

// A document is replaced only by who saw its last state, or says that this doesn't matter; what says who may come in changes
// the version of Access.
func TestDocuments(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	version := s.AccessVersion
	refused := func(c Command, want error) {
		t.Helper()
		if _, err := do(t, s, c); !errors.Is(err, want) {
			t.Errorf("%+v: %v, want %v", c, err, want)
		}
	}
	doc := func(kind, name, body string) Document { return Document{Kind: kind, Name: name, Body: []byte(body)} }

	first := must(t, s, PutDocument{Document: doc(KindProvider, "corp", "1")}).(DocumentAnswer).Generation
	if v := version(); v == 0 || v != first {
		t.Errorf("the version of access is %d after a provider at %d", v, first)
	}
	must(t, s, PutDocument{Document: doc(KindACME, "corp", "x"), Over: true})
	must(t, s, PutDocument{Document: doc(KindACME, "account", "y"), Over: true})
	if version() != first {
		t.Error("an ACME document changes who may come in")
	}
	refused(PutDocument{Document: doc(KindProvider, "corp", "2")}, ErrDocumentExists)
	refused(PutDocument{Document: doc(KindProvider, "corp", "2"), Was: first + 1}, ErrDocumentChanged)
	refused(PutDocument{Document: doc(KindProvider, "other", "2"), Was: first}, ErrDocumentUnknown)
	refused(PutDocument{Document: doc("", "other", "2")}, ErrIDInvalid)
	refused(PutDocument{Document: Document{Kind: "k", Name: "n", Body: make([]byte, maxDocument+1)}}, ErrDocumentTooBig)
	must(t, s, PutDocument{Document: Document{Kind: "k", Name: "n", Body: make([]byte, maxDocument)}})
	over := must(t, s, PutDocument{Document: doc(KindProvider, "corp", "1"), Over: true}).(DocumentAnswer).Generation
	second := must(t, s, PutDocument{Document: doc(KindProvider, "corp", "2"), Was: over}).(DocumentAnswer).Generation

	d, ok, err := s.Document(KindProvider, "corp")
	if err != nil || !ok || string(d.Body) != "2" || d.Generation != second {
		t.Errorf("document %+v, %v, %v", d, ok, err)
	}
	if all, err := s.Documents(KindACME); err != nil || len(all) != 2 || all[0].Name != "account" || string(all[1].Body) != "x" {
		t.Errorf("documents %+v, %v", all, err)
	}
	if a, err := s.Access(); err != nil || len(a.Providers) != 1 || len(a.Trusts) != 0 {
		t.Errorf("access has %+v, %v", a.Providers, err)
	}
	refused(DeleteDocument{Kind: KindProvider, Name: "corp", Was: first}, ErrDocumentChanged)
	must(t, s, DeleteDocument{Kind: KindProvider, Name: "corp", Was: second})
	if version() <= second {
		t.Error("a provider went, and the version of access stayed")
	}
	refused(DeleteDocument{Kind: KindProvider, Name: "corp"}, ErrDocumentUnknown)
	must(t, s, PutDocument{Document: doc(KindTrust, "ci", "1")})
	trusts := version()
	if a, err := s.Access(); err != nil || len(a.Trusts) != 1 || trusts != s.AppliedIndex() {
		t.Errorf("access of version %d has %+v, %v", trusts, a.Trusts, err)
	}
	must(t, s, DeleteDocument{Kind: KindACME, Name: "corp"})
	if version() != trusts {
		t.Error("an ACME document that goes changes who may come in")
	}
	if _, ok, err := s.Document(KindACME, "corp"); ok || err != nil {
		t.Errorf("a deleted document is there: %v", err)
	}
}
