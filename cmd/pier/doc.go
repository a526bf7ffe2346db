// Command pier runs a container registry that is a cluster, and talks to one that runs.
//
// A command is a file here; each parses, validates and calls node or api/client, which do the work. Only main ends the
// process.
package main
