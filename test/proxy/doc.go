// Package proxy is a reverse proxy that sends every single HTTP request to another node, chosen at random. A client behind it
// meets the cluster at its worst: the two requests that belong together never meet the same node for sure.
//
// Bodies stream through in both directions and nothing is rewritten: the registry's Location headers are relative, and if they
// were not, a test should see it. Retries are off unless Config.Retry asks for them; then only requests that can be repeated
// without changing their meaning are repeated, and only after a 503 or when no connection came about.
//
// It is a tool for tests. It has no health checks, no sticky sessions and no TLS, on purpose.
package proxy
