// Package blobsync brings blobs to where the replicated state wants them: want − have.
//
// Invariants: a file becomes a blob here only after its digest was checked on this node; what came early from a peer goes on
// to other peers but never wholly to a client before it is verified; one fetch of a digest serves all who wait for it;
// nothing here decides what is wanted. Losing a hint costs time, never data: want and have are compared again and again.
//
// It knows no repositories and no Raft: the state is an Index, the other nodes are Peers.
package blobsync
