// Package docker drives Pier with a real Docker engine: pier dev and the line that it prints, the classic first steps with one
// container, and the docker-compose.yml of this repository with both generations of Compose: without the image and with it, in
// any order, under kills, restarts and a move to other addresses. Its subpackage clients does pushes and pulls with the other
// clients that people use.
//
// The tests are behind the build tag docker, so that go test ./... needs only Go; with the tag nothing skips itself. They need
// an image named pier (make image), golang:1.26 and debian:bookworm-slim, the ports 5001-5003 of 127.0.0.1, root for kill -9 on
// a container's process, and what .ci/clients installs. Every container, network, volume and image that they make begins with a
// prefix, piertest or PIER_TEST_PROJECT, and goes with the test.
package docker
