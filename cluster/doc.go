// Package cluster makes nodes one: Raft for what must be agreed, gossip for hints, and the forming, joining and leaving of
// members, all over one mTLS port.
//
// Invariants: a command that was answered is on a majority's disks; ReadIndex returns only when the local state holds all
// that was answered before; a node whose disk is older than its last life never votes; two halves never form two clusters;
// the number of voters never shrinks by itself. No decision about data rests on gossip.
//
// Commands are bytes here, and the state is whatever applies them: the package knows nothing of registries.
package cluster
