// Package ldap runs a directory server, Debian's slapd, for tests of people who come in by one: a process of the test's own on
// loopback, with TLS from a CA of its own, whose entries and faults the test decides.
//
// The tests are behind the build tag slapd, since `go test ./...` needs only Go. They fail where slapd isn't installed; they
// never use a server that was there before.
package ldap
