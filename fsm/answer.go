package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"

	"github.com/opencontainers/go-digest"
	"github.com/vmihailenco/msgpack/v5"
)

// refusal is a typed error on its way to the proposer.
type refusal struct {
	_msgpack struct{} `msgpack:",as_array"`
	Code     int      // index in refusals, or one of the codes below
	Text     string
	Digests  []digest.Digest
	Known    uint64
}

const (
	codeOther      = -1
	codeManifest   = -2
	codeMissing    = -3
	codeReferenced = -4
	codeEpoch      = -5
)

const refused = 0xff

func encodeAnswer(a Answer, err error) []byte {
	var b bytes.Buffer
	if err != nil {
		b.WriteByte(refused)
		r := toRefusal(err)
		_ = msgpack.NewEncoder(&b).Encode(&r)
		return b.Bytes()
	}
	b.WriteByte(typeByte(answerTypes, a))
	_ = msgpack.NewEncoder(&b).Encode(a)
	return b.Bytes()
}

// DecodeAnswer gives back what the state answered: the command's answer, or its refusal as the typed error.
func DecodeAnswer(data []byte) (Answer, error) {
	if len(data) == 0 {
		return nil, errors.New("an empty answer")
	}
	if data[0] == refused {
		var r refusal
		if err := msgpack.Unmarshal(data[1:], &r); err != nil {
			return nil, fmt.Errorf("decode the refusal: %w", err)
		}
		return nil, r.err()
	}
	if int(data[0]) >= len(answerTypes) || data[0] == 0 {
		return nil, fmt.Errorf("an answer of unknown type %d", data[0])
	}
	v := reflect.New(answerTypes[data[0]])
	if err := msgpack.Unmarshal(data[1:], v.Interface()); err != nil {
		return nil, fmt.Errorf("decode the answer: %w", err)
	}
	return v.Elem().Interface(), nil
}

func toRefusal(err error) refusal {
	var bad *ManifestError
	var missing *MissingError
	var needed *ReferencedError
	var epoch *EpochError
	switch {
	case errors.As(err, &bad):
		return refusal{Code: codeManifest, Text: bad.Reason}
	case errors.As(err, &missing):
		return refusal{Code: codeMissing, Digests: missing.Digests}
	case errors.As(err, &needed):
		return refusal{Code: codeReferenced, Digests: needed.Manifests}
	case errors.As(err, &epoch):
		return refusal{Code: codeEpoch, Known: epoch.Known}
	}
	for i, known := range refusals {
		if errors.Is(err, known) {
			return refusal{Code: i}
		}
	}
	return refusal{Code: codeOther, Text: err.Error()}
}

func (r refusal) err() error {
	switch {
	case r.Code == codeManifest:
		return &ManifestError{Reason: r.Text}
	case r.Code == codeMissing:
		return &MissingError{Digests: r.Digests}
	case r.Code == codeReferenced:
		return &ReferencedError{Manifests: r.Digests}
	case r.Code == codeEpoch:
		return &EpochError{Known: r.Known}
	case r.Code >= 0 && r.Code < len(refusals):
		return refusals[r.Code]
	}
	return errors.New(r.Text)
}
