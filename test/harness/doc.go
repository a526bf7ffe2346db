// Package harness starts real nodes in one process and lets a test be cruel to them: real Raft, gossip, TLS and files on
// loopback, with a network below the cluster port that can be cut, delayed and made deaf one way.
//
// A test reads like its story: start three, cut two apart, push, heal, pull. Every node ends with the test.
package harness
