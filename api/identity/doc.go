// Package identity asks outsiders who somebody is: the issuers of OIDC ID tokens, and directories that know passwords.
//
// What they say is taken only from whom an administrator has named, and is never more than a name, groups and a time at
// which it ends. What such a caller may do is package auth's business, and what is asked, and how often, is bounded: a
// stranger who sends tokens makes a node ask an issuer once in a while, and nobody else at all.
//
// Nothing here stores or logs anything, and no token, code or password is part of an error.
package identity
