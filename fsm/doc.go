// Package fsm is the replicated state of a cluster: repositories, manifests, tags, links, referrers, nodes, invites, users,
// grants, documents and settings, kept in one bbolt file that every node builds from the same log.
//
// Invariants: apply reads no clock, no random source and no map order, so equal histories give equal content; a batch of
// commands is one fsynced transaction that also writes the applied index, so the file is at every moment a whole prefix of
// the log; a command that comes twice (same node, boot epoch and sequence) is answered from memory; a refused command
// changes nothing. The file itself is the Raft snapshot.
//
// It holds no blob bytes, talks to no network and imports nothing of the project.
package fsm
