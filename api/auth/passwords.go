package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// ErrWrongLogin is a name or a password that isn't right; which of the two it is stays unsaid.
var ErrWrongLogin = errors.New("unknown user or wrong password")

// TooManyLoginsError says that passwords are being guessed, or that more logins wait than are checked at a time.
type TooManyLoginsError struct{ RetryAfter time.Duration }

func (e *TooManyLoginsError) Error() string {
	return fmt.Sprintf("too many logins; try again in %s", e.RetryAfter)
}

const (
	// bcryptCost takes about 50 ms on a machine of these years.
	bcryptCost  = 10
	maxPassword = 72 // bytes; bcrypt knows no more
	minPassword = 8

	cacheLife  = time.Minute
	cacheLimit = 10_000
	maxMisses  = 20                 // of an account from a source, before what is remembered of it doesn't count there
	knownLife  = 7 * 24 * time.Hour // that an account was right from a source

	// dummyHash is compared where there is no hash, so that an unknown name takes as long as a wrong password. Of the same
	// cost; what it is the hash of was thrown away, and would let nobody in.
	dummyHash = "$2a$10$2Vrmz.E0DCHJMuP3eluscOFbCJMwROTbZ/TmhSXd1Xxl8MftjZaaC"
)

// HashPassword makes a user's hash. It refuses what is too short to be safe or longer than bcrypt looks at.
func HashPassword(password string) ([]byte, error) {
	if len(password) < minPassword || len(password) > maxPassword {
		return nil, fmt.Errorf("a password has %d to %d bytes; this one has %d", minPassword, maxPassword, len(password))
	}
	return bcrypt.GenerateFromPassword([]byte(password), bcryptCost)
}

// CheckHash accepts a bcrypt hash that somebody else made, as htpasswd -B does.
func CheckHash(hash []byte) error {
	cost, err := bcrypt.Cost(hash)
	if err != nil {
		return errors.New("not a bcrypt hash (htpasswd makes them with -B)")
	}
	if cost > bcryptCost+4 {
		return fmt.Errorf("a bcrypt hash of cost %d would make each login take seconds; %d is the limit", cost, bcryptCost+4)
	}
	return nil
}

// NewSecret makes a robot's secret, and what is kept of it.
func NewSecret() (text string, kept Secret) {
	text = "pier_" + rand.Text() + rand.Text()
	sum := sha256.Sum256([]byte(text))
	return text, Secret{ID: rand.Text()[:8], Hash: sum[:]}
}

// Logins checks passwords at a bounded cost: few bcrypt runs at a time, none for what was verified within the last minute,
// and growing pauses for an account and an address from which wrong ones come. Safe for concurrent use.
type Logins struct {
	now     func() time.Time
	key     []byte // of this process
	dummy   []byte
	compare func(hash, password []byte) error
	runs    *line // for a bcrypt
	again   *line // the same, for who was right from there before
	people  People
	asks    *line // for a directory
	codes   *line // for a login that is proven elsewhere
	even    time.Duration

	mu       sync.Mutex
	verified map[[sha256.Size]byte]verified // by keyed hash of name, hash and password
	accounts *failures
	sources  *failures
	misses   *failures // by account and source together
	known    *failures // the same, of those that were right
}

// verified is a login that was right: until when that counts, and for whom a provider took it.
type verified struct {
	end time.Time
	who Caller
}

// NewLogins makes a checker that knows of no failures yet. people are asked about who comes from outside.
func NewLogins(now func() time.Time, people People) *Logins {
	l := &Logins{
		now: now, key: []byte(rand.Text()), dummy: []byte(dummyHash), compare: bcrypt.CompareHashAndPassword,
		runs: newLine(max(1, runtime.GOMAXPROCS(0)/2)), again: newLine(1), people: people, asks: newLine(maxAsks), codes: newLine(maxAsks), even: evenAnswers,
		verified: make(map[[sha256.Size]byte]verified),
		accounts: newFailures(5, 10*time.Second), sources: newFailures(20, 30*time.Second), misses: newFailures(0, 0),
		known: newFailures(0, 0),
	}
	l.known.memory = knownLife
	return l
}

// Login gives the caller with that name and password. ErrWrongLogin says no in the same words and the same time for a
// name that doesn't exist; a *TooManyLoginsError says not now, and ErrNoAnswer that who knows doesn't say. source is where the
// caller comes from, without a port.
func (l *Logins) Login(ctx context.Context, d *Directory, name, password, source string) (Caller, error) {
	if !d.passwords {
		return l.own(ctx, d, name, password, source)
	}
	began := time.Now()
	login := l.own
	if _, _, ok := d.asked(name); ok {
		login = l.outside
	}
	c, err := login(ctx, d, name, password, source)
	if errors.Is(err, ErrWrongLogin) {
		l.evenOut(ctx, began)
	}
	return c, err
}

// own checks a login by what the cluster knows itself.
func (l *Logins) own(ctx context.Context, d *Directory, name, password, source string) (Caller, error) {
	c, active := d.Active(name, l.now())
	var p Principal
	if active { // else it is as if there were none: a password that was right must not show
		p, _ = d.Find(name)
	}
	if s, ok := l.secretOf(p, password); ok {
		c.Until = s.Expires
		return c, nil
	}
	account, from := accountKey(name), SourceKey(source)
	seen := l.digest(p, password, from)
	// What a provider took for right a moment ago counts only as its word: it may check no passwords any more.
	if who, ok := l.remembers(seen, account, from); !ok || who.Provider != "" {
		if err := l.check(ctx, p, account, password, from, seen); err != nil {
			l.missed(account, from)
			return Caller{}, err
		}
	}
	return c, nil
}

// accountKey is what is kept of a name that was wrong. It shares no memory with what came in, which has the password in it
// too; and names that nobody can have are one.
func accountKey(name string) string {
	if len(name) > maxName {
		return ""
	}
	return strings.Clone(name)
}

// SourceKey is what is kept of an address: of IPv6 the network, in which one machine may have any address.
func SourceKey(source string) string {
	ip, err := netip.ParseAddr(source)
	if err != nil || ip.Unmap().Is4() {
		return source
	}
	network, _ := ip.Prefix(64) // which every address of IPv6 has
	return network.String()
}

func (l *Logins) check(ctx context.Context, p Principal, name, password, source string, seen [sha256.Size]byte) error {
	if err := l.tooSoon(name, source); err != nil {
		return err
	}
	runs := l.runs
	if l.isKnown(name, source) { // all the world may stand in the other line
		runs = l.again
	}
	if err := runs.enter(ctx, source); err != nil {
		return err
	}
	defer runs.done()
	if err := l.tooSoon(name, source); err != nil {
		return err // those before it in the line were wrong
	}
	if who, ok := l.remembers(seen, name, source); ok && who.Provider == "" {
		return nil // one before it in the line was the same: machines log in with many requests at once
	}
	hash, possible := p.Password, p.Kind == KindUser && p.Provider == "" && len(p.Password) > 0 && len(password) <= maxPassword
	if !possible {
		hash = l.dummy
	}
	short := []byte(password[:min(len(password), maxPassword)])
	right := l.compare(hash, short) == nil && possible
	if !right && quicker(hash, l.dummy) {
		_ = l.compare(l.dummy, short) // an imported hash must not answer sooner than a name that nobody has
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !right {
		l.accounts.note(name, l.now())
		l.sources.note(source, l.now())
		return ErrWrongLogin
	}
	l.accounts.forget(name)
	l.known.note(missKey(name, source), l.now())
	l.keep(seen, Caller{}) // before the next in the line
	return nil
}

// quicker tells whether a hash takes less time than another.
func quicker(hash, other []byte) bool {
	a, _ := bcrypt.Cost(hash) // 0 for what is none
	b, _ := bcrypt.Cost(other)
	return a < b
}

// secretOf finds the robot's secret that the text is. It needs no bcrypt and no pause: a secret is too long to be guessed.
func (l *Logins) secretOf(p Principal, text string) (found Secret, ok bool) {
	if p.Kind != KindRobot {
		return Secret{}, false
	}
	sum := sha256.Sum256([]byte(text))
	for _, s := range p.Secrets {
		if (s.Expires.IsZero() || l.now().Before(s.Expires)) && subtle.ConstantTimeCompare(sum[:], s.Hash) == 1 {
			found, ok = s, true
		}
	}
	return found, ok
}

// tooSoon tells how long a login has to wait for the wrong ones before it. An account that was right from there of late
// doesn't, until it has been wrong from there a few times: else strangers could keep it out with wrong passwords of theirs,
// and one who guesses all that come through the same proxy.
func (l *Logins) tooSoon(name, source string) error {
	if l.isKnown(name, source) {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if wait := max(l.accounts.pause(name, now), l.sources.pause(source, now)); wait > 0 {
		return &TooManyLoginsError{RetryAfter: wait}
	}
	return nil
}

// isKnown tells whether an account was right from there of late, and hasn't been wrong there often since.
func (l *Logins) isKnown(name, source string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, now := missKey(name, source), l.now()
	return l.known.count(key, now) > 0 && l.misses.count(key, now) < maxMisses
}

// digest names a login that was right, without keeping its password. A changed password or generation makes it another
// one, and so does another source.
func (l *Logins) digest(p Principal, password, from string) (out [sha256.Size]byte) {
	h := hmac.New(sha256.New, l.key)
	fmt.Fprintf(h, "%s\x00%s\x00%d\x00%s\x00%s\x00%s", p.Name, p.Password, p.Generation, p.Provider, from, password)
	copy(out[:], h.Sum(nil))
	return out
}

// remembers tells whether a login was right a moment ago. What is remembered answers without a pause, so that it would tell
// a right guess from those that have to wait: after a few misses it doesn't count.
func (l *Logins) remembers(seen [sha256.Size]byte, account, from string) (who Caller, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.verified[seen]
	return v.who, l.now().Before(v.end) && l.misses.count(missKey(account, from), l.now()) < maxMisses
}

// missed counts a login that didn't come to its end, for whatever reason.
func (l *Logins) missed(account, from string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.misses.note(missKey(account, from), l.now())
}

func missKey(account, from string) string { return account + "\x00" + from }

func (l *Logins) remember(seen [sha256.Size]byte, who Caller) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep(seen, who)
}

// keep is remember for who has the lock.
func (l *Logins) keep(seen [sha256.Size]byte, who Caller) {
	now := l.now()
	if len(l.verified) >= cacheLimit {
		for k, v := range l.verified {
			if len(l.verified) >= cacheLimit || !now.Before(v.end) {
				delete(l.verified, k)
			}
		}
	}
	l.verified[seen] = verified{end: now.Add(cacheLife), who: who}
}
