package acme

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrNotKept says that a name is none that this keeper has a certificate for.
var ErrNotKept = errors.New("is no public name of this node")

// ErrNotIssued says that the ACME server gave no certificate.
var ErrNotIssued = errors.New("no certificate was given")

// Renew has the certificates of the names replaced, all when none is named, though they aren't due; what was replaced meanwhile
// counts too. It returns once the new ones are here, with their ends, or once a node has failed to get one. Nothing is taken
// back when ctx ends before that.
func (k *Keeper) Renew(ctx context.Context, names []string) (map[string]time.Time, error) {
	if len(names) == 0 {
		names = k.cfg.Names
	}
	for _, name := range names {
		if !k.Covers(name) {
			return nil, fmt.Errorf("%q %w", name, ErrNotKept)
		}
	}
	for _, name := range names {
		if err := k.mark(ctx, plainHost(name)); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	ends, faults := make(map[string]time.Time, len(names)), []error(nil)
	for _, name := range names {
		end, err := k.marked(ctx, plainHost(name))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		ends[name], faults = end, append(faults, err)
	}
	return ends, errors.Join(faults...)
}

// mark notes in a name's certificate that it is to be replaced, and forgets failures from before: somebody may have mended
// what was wrong.
func (k *Keeper) mark(ctx context.Context, host string) error {
	for {
		var doc certificate
		body, generation, err := k.cfg.Store.Current(ctx, k.docs.certificate(host))
		if generation, err = read(&doc, body, generation, err); err != nil {
			return err
		}
		if generation != 0 && !doc.Replace {
			doc.Replace = true
			_, err = put(ctx, k.cfg.Store, k.docs.certificate(host), doc, generation)
		}
		if err == nil {
			err = k.forgive(ctx, host)
		}
		if !errors.Is(err, ErrChanged) {
			return err
		}
	}
}

func (k *Keeper) forgive(ctx context.Context, host string) error {
	var o order
	body, generation, err := k.cfg.Store.Local(k.docs.order(host))
	if generation, err = read(&o, body, generation, err); err != nil || !o.failed() {
		return err
	}
	return k.cfg.Store.Delete(ctx, k.docs.order(host), generation)
}

// failed tells whether nobody is at the order, since the last try failed.
func (o order) failed() bool { return o.Error != "" && o.Until.IsZero() }

// marked waits for the certificate that takes the place of a marked one.
func (k *Keeper) marked(ctx context.Context, host string) (end time.Time, err error) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		k.look()
		k.mu.Lock()
		now := k.known[host]
		k.mu.Unlock()
		if now.certificate != nil && !now.replace {
			return now.certificate.Leaf.NotAfter, nil
		}
		var o order
		body, generation, err := k.cfg.Store.Local(k.docs.order(host))
		if _, err = read(&o, body, generation, err); err != nil {
			return end, fmt.Errorf("%s: %w", host, err)
		}
		if o.failed() {
			return end, fmt.Errorf("%s: %w to node %s: %s", host, ErrNotIssued, o.By, o.Error)
		}
		select {
		case <-ctx.Done():
			return end, ctx.Err()
		case <-tick.C:
		}
	}
}
