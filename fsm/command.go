package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"

	"github.com/opencontainers/go-digest"
	"github.com/vmihailenco/msgpack/v5"
)

// CurrentLevel is the newest command level that this build understands. Announced at boot; a command of a higher level is
// proposed only when every member has announced it.
const CurrentLevel uint64 = 3

// Identity makes a proposal idempotent. Seq counts up within a node's boot epoch; every number up to Done has been
// answered or given up, so its answer may be forgotten.
type Identity struct {
	_msgpack struct{} `msgpack:",as_array"`
	Node     NodeID
	Epoch    uint64
	Seq      uint64
	Done     uint64
}

// Command is one entry of the Raft log.
type Command interface {
	// apply checks against the transaction and then changes it; a refusal has changed nothing.
	apply(*change) (Answer, error)
}

// Answer is what a command gives back; each command says which.
type Answer any

// Condition makes a tag's move depend on what it is. The zero value always holds.
type Condition struct {
	_msgpack struct{} `msgpack:",as_array"`
	Absent   bool
	Digest   digest.Digest
}

// PutManifest stores a manifest of at most 4 MiB and points tags at it. Everything it requires must be linked in the
// repository; If applies to the first tag. Answer: PutManifestAnswer.
type PutManifest struct {
	_msgpack  struct{} `msgpack:",as_array"`
	Repo      Repo
	Digest    digest.Digest
	MediaType string
	Body      []byte
	Tags      []Tag
	If        Condition
}

// PutManifestAnswer gives the stored digest, and the subject's where the manifest has one.
type PutManifestAnswer struct {
	_msgpack        struct{} `msgpack:",as_array"`
	Digest, Subject digest.Digest
}

// DeleteManifest removes a manifest and every tag on it. Answer: DeleteAnswer.
type DeleteManifest struct {
	_msgpack struct{} `msgpack:",as_array"`
	Repo     Repo
	Digest   digest.Digest
}

// DeleteTag removes a tag; its history stays. Answer: DeleteAnswer.
type DeleteTag struct {
	_msgpack struct{} `msgpack:",as_array"`
	Repo     Repo
	Tag      Tag
}

// DeleteBlob removes a repository's link to a blob that no manifest in it references. Answer: DeleteAnswer.
type DeleteBlob struct {
	_msgpack struct{} `msgpack:",as_array"`
	Repo     Repo
	Digest   digest.Digest
}

// DeleteAnswer says that it is gone.
type DeleteAnswer struct {
	_msgpack struct{} `msgpack:",as_array"`
}

// LinkBlob says that the origin has a durable copy and the repository the blob. Linking again moves the origin.
// Answer: LinkAnswer.
type LinkBlob struct {
	_msgpack struct{} `msgpack:",as_array"`
	Repo     Repo
	Digest   digest.Digest
	Size     int64
	Origin   NodeID
}

// LinkAnswer says that the link stands.
type LinkAnswer struct {
	_msgpack struct{} `msgpack:",as_array"`
}

// MountBlob links a blob that another repository has; an empty From means any. Answer: LinkAnswer.
type MountBlob struct {
	_msgpack struct{} `msgpack:",as_array"`
	Repo     Repo
	From     Repo
	Digest   digest.Digest
}

// BootNode announces a node's start. Answer: NodeAnswer.
type BootNode struct {
	_msgpack                    struct{} `msgpack:",as_array"`
	ID                          NodeID
	Name, API, Cluster, Version string
	Epoch, Level                uint64
	Nonce                       string
}

// ForgetNode drops a node that left or was removed. Answer: NodeAnswer.
type ForgetNode struct {
	_msgpack struct{} `msgpack:",as_array"`
	ID       NodeID
}

// MarkNode says that a node has been gone for long, or is about to go; placement then counts on others.
// Answer: NodeAnswer.
type MarkNode struct {
	_msgpack       struct{} `msgpack:",as_array"`
	ID             NodeID
	Away, Draining bool
}

// NodeAnswer says that the node's record is as asked.
type NodeAnswer struct {
	_msgpack struct{} `msgpack:",as_array"`
}

// CreateInvite keeps the hash of an invite's key until it is used, or another is made after it has expired. Answer: InviteAnswer.
type CreateInvite struct {
	_msgpack struct{} `msgpack:",as_array"`
	Hash     []byte
	Expires  int64 // ms since 1970
}

// RedeemInvite uses an invite up. Answer: InviteAnswer.
type RedeemInvite struct {
	_msgpack struct{} `msgpack:",as_array"`
	Hash     []byte
}

// InviteAnswer says that it is done.
type InviteAnswer struct {
	_msgpack struct{} `msgpack:",as_array"`
}

// SetSetting changes one setting of the whole cluster; an empty value removes it. Answer: SettingAnswer.
type SetSetting struct {
	_msgpack   struct{} `msgpack:",as_array"`
	Key, Value string
}

// SettingAnswer says that it is set.
type SettingAnswer struct {
	_msgpack struct{} `msgpack:",as_array"`
}

// PutPrincipal makes a user or a robot (Was 0), or replaces the one whose generation is Was. The first user of all becomes
// administrator and turns access control on. Answer: PrincipalAnswer.
type PutPrincipal struct {
	_msgpack  struct{} `msgpack:",as_array"`
	Principal Principal
	Was       uint64
}

// AddPrincipal makes a user or a robot together with its grants, all or nothing. Answer: PrincipalAnswer.
type AddPrincipal struct {
	_msgpack  struct{} `msgpack:",as_array"`
	Principal Principal
	Grants    []Grant
}

// DeletePrincipal removes a user or a robot with its grants. Answer: PrincipalAnswer.
type DeletePrincipal struct {
	_msgpack struct{} `msgpack:",as_array"`
	Name     string
}

// PrincipalAnswer gives the new generation, and whether this was the first user of all.
type PrincipalAnswer struct {
	_msgpack   struct{} `msgpack:",as_array"`
	Generation uint64
	First      bool
}

// PutGrant adds a grant; one that is there already stays. Answer: GrantAnswer.
type PutGrant struct {
	_msgpack struct{} `msgpack:",as_array"`
	Grant    Grant
}

// DeleteGrant takes a grant away. Answer: GrantAnswer.
type DeleteGrant struct {
	_msgpack struct{} `msgpack:",as_array"`
	Grant    Grant
}

// GrantAnswer says that it is done.
type GrantAnswer struct {
	_msgpack struct{} `msgpack:",as_array"`
}

// PutDocument stores a document: a new one (Was 0), in place of the one whose generation is Was, or, with Over, of whatever
// there is. Answer: DocumentAnswer.
type PutDocument struct {
	_msgpack struct{} `msgpack:",as_array"`
	Document Document
	Was      uint64
	Over     bool
}

// DeleteDocument removes the document whose generation is Was, or whichever there is for 0. Answer: DocumentAnswer.
type DeleteDocument struct {
	_msgpack   struct{} `msgpack:",as_array"`
	Kind, Name string
	Was        uint64
}

// DocumentAnswer gives the new generation.
type DocumentAnswer struct {
	_msgpack   struct{} `msgpack:",as_array"`
	Generation uint64
}

// commandTypes and answerTypes give each type its byte: the index in the table. Append only.
var (
	commandTypes = []reflect.Type{
		nil, reflect.TypeFor[PutManifest](), reflect.TypeFor[DeleteManifest](), reflect.TypeFor[DeleteTag](),
		reflect.TypeFor[LinkBlob](), reflect.TypeFor[MountBlob](), reflect.TypeFor[DeleteBlob](), reflect.TypeFor[BootNode](),
		reflect.TypeFor[ForgetNode](), reflect.TypeFor[MarkNode](), reflect.TypeFor[CreateInvite](),
		reflect.TypeFor[RedeemInvite](), reflect.TypeFor[SetSetting](),
		reflect.TypeFor[PutPrincipal](), reflect.TypeFor[DeletePrincipal](), reflect.TypeFor[PutGrant](), reflect.TypeFor[DeleteGrant](),
		reflect.TypeFor[PutDocument](), reflect.TypeFor[DeleteDocument](),
		reflect.TypeFor[Admitted](), reflect.TypeFor[AddPrincipal](),
	}
	answerTypes = []reflect.Type{
		nil, reflect.TypeFor[PutManifestAnswer](), reflect.TypeFor[DeleteAnswer](), reflect.TypeFor[LinkAnswer](),
		reflect.TypeFor[NodeAnswer](), reflect.TypeFor[InviteAnswer](), reflect.TypeFor[SettingAnswer](),
		reflect.TypeFor[PrincipalAnswer](), reflect.TypeFor[GrantAnswer](), reflect.TypeFor[DocumentAnswer](),
	}
)

// commandLevels has the level of each type that came after the first release; the others are of level 1.
var commandLevels = map[reflect.Type]uint64{
	reflect.TypeFor[PutPrincipal](): 2, reflect.TypeFor[DeletePrincipal](): 2, reflect.TypeFor[PutGrant](): 2,
	reflect.TypeFor[DeleteGrant](): 2, reflect.TypeFor[PutDocument](): 3, reflect.TypeFor[DeleteDocument](): 3,
	reflect.TypeFor[Admitted](): 3, reflect.TypeFor[AddPrincipal](): 3,
}

// Level is the command level that a member must have announced before c is proposed. What isn't in the table is newer than
// this build.
func Level(c Command) uint64 {
	if typeByte(commandTypes, c) == 0 {
		return CurrentLevel + 1
	}
	if p, ok := c.(PutPrincipal); ok && p.Principal.Provider != "" {
		return 3 // older builds would drop the field, and end with another state
	}
	own := max(commandLevels[reflect.TypeOf(c)], 1)
	if a, ok := c.(Admitted); ok && a.Command != nil {
		return max(own, Level(a.Command))
	}
	return own
}

func typeByte(table []reflect.Type, v any) byte {
	t := reflect.TypeOf(v)
	for i, known := range table {
		if known == t {
			return byte(i)
		}
	}
	return 0
}

// Encode gives a command's bytes for the log: its type, who proposes it, and its fields.
func Encode(id Identity, c Command) ([]byte, error) {
	kind := typeByte(commandTypes, c)
	if kind == 0 {
		return nil, fmt.Errorf("no command has the type %T", c)
	}
	var b bytes.Buffer
	b.WriteByte(kind)
	enc := msgpack.NewEncoder(&b)
	if err := errors.Join(enc.Encode(&id), enc.Encode(c)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Decode is the reverse of Encode. An unknown type is an *UnknownCommandError.
func Decode(data []byte) (Identity, Command, error) {
	var id Identity
	if len(data) == 0 {
		return id, nil, errors.New("an empty command")
	}
	if int(data[0]) >= len(commandTypes) || data[0] == 0 {
		return id, nil, &UnknownCommandError{Type: data[0]}
	}
	dec := msgpack.NewDecoder(bytes.NewReader(data[1:]))
	if err := dec.Decode(&id); err != nil {
		return id, nil, fmt.Errorf("decode the proposer: %w", err)
	}
	v := reflect.New(commandTypes[data[0]])
	if err := dec.Decode(v.Interface()); err != nil {
		return id, nil, fmt.Errorf("decode the command: %w", err)
	}
	cmd := v.Elem().Interface().(Command)
	if a, ok := cmd.(Admitted); ok && a.Command == nil { // msgpack's nil never comes to DecodeMsgpack
		return id, nil, errors.New("decode the command: nothing is admitted")
	}
	return id, cmd, nil
}
