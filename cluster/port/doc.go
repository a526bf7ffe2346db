// Package port is the one TCP and UDP port that the nodes of a cluster share, and the keys that guard it.
//
// Every TCP connection is TLS 1.3 and is split by ALPN: raft, peer and gossip need a certificate of this cluster on both
// sides, join shows only the server's. The certificate authority and the gossip key are derived from the cluster secret, so
// whoever has the secret is a member and nobody else gets past the handshake; a certificate's one name is its node's ID.
//
// It decides nothing about membership: whom to admit to which protocol is asked of the cluster.
package port
