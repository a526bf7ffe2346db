// Package raftlog keeps the Raft log and votes in a bbolt file and tells the truth about it: a write that fails or hangs
// ends the process, since a leader with a dead disk must not keep its lease, and after a failed fsync nobody knows what is
// on the disk.
//
// It holds no decisions; those are Raft's.
package raftlog
