// Package node is the one place that knows every part of Pier and wires them: state, cluster, blobs and API become a node.
// `pier serve`, `pier dev` and the test harness all start nodes here.
//
// It also owns the settings: each is defined once, and the flag, the variable, the key in the file and the help come from
// that. It decides nothing that one of the parts could.
package node
