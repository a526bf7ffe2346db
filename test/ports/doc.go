// Package ports gives tests port numbers of 127.0.0.1 that stay theirs: also while the node that has one is down and comes
// back, and beside other tests, of this process or another. Looking for a free number and using it later is not enough: two
// may find the same.
//
// It knows nothing of Pier, and it is not for programs that can listen at port 0 and keep what they get.
package ports
