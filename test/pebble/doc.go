// Package pebble runs Let's Encrypt's test server in a test's process, and holds what Pier does with it to what Pier promises:
// real orders, real questions over sockets, real certificates, only short-lived ones.
//
// The server finds every name at one address, where what it asks is passed on to the nodes that a test chooses, in turn. It
// is not for anything but tests.
package pebble
