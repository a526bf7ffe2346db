package node

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"pier/api/client"
)

// Commands come from whoever may read the data directory, through a socket that is for its owner alone.
func TestSocketIsForItsOwner(t *testing.T) {
	var path string
	run(t, func(c *Config) { path = filepath.Join(c.DataDir, SocketName) })
	info, err := os.Stat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%s is %v (%v)", path, info.Mode(), err)
	}
	if dir, err := os.Stat(filepath.Dir(path)); err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("its directory is %v (%v)", dir.Mode(), err)
	}
}

// Without the socket nobody is the operator: what it could do takes an administrator's login over the network.
func TestWithoutSocket(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var path string
	n := run(t, func(c *Config) {
		path = filepath.Join(c.DataDir, SocketName)
		if err := errors.Join(os.MkdirAll(c.DataDir, 0o700), os.WriteFile(path, nil, 0o600)); err != nil { // what a killed process left
			t.Fatal(err)
		}
		c.ControlSocket = false
		c.Access = AccessConfig{AdminUser: "root", AdminPasswordFile: password}
	})
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket: %v", err)
	}
	var login client.Login
	for {
		var err error
		if login, err = client.New(client.Options{Server: n.URL()}).LogIn(t.Context(), "root", "correct horse"); err == nil {
			break // the administrator is made once the node is ready
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.New(client.Options{Server: n.URL(), Login: login}).Access(t.Context()); err != nil {
		t.Errorf("the administrator over the network: %v", err)
	}
	var refused *client.Error
	if _, err := client.New(client.Options{Server: n.URL()}).Access(t.Context()); !errors.As(err, &refused) || refused.Status != 401 {
		t.Errorf("a stranger: %v", err)
	}
}
