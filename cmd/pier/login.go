package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"pier/api/client"
)

// logins are a person's, by the URL of the server; the file is readable to that person alone.
type logins map[string]client.Login

func loginsPath() (string, error) {
	dir, err := os.UserConfigDir()
	return filepath.Join(dir, "pier", "logins.json"), err
}

func readLogins() (logins, error) {
	path, err := loginsPath()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return logins{}, nil
	}
	all := logins{}
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("read the logins in %s: %w; without the file pier login makes them anew", path, err)
	}
	return all, nil
}

func (l logins) save() error {
	path, err := loginsPath()
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	// A file of a name that nobody can know: what lies at a known one could be a link, or readable to others.
	next, err := os.CreateTemp(filepath.Dir(path), "logins-*.json")
	if err != nil {
		return err
	}
	_, err = next.Write(data)
	if err = errors.Join(err, next.Chmod(0o600), next.Close()); err == nil {
		err = os.Rename(next.Name(), path)
	}
	if err != nil {
		_ = os.Remove(next.Name())
	}
	return err
}

func newLogin() *cobra.Command {
	o := &userOptions{}
	user, ca, insecure, browser, port := "", "", false, false, 0
	shown := client.Login{}
	cmd := &cobra.Command{
		Use: "login [--oidc [PROVIDER]]", Short: "Log in to a node over the network, for the other commands with --server", Args: cobra.MaximumNArgs(1),
		Long: "Log in to a node over the network, for the other commands with --server and for docker login (pier token).\n\n" +
			"With a password, or with --oidc in a browser at an OpenID provider that the registry knows (pier provider). The provider must\n" +
			"let the client come back to http://127.0.0.1 with any port, or with the one of --port. Such a login lasts for 12 hours.",
		Example: "  pier login --server https://registry.lan:5000 --oidc\n  pier --server https://registry.lan:5000 login\n  pier login --server https://registry.lan:5000 --user alice --ca registry-ca.crt --password-stdin < password.txt",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.needServer(); err != nil {
				return err
			}
			if len(args) > 0 && !browser {
				return &exitError{exitUsage, "a provider is for --oidc; a user goes with --user"}
			}
			if (shown.Cert == "") != (shown.Key == "") || shown.Cert != "" && (user != "" || browser) {
				return &exitError{exitUsage, "--client-cert and --client-key belong together, and are a login of their own"}
			}
			if !insecure && !isPrivate(o.server) {
				return &exitError{exitUsage, fmt.Sprintf("the password would travel to %s in the open: give --server as https://…, or say --insecure-http", o.server)}
			}
			all, err := readLogins()
			if err != nil {
				return err
			}
			pem, err := readCA(ca)
			if err != nil {
				return err
			}
			shown.CA = pem + "\n" + installedCA(o.server)
			c := client.New(client.Options{Server: o.server, Login: shown})
			var login client.Login
			switch {
			case shown.Cert != "":
				user, login, err = logInByCertificate(cmd, c, shown)
			case browser:
				login, err = logInByBrowser(cmd, c, strings.Join(args, ""), port)
				user, _ = login.Whose()
			default:
				user, login, err = o.logIn(cmd, c, user)
			}
			if err != nil {
				return err
			}
			login.CA = pem
			all[o.server] = login
			if err := all.save(); err != nil {
				return err
			}
			return o.show(cmd, map[string]string{"server": o.server, "user": user}, "logged in to %s as %s", o.server, user)
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&user, "user", "", "who logs in; asked for at a terminal when missing")
	cmd.Flags().StringVar(&ca, "ca", "", "trust this CA, PEM (pier ca prints a cluster's)")
	cmd.Flags().BoolVar(&insecure, "insecure-http", false, "log in without TLS even where others can listen in on the password")
	cmd.Flags().BoolVar(&browser, "oidc", false, "log in in a browser, at an OpenID provider that the registry knows")
	cmd.Flags().IntVar(&port, "port", 0, "with --oidc: the port on this machine that the browser comes back to; 0: any")
	cmd.Flags().StringVar(&shown.Cert, "client-cert", "", "come in by this certificate, PEM, in place of a password; its file is read each time")
	cmd.Flags().StringVar(&shown.Key, "client-key", "", "its key")
	o.addStdin(cmd)
	return cmd
}

// logInByCertificate keeps where the certificate and its key are, once the server has said whose they are.
func logInByCertificate(cmd *cobra.Command, c *client.Client, shown client.Login) (user string, login client.Login, err error) {
	if login.Cert, err = filepath.Abs(shown.Cert); err == nil {
		login.Key, err = filepath.Abs(shown.Key)
	}
	if err == nil {
		user, err = c.Certified(cmd.Context())
	}
	return user, login, err
}

// logIn logs in with a password.
func (o *userOptions) logIn(cmd *cobra.Command, c *client.Client, flag string) (user string, login client.Login, err error) {
	if user, err = o.who(cmd, flag); err != nil {
		return "", client.Login{}, err
	}
	password, err := o.password(cmd, "Password: ")
	if err != nil {
		return "", client.Login{}, err
	}
	login, err = c.LogIn(cmd.Context(), user, password)
	return user, login, err
}

// who is the user of the flag, or asks at a terminal.
func (o *userOptions) who(cmd *cobra.Command, flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	in, ok := terminal(cmd)
	if !ok {
		return "", &exitError{exitUsage, "there is no terminal to ask who logs in; use --user"}
	}
	return ask(cmd, in, "User: ")
}

// isPrivate tells whether nobody on the way can read what goes to the server.
func isPrivate(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
}

// readCA reads certificates, if a file is given.
func readCA(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	data, err := os.ReadFile(path)
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(data) {
		err = fmt.Errorf("%s holds no certificate in PEM", path)
	}
	return string(data), err
}

func newLogout() *cobra.Command {
	o := &controlOptions{}
	cmd := &cobra.Command{
		Use: "logout", Short: "Forget the login to a node", Args: cobra.NoArgs,
		Example: "  pier logout --server https://registry.lan:5000",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.needServer(); err != nil {
				return err
			}
			all, err := readLogins()
			if err != nil {
				return err
			}
			if _, ok := all[o.server]; !ok {
				return fmt.Errorf("there is no login to %q", o.server)
			}
			delete(all, o.server)
			if err := all.save(); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "logged out of %s", o.server)
		},
	}
	o.addFlags(cmd)
	return cmd
}
