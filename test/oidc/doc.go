// Package oidc gives tests an issuer of ID tokens: a real OIDC server on 127.0.0.1 that can be out of reach, hang, answer
// something else, and change its key.
package oidc
