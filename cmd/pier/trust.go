package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newAuthority() *cobra.Command {
	o := &controlOptions{}
	cmd := &cobra.Command{
		Use: "ca", Short: "Print the CA certificate that clients are to trust (tls auto)", Args: cobra.NoArgs,
		Example: "  pier ca > registry-ca.crt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := o.client().Authority(cmd.Context())
			if err != nil {
				return err
			}
			return o.show(cmd, a, "%s", strings.TrimRight(a.PEM, "\n"))
		},
	}
	o.addFlags(cmd)
	return cmd
}

// trustOptions say whom to trust and how far.
type trustOptions struct {
	install     bool
	fingerprint string
	root        string
	agreed      string // the fingerprint that a person has said yes to
}

func newTrust() *cobra.Command {
	o := &trustOptions{}
	cmd := &cobra.Command{
		Use: "trust HOST:PORT…", Short: "Show what Docker, containerd and Podman need on this machine to trust a registry", Args: cobra.MinimumNArgs(1),
		Long: "Fetch the CA of a registry with tls auto, and print what Docker, containerd and Podman need here to trust it; with\n" +
			"--install, write it. The CA comes over a connection that nobody vouches for yet: compare its fingerprint with\n" +
			"`pier ca -o json` on a node, or give it with --fingerprint.",
		Example: "  pier trust registry.lan:5000\n  pier trust registry.lan:5000 --install --fingerprint 3f0c…",
		RunE: func(cmd *cobra.Command, args []string) error {
			var needed string // the first address whose CA has to be trusted
			for _, address := range args {
				own, err := o.run(cmd, address)
				if err != nil {
					return err
				}
				if own {
					needed = cmp.Or(needed, address)
				}
			}
			if needed != "" {
				o.printHints(cmd.OutOrStdout(), needed)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&o.install, "install", false, "write the files (needs root)")
	cmd.Flags().StringVar(&o.fingerprint, "fingerprint", "", "trust only the CA with this SHA-256")
	cmd.Flags().StringVar(&o.root, "root", "/", "write below this directory")
	_ = cmd.Flags().MarkHidden("root")
	return cmd
}

// run shows or installs what one registry needs; own is false where that is nothing, since others vouch for it.
func (o *trustOptions) run(cmd *cobra.Command, address string) (own bool, err error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false, &exitError{exitUsage, fmt.Sprintf("%q: want HOST:PORT, as it stands in image names", address)}
	}
	ca, err := fetchAuthority(cmd.Context(), address, host)
	if err != nil {
		return false, err
	}
	if ca == nil {
		fmt.Fprintf(cmd.OutOrStdout(), "%s has a certificate that this machine trusts already; there is nothing to install\n", address)
		return false, nil
	}
	sum := sha256.Sum256(ca.Raw)
	print := hex.EncodeToString(sum[:])
	if want := strings.ToLower(strings.ReplaceAll(o.fingerprint, ":", "")); want != "" && want != print {
		return false, fmt.Errorf("the CA of %s has the fingerprint %s, not the one given: somebody may be in between", address, print)
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "CA of %s, SHA-256 fingerprint %s\n", address, print)
	files := trustFiles(address, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}))
	if !o.install {
		for _, f := range files {
			fmt.Fprintf(out, "\n# %s: %s\n%s", f.who, f.path, f.content)
		}
		return true, nil
	}
	if err := o.ask(cmd, print); err != nil {
		return false, err
	}
	for _, f := range files {
		path := filepath.Join(o.root, f.path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, f.content, 0o644)); err != nil {
			return false, err
		}
		fmt.Fprintf(out, "wrote %s (%s)\n", path, f.who)
	}
	return true, nil
}

// printHints says what the files alone don't do.
func (o *trustOptions) printHints(out io.Writer, address string) {
	fmt.Fprintf(out, `
Docker, Podman, Skopeo, nerdctl and pier need nothing else. containerd itself looks there where its config_path is
/etc/containerd/certs.d, unless a hosts.toml of yours says otherwise; ctr takes --hosts-dir /etc/containerd/certs.d.
crane, oras, regctl, helm and curl trust what the system does, and this CA with
SSL_CERT_FILE=%s
`, filepath.Join(o.root, installedPath(address)))
}

// installedPath is where the CA of a registry stands for pier itself.
func installedPath(address string) string { return "/etc/pier/certs.d/" + address + "/ca.crt" }

// installedCA is the CA that was installed for a server, if one was.
func installedCA(server string) string {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" {
		return ""
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "443")
	}
	data, _ := os.ReadFile(installedPath(address)) // without it the system's CAs decide
	return string(data)
}

// ask has a person compare the fingerprint, once, unless it was given.
func (o *trustOptions) ask(cmd *cobra.Command, print string) error {
	if o.fingerprint != "" || o.agreed == print {
		return nil
	}
	answer, err := ask(cmd, cmd.InOrStdin(), "Is this the fingerprint that `pier ca -o json` shows on a node? Type yes: ")
	if err != nil || answer != "yes" {
		return errors.New("nothing was written")
	}
	o.agreed = print
	return nil
}

// fetchAuthority takes the CA that a server sends along, if it really signed the server's certificate for the host.
func fetchAuthority(ctx context.Context, address, host string) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // whom to trust is what is being found out
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its certificate: %w", address, err)
	}
	defer func() { _ = conn.Close() }()
	return authorityOf(conn.(*tls.Conn).ConnectionState().PeerCertificates, address, host, nil)
}

// authorityOf finds the CA to install in what a registry sends: with tls auto that ends with it. Other certificates are for
// others to vouch for: nil means that the system's roots (or those given) do.
func authorityOf(chain []*x509.Certificate, address, host string, system *x509.CertPool) (*x509.Certificate, error) {
	ca := chain[len(chain)-1]
	if !ca.IsCA || len(chain) < 2 || ca.CheckSignatureFrom(ca) != nil {
		between := x509.NewCertPool()
		for _, c := range chain[1:] {
			between.AddCert(c)
		}
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: system, Intermediates: between, DNSName: host}); err != nil {
			return nil, fmt.Errorf("%s isn't a registry with tls auto, whose CA would come with its certificate, and this machine doesn't trust it otherwise: %w", address, err)
		}
		return nil, nil
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
		return nil, fmt.Errorf("the certificate of %s: %w; start the nodes with --public-name %s", address, err, host)
	}
	return ca, nil
}

type trustFile struct {
	who, path string
	content   []byte
}

// trustFiles leaves containerd's hosts.toml alone: without one it takes the CA beside it, and one that is there is somebody's.
func trustFiles(address string, ca []byte) []trustFile {
	return []trustFile{
		{"Docker", "/etc/docker/certs.d/" + address + "/ca.crt", ca},
		{"Podman, Buildah, Skopeo, CRI-O", "/etc/containers/certs.d/" + address + "/ca.crt", bytes.Clone(ca)},
		{"containerd", "/etc/containerd/certs.d/" + address + "/ca.crt", bytes.Clone(ca)},
		{"pier", installedPath(address), bytes.Clone(ca)},
	}
}
