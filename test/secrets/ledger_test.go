package secrets

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// In whatever form a secret stands somewhere, it is found; and only there.
func TestLedger(t *testing.T) {
	const secret = `p"ss wörd: <1>&2/3+4`
	quoted, err := json.Marshal(map[string]string{"x": secret})
	if err != nil {
		t.Fatal(err)
	}
	leaks := []string{
		"level=INFO msg=" + secret, string(quoted), fmt.Sprintf("%q", secret), "/x?y=" + url.QueryEscape(secret), "/x/" + url.PathEscape(secret),
		hex.EncodeToString([]byte("x" + secret)), fmt.Sprintf("%X", secret), fmt.Sprint([]byte("a" + secret + "b")), "-----BEGIN PRIVATE KEY-----",
	}
	for shift := range 4 {
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
			leaks = append(leaks, enc.EncodeToString([]byte(strings.Repeat("u", shift)+":"+secret+strings.Repeat("v", shift))))
		}
	}
	for _, leak := range leaks {
		var l Ledger
		if err := l.Keep("password", secret); err != nil {
			t.Fatal(err)
		}
		l.Gather("clean", []byte("nothing to see: p ss wörd"))
		l.Gather("allowed", []byte(leak), "password", "a private key")
		if got := l.Found(); len(got) != 0 {
			t.Errorf("%s", got)
		}
		l.Gather("log", []byte("before "+leak+" after"))
		if got := l.Found(); len(got) == 0 || !strings.HasPrefix(got[0], "log has ") {
			t.Errorf("%q is not found in %s", leak, got)
		}
	}
	if err := new(Ledger).Keep("short", "short"); err == nil {
		t.Error("a secret of five bytes is looked for")
	}
}
