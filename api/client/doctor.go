package client

import (
	"context"
	"net/http"
)

// The levels of a finding: all is well; something will need a person, or may; something is broken or open to others.
const (
	LevelOK      = "ok"
	LevelWarning = "warning"
	LevelProblem = "problem"
)

// Finding is what one check says of one node, and what to do about it where something is.
type Finding struct {
	Node    string `json:"node"`
	Check   string `json:"check"`
	Level   string `json:"level"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

// Fine is a finding of a check that has nothing to say.
func Fine(check, message string) Finding {
	return Finding{Check: check, Level: LevelOK, Message: message}
}

// Doctor has all nodes look at themselves, and at each other.
func (c *Client) Doctor(ctx context.Context) ([]Finding, error) {
	var out []Finding
	return out, c.call(ctx, http.MethodGet, "/api/v1/doctor", nil, &out)
}
