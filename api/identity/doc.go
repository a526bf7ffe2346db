// Package identity asks outsiders who somebody is: the issuers of OIDC ID tokens, and directories (LDAP) that know passwords.
//
// What they say is taken only from whom an administrator has named, and is never more than a name, groups and a time at
// which it ends. What such a caller may do is package auth's business, and what is asked, and how often, is bounded: a
// stranger who sends tokens makes a node ask an issuer once in a while, and nobody else at all; a directory that doesn't answer
// isn't asked again for a few seconds, so that nobody waits for it in a row.
//
// Nothing here stores or logs anything, and no token, code, password or secret of a provider is part of an error.
package identity
