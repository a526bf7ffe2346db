// Package clients runs the registry clients that people have against a cluster of three Pier processes: each pushes to one node
// and gets the same bytes from another. Docker itself is in the package above.
//
// The tests are behind the build tag docker, like those, and need skopeo and podman of the system and what .ci/clients installs.
// PIER_TEST_REGISTRIES, host:port with commas between, names a registry that runs already, to tell a client's fault from ours.
package clients
