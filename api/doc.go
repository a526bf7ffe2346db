// Package api is the HTTP side of a node: the registry's /v2 as the OCI distribution spec describes it, health, metrics, and
// the control API that the command line uses.
//
// Invariants:
//
//   - A path is parsed once, from the right, into a typed route; no handler looks at the path again.
//   - Handlers return errors. One table turns them into a status, an OCI code and a sentence that says what to do.
//   - Bodies stream. A request holds a bounded buffer, never a blob; a manifest is held whole, at most 4 MiB.
//   - Bytes that have a digest leave as they came: nothing is compressed, rewritten or redirected.
//   - Whoever waits for a client waits a bounded time without progress, and never a bounded time in all.
//   - An upload belongs to the node that took its POST, whose ID is part of the upload's ID. Other nodes relay to it, once.
//   - A request that changes something is answered with success only after the replicated state has it.
//
// It decides nothing about the cluster: who leads, where blobs go and what the state refuses are the neighbours' matters,
// and it holds no state of its own beside counters.
package api
