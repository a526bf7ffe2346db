# Bare `make` prints what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .build/bin
IMAGE ?= pier
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
STATICCHECK_VERSION := v0.8.2
GOVULNCHECK_VERSION := v1.9.0
VULNDB_VERSION := v0.0.0-20261105234957-e22db6528018
BENCHTIME ?= 1s

.PHONY: help
help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/pier for this machine
	CGO_ENABLED=0 go build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/pier ./cmd/pier

.PHONY: dev
dev: ## run a three-node cluster on 127.0.0.1:5001-5003
	go run ./cmd/pier dev

.PHONY: test
test: ## run the tests
	go test ./...

.PHONY: race
race: ## run the tests with the race detector
	.ci/race ./...

.PHONY: check
check: lint test ## what must pass before a commit: format, vet, staticcheck, tests

.PHONY: lint
lint: $(BIN)/staticcheck ## gofmt, vet and staticcheck, also of the tests behind tags
	@bad=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); if [ -n "$$bad" ]; then echo "gofmt: $$bad"; exit 1; fi
	go vet ./...
	go vet -tags docker,disks,slapd ./test/...
	.ci/staticcheck ./...
	.ci/staticcheck -tags docker,disks,slapd ./test/...

$(BIN)/staticcheck:
	GOBIN=$(abspath $(BIN)) go install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)

.PHONY: vuln
vuln: $(BIN)/govulncheck $(BIN)/indexdb ## look for known vulnerabilities in what the program calls
	.ci/vuln

$(BIN)/govulncheck:
	GOBIN=$(abspath $(BIN)) go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)

# makes a database of what golang.org/x/vulndb has; the contents are always the newest
$(BIN)/indexdb:
	GOBIN=$(abspath $(BIN)) go install golang.org/x/vulndb/cmd/indexdb@$(VULNDB_VERSION)

# What is shipped is built with the toolchain that go.mod names, or a newer one, where the local Go would do with its own.
cross image vuln: export GOTOOLCHAIN ?= auto

.PHONY: cross
cross: ## build for linux and darwin, amd64 and arm64, without cgo, into bin/
	@for os in linux darwin; do for arch in amd64 arm64; do \
		echo "bin/pier-$$os-$$arch"; \
		CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/pier-$$os-$$arch ./cmd/pier || exit 1; \
	done; done

.PHONY: image
image: ## build the container image "pier" from the local Go toolchain, without any base image
	rm -rf .build/image && mkdir -p -m 0700 .build/image/root/data .build/image/root/secret
	CGO_ENABLED=0 GOOS=linux go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o .build/image/pier ./cmd/pier
	@for f in "$$SSL_CERT_FILE" /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do \
		if [ -s "$$f" ]; then cp -L "$$f" .build/image/ca-certificates.crt && chmod 0644 .build/image/ca-certificates.crt && break; fi; done
	@test -s .build/image/ca-certificates.crt || { echo "no CA certificates on this machine (install ca-certificates)"; exit 1; }
	DOCKER_BUILDKIT=$${DOCKER_BUILDKIT:-0} docker build -q -t $(IMAGE) -f deploy/Dockerfile.local .build/image

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (30s)
	@.ci/fuzz $${FUZZTIME:-30s}

.PHONY: bench
bench: ## run every benchmark and print one table
	@.ci/bench $(BENCHTIME)

.PHONY: conformance
conformance: ## run the official conformance suite: one node, three, three with leaders killed
	go run ./test/conformance

.PHONY: clients
clients: ## install crane, oras, regctl and Compose v5 at their pinned versions into .build/bin
	@.ci/clients

.PHONY: test-docker
test-docker: image clients ## run the tests that need a Docker engine, skopeo and podman
	go test -tags docker -count=1 -timeout 20m -v ./test/docker/... ./test/process

.PHONY: test-disks
test-disks: ## run the tests that fill small disks up, as root
	go test -tags disks -count=1 -timeout 5m -run '^TestFullDisk' ./test/promises

.PHONY: test-ldap
test-ldap: ## run the tests that need Debian's slapd
	go test -tags slapd -count=1 -timeout 5m ./test/ldap

.PHONY: ci
ci: ## everything, as CI does it
	.ci/run

.PHONY: clean
clean: ## remove what make made, caches and installed tools too
	rm -rf bin .build
