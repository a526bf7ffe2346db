package cluster

import (
	"errors"
	"fmt"
	"time"
)

// What the cluster refuses.
var (
	ErrUnavailable     = errors.New("the cluster can't answer now")
	ErrNoQuorum        = errors.New("this node reaches no majority of the cluster")
	ErrNotMember       = errors.New("this node is not a member of the cluster: it was removed, or has not joined yet")
	ErrEpochUsed       = errors.New("the data directory is older than this node's last life: empty it and join anew")
	ErrLeft            = errors.New("this node has left its cluster: empty its data directory to use it again")
	ErrWouldLoseQuorum = errors.New("without this node the cluster would have no majority of live nodes")
	ErrCantLead        = errors.New("leadership can't go there")
	ErrNodeUnknown     = errors.New("no member of the cluster is called so")
	ErrTokenInvalid    = errors.New("this is not an invite of pier: it is the whole line that `pier cluster invite` prints")
	ErrTokenExpired    = errors.New("the invite has expired: make a new one with `pier cluster invite`")
	ErrTokenUsed       = errors.New("the invite is unknown or was used already: make a new one with `pier cluster invite`")
)

// UnavailableError says why there was no answer, and when to ask again. What was proposed may have happened.
type UnavailableError struct {
	Reason     string
	RetryAfter time.Duration
}

func (e *UnavailableError) Error() string { return ErrUnavailable.Error() + ": " + e.Reason }

// Is makes every UnavailableError an ErrUnavailable.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

// LastCopyError lists blobs that only the node in question holds.
type LastCopyError struct {
	Digests []string
	Total   int
}

func (e *LastCopyError) Error() string {
	return fmt.Sprintf("only this node holds %d blobs, such as %v: let it run until the others have them, or say --force to lose them", e.Total, e.Digests)
}
