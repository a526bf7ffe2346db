// Package auth says who a caller is and what a caller may do.
//
// A Directory is an immutable picture of the cluster's users, robots, groups and grants, made anew when one of them changes;
// Directory.Decide is the one function that decides. Tokens carry a caller's name and generation, and the most that was
// asked for: what they allow is decided again at each use, against the Directory of that moment. Keys come from the
// cluster's secret, so that each node verifies what any node signed, with no quorum.
//
// Nothing here stores, logs or sends anything. Passwords and tokens are never part of an error.
package auth
