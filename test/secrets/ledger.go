package secrets

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// shortest is what a secret must have: shorter ones are in any long text by chance.
const shortest = 8

// Ledger knows secrets and texts. The zero value is ready; safe for concurrent use.
type Ledger struct {
	mu    sync.Mutex
	forms []form
	texts []text
}

type form struct {
	secret, kind string
	bytes        []byte
}

type text struct {
	where string
	bytes []byte
	may   []string
}

// Keep notes a secret under a name. It must have at least eight bytes.
func (l *Ledger) Keep(name, secret string) error {
	if len(secret) < shortest {
		return fmt.Errorf("the secret %s has %d bytes, which other texts have by chance", name, len(secret))
	}
	quoted, err := json.Marshal(secret)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for kind, as := range map[string]string{
		"as it is": secret, "in hex": hex.EncodeToString([]byte(secret)), "in HEX": strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"escaped for a URL": url.QueryEscape(secret), "escaped for a path": url.PathEscape(secret), "in JSON": strings.Trim(string(quoted), `"`),
		"quoted": strings.Trim(strconv.Quote(secret), `"`), "as numbers": strings.Trim(fmt.Sprint([]byte(secret)), "[]"),
	} {
		l.forms = append(l.forms, form{name, kind, []byte(as)})
	}
	for shift := range 3 { // wherever it stands in what is encoded
		l.forms = append(l.forms, form{name, "in base64", middle(base64.RawStdEncoding, secret, shift)}, form{name, "in base64 for URLs", middle(base64.RawURLEncoding, secret, shift)})
	}
	return nil
}

// middle is the part of an encoding that depends on nothing but the secret, behind shift other bytes.
func middle(enc *base64.Encoding, secret string, shift int) []byte {
	whole := enc.EncodeToString(append(make([]byte, shift), secret...))
	from := []int{0, 2, 3}[shift]
	to := len(whole)
	if (shift+len(secret))%3 != 0 {
		to-- // the last character has bits of what follows
	}
	return []byte(whole[from:to])
}

// Gather notes a text that somebody may read. Secrets of the names in may can be in it: it is what they are shown by.
func (l *Ledger) Gather(where string, b []byte, may ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.texts = append(l.texts, text{where, bytes.Clone(b), may})
}

// Found says which secret is in which text, a line each.
func (l *Ledger) Found() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, t := range l.texts {
		for _, f := range l.forms {
			i := bytes.Index(t.bytes, f.bytes)
			if i < 0 || slices.Contains(t.may, f.secret) {
				continue
			}
			around := t.bytes[max(0, i-80):min(len(t.bytes), i+len(f.bytes)+20)]
			out = append(out, fmt.Sprintf("%s has the secret %s %s: …%q…", t.where, f.secret, f.kind, around))
		}
		if bytes.Contains(t.bytes, []byte("PRIVATE KEY")) && !slices.Contains(t.may, "a private key") {
			out = append(out, t.where+" has a private key")
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Size tells how many secrets are known and how many texts and bytes were gathered, so that a test sees that it looks at
// something.
func (l *Ledger) Size() (secrets, texts, bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := map[string]bool{}
	for _, f := range l.forms {
		known[f.secret] = true
	}
	for _, t := range l.texts {
		bytes += len(t.bytes)
	}
	return len(known), len(l.texts), bytes
}
