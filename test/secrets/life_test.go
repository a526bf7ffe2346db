package secrets

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"pier/cluster/port"
	"pier/test/process"
)

// life is a cluster of real processes and everything that it says.
type life struct {
	*testing.T
	Ledger
	ctx     context.Context
	dir     string
	binary  string
	cluster *process.Cluster
	http    *http.Client
	ran     map[string]bool // commands, by their words
}

// No secret that is used in the life of a cluster is in a log, in the audit log, in the metrics, in an error, in what a command
// prints or is called with, or in a file that isn't there to keep it.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l := &life{T: t, ctx: ctx, dir: t.TempDir(), ran: map[string]bool{}}
	l.start()
	l.people()
	l.strangers()
	l.pushes()
	l.outsiders()
	l.invites()
	l.outages()
	l.rotates()
	l.allCommands("")
	l.gatherAll()
	for _, leak := range l.Found() {
		t.Error(leak)
	}
	secrets, texts, size := l.Size()
	t.Logf("%d secrets in %d texts of %d KiB; commands: %d", secrets, texts, size>>10, len(l.ran))
	if secrets < 20 || texts < 100 {
		t.Errorf("only %d secrets were looked for in %d texts", secrets, texts)
	}
}

func (l *life) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *life) keep(name, secret string) string {
	l.Helper()
	l.must(l.Keep(name, secret))
	return secret
}

// start runs three nodes that say all that they can, with a first user from a file.
func (l *life) start() {
	l.binary = filepath.Join(l.dir, "pier")
	out, err := exec.CommandContext(l.ctx, "go", "build", "-o", l.binary, "pier/cmd/pier").CombinedOutput()
	if err != nil {
		l.Fatalf("%v\n%s", err, out)
	}
	admin := l.keep("root's password", `root's "pass" wörd: <1>&2`)
	file := filepath.Join(l.dir, "admin-password")
	l.must(os.WriteFile(file, []byte(admin+"\n"), 0o600))
	l.must(os.MkdirAll(filepath.Join(l.dir, "cluster"), 0o700))
	secret := filepath.Join(l.dir, "cluster", "cluster.secret")
	l.must(port.SaveSecrets(secret, port.Secrets{port.NewSecret()}))
	l.keepSecrets(secret)
	l.cluster, err = process.Start(l.ctx, process.Config{
		Binary: l.binary, Dir: filepath.Join(l.dir, "cluster"), Nodes: 3, TLS: true,
		Args: []string{"--log-level", "debug", "--log-format", "json", "--audit-pulls=true", "--admin-user", "root", "--admin-password-file", file},
	})
	l.must(err)
	l.Cleanup(func() {
		if err := l.cluster.Stop(); err != nil {
			l.Error(err)
		}
		for _, n := range l.cluster.Nodes {
			if l.Failed() {
				l.Logf("the end of %s's log: %s", n.Name, l.tail(n.DataDir+".log"))
			}
		}
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(l.cluster.Authority))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	l.Cleanup(transport.CloseIdleConnections)
	l.http = &http.Client{Transport: transport}
	for _, n := range l.cluster.Nodes { // until each knows root
		l.eventually(func() error {
			if _, status := l.get(n, "GET", "/v2/", nil, nil, "Authorization", basic("root", admin)); status != 200 {
				return fmt.Errorf("root is answered with %d", status)
			}
			return nil
		})
	}
}

// tail is the last few lines of a file, without those about requests.
func (l *life) tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := slices.DeleteFunc(strings.Split(string(data), "\n"), func(s string) bool { return strings.Contains(s, `"msg":"request"`) })
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// keepSecrets keeps a cluster's secrets and all that is made of them.
func (l *life) keepSecrets(path string) {
	l.Helper()
	all, err := port.LoadSecrets(path)
	l.must(err)
	for kind, keys := range map[string][][]byte{
		"the cluster's secret": all, "a gossip key": all.GossipKeys(), "a token seed": all.TokenSeeds(), "an authority's seed": all.AuthoritySeeds(),
	} {
		for i, k := range keys {
			l.keep(fmt.Sprintf("%s %d of %s", kind, i, filepath.Base(path)), string(k))
		}
	}
}

func (l *life) eventually(check func() error) {
	l.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			l.Fatal(err)
		}
	}
}

func basic(name, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
}

// get sends a request and gathers the answer, in which the secrets named in may can be.
func (l *life) get(n *process.Node, method, path string, body []byte, may []string, headers ...string) ([]byte, int) {
	l.Helper()
	r, err := http.NewRequestWithContext(l.ctx, method, n.URL+path, bytes.NewReader(body))
	l.must(err)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	resp, err := l.http.Do(r)
	if err != nil {
		l.Gather("the client's error", []byte(err.Error()), "sent")
		return nil, 0
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	l.must(err)
	var head bytes.Buffer
	l.must(resp.Header.Write(&head))
	l.Gather("the answer to "+method+" "+r.URL.Path, slices.Concat(head.Bytes(), data), may...)
	return data, resp.StatusCode
}

// pier runs a command and gathers what it prints. input is its standard input.
func (l *life) pier(n *process.Node, input string, may []string, args ...string) (string, error) {
	l.Helper()
	words := strings.Join(args[:min(len(args), 3)], " ")
	l.ran[words] = true
	ctx, cancel := context.WithTimeout(l.ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.binary, args...)
	cmd.Env = append(os.Environ(), "PIER_DATA_DIR="+n.DataDir, "XDG_CONFIG_HOME="+filepath.Join(l.dir, "config"))
	cmd.Stdin = strings.NewReader(input)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	l.Gather("what `pier "+words+"` prints", out.Bytes(), may...)
	l.Gather("what `pier "+words+"` complains of", complaint.Bytes())
	return strings.TrimSpace(out.String()), err
}

// people come and go: users, robots, imported hashes, logins from elsewhere.
func (l *life) people() {
	n := l.cluster.Nodes[0]
	do := func(input string, may []string, args ...string) string {
		l.Helper()
		out, err := l.pier(n, input, may, args...)
		l.must(err)
		return out
	}
	alice := l.keep("alice's first password", "alice: %2f \\ first?")
	do(alice, nil, "user", "add", "alice", "--password-stdin", "-o", "json")
	alice = l.keep("alice's password", "alice: %2f \\ second?")
	do(alice, nil, "user", "password", "alice", "--password-stdin", "-o", "json")
	hash, err := bcrypt.GenerateFromPassword([]byte(l.keep("carol's password", "carol has one too")), bcrypt.MinCost)
	l.must(err)
	list := filepath.Join(l.dir, "htpasswd")
	l.must(os.WriteFile(list, []byte("carol:"+l.keep("carol's hash", string(hash))+"\nbroken:"+l.keep("a broken hash", "{SHA}brokenbroken")+"\n"), 0o600))
	_, _ = l.pier(n, "", nil, "user", "import", "--htpasswd", list)
	_, _ = l.pier(n, l.keep("a short password", "ä:longerthaneight"+strings.Repeat("x", 80)), nil, "user", "add", "bob", "--password-stdin")
	var robot struct{ Secret string }
	for _, args := range [][]string{{"add", "ci", "--grant", "push:team/**"}, {"rotate", "ci", "--keep", "1h"}} {
		l.must(json.Unmarshal([]byte(do("", []string{"a robot's secret"}, slices.Concat([]string{"robot"}, args, []string{"-o", "json"})...)), &robot))
		l.keep("a robot's secret", robot.Secret)
	}
	do("", nil, "access", "grant", "alice", "push", "team/**")
	ca := filepath.Join(l.dir, "ca.crt")
	l.must(os.WriteFile(ca, []byte(l.cluster.Authority), 0o600))
	do(alice, nil, "login", "--server", n.URL, "--user", "alice", "--ca", ca, "--password-stdin", "-o", "json")
	_, err = l.pier(n, l.keep("a wrong password", "wrong horse battery"), nil, "login", "--server", n.URL, "--user", "alice", "--ca", ca, "--password-stdin")
	if err == nil {
		l.Error("a wrong password is right")
	}
	logins, err := os.ReadFile(filepath.Join(l.dir, "config", "pier", "logins.json"))
	l.must(err)
	var kept map[string]struct{ Token string }
	l.must(json.Unmarshal(logins, &kept))
	l.keepToken(kept[n.URL].Token)
	_, _ = l.pier(n, "", nil, "user", "ls", "--server", n.URL)
	_, _ = l.pier(n, "", nil, "user", "ls", "--server", n.URL, "-o", "json")
	do(robot.Secret, nil, "login", "--server", n.URL, "--user", "ci", "--ca", ca, "--password-stdin", "-o", "json")

	for _, n := range l.cluster.Nodes {
		for name, secret := range map[string]string{"alice": alice, "ci": robot.Secret} {
			form := url.Values{"grant_type": {"password"}, "username": {name}, "password": {secret}, "access_type": {"offline"}, "scope": {"repository:team/app:pull,push"}}
			tokens := l.tokens(n, form)
			l.get(n, "GET", "/v2/team/app/tags/list", nil, nil, "Authorization", "Bearer "+tokens.Token)
			l.get(n, "GET", "/v2/other/tags/list", nil, nil, "Authorization", "Bearer "+tokens.Token)
			if name == "ci" { // whose secret stands for itself
				continue
			}
			form = url.Values{"grant_type": {"refresh_token"}, "refresh_token": {tokens.RefreshToken}, "scope": {"repository:team/app:pull"}}
			l.tokens(n, form)
			l.get(n, "GET", "/v2/team/app/tags/list", nil, nil, "Authorization", basic(name, tokens.RefreshToken))
			l.get(n, "GET", "/v2/", nil, nil, "Authorization", basic("<token>", tokens.RefreshToken))
		}
	}
}

type tokenAnswer struct {
	Token        string
	RefreshToken string `json:"refresh_token"`
}

// tokens asks for tokens, which are in the answer and nowhere else.
func (l *life) tokens(n *process.Node, form url.Values) tokenAnswer {
	l.Helper()
	var out tokenAnswer
	data, status := l.get(n, "POST", "/token", []byte(form.Encode()), []string{"a token", "a token's signature"}, "Content-Type", "application/x-www-form-urlencoded")
	l.must(json.Unmarshal(data, &out))
	if status != 200 {
		l.Fatalf("%d %s", status, data)
	}
	for _, text := range []string{out.Token, out.RefreshToken} {
		if text != "" {
			l.keepToken(text)
		}
	}
	return out
}

// keepToken keeps a token, and what makes it one: the part behind its last dot. All have one name, since two that are made
// within a second for the same are the same.
func (l *life) keepToken(text string) {
	l.Helper()
	l.keep("a token", text)
	l.keep("a token's signature", text[strings.LastIndexByte(text, '.')+1:])
}

// strangers try all kinds of things, with secrets in all places where people put them.
func (l *life) strangers() {
	typed := l.keep("a password that was typed as a name", "hunter2 hunter2")
	bearer := l.keep("a stranger's token", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0.c2lnbmF0dXJl")
	guess := l.keep("a guess", "guess guess guess: 1")
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	for _, n := range l.cluster.Nodes[:2] {
		for _, authorization := range []string{
			basic("root", guess), basic(typed, "x"), basic(typed, guess), basic("nobody", guess), "Bearer " + bearer, "Bearer " + guess, "Basic " + guess, "Digest " + guess, guess,
			"Basic " + base64.StdEncoding.EncodeToString([]byte(guess+"\x00"+strings.Repeat("x", 10_000))),
		} {
			for _, path := range []string{"/v2/", "/v2/team/app/manifests/1", "/token?service=pier&scope=repository:a:pull", "/api/v1/access", "/metrics"} {
				l.get(n, "GET", path, nil, nil, "Authorization", authorization)
			}
			l.get(n, "PUT", "/v2/team/app/manifests/1", []byte("{}"), nil, "Authorization", authorization)
			l.get(n, "POST", "/api/v1/access/user/add", []byte(`{"name":"eve","password":`+fmt.Sprintf("%q", guess)+`}`), nil, "Authorization", authorization)
		}
		l.get(n, "GET", "/v2/?access_token="+url.QueryEscape(bearer), nil, nil)
		l.get(n, "GET", "/token?account=root&password="+url.QueryEscape(guess), nil, nil)
		l.get(n, "POST", "/token", []byte(url.Values{"grant_type": {"password"}, "username": {typed}, "password": {guess}}.Encode()), nil, form...)
		l.get(n, "POST", "/token", []byte(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {bearer}}.Encode()), nil, form...)
		l.get(n, "POST", "/token", []byte(url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {bearer}}.Encode()), nil, form...)
		l.get(n, "POST", "/token", []byte(url.Values{"grant_type": {guess}}.Encode()), nil, form...)
		l.get(n, "GET", "/v2/", nil, nil, "Authorization", basic("root", guess), "Authorization", "Bearer "+bearer)
		l.get(n, "GET", "/v2/", nil, nil, "Cookie", "session="+bearer, "X-Api-Key", guess)
	}
	root := "root's \"pass\" wörd: <1>&2"
	for _, body := range []string{`{"name":"eve","password":"` + guess + `","nonsense":1}`, `{"name":"e v e","password":"` + guess + `"}`, `{"password":"` + guess} {
		l.get(l.cluster.Nodes[1], "POST", "/api/v1/access/user/add", []byte(body), nil, "Authorization", basic("root", root))
	}
}

// pushes relays uploads between nodes, reads what was pushed, and deletes it.
func (l *life) pushes() {
	root := basic("root", "root's \"pass\" wörd: <1>&2")
	for i, n := range l.cluster.Nodes {
		other := l.cluster.Nodes[(i+1)%3]
		r, err := http.NewRequestWithContext(l.ctx, "POST", n.URL+"/v2/team/app/blobs/uploads/", nil)
		l.must(err)
		r.Header.Set("Authorization", root)
		resp, err := l.http.Do(r)
		l.must(err)
		_ = resp.Body.Close()
		l.get(other, "PATCH", resp.Header.Get("Location"), []byte("x"), nil, "Authorization", root)
		l.get(other, "PUT", resp.Header.Get("Location")+"?digest=sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", nil, nil, "Authorization", root)
		index := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
		if _, status := l.get(n, "PUT", "/v2/team/app/manifests/1", []byte(index), nil, "Authorization", root, "Content-Type", "application/vnd.oci.image.index.v1+json"); status != 201 {
			l.Errorf("a push by root: %d", status)
		}
		l.get(other, "GET", "/v2/team/app/manifests/1", nil, nil, "Authorization", root)
		l.get(other, "DELETE", "/v2/team/app/manifests/1", nil, nil, "Authorization", root)
	}
}

// outsiders are people of a directory and jobs of an issuer, neither of which answers.
func (l *life) outsiders() {
	file := func(name, secret string) string {
		path := filepath.Join(l.dir, strings.ReplaceAll(name, " ", "-"))
		l.must(os.WriteFile(path, []byte(l.keep(name, secret)+"\n"), 0o600))
		return path
	}
	n := l.cluster.Nodes[2]
	for _, args := range [][]string{
		{"ldap", "corp", "--url", "ldaps://127.0.0.1:1", "--base", "dc=x", "--bind-dn", "cn=pier,dc=x", "--bind-password-file", file("the bind password", "bind: pass/word")},
		{"oidc", "web", "--issuer", "https://127.0.0.1:1", "--client-id", "pier", "--client-secret-file", file("the client's secret", "client: secret+1")},
	} {
		if _, err := l.pier(n, "", nil, slices.Concat([]string{"provider", "add"}, args, []string{"-o", "json"})...); err != nil {
			l.Errorf("provider add %s: %v", args[0], err)
		}
	}
	_, _ = l.pier(n, "", nil, "provider", "ls", "-o", "json")
	_, _ = l.pier(n, l.keep("a tested password", "tested: password"), nil, "provider", "test", "corp", "--user", "jane", "--password-stdin")
	_, _ = l.pier(n, "", nil, "robot", "trust", "add", "ci", "--issuer", "https://127.0.0.1:1", "--audience", "pier", "--any-job", "-o", "json")
	claims := base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://127.0.0.1:1","aud":"pier","exp":4000000000,"sub":"job"}`))
	job := l.keep("a job's token", "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ."+claims+".am9icyBzaWduYXR1cmU")
	jane := l.keep("jane's password", "jane's own pass")
	for _, n := range l.cluster.Nodes {
		for _, authorization := range []string{basic("jane", jane), basic("ci", job), "Bearer " + job} {
			l.get(n, "GET", "/v2/", nil, nil, "Authorization", authorization)
			l.get(n, "GET", "/token", nil, nil, "Authorization", authorization)
		}
		form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {job}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}}
		l.get(n, "POST", "/token", []byte(form.Encode()), nil, "Content-Type", "application/x-www-form-urlencoded")
		l.get(n, "GET", "/api/v1/login", nil, nil)
	}
}

// invites lets a fourth node in, and refuses a token that was used or changed.
func (l *life) invites() {
	soon, cancel := context.WithTimeout(l.ctx, time.Second)
	n, _ := l.cluster.StartAlone(soon) // it comes to be ready under an authority of its own, which nobody trusts
	cancel()
	l.eventually(func() error {
		_, err := n.Pier(l.ctx, "health", "--push")
		return err
	})
	l.keepSecrets(filepath.Join(n.DataDir, "cluster.secret"))
	var invite struct{ Token string }
	out, err := l.pier(l.cluster.Nodes[1], "", []string{"an invite", "an invite's end"}, "cluster", "invite", "-o", "json")
	l.must(err)
	l.must(json.Unmarshal([]byte(out), &invite))
	l.keep("an invite", invite.Token)
	l.keep("an invite's end", invite.Token[len(invite.Token)-24:])
	_, _ = l.pier(n, "", nil, "cluster", "join", invite.Token[:len(invite.Token)-3]+"AAA")
	if _, err := l.pier(n, "", nil, "cluster", "join", invite.Token, "-o", "json"); err != nil {
		l.Logf("join: %v", err)
	}
	_, _ = l.pier(n, "", nil, "cluster", "join", invite.Token)
	l.must(n.WaitReady(l.ctx))
	l.keepSecrets(filepath.Join(n.DataDir, "cluster.secret"))
}

// outages make errors: a node that is killed comes back, with changes and logins meanwhile.
func (l *life) outages() {
	n := l.cluster.Nodes[2]
	l.must(n.Kill())
	_, _ = l.pier(l.cluster.Nodes[0], l.keep("dave's password", "dave came meanwhile"), nil, "user", "add", "dave", "--password-stdin", "--group", "dev")
	l.get(l.cluster.Nodes[0], "GET", "/v2/", nil, nil, "Authorization", basic("dave", "dave came meanwhile"))
	_, _ = l.pier(n, "", nil, "user", "ls") // nobody answers
	l.must(n.Start())
	l.must(n.WaitReady(l.ctx))
}

// rotates gives the cluster another secret, where there is a command for it.
func (l *life) rotates() {
	if _, err := l.pier(l.cluster.Nodes[0], "", nil, "cluster", "secret", "rotate", "--keep-old", "1h", "-o", "json"); err != nil {
		l.Errorf("rotate: %v", err)
	}
	l.keepSecrets(filepath.Join(l.dir, "cluster", "cluster.secret"))
	l.keepSecrets(filepath.Join(l.cluster.Nodes[3].DataDir, "cluster.secret"))
}

// endless are the commands that don't end by themselves, that ask nobody, or that end a node.
func endless() []string {
	return []string{"serve", "dev", "completion", "help", "trust", "cluster leave", "cluster secret drop"}
}

// allCommands runs every command that there is, as it is found in the program itself, mostly without what it needs.
func (l *life) allCommands(below string) {
	out, err := exec.CommandContext(l.ctx, l.binary, append(append([]string{"__complete"}, strings.Fields(below)...), "")...).Output()
	l.must(err)
	var found []string
	for line := range strings.Lines(string(out)) {
		name, help, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if ok && help != "" && !strings.HasPrefix(name, "-") && !strings.HasPrefix(name, ":") {
			found = append(found, strings.TrimSpace(below+" "+name))
		}
	}
	for _, words := range found {
		if slices.Contains(endless(), words) {
			continue
		}
		l.allCommands(words)
		var may []string
		if words == "token" {
			may = []string{"a token", "a token's signature"}
		}
		for _, more := range [][]string{nil, {"-o", "json"}, {"alice", "-o", "json"}, {"--server", l.cluster.Nodes[0].URL, "-o", "json"}} {
			_, _ = l.pier(l.cluster.Nodes[1], "", may, append(strings.Fields(words), more...)...)
		}
	}
	if below == "" && len(l.ran) < 30 {
		l.Errorf("only the commands %v were found", l.ran)
	}
}

// gatherAll reads what the nodes have said and kept, and how they were called.
func (l *life) gatherAll() {
	for _, n := range l.cluster.Nodes {
		l.get(n, "GET", "/metrics", nil, nil)
		l.get(n, "GET", "/api/v1/cluster/status", nil, nil)
		l.must(n.Stop())
	}
	var own []string // what keeps secrets on purpose
	for _, n := range l.cluster.Nodes {
		own = append(own, filepath.Join(n.DataDir, "cluster.secret"))
	}
	own = append(own, filepath.Join(l.dir, "cluster", "cluster.secret"))
	lines := 0
	l.must(filepath.WalkDir(filepath.Join(l.dir, "cluster"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || slices.Contains(own, path) {
			return err
		}
		data, err := os.ReadFile(path)
		lines += bytes.Count(data, []byte(`"msg":"request"`))
		var may []string
		if strings.HasSuffix(path, ".db") { // the state and its log have hashes, and what providers want to see
			may = []string{"carol's hash", "the bind password", "the client's secret"}
		}
		l.Gather(path, data, may...)
		return err
	}))
	if lines < 100 {
		l.Errorf("the nodes' logs have %d requests: they are not where this test looks", lines)
	}
}
