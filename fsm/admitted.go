package fsm

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/vmihailenco/msgpack/v5"
)

// Admitted is a change that somebody was let in to make, by what a node knew of who may do what: Access is the version of
// that. Where the state has another by now the command changes nothing and is refused with ErrAccessChanged, so that a node
// which hasn't heard yet that a right was taken can't use it. Answer: the command's.
type Admitted struct {
	Access  uint64
	Command Command
}

func (a Admitted) apply(c *change) (Answer, error) {
	if readNumber(c.tx, keyAccess) != a.Access {
		return nil, ErrAccessChanged
	}
	return a.Command.apply(c)
}

// EncodeMsgpack writes the version, and the command as Encode would.
func (a Admitted) EncodeMsgpack(enc *msgpack.Encoder) error {
	kind := typeByte(commandTypes, a.Command)
	if _, again := a.Command.(Admitted); kind == 0 || again {
		return fmt.Errorf("%T is nothing that somebody is let in to do", a.Command)
	}
	return errors.Join(enc.EncodeArrayLen(3), enc.EncodeUint(a.Access), enc.EncodeUint(uint64(kind)), enc.Encode(a.Command))
}

// DecodeMsgpack is the reverse. An unknown type inside is an *UnknownCommandError.
func (a *Admitted) DecodeMsgpack(dec *msgpack.Decoder) error {
	n, err := dec.DecodeArrayLen()
	if err != nil {
		return err
	}
	if n != 3 {
		return fmt.Errorf("an admitted command has 3 parts, not %d", n)
	}
	if a.Access, err = dec.DecodeUint64(); err != nil {
		return err
	}
	kind, err := dec.DecodeUint8()
	if err != nil {
		return err
	}
	if int(kind) >= len(commandTypes) || kind == 0 {
		return &UnknownCommandError{Type: kind}
	}
	if commandTypes[kind] == reflect.TypeFor[Admitted]() {
		return errors.New("an admitted command inside another")
	}
	v := reflect.New(commandTypes[kind])
	if err := dec.Decode(v.Interface()); err != nil {
		return err
	}
	a.Command = v.Elem().Interface().(Command)
	return nil
}
