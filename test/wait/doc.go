// Package wait is how tests wait for what they can't be told of: they look again and again, and give up after a time that is
// long enough for a busy machine. It measures nothing, and knows nothing of Pier.
package wait
