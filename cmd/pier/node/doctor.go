package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"pier/api/client"
)

const (
	// A certificate should have been renewed by then, whoever does that.
	certificateSoon = 14 * 24 * time.Hour
	// blobsLate is for how long a blob may be on its way here before somebody should look.
	blobsLate = time.Minute
)

// doctor looks at one node for what a person should know of. Its checks only look, and each says what to do.
type doctor struct {
	node *Node
	inst *instance
}

// examine runs the checks.
func (d *doctor) examine(ctx context.Context) []client.Finding {
	out := []client.Finding{d.membership(), d.exposure(), d.certificate(), d.names(), d.clientCAs(), d.secret(), d.rotation(), d.directory(), d.disk(), d.blobs(), d.audit(), d.packets(ctx)}
	return slices.DeleteFunc(out, func(f client.Finding) bool { return f.Check == "" }) // what has nothing to look at
}

func problemOf(check, message, remedy string) client.Finding {
	return client.Finding{Check: check, Level: client.LevelProblem, Message: message, Remedy: remedy}
}

func warningOf(check, message, remedy string) client.Finding {
	return client.Finding{Check: check, Level: client.LevelWarning, Message: message, Remedy: remedy}
}

func (d *doctor) membership() client.Finding {
	const check = "membership"
	if err := d.inst.cluster.Standing(); err != nil {
		return problemOf(check, err.Error(), "empty its data directory and start it again as a new node, once the others hold what it held")
	}
	select {
	case <-d.inst.cluster.Ready():
		return client.Fine(check, "it is a member of its cluster")
	default:
		return warningOf(check, "it has not joined its cluster yet", "its log says for whom it waits")
	}
}

func (d *doctor) exposure() client.Finding {
	const check = "exposure"
	said, remedy := d.node.exposure()
	if said == "" {
		return client.Fine(check, "nobody from elsewhere comes in without a login, and no password travels in the open")
	}
	return problemOf(check, said, remedy)
}

func (d *doctor) certificate() client.Finding {
	const check = "certificate"
	certs := d.node.certs
	if certs == nil {
		return client.Finding{}
	}
	if err := certs.Fault(); err != nil {
		return problemOf(check, err.Error(), "put a certificate and its key that are good now into the files, or see what the log says of getting one; it is taken without a restart")
	}
	now := d.node.opts.Tuning.Clock()
	for _, name := range d.served() {
		leaf := shown(certs.TLS(), name)
		if leaf == nil {
			return problemOf(check, "there is no certificate for "+name, "the log says why there is none")
		}
		// One that lives for days only is due later.
		if left := leaf.NotAfter.Sub(now); left < min(certificateSoon, leaf.NotAfter.Sub(leaf.NotBefore)/4) {
			return warningOf(check, fmt.Sprintf("the certificate ends at %s", leaf.NotAfter.UTC().Format(time.RFC3339)), "renew it; new files are taken without a restart")
		}
	}
	return client.Fine(check, "the certificate is good")
}

// served are the names that clients may ask for; an empty one where none is set.
func (d *doctor) served() []string {
	if names := d.node.cfg.Access.PublicNames; len(names) > 0 {
		return names
	}
	return []string{""}
}

// shown is the certificate that a client sees who asks for a name; nil where it sees none.
func shown(cfg *tls.Config, name string) *x509.Certificate {
	c, err := cfg.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil || c == nil {
		return nil
	}
	return c.Leaf
}

func (d *doctor) names() client.Finding {
	const check = "names"
	if d.node.certs == nil || len(d.node.cfg.Access.PublicNames) == 0 {
		return client.Finding{}
	}
	var missing []string
	for _, name := range d.node.cfg.Access.PublicNames {
		if leaf := shown(d.node.certs.TLS(), name); leaf == nil || leaf.VerifyHostname(name) != nil {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		return warningOf(check, "the certificate does not cover "+strings.Join(missing, ", "), "get one for all names of public-name, or take the name out of the settings")
	}
	return client.Fine(check, "the certificate covers all names of public-name")
}

func (d *doctor) clientCAs() client.Finding {
	const check = "client-ca"
	if d.node.clients == nil {
		return client.Finding{}
	}
	if err := d.node.clients.Fault(); err != nil {
		return problemOf(check, "the CAs from before are in use: "+err.Error(), "put CA certificates in PEM into the file of tls-client-ca; it is taken without a restart")
	}
	if ends := d.node.clients.Ends(); ends.Sub(d.node.opts.Tuning.Clock()) < certificateSoon {
		return warningOf(check, fmt.Sprintf("a CA for clients' certificates ends at %s, and those that it has signed with it", ends.UTC().Format(time.RFC3339)), "add the one that follows it to the file of tls-client-ca, beside the old one, and give the clients new certificates")
	}
	return client.Fine(check, "the CAs for clients' certificates are in use")
}

func (d *doctor) secret() client.Finding {
	const check = "secret"
	path := secretPath(d.node.cfg)
	mode, err := modeOf(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return problemOf(check, "the cluster's secret is not in "+path+" any more: the next start makes another, and the node is a stranger then", "copy the file from another node before you restart this one")
	case err != nil:
		return problemOf(check, "the cluster's secret can't be read: "+err.Error(), "give it to the user that runs pier")
	case mode&0o007 != 0:
		return problemOf(check, fmt.Sprintf("every user of this machine can get at the cluster's secret: %s has the mode %04o", path, mode), "chmod o= "+path+", and `pier cluster secret rotate` if somebody may have read it")
	}
	return client.Fine(check, "the cluster's secret is for its user alone")
}

// oldSecretSoon is when clients should have been told to trust the new CA.
const oldSecretSoon = 7 * 24 * time.Hour

// rotation is this node's part in it. For whom all wait is asked once, not of each node.
func (d *doctor) rotation() client.Finding {
	const check = "new-secret"
	r, known, fault, err := d.inst.cluster.OwnRotation()
	now := time.Now()
	switch {
	case err != nil:
		return problemOf(check, "how far the rotation of the cluster's secret is can't be read: "+err.Error(), "see its log")
	case !known:
		return client.Finding{}
	case fault != "":
		return problemOf(check, "it can't follow the rotation of the cluster's secret: "+fault, "mend that; if the node that began is lost for good, remove it and say `pier cluster secret rotate` again")
	}
	for _, s := range r.Secrets[1:] {
		if end := time.UnixMilli(s.Until); s.Until != 0 && end.Sub(now) < oldSecretSoon && d.node.cfg.Access.TLS == "auto" && r.Keep > oldSecretSoon.Milliseconds() {
			return warningOf(check, "clients that trust only the old CA are cut off at "+end.UTC().Format(time.RFC3339), "make all trust the new one: pier trust HOST:PORT --install")
		}
	}
	return client.Fine(check, "it has the secrets that the cluster wants")
}

func (d *doctor) directory() client.Finding {
	const check = "data-directory"
	path := d.node.cfg.DataDir
	mode, err := modeOf(path)
	switch {
	case err != nil:
		return problemOf(check, "the data directory can't be read: "+err.Error(), "give it to the user that runs pier")
	case mode&0o002 != 0:
		return problemOf(check, fmt.Sprintf("every user of this machine can change what is in %s (mode %04o)", path, mode), "chmod o= "+path)
	case mode&0o005 != 0:
		return warningOf(check, fmt.Sprintf("every user of this machine can look into %s (mode %04o), where all images are", path, mode), "chmod o= "+path)
	}
	return client.Fine(check, "the data directory is for its user alone")
}

func modeOf(path string) (fs.FileMode, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Mode().Perm(), nil
}

func (d *doctor) disk() client.Finding {
	const check = "disk"
	free, reserve, err := d.inst.store.Space()
	said := fmt.Sprintf("%s are free, and %s of them are never used", humanize.IBytes(uint64(max(free, 0))), humanize.IBytes(uint64(max(reserve, 0))))
	remedy := "make room, or delete what nobody needs; disk-reserve is what stays free"
	switch {
	case err != nil:
		return problemOf(check, "the disk can't be measured: "+err.Error(), "see the system's log for what is wrong with it")
	case free <= reserve:
		return problemOf(check, "the disk is full, so it takes no pushes: "+said, remedy)
	case free < 2*reserve:
		return warningOf(check, "the disk is nearly full: "+said, remedy)
	}
	return client.Fine(check, said)
}

func (d *doctor) blobs() client.Finding {
	const check = "blobs"
	if f := d.inst.blobs.Figures(); f.Missing > 0 && f.OldestMissing > blobsLate {
		return problemOf(check, fmt.Sprintf("%d blobs that it is to hold are not there, for %s by now", f.Missing, f.OldestMissing.Round(time.Second)), "start the nodes that have them; the log says what keeps it from fetching")
	}
	return client.Fine(check, "it has the blobs that it is to hold, or is fetching them")
}

func (d *doctor) audit() client.Finding {
	const check = "audit"
	if n := d.inst.audit.Dropped(); n > 0 {
		return warningOf(check, fmt.Sprintf("%d lines of the audit log were not written since the node started", n), "the disk was too slow or full, or somebody was refused in great number; its log and pier_audit_dropped_total say when")
	}
	return client.Fine(check, "every line of the audit log was written")
}

func (d *doctor) packets(ctx context.Context) client.Finding {
	const check = "gossip"
	unheard := d.inst.cluster.Unheard(ctx)
	if len(unheard) == 0 {
		return client.Fine(check, "UDP goes through to every node that answers")
	}
	var names []string
	for _, m := range d.inst.cluster.Members() {
		if slices.Contains(unheard, m.ID) {
			names = append(names, m.Name)
		}
	}
	return warningOf(check, fmt.Sprintf("UDP does not go through between it and %s: a node that is down is noticed later", strings.Join(names, ", ")), "open the cluster port for UDP as for TCP, both ways")
}
