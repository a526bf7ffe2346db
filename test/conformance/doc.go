// Command conformance runs the official conformance suite of the OCI distribution spec against Pier, with nothing disabled,
// and fails on every failure, skip and disabled test.
//
//	go run ./test/conformance                          all scenarios, versions 1.1 and dev
//	go run ./test/conformance -scenario three -version dev
//	go run ./test/conformance -registry 127.0.0.1:5000 a registry that runs already
//
// The scenarios are one node; three nodes behind a proxy that sends every request to a random one; the same with HTTPS and
// access control, as a user with just the rights that it takes; and, without those, while the leader is killed and started
// again every ten seconds, where the proxy may repeat requests that met a 503, and nothing else.
// Nodes are processes of the built program, so that a kill is a kill.
//
// The suite is built with go install at a pinned version below .build/, outside this module's requirements. A run that failed
// leaves its logs and reports in a directory of its own below .build/conformance/. It is a command and not a Go test because it needs the module proxy once.
package main
