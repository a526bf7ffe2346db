//go:build docker

package clients

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pier/test/wait"
)

// TestSecure is "Secure it" of the README as it is typed, on three machines and a client that is none of them, and then what
// each program that people have does with it.
func TestSecure(t *testing.T) {
	if !inLAN(t) {
		return
	}
	startEngines(t)
	startNodes(t)
	person := t.TempDir()
	t.Setenv("HOME", person)
	t.Run("the operator", operator)
	t.Run("the client", firstSteps)
	t.Run("a robot", robot)
	t.Run("a disabled user", disabled)
	t.Run("from elsewhere", elsewhere)
	t.Run("programs", programs)
	t.Run("a new secret", rotated)
}

const (
	rootPassword  = "correct horse"
	alicePassword = "battery: staple"
)

func operator(t *testing.T) {
	must := must(t)
	want(t, must(typed(home("node1"), "ip netns exec node1 pier user add root", rootPassword, rootPassword)), "administrator")
	want(t, must(typed(home("node2"), "ip netns exec node2 pier user add alice", alicePassword, alicePassword)), "added alice")
	must(on("node3", "pier", "access", "grant", "alice", "push", "team/**"))
	must(on("node1", "pier", "access", "grant", "anonymous", "pull", "public/**"))
	want(t, must(on("node2", "pier", "access", "explain", "alice", "push", "team/app")), `^yes: alice push team/\*\*$`)
}

// firstSteps are a person's at a machine with Docker: trust, login, push. Nothing works before its turn.
func firstSteps(t *testing.T) {
	must := must(t)
	local := dockerImage(t, "app")
	remote := names()[0] + "/team/app:1"
	must(attempt("/", nil, "", "docker", "tag", local, remote))
	refused(t, "docker, CA not trusted", "x509", "docker", "push", remote)

	print := regexp.MustCompile(`"fingerprint": "([0-9a-f]+)"`).FindStringSubmatch(must(on("node3", "pier", "ca", "-o", "json")))
	if print == nil {
		t.Fatal("pier ca has no fingerprint")
	}
	shown := must(typed("/", "pier trust "+names()[0]+" --install", "yes"))
	want(t, shown, "fingerprint "+print[1])
	must(attempt("/", nil, "", "pier", "trust", names()[1], names()[2], "--install", "--fingerprint", print[1]))

	want(t, must(typed("/", "docker login "+names()[0], "alice", alicePassword)), "Login Succeeded")
	must(attempt("/", nil, "", "docker", "push", remote))
	want(t, must(typed("/", "docker login "+names()[1], "alice", alicePassword)), "Login Succeeded")
	pulled := names()[1] + "/team/app:1"
	must(attempt("/", nil, "", "docker", "rmi", local, remote))
	must(attempt("/", nil, "", "docker", "pull", pulled))
	must(attempt("/", nil, "", "docker", "rmi", pulled))
}

// robot makes one and lets it push with its secret, where it may and nowhere else.
func robot(t *testing.T) {
	must := must(t)
	secret := must(on("node1", "pier", "robot", "add", "ci", "--grant", "push:team/app", "--expires", "90d"))
	env := []string{"DOCKER_CONFIG=" + t.TempDir()}
	want(t, must(attempt("/", env, secret, "docker", "login", "-u", "ci", "--password-stdin", names()[2])), "Login Succeeded")
	local := dockerImage(t, "robot")
	for _, to := range []string{names()[2] + "/team/app:2", names()[2] + "/team/other:1"} {
		must(attempt("/", nil, "", "docker", "tag", local, to))
	}
	must(attempt("/", env, "", "docker", "push", names()[2]+"/team/app:2"))
	must(on("node2", "pier", "robot", "rotate", "ci", "--keep", "1h")) // which ends nothing yet that docker has kept
	must(attempt("/", env, "", "docker", "push", names()[2]+"/team/app:2"))
	refusedWith(t, env, "robot, another repository", "ci has no right to push on team/other", "docker", "push", names()[2]+"/team/other:1")
}

// disabled ends alice's tokens and her password everywhere, and the audit log has it all.
func disabled(t *testing.T) {
	must := must(t)
	follow := follower(t)
	must(on("node1", "pier", "user", "disable", "alice"))
	wait.Until(t, 30*time.Second, "node2 refuses alice's token", func() error { // test/promises says how soon
		if out, err := attempt("/", nil, "", "docker", "pull", names()[1]+"/team/app:1"); err == nil {
			return &missing{out}
		}
		return nil
	})
	refused(t, "docker, disabled user pulls", "unauthorized", "docker", "pull", names()[1]+"/team/app:1")
	refused(t, "docker, disabled user logs in", "unauthorized: unknown user or wrong password",
		"sh", "-c", "printf '%s' '"+alicePassword+"' | docker login -u alice --password-stdin "+names()[2])
	for _, line := range []string{`node1 +operator .* 200 +POST /api/v1/access/change alice disabled=true`, `node3 .* 401 +GET token`} {
		wait.Until(t, 30*time.Second, "the audit log has "+line, func() error { return follow(line) })
	}
	must(on("node2", "pier", "user", "enable", "alice"))
}

// follower runs pier audit --follow and gives a function that says whether a line has come.
func follower(t *testing.T) func(string) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit")
	background(t, home("node2"), "pier audit", "sh", "-c", "exec ip netns exec node2 pier audit --follow >"+path)
	return func(line string) error {
		data, err := os.ReadFile(path)
		if err == nil && !regexp.MustCompile(line).Match(data) {
			err = &missing{string(data)}
		}
		return err
	}
}

type missing struct{ text string }

func (m *missing) Error() string { return "it is not in:\n" + m.text }

// elsewhere is an administrator at the client.
func elsewhere(t *testing.T) {
	must := must(t)
	server := "https://" + names()[1]
	want(t, must(typed("/", "pier --server "+server+" login", "root", rootPassword)), "logged in to "+server+" as root")
	want(t, must(attempt("/", nil, "", "pier", "--server", server, "user", "ls")), `alice +active`)
}

// rotated replaces the cluster's secret, and with it the CA. Every program comes in with the CA from before, and then with the
// new one in its place.
func rotated(t *testing.T) {
	must := must(t)
	want(t, must(on("node2", "pier", "cluster", "secret", "rotate")), "every node uses the new secret")
	t.Run("with the old CA", func(t *testing.T) { everyProgram(t, "old") })
	print := regexp.MustCompile(`"fingerprint": "([0-9a-f]+)"`).FindStringSubmatch(must(on("node3", "pier", "ca", "-o", "json")))
	if print == nil {
		t.Fatal("pier ca has no fingerprint")
	}
	must(attempt("/", nil, "", "pier", "trust", names()[0], names()[1], names()[2], "--install", "--fingerprint", print[1]))
	t.Run("with the new CA", func(t *testing.T) { everyProgram(t, "new") })
}

// everyProgram logs in, pushes to one node and pulls from another.
func everyProgram(t *testing.T, tag string) {
	for name, c := range all() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			must, c := must(t), c(t, newKit(t))
			repo := "team/" + tag + "/" + name // Helm wants a chart's name for the last part
			must(c.login(names()[0], name, passwordOf(name)))
			must(c.push(names()[0], repo))
			must(c.login(names()[1], name, passwordOf(name)))
			t.Logf("%s, pull from another node: %s", name, lastLine(must(c.pull(names()[1], repo))))
		})
	}
}

// dockerImage makes an image of one layer in the engine.
func dockerImage(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	noise := make([]byte, 200<<10)
	_, _ = rand.Read(noise) // never fails
	if err := os.WriteFile(filepath.Join(dir, "noise"), noise, 0o644); err != nil {
		t.Fatal(err)
	}
	must(t)(attempt(dir, nil, "", "sh", "-c", "tar -c noise | docker import - local/"+name+":1"))
	return "local/" + name + ":1"
}

// want checks what a program printed.
func want(t *testing.T, printed, pattern string) {
	t.Helper()
	if !regexp.MustCompile(pattern).MatchString(strings.ReplaceAll(printed, "\r", "")) {
		t.Errorf("it printed %q; want %s", printed, pattern)
	}
}

// refused checks that a program fails, with a message that its user can read; the log keeps it.
func refused(t *testing.T, what, pattern, name string, args ...string) {
	t.Helper()
	refusedWith(t, nil, what, pattern, name, args...)
}

func refusedWith(t *testing.T, env []string, what, pattern, name string, args ...string) {
	t.Helper()
	out, err := attempt("/", env, "", name, args...)
	if err == nil {
		t.Errorf("%s: it worked, and printed %q", what, out)
		return
	}
	want(t, out, pattern)
	t.Logf("message: %s: %s", what, complaint(out))
}

// complaint is what a program says about its failure, without its progress.
func complaint(out string) string {
	var lines []string
	for _, line := range strings.Split(out, "\n") {
		if regexp.MustCompile(`(?i)error|denied|unauthorized|forbidden|fail|invalid|x509|insufficient`).MatchString(line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, " | ")
}
