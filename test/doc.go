// Package test holds what looks at Pier as a whole: the house test in this directory, and below it the harness, the promises
// and the programs that drive real processes, real containers and real clients.
//
// The house test reads the source of the module and fails when one of the rules of CONTRIBUTING.md is broken: an import that
// points the wrong way, a package without a comment, a hidden global, a function that has grown too long, a test that sleeps or
// skips. The rules are tests so that nobody has to remember them in a review.
//
// Nothing outside this directory may import anything below it.
package test
