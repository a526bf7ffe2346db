package auth

import "time"

// Rule is a trust rule as a directory knows it: tokens that others make stand for its robot. It is kept with the providers,
// under a name that none of those can have.
func Rule(name, robot string, generation uint64) Provider {
	return Provider{Name: rulePrefix + name, Generation: generation, Robot: robot}
}

const rulePrefix = "rule:"

// Job gives the caller that a robot is whose job the rule has let in, until what it came with ends.
func (d *Directory) Job(rule Provider, until, now time.Time) (Caller, bool) {
	return d.job(Caller{Name: rule.Robot, Provider: rule.Name, ProviderGeneration: rule.Generation, Until: until}, now)
}

// job gives a rule's robot as it is now: nothing where the rule is gone or has changed since, or the robot can't come in.
func (d *Directory) job(c Caller, now time.Time) (Caller, bool) {
	rule, known := d.providers[c.Provider]
	today, ok := d.Active(c.Name, now)
	if !known || rule.Robot != c.Name || rule.Generation != c.ProviderGeneration || !ok || today.Kind != KindRobot {
		return Caller{}, false
	}
	today.Provider, today.ProviderGeneration = c.Provider, c.ProviderGeneration
	today.Until, today.Limit = c.Until, c.Limit
	return today, true
}

// IsJob tells whether the caller came in by a trust rule.
func (c Caller) IsJob() bool { return c.Kind == KindRobot && c.Provider != "" }
