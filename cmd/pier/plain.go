package main

import (
	"bytes"
	"io"
	"unicode"
)

// plainWriter shows text and nothing else. Much of what is shown comes from a node, or from who poses as one, and must neither
// move a terminal's cursor, nor set its title, nor turn the direction of what stands beside it.
type plainWriter struct{ to io.Writer }

func (p plainWriter) Write(b []byte) (int, error) {
	if bytes.IndexFunc(b, isOrder) < 0 {
		return p.to.Write(b)
	}
	_, err := p.to.Write(bytes.Map(func(r rune) rune {
		if isOrder(r) {
			return '?'
		}
		return r
	}, b))
	return len(b), err
}

// isOrder tells what a terminal obeys from what it shows.
func isOrder(r rune) bool {
	return unicode.IsControl(r) && r != '\n' && r != '\t' || unicode.Is(unicode.Bidi_Control, r)
}
