package node

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Config is what a person decides about a node.
type Config struct {
	Name              string
	DataDir           string
	Listen            string
	ClusterListen     string
	ClusterAdvertise  string
	Join              []string
	BootstrapExpect   int
	ClusterSecretFile string
	Replicas          int
	WriteCopies       int
	LogFormat         string
	LogLevel          string
	AccessLog         bool
	AuditPulls        bool
	RaftTimeout       time.Duration
	RepairDelay       time.Duration
	MaxVoters         int
	BlobRate          int64
	DiskReserve       Reserve
	UploadTTL         time.Duration
	MaxInFlight       int
	ControlSocket     bool
	Access            AccessConfig
}

// Reserve is the free room of a disk that is never used: a share of it, or bytes when above zero.
type Reserve struct {
	Share float64
	Bytes int64
}

// Default is a node that serves this machine alone.
func Default() Config {
	name, err := os.Hostname()
	if err != nil || name == "" {
		name = "pier"
	}
	return Config{
		Name: name, DataDir: "./data", Listen: "127.0.0.1:5000", ClusterListen: "127.0.0.1:7000", LogFormat: "text", LogLevel: "info",
		AccessLog: true, RaftTimeout: time.Second, RepairDelay: 15 * time.Minute, MaxVoters: 5, DiskReserve: Reserve{Share: 0.05},
		UploadTTL: 24 * time.Hour, MaxInFlight: 1024, ControlSocket: true, Access: AccessConfig{ACMEDirectory: defaultDirectory},
	}
}

// Setting is the one definition of a setting: flag --name, variable PIER_NAME and key name of the file.
type Setting struct {
	Name  string
	Help  string
	Kind  string // what a value is, for the help: string, strings, int, duration, size; bool needs none on the command line
	Set   func(c *Config, value string) error
	Value func(c Config) string
	List  bool // the file may hold a sequence
}

// Variable is the setting's name in the environment.
func (s Setting) Variable() string {
	return "PIER_" + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
}

// Settings lists every setting.
func Settings() []Setting {
	return append(generalSettings(), accessSettings()...)
}

func generalSettings() []Setting {
	return []Setting{
		text("name", "what people call this node", func(c *Config) *string { return &c.Name }),
		text("data-dir", "where the node keeps everything", func(c *Config) *string { return &c.DataDir }),
		text("listen", "address for clients", func(c *Config) *string { return &c.Listen }),
		text("cluster-listen", "address for the other nodes, TCP and UDP", func(c *Config) *string { return &c.ClusterListen }),
		text("cluster-advertise", "host:port at which the other nodes reach this one; empty: what it listens on", func(c *Config) *string { return &c.ClusterAdvertise }),
		{
			Name: "join", Kind: "strings", Help: "cluster addresses of other nodes, separated by commas",
			Set:   func(c *Config, v string) error { c.Join = splitList(v); return nil },
			Value: func(c Config) string { return strings.Join(c.Join, ",") },
			List:  true,
		},
		whole("bootstrap-expect", "form a cluster of this many nodes, once", func(c *Config) *int { return &c.BootstrapExpect }),
		text("cluster-secret-file", "file with the cluster's secret, made when it is missing; empty: in the data directory", func(c *Config) *string { return &c.ClusterSecretFile }),
		whole("replicas", "nodes that hold each blob; 0: all", func(c *Config) *int { return &c.Replicas }),
		whole("write-copies", "copies that a push waits for; 0: a majority of the nodes that are to hold it", func(c *Config) *int { return &c.WriteCopies }),
		text("log-format", "text or json", func(c *Config) *string { return &c.LogFormat }),
		text("log-level", "debug, info, warn or error", func(c *Config) *string { return &c.LogLevel }),
		truth("access-log", "log every request", func(c *Config) *bool { return &c.AccessLog }),
		truth("audit-pulls", "write pulls into the audit log too, not only changes and refusals", func(c *Config) *bool { return &c.AuditPulls }),
		duration("raft-timeout", "how long a silent leader is waited for", func(c *Config) *time.Duration { return &c.RaftTimeout }),
		duration("repair-delay", "how long a node may be away before others copy what it held", func(c *Config) *time.Duration { return &c.RepairDelay }),
		whole("max-voters", "at most this many nodes vote; the rest serve everything too", func(c *Config) *int { return &c.MaxVoters }),
		{
			Name: "blob-rate", Kind: "size", Help: "bytes per second that this node fetches from others, such as 50MiB; 0: no limit",
			Set: func(c *Config, v string) error {
				n, err := parseSize(v)
				c.BlobRate = n
				return plain(err, "a size such as 50MiB")
			},
			Value: func(c Config) string { return humanize.IBytes(uint64(c.BlobRate)) },
		},
		{Name: "disk-reserve", Kind: "size", Help: "free disk space that is never used, such as 5% or 10GiB", Set: setReserve, Value: reserveText},
		duration("upload-ttl", "how long an idle upload is kept", func(c *Config) *time.Duration { return &c.UploadTTL }),
		whole("max-in-flight", "requests served at a time; more wait, and a flood is refused", func(c *Config) *int { return &c.MaxInFlight }),
		truth("control-socket", "take commands from whoever may read the data directory; false: only over the network, from administrators", func(c *Config) *bool { return &c.ControlSocket }),
	}
}

func text(name, help string, field func(*Config) *string) Setting {
	return Setting{
		Name: name, Kind: "string", Help: help,
		Set:   func(c *Config, v string) error { *field(c) = v; return nil },
		Value: func(c Config) string { return *field(&c) },
	}
}

func truth(name, help string, field func(*Config) *bool) Setting {
	return Setting{
		Name: name, Kind: "bool", Help: help,
		Set: func(c *Config, v string) (err error) {
			*field(c), err = strconv.ParseBool(v)
			return plain(err, "true or false")
		},
		Value: func(c Config) string { return strconv.FormatBool(*field(&c)) },
	}
}

func whole(name, help string, field func(*Config) *int) Setting {
	return Setting{
		Name: name, Kind: "int", Help: help,
		Set: func(c *Config, v string) error {
			n, err := strconv.Atoi(v)
			*field(c) = n
			return plain(err, "a whole number")
		},
		Value: func(c Config) string { return strconv.Itoa(*field(&c)) },
	}
}

func duration(name, help string, field func(*Config) *time.Duration) Setting {
	return Setting{
		Name: name, Kind: "duration", Help: help,
		Set: func(c *Config, v string) error {
			d, err := time.ParseDuration(v)
			*field(c) = d
			return plain(err, "a time such as 500ms or 15m")
		},
		Value: func(c Config) string { return field(&c).String() },
	}
}

// plain replaces a parser's error by what a person should write.
func plain(err error, want string) error {
	if err == nil {
		return nil
	}
	return errors.New("want " + want)
}

func setReserve(c *Config, v string) error {
	if share, ok := strings.CutSuffix(v, "%"); ok {
		n, err := strconv.ParseFloat(share, 64)
		if err != nil || !(n >= 0 && n <= 90) { // not a number is in no range
			return errors.New("want a share from 0% to 90%")
		}
		c.DiskReserve = Reserve{Share: n / 100}
		return nil
	}
	n, err := parseSize(v)
	c.DiskReserve = Reserve{Bytes: n}
	return plain(err, "a share such as 5% or a size such as 10GiB")
}

func parseSize(v string) (int64, error) {
	n, err := humanize.ParseBytes(v)
	if err == nil && n > math.MaxInt64 {
		err = strconv.ErrRange
	}
	return int64(n), err
}

func reserveText(c Config) string {
	if c.DiskReserve.Bytes > 0 {
		return humanize.IBytes(uint64(c.DiskReserve.Bytes))
	}
	return strconv.FormatFloat(c.DiskReserve.Share*100, 'g', 6, 64) + "%"
}

func splitList(v string) []string {
	var out []string
	for _, s := range strings.Split(v, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// problem is what is wrong with the value of a setting.
type problem struct {
	setting string
	err     error
}

// Validate gives every problem of the configuration, each with the setting's name.
func (c Config) Validate() error {
	var out []error
	for _, p := range c.problems() {
		out = append(out, fmt.Errorf("%s: %w", p.setting, p.err))
	}
	return errors.Join(out...)
}

func (c Config) problems() []problem {
	var out []problem
	check := func(fine bool, setting, format string, args ...any) {
		if !fine {
			out = append(out, problem{setting, fmt.Errorf(format, args...)})
		}
	}
	check(c.Name != "" && len(c.Name) <= 100, "name", "want 1 to 100 characters")
	check(c.DataDir != "", "data-dir", "want a directory")
	check(isAddress(c.Listen, true), "listen", "%q is no host:port", c.Listen)
	check(isAddress(c.ClusterListen, true), "cluster-listen", "%q is no host:port", c.ClusterListen)
	check(c.ClusterAdvertise == "" || isAddress(c.ClusterAdvertise, false), "cluster-advertise", "%q is no host:port", c.ClusterAdvertise)
	for _, a := range c.Join {
		check(isAddress(a, false), "join", "%q is no host:port", a)
	}
	check(c.BootstrapExpect >= 0 && c.BootstrapExpect <= 7, "bootstrap-expect", "want 0 to 7")
	check(c.BootstrapExpect <= 1 || len(c.Join) > 0, "bootstrap-expect", "%d nodes can only find each other with join", c.BootstrapExpect)
	check(c.Replicas >= 0, "replicas", "can't be negative")
	check(c.WriteCopies >= 0, "write-copies", "can't be negative")
	check(c.Replicas <= 0 || c.WriteCopies <= c.Replicas, "write-copies", "want 0 to replicas (%d)", c.Replicas)
	check(c.LogFormat == "text" || c.LogFormat == "json", "log-format", "%q is neither text nor json", c.LogFormat)
	check(slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel), "log-level", "%q is none of debug, info, warn and error", c.LogLevel)
	check(c.RaftTimeout >= 50*time.Millisecond && c.RaftTimeout <= time.Minute, "raft-timeout", "want 50ms to 1m")
	check(c.RepairDelay >= 0, "repair-delay", "can't be negative")
	check(c.MaxVoters >= 1 && c.MaxVoters <= 9, "max-voters", "want 1 to 9")
	check(c.UploadTTL > 0, "upload-ttl", "want more than 0")
	check(c.MaxInFlight >= 1, "max-in-flight", "want at least 1")
	return append(out, c.Access.problems()...)
}

// isAddress tells whether a is host:port. What is listened on may leave the host or the choice of a port to the system.
func isAddress(a string, listen bool) bool {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && (listen || host != "" && n > 0)
}
