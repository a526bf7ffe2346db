package cluster

import (
	"testing"
	"time"
)

func TestBehind(t *testing.T) {
	for _, c := range []struct {
		name string
		node NodeStatus
		want bool
	}{
		{"has all", NodeStatus{AppliedIndex: 1000}, false},
		{"blobs on their way", NodeStatus{AppliedIndex: 1000, BlobsMissing: 9, MissingFor: time.Second}, false},
		{"blobs that don't come", NodeStatus{AppliedIndex: 1000, BlobsMissing: 1, MissingFor: time.Minute}, true},
		{"log on its way", NodeStatus{AppliedIndex: 1000 - maxAppend}, false},
		{"log that doesn't come", NodeStatus{AppliedIndex: 999 - maxAppend}, true},
	} {
		if got := c.node.behind(1000); got != c.want {
			t.Errorf("%s: behind is %v", c.name, got)
		}
	}
}
