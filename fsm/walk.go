package fsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// checkJSON wants one object without repeated keys and of bounded depth, with the names written as they are: readers of a
// repeated key differ on which counts, and a digest must mean the same to all. What body is has been found to be JSON before. It
// is walked through without making anything of it: every node does so with every manifest, and a decoder takes half a second
// for 4 MiB of brackets.
func checkJSON(body []byte, names keys) error {
	w := &walker{body: body}
	if w.next() != '{' {
		return errors.New("not a JSON object")
	}
	if err := w.object(1, names); err != nil {
		return err
	}
	if w.next() != 0 {
		return errors.New("something follows the JSON object")
	}
	return nil
}

type walker struct {
	body []byte
	at   int
}

// next is the first byte that is no space, 0 at the end.
func (w *walker) next() byte {
	for ; w.at < len(w.body); w.at++ {
		switch c := w.body[w.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (w *walker) object(depth int, names keys) error {
	w.at++
	var seen map[string]bool
	for {
		switch w.next() {
		case '}':
			w.at++
			return nil
		case ',':
			w.at++
			continue
		case '"':
		default:
			return errNotJSON
		}
		name, err := w.key()
		if err != nil {
			return err
		}
		if seen[name] {
			return fmt.Errorf("the key %.80q comes twice", name)
		}
		if seen == nil {
			seen = make(map[string]bool)
		}
		seen[name] = true
		if err := names.spelled(name); err != nil {
			return err
		}
		if w.next() != ':' {
			return errNotJSON
		}
		w.at++
		if err := w.value(depth, names[name]); err != nil {
			return err
		}
	}
}

var errNotJSON = errors.New("not JSON")

func (w *walker) value(depth int, names keys) error {
	first := w.next()
	if depth >= maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	switch first {
	case '{':
		return w.object(depth+1, names)
	case '[':
		return w.array(depth+1, names)
	case '"':
		_, err := w.text()
		return err
	}
	length := bytes.IndexAny(w.body[w.at:], ",]} \t\r\n")
	if length <= 0 {
		return errNotJSON
	}
	w.at += length
	return nil
}

func (w *walker) array(depth int, names keys) error {
	w.at++
	for {
		switch w.next() {
		case ']':
			w.at++
			return nil
		case ',':
			w.at++
		default:
			if err := w.value(depth, names); err != nil {
				return err
			}
		}
	}
}

// key is a string as decoders read it.
func (w *walker) key() (name string, err error) {
	raw, err := w.text()
	if err == nil && (bytes.IndexByte(raw, '\\') >= 0 || !utf8.Valid(raw)) {
		err = json.Unmarshal(raw, &name)
		return name, err
	}
	if err != nil {
		return "", err
	}
	return string(raw[1 : len(raw)-1]), nil
}

// text passes a string and gives it as it is written, with its quotes.
func (w *walker) text() ([]byte, error) {
	for i := w.at + 1; i < len(w.body); i++ {
		switch w.body[i] {
		case '\\':
			i++
		case '"':
			raw := w.body[w.at : i+1]
			w.at = i + 1
			return raw, nil
		}
	}
	return nil, errNotJSON
}
