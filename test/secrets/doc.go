// Package secrets sees to it that a secret stays where it belongs. A Ledger is told each secret that a test uses and each text
// that anybody may read (logs, metrics, answers, what commands print), and says where one is in the other, in whatever form:
// as it is, in base64, in hex, escaped for a URL or for JSON.
//
// Its test is the whole life of a cluster of real processes. What lets in by a new way gets a line there, and its secrets a
// Keep.
//
// It is no proof that nothing leaks: only what the life says and does is looked at.
package secrets
