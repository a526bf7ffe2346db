// Package client is the control API of a node seen from outside: its JSON, and a client that speaks it over the node's socket
// or a URL. The server uses the same types, so both ends share one definition.
//
// It holds no logic of the cluster and imports nothing of the project.
package client
