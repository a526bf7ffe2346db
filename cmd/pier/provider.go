package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"pier/api/client"
)

// providerOptions are what the commands about providers share.
type providerOptions struct {
	userOptions
	secretFile string
	caFile     string
	groups     []string
	all        bool
	prefix     string
	replace    bool
}

func newProvider() *cobra.Command {
	o := &providerOptions{}
	cmd := o.group("provider", "Let people in whom a directory (LDAP) or an OpenID provider knows",
		"  pier provider add ldap corp --url ldaps://ldap.example.org …\n  pier provider test corp --user alice")
	add := &cobra.Command{Use: "add", Short: "Say where people are known, for the whole cluster", Example: "  pier provider add ldap --help"}
	group(add)
	add.AddCommand(o.newLDAP(), o.newOIDC())
	cmd.AddCommand(add, o.newProviders(), o.newRemoveProvider(), o.newTestProvider())
	return cmd
}

const ldapHelp = "A login with a name that is no user of the cluster's own is checked there: the bind user looks for the one entry that\n" +
	"the filter finds, and the password must open that entry. The filter should leave out who is disabled; for Active Directory\n" +
	"(&(sAMAccountName={user})(!(userAccountControl:1.2.840.113556.1.4.803:=2))) with --name-attribute sAMAccountName.\n\n" +
	"Groups come from the attribute memberOf, or with --group-filter from a search, such as (member={dn}). They count as they are\n" +
	"mapped: each by --map 'DN=GROUP', or all below --group-base by their own names with --all-groups. Names from there are\n" +
	"lower-case here.\n\n" +
	"The bind user's password is kept in the cluster's state, in clear as the directory wants it: give it no right but to read."

func (o *providerOptions) newLDAP() *cobra.Command {
	l := client.LDAP{}
	cmd := &cobra.Command{
		Use: "ldap NAME", Short: "A directory server checks passwords", Long: "A directory server checks passwords.\n\n" + ldapHelp, Args: cobra.ExactArgs(1),
		Example: "  pier provider add ldap corp --url ldaps://ldap1.example.org --url ldaps://ldap2.example.org --ca ldap-ca.crt \\\n" +
			"    --bind-dn cn=pier,ou=services,dc=example,dc=org --bind-password-file bind.txt \\\n" +
			"    --base ou=people,dc=example,dc=org --map 'cn=devs,ou=groups,dc=example,dc=org=developers'",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if l.BindPassword, err = o.secret(cmd); err != nil {
				return err
			}
			l.Groups.All, l.Groups.Prefix = o.all, o.prefix
			if l.Groups.Map, err = o.mapped(); err != nil {
				return err
			}
			l.CA, err = readCA(o.caFile)
			if err != nil {
				return err
			}
			return o.add(cmd, client.Provider{Name: args[0], LDAP: &l})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&l.URLs, "url", nil, "ldaps://HOST, or ldap://HOST for StartTLS; repeated, they are tried in turn")
	f.BoolVar(&l.Insecure, "insecure-ldap", false, "use ldap:// without TLS: passwords travel in the open")
	f.StringVar(&l.BindDN, "bind-dn", "", "who looks people up; empty: nobody in particular")
	f.StringVar(&o.secretFile, "bind-password-file", "", "file with the password of the bind DN, its first line; - for standard input")
	f.StringVar(&l.Base, "base", "", "where people are below")
	f.StringVar(&l.Filter, "filter", "", "what finds one of them (default (uid={user}))")
	f.StringVar(&l.NameAttribute, "name-attribute", "", "where an entry has the name that somebody gets here, which people must not be able to change (default uid)")
	f.StringVar(&l.Groups.Attribute, "group-attribute", "", "where an entry has the DNs of its groups (default memberOf)")
	f.StringVar(&l.Groups.Base, "group-base", "", "where groups are below; others don't count")
	f.StringVar(&l.Groups.Filter, "group-filter", "", "search groups with this, such as (member={dn}) or (memberUid={user})")
	o.addMapping(cmd)
	return cmd
}

const oidcHelp = "People log in there with a browser (pier login --oidc), and come in under the name that a claim of their ID token has, in lower\n" +
	"case. Register Pier there as a program on people's own machines, with the redirect address http://127.0.0.1/callback and any\n" +
	"port. A name that a user of the cluster's own has is that user's: pier user add NAME --provider links it. The claim email counts\n" +
	"only where the provider says that it has verified the address. Groups count as they are mapped: each by --map THEIRS=GROUP, or\n" +
	"all with --all-groups.\n\n" +
	"A login lasts for 12 hours; then the provider is asked again. A client's secret is kept in the cluster's state, in clear as the\n" +
	"provider wants it, and no program that logs in gets it."

func (o *providerOptions) newOIDC() *cobra.Command {
	p := client.OIDC{}
	cmd := &cobra.Command{
		Use: "oidc NAME", Short: "People log in at an OpenID provider (pier login --oidc)", Long: "People log in at an OpenID provider.\n\n" + oidcHelp, Args: cobra.ExactArgs(1),
		Example: "  pier provider add oidc corp --issuer https://login.example.org --client-id pier --all-groups --group-prefix corp-",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if p.ClientSecret, err = o.secret(cmd); err != nil {
				return err
			}
			p.All, p.Prefix = o.all, o.prefix
			if p.Map, err = o.mapped(); err != nil {
				return err
			}
			if p.CA, err = readCA(o.caFile); err != nil {
				return err
			}
			return o.add(cmd, client.Provider{Name: args[0], OIDC: &p})
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.Issuer, "issuer", "", "the URL that the provider calls itself by")
	f.BoolVar(&p.Insecure, "insecure-http", false, "reach the issuer without TLS: whoever sits in between can log in as anybody")
	f.StringVar(&p.ClientID, "client-id", "", "what the provider knows Pier as")
	f.StringVar(&o.secretFile, "client-secret-file", "", "file with the client's secret, if it has one, its first line; - for standard input")
	f.StringSliceVar(&p.Scopes, "scope", nil, "asked for beside openid, such as profile or groups; may be repeated")
	f.StringVar(&p.NameClaim, "name-claim", "", "claim with the name that somebody gets here, which people must not be able to change (default preferred_username)")
	f.BoolVar(&p.IDTokens, "take-id-tokens", false, "exchange ID tokens of people at /token that other programs got; not where the issuer makes tokens for CI jobs too")
	f.StringVar(&p.GroupsClaim, "groups-claim", "", "claim with the groups (default groups)")
	o.addMapping(cmd)
	return cmd
}

func (o *providerOptions) addMapping(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.caFile, "ca", "", "file with the CA to trust there, PEM, in place of the system's")
	f.StringArrayVar(&o.groups, "map", nil, "THEIRS=GROUP: what a group there is here; may be repeated")
	f.BoolVar(&o.all, "all-groups", false, "take all groups, under their own names")
	f.StringVar(&o.prefix, "group-prefix", "", "put this before the names of --all-groups")
	f.BoolVar(&o.replace, "replace", false, "replace the provider of that name: whoever came in by it logs in again")
}

// mapped reads THEIRS=GROUP. A DN has = in it too, so GROUP is behind the last.
func (o *providerOptions) mapped() (map[string]string, error) {
	if len(o.groups) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, m := range o.groups {
		i := strings.LastIndexByte(m, '=')
		if i < 1 {
			return nil, &exitError{exitUsage, fmt.Sprintf("--map %s: want THEIRS=GROUP", m)}
		}
		out[strings.TrimSpace(m[:i])] = strings.TrimSpace(m[i+1:])
	}
	return out, nil
}

// secret reads what a file has, or standard input for -.
func (o *providerOptions) secret(cmd *cobra.Command) (string, error) {
	in := cmd.InOrStdin()
	switch o.secretFile {
	case "":
		return "", nil
	case "-":
	default:
		f, err := os.Open(o.secretFile)
		if err != nil {
			return "", err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	line, err := firstLine(in, "the secret")
	if err == nil && line == "" {
		err = errors.New("the secret is empty")
	}
	return line, err
}

func (o *providerOptions) add(cmd *cobra.Command, p client.Provider) error {
	if err := o.client().AddProvider(cmd.Context(), client.ProviderRequest{Provider: p, Replace: o.replace}); err != nil {
		return err
	}
	if p.OIDC != nil {
		return o.show(cmd, p.Shown(), "added %s; `pier login --oidc %s` logs in there, and `pier doctor` tells which nodes can't reach it", p.Name, p.Name)
	}
	return o.show(cmd, p.Shown(), "added %s; `pier provider test %s --user NAME` tries a login", p.Name, p.Name)
}

func (o *providerOptions) newProviders() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the providers, without their secrets", Args: cobra.NoArgs, Example: "  pier provider ls -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := o.client().Providers(cmd.Context())
			if err != nil {
				return err
			}
			if o.format == "json" {
				return printJSON(cmd.OutOrStdout(), all)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "NAME\tKIND\tWHERE")
			for _, p := range all {
				where := ""
				switch p.Kind() {
				case "ldap":
					where = strings.Join(p.LDAP.URLs, " ")
				case "oidc":
					where = p.OIDC.Issuer
				}
				fmt.Fprintf(t, "%s\t%s\t%s\n", p.Name, p.Kind(), where)
			}
			return t.Flush()
		},
	}
}

func (o *providerOptions) newRemoveProvider() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "Remove a provider; whoever came in by it is out at once, on every node", Args: cobra.ExactArgs(1), Example: "  pier provider rm corp",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.client().RemoveProvider(cmd.Context(), client.NameRequest{Name: args[0]}); err != nil {
				return err
			}
			return o.show(cmd, struct{}{}, "removed %s", args[0])
		},
	}
}

func (o *providerOptions) newTestProvider() *cobra.Command {
	t := client.ProviderTest{}
	cmd := &cobra.Command{
		Use: "test NAME --user USER", Short: "Try a login at a provider, and show the groups or where it failed", Args: cobra.ExactArgs(1),
		Example: "  pier provider test corp --user alice\n  pier provider test corp --user alice --look-up",
		RunE: func(cmd *cobra.Command, args []string) error {
			t.Name = args[0]
			if t.User == "" {
				return &exitError{exitUsage, "say with --user who is to log in"}
			}
			if !t.LookUp {
				var err error
				if t.Password, err = o.password(cmd, "Password: "); err != nil {
					return err
				}
			}
			report, err := o.client().TestProvider(cmd.Context(), t)
			if err != nil {
				return err
			}
			return o.report(cmd, report)
		},
	}
	cmd.Flags().StringVar(&t.User, "user", "", "who logs in")
	cmd.Flags().BoolVar(&t.LookUp, "look-up", false, "only look the user up, without a password")
	o.addStdin(cmd)
	return cmd
}

func (o *providerOptions) report(cmd *cobra.Command, r client.ProviderReport) error {
	if o.format == "json" {
		if err := printJSON(cmd.OutOrStdout(), r); err != nil {
			return err
		}
	} else {
		for _, s := range r.Steps {
			fmt.Fprintln(cmd.OutOrStdout(), s)
		}
		if r.OK {
			fmt.Fprintf(cmd.OutOrStdout(), "yes: %s, in the groups: %s\n", r.Name, strings.Join(r.Groups, " "))
		}
	}
	if !r.OK {
		return &exitError{code: 1}
	}
	return nil
}
