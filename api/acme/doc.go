// Package acme gets certificates from an ACME server (RFC 8555) for a whole cluster.
//
// What is shared are documents in the replicated state: the account's key, one certificate for each name, and while one is
// being ordered the order with the answer to the server's question. So every node serves what any of them got, and whichever
// node the server asks, it gets the answer. A name is ordered by one node at a time: the order's document is taken by its
// generation, with a time after which another may take it. A failure is noted there too, so that all nodes together wait
// before the next try, and all can say what is wrong.
//
// Nothing is ordered during a handshake, and never for a name that the settings don't have. A node with a certificate serves
// without the ACME server and without a quorum. Keys are never part of a log or of an error.
package acme
