package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/oauth2"

	"pier/api/client"
)

// browserWait is how long somebody may take to log in at the provider.
const browserWait = 5 * time.Minute

const callbackPath = "/callback"

// browserLogin is one login at an OpenID provider in a browser, which the provider sends back to this machine with a code. Only
// this program knows the state, the nonce and the verifier, so that nobody else's code is taken and nobody else can use this one.
type browserLogin struct {
	start    client.LoginStart
	redirect string
	state    string
	nonce    string
	verifier string
	done     chan callback
}

type callback struct {
	code string
	err  error
}

// logInByBrowser prints the address to open, and waits until the browser comes back. Port 0 is any.
func logInByBrowser(cmd *cobra.Command, c *client.Client, provider string, port int) (client.Login, error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), browserWait)
	defer cancel()
	start, err := c.StartLogin(ctx, provider)
	if err != nil {
		return client.Login{}, err
	}
	if u, err := url.Parse(start.Authorization); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return client.Login{}, errors.New("the node names no web page to log in at") // and what it names is about to be opened
	}
	lis, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return client.Login{}, fmt.Errorf("listen for the browser: %w", err)
	}
	l := &browserLogin{
		start: start, redirect: "http://" + lis.Addr().String() + callbackPath, state: rand.Text(), nonce: rand.Text(),
		verifier: oauth2.GenerateVerifier(), done: make(chan callback, 1),
	}
	server := &http.Server{Handler: l, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	defer func() {
		end, cancel := context.WithTimeout(context.Background(), time.Second) // for the page that the browser is getting
		defer cancel()
		_ = server.Shutdown(end)
		_ = server.Close()
		<-served
	}()
	fmt.Fprintf(cmd.ErrOrStderr(), "Open this in a browser on this machine, and log in at %s within %s:\n\n  %s\n\n", start.Provider, browserWait, l.address())
	if _, ok := terminal(cmd); ok {
		openBrowser(l.address())
	}
	select {
	case back := <-l.done:
		if back.err != nil {
			return client.Login{}, back.err
		}
		return c.FinishLogin(ctx, client.LoginCode{
			Provider: start.Provider, Code: back.code, Redirect: l.redirect, Verifier: l.verifier, Nonce: l.nonce,
		})
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return client.Login{}, fmt.Errorf("nobody has logged in within %s", browserWait)
		}
		return client.Login{}, ctx.Err()
	}
}

func (l *browserLogin) address() string {
	cfg := oauth2.Config{
		ClientID: l.start.ClientID, RedirectURL: l.redirect, Scopes: l.start.Scopes, Endpoint: oauth2.Endpoint{AuthURL: l.start.Authorization},
	}
	return cfg.AuthCodeURL(l.state, oauth2.S256ChallengeOption(l.verifier), oauth2.SetAuthURLParam("nonce", l.nonce))
}

// ServeHTTP takes the browser back. What doesn't know the state is somebody else's page, and ends nothing.
func (l *browserLogin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	if r.URL.Path != callbackPath || r.Method != http.MethodGet {
		http.Error(w, "There is nothing here.", http.StatusNotFound)
		return
	}
	back, err := l.read(r.URL.Query())
	if err != nil {
		http.Error(w, "This is not the login that was begun: "+err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case l.done <- back:
	default:
		http.Error(w, "This login has come back before.", http.StatusConflict)
		return
	}
	if back.err != nil {
		http.Error(w, "The login failed; the terminal says why.", http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, "Thank you. The terminal says how it went on; this page can be closed.")
}

func (l *browserLogin) read(query url.Values) (callback, error) {
	if subtle.ConstantTimeCompare([]byte(query.Get("state")), []byte(l.state)) != 1 {
		return callback{}, errors.New("its state is another")
	}
	if iss := query.Get("iss"); iss != "" && iss != l.start.Issuer { // RFC 9207
		return callback{}, errors.New("it comes from another provider")
	}
	if why := query.Get("error"); why != "" {
		return callback{err: fmt.Errorf("%s refuses the login: %.80q %.300q", l.start.Provider, why, query.Get("error_description"))}, nil
	}
	if query.Get("code") == "" {
		return callback{}, errors.New("it has no code")
	}
	return callback{code: query.Get("code")}, nil
}

// openBrowser tries; the address is printed anyhow.
func openBrowser(address string) {
	var cmd *exec.Cmd
	switch {
	case runtime.GOOS == "darwin":
		cmd = exec.Command("open", address)
	case os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != "":
		cmd = exec.Command("xdg-open", address)
	default:
		return
	}
	if cmd.Start() == nil {
		_ = cmd.Process.Release()
	}
}

func newToken() *cobra.Command {
	o := &controlOptions{}
	cmd := &cobra.Command{
		Use: "token", Short: "Print a token of the login to a node, which stands for the password", Args: cobra.NoArgs,
		Long: "Print a token of the login to a node (pier login). It is as good as the password of who logged in, for that user alone and\n" +
			"until the login ends: docker login takes it. Who logged in at an OpenID provider logs in again after 12 hours. A robot's is\n" +
			"its secret.",
		Example: "  pier token --server https://registry.lan:5000 | docker login -u jane.doe --password-stdin registry.lan:5000",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.needServer(); err != nil {
				return err
			}
			all, err := readLogins()
			if err != nil {
				return err
			}
			login, ok := all[o.server]
			if !ok {
				return fmt.Errorf("there is no login to %q; pier login makes one", o.server)
			}
			if login.Cert != "" {
				return fmt.Errorf("the login to %s is a certificate, which gives no token that lasts; docker and podman take it themselves (certs.d)", o.server)
			}
			user, ends := login.Whose()
			said := map[string]any{"server": o.server, "user": user, "token": login.Token}
			if login.Robot == "" { // whose secret ends when its administrator says so
				if !time.Now().Before(ends) {
					return fmt.Errorf("the login to %s has ended; log in again (pier login)", o.server)
				}
				said["expires"] = ends.UTC()
			}
			return o.show(cmd, said, "%s", login.Token)
		},
	}
	o.addFlags(cmd)
	return cmd
}
