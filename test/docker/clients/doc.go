// Package clients runs the registry clients that people have against a cluster of three Pier processes: each pushes to one node
// and gets the same bytes from another. Docker on an open registry is in the package above.
//
// TestSecure is the same with access control and HTTPS, and begins with the steps of the README's "Secure it" as they are typed.
// It runs in namespaces of its own, with three machines and a client that has its own Docker engine and containerd, so that
// `pier trust --install` may write into /etc and nothing is left behind. The messages that clients show are in its log.
//
// The tests are behind the build tag docker, like those above, and need root, skopeo, podman, containerd and iproute2 of the
// system and what .ci/clients installs. PIER_TEST_REGISTRIES, host:port with commas between, names a registry that runs already
// for TestClients, to tell a client's fault from ours.
package clients
