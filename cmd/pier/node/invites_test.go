package node

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"pier/fsm"
)

// A leader's clock was a day ahead for a moment. An invite is good all the same, for as long as it says.
func TestInvitesByTheStatesTime(t *testing.T) {
	state, err := fsm.Open(fsm.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = state.Close() }()
	now := time.Now()
	index := uint64(0)
	apply := func(at time.Time, cmd fsm.Command) error {
		index++
		data, err := fsm.Encode(fsm.Identity{Node: "n", Epoch: 1, Seq: index}, cmd)
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := state.Apply(&raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data, AppendedAt: at}).([]byte)
		_, err = fsm.DecodeAnswer(answer)
		return err
	}
	redeem := func(after time.Duration) error {
		last, err := state.Time()
		if err != nil {
			t.Fatal(err)
		}
		expires := byStateTime(now.Add(time.Hour), now, last)
		if err := apply(now, fsm.CreateInvite{Hash: []byte("hash"), Expires: expires.UnixMilli()}); err != nil {
			t.Fatal(err)
		}
		return apply(last.Add(after), fsm.RedeemInvite{Hash: []byte("hash")})
	}
	for _, ahead := range []time.Duration{0, 24 * time.Hour} {
		if err := apply(now.Add(ahead), fsm.SetSetting{Key: "k", Value: "v"}); err != nil {
			t.Fatal(err)
		}
		if err := redeem(59 * time.Minute); err != nil {
			t.Errorf("%s ahead, within the hour: %v", ahead, err)
		}
		if err := redeem(62 * time.Minute); !errors.Is(err, fsm.ErrInviteExpired) {
			t.Errorf("%s ahead, after the hour: %v", ahead, err)
		}
	}
}
