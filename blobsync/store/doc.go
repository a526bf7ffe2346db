// Package store keeps blobs as files named by their digest: blobs/<algorithm>/<two hex>/<hex>.
//
// Invariants: the directory tree is the truth about what there is; a file under blobs/ is whole, fsynced and has had its
// digest checked; it is never overwritten, and leaves only for quarantine/ or trash/. Uploads and fetches are hashed as they
// are written, on the same file system, and become final by one rename. A file that wasn't verified since this process
// started, or that changed since, is verified before it is read.
//
// The store knows nothing of repositories, nodes or the network.
package store
