package auth

import (
	"context"
	"errors"
	"time"
)

// People are those of the providers that check passwords. A Caller that they give has name, groups, provider and its generation.
// Their errors are an ErrWrongLogin or an ErrNoAnswer.
type People interface {
	// Check gives whose the password is: at one provider, or for an empty one at the first that knows the name.
	Check(ctx context.Context, provider, name, password string) (Caller, error)
	// Again tells whether somebody is still there who came in before, with today's groups.
	Again(ctx context.Context, c Caller) (Caller, error)
}

const (
	// maxAsks is how many logins ask directories at a time, and how many OpenID providers. Each have a line of their own: one that
	// hangs holds up nobody else.
	maxAsks = 8
	// evenAnswers is what the time of a wrong login is rounded up to where providers check passwords. A name that only they
	// know takes another time there than a wrong password, and yet another than one of ours takes here.
	evenAnswers = 500 * time.Millisecond
)

// outside checks a login by who knows the name: with the same memory and the same pauses as the cluster's own.
func (l *Logins) outside(ctx context.Context, d *Directory, name, password, source string) (Caller, error) {
	provider, there, _ := d.asked(name)
	account, from := accountKey(there), SourceKey(source)
	p, _ := d.Find(there)
	p.Name = there
	seen := l.digest(p, password, from)
	if who, ok := l.remembers(seen, account, from); ok {
		if c, ok := d.Vouched(who, l.now()); ok {
			return c, nil
		}
	}
	who, err := l.ask(ctx, l.asks, account, from, func() (Caller, error) {
		if password == "" { // which LDAP would take for no password asked
			return Caller{}, ErrWrongLogin
		}
		who, err := l.people.Check(ctx, provider, there, password)
		if err == nil {
			if _, ok := d.Vouched(who, l.now()); !ok {
				return Caller{}, ErrWrongLogin
			}
		}
		return who, err
	})
	if err != nil {
		l.missed(account, from)
		return Caller{}, err
	}
	l.remember(seen, who)
	c, _ := d.Vouched(who, l.now())
	return c, nil
}

// Elsewhere takes a login that is proven elsewhere, by what only check knows: as few at a time as ask directories, and with the
// pauses of a source that wrong ones come from. An ErrWrongLogin is one.
func (l *Logins) Elsewhere(ctx context.Context, source string, check func() (Caller, error)) (Caller, error) {
	from := SourceKey(source)
	account := "\x00" + from // no name is known yet
	c, err := l.ask(ctx, l.codes, account, from, check)
	if err != nil {
		l.missed(account, from)
	}
	return c, err
}

func (l *Logins) ask(ctx context.Context, in *line, account, from string, check func() (Caller, error)) (Caller, error) {
	if err := l.tooSoon(account, from); err != nil {
		return Caller{}, err
	}
	if err := in.enter(ctx, from); err != nil {
		return Caller{}, err
	}
	defer in.done()
	if err := l.tooSoon(account, from); err != nil {
		return Caller{}, err // those before it in the line were wrong
	}
	who, err := check()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.accounts.forget(account)
		l.known.note(missKey(account, from), l.now())
	case errors.Is(err, ErrWrongLogin):
		l.accounts.note(account, l.now())
		l.sources.note(from, l.now())
	}
	return who, err
}

// Again renews a caller that comes with what stands for a password: whom a directory knows must still be there. Of who came in with
// OpenID nobody can be asked without the person: such a caller is as before, and ends by Until.
func (l *Logins) Again(ctx context.Context, d *Directory, c Caller, source string) (Caller, error) {
	now, ok := d.Renew(c, l.now())
	if !ok {
		return Caller{}, ErrWrongLogin
	}
	if !d.providers[now.Provider].Passwords {
		return now, nil
	}
	if err := l.asks.enter(ctx, SourceKey(source)); err != nil {
		return Caller{}, err
	}
	defer l.asks.done()
	today, err := l.people.Again(ctx, c)
	if err != nil {
		return Caller{}, err
	}
	today, ok = d.Vouched(today, l.now())
	if !ok || today.Name != c.Name {
		return Caller{}, ErrWrongLogin
	}
	today.Limit, today.Until = c.Limit, c.Until
	return today, nil
}

// evenOut lets a wrong login end at a whole multiple of the time, counted from its begin. No place in a line is held for it.
func (l *Logins) evenOut(ctx context.Context, began time.Time) {
	t := time.NewTimer(evenWait(time.Since(began), l.even))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// evenWait is what is missing to the next multiple.
func evenWait(took, even time.Duration) time.Duration { return even - took%even }
