// Package promises holds a test for each promise that Pier makes, against real nodes. A file is a promise or a kind of bad
// day; each test reads as the story of one.
package promises
