package fsm

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// What the state refuses. Each survives the way through the log: errors.Is and errors.As hold on the proposer's side too.
var (
	ErrNameInvalid      = errors.New("not a repository name")
	ErrTagInvalid       = errors.New("not a tag")
	ErrDigestInvalid    = errors.New("not a sha256 or sha512 digest")
	ErrNameUnknown      = errors.New("no such repository")
	ErrManifestUnknown  = errors.New("no such manifest")
	ErrManifestInvalid  = errors.New("not a valid manifest")
	ErrManifestTooBig   = errors.New("the manifest is larger than 4 MiB")
	ErrBlobUnknown      = errors.New("no such blob in the repository")
	ErrConditionFailed  = errors.New("the tag is not what the condition says")
	ErrSizeMismatch     = errors.New("the blob is known with another size")
	ErrInviteUnknown    = errors.New("the invite is unknown or used up")
	ErrInviteExpired    = errors.New("the invite has expired")
	ErrPrincipalUnknown = errors.New("no such user or robot")
	ErrPrincipalExists  = errors.New("the name is taken by a user or a robot")
	ErrPrincipalChanged = errors.New("somebody else has changed this user or robot meanwhile")
	ErrGrantUnknown     = errors.New("there is no such grant")
	ErrDocumentUnknown  = errors.New("there is no such document")
	ErrDocumentExists   = errors.New("there is a document of that name already")
	ErrDocumentChanged  = errors.New("somebody else has changed this document meanwhile")
	ErrDocumentTooBig   = errors.New("a document has at most 256 KiB")
	ErrAccessChanged    = errors.New("who may do what has changed since this was let in")
	ErrStale            = errors.New("the command was given up by its proposer")
	ErrLevel            = errors.New("a member does not understand this command yet")
	ErrHalted           = errors.New("the state has stopped applying")
	ErrIDInvalid        = errors.New("not an ID: 1 to 255 bytes, no control characters")
)

// ManifestError says what is wrong with a manifest. It is an ErrManifestInvalid.
type ManifestError struct{ Reason string }

func (e *ManifestError) Error() string { return ErrManifestInvalid.Error() + ": " + e.Reason }

// Is makes every ManifestError an ErrManifestInvalid.
func (e *ManifestError) Is(target error) bool { return target == ErrManifestInvalid }

// MissingError lists what a manifest references and the repository doesn't have.
type MissingError struct{ Digests []digest.Digest }

func (e *MissingError) Error() string {
	return fmt.Sprintf("the manifest references what the repository does not have: %v", e.Digests)
}

// ReferencedError lists manifests that still need a blob.
type ReferencedError struct{ Manifests []digest.Digest }

func (e *ReferencedError) Error() string {
	return fmt.Sprintf("the blob is still referenced by %v; delete those first", e.Manifests)
}

// EpochError says that the state already knows a boot of the node that is as new or newer.
type EpochError struct{ Known uint64 }

func (e *EpochError) Error() string {
	return fmt.Sprintf("boot epoch %d of this node is already known: its disk is older than its last life", e.Known)
}

// UnknownCommandError is an entry that a newer build wrote. Skipping it would make this node's state differ from the
// others', so the state stops instead.
type UnknownCommandError struct {
	Type   byte
	Newest string // the newest version that a member has announced, if newer than this build
}

func (e *UnknownCommandError) Error() string {
	return fmt.Sprintf("the log holds a command of type %d, which this version of pier doesn't know; start %s on this node", e.Type, orNewer(e.Newest))
}

// NewerStateError is a state file, or another node's snapshot, in which commands of a newer build have been applied.
type NewerStateError struct {
	Level  uint64
	Newest string
}

func (e *NewerStateError) Error() string {
	return fmt.Sprintf("the state holds the work of commands of level %d, and this version of pier knows %d; start %s on this node",
		e.Level, CurrentLevel, orNewer(e.Newest))
}

func orNewer(version string) string {
	if version == "" {
		return "a newer version"
	}
	return "version " + version + " or newer"
}

// refusals numbers the errors for the wire. Append only: the numbers are in answers that the state remembers.
var refusals = []error{
	ErrNameInvalid, ErrTagInvalid, ErrDigestInvalid, ErrNameUnknown, ErrManifestUnknown, ErrManifestTooBig, ErrBlobUnknown,
	ErrConditionFailed, ErrSizeMismatch, ErrInviteUnknown, ErrInviteExpired, ErrStale, ErrLevel, ErrHalted,
	ErrIDInvalid, ErrPrincipalUnknown, ErrPrincipalExists, ErrPrincipalChanged, ErrGrantUnknown,
	ErrDocumentUnknown, ErrDocumentExists, ErrDocumentChanged, ErrDocumentTooBig,
	ErrAccessChanged,
}
