// Package process runs a Pier cluster as real processes of the built program, for tests in which kill -9 has to be real and a
// client has to be a stranger: the conformance suite and the client tests. Each node has a data directory, fixed ports on
// 127.0.0.1 and a log file below one directory, and keeps them when it is started again.
//
// Its own test, of members that come and go by the command line while people push, is behind the build tag docker, like those of
// test/docker: it keeps a machine busy for a minute.
//
// It is not the harness: nodes here can't be cut off from each other, and nothing of their inside can be seen.
package process
