package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"pier/cluster/port"
)

// What gossip says of a member. Hints: no decision about data rests on them.
const (
	stateAlive   = "alive"
	stateSuspect = "suspect"
	stateDead    = "dead"
	stateLeft    = "left"
)

type gossipConfig struct {
	id        NodeID
	meta      gossipMeta
	port      *port.Port
	advertise string
	keys      [][]byte
	logger    *slog.Logger
}

// gossipMeta travels with a node's being alive; at most 512 bytes.
type gossipMeta struct {
	Name    string `json:"n"`
	API     string `json:"a"`
	Cluster string `json:"c"`
}

type hint struct {
	ID                 NodeID
	Name, API, Cluster string
	State              string
	Since              time.Time
}

// gossip is memberlist over the cluster port.
type gossip struct {
	cfg   gossipConfig
	wire  *gossipWire
	list  *memberlist.Memberlist
	keys  *memberlist.Keyring
	once  sync.Once
	goods chan struct{}

	ending sync.Mutex // memberlist 0.7.0 panics when it is to leave after its end
	dead   bool

	mu    sync.Mutex
	known map[NodeID]hint
}

func newGossip(cfg gossipConfig) (*gossip, error) {
	meta, err := json.Marshal(cfg.meta)
	if err != nil || len(meta) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("the node's name and addresses are too long for gossip: %d bytes", len(meta))
	}
	g := &gossip{cfg: cfg, known: make(map[NodeID]hint), goods: make(chan struct{})}
	g.wire = newGossipWire(cfg)
	if g.keys, err = memberlist.NewKeyring(cfg.keys, cfg.keys[0]); err != nil {
		return nil, fmt.Errorf("set up gossip: %w", err)
	}
	conf := memberlist.DefaultLANConfig()
	conf.Name = string(cfg.id)
	conf.Transport = g.wire
	conf.Keyring = g.keys
	conf.Delegate = &gossipDelegate{meta: meta}
	conf.Events = g
	conf.DeadNodeReclaimTime = time.Second
	conf.TCPTimeout = 5 * time.Second
	conf.Logger = newStdLogger(cfg.logger, "gossip")
	if g.list, err = memberlist.Create(conf); err != nil {
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	return g, nil
}

// rekey puts other keys in force, the one to encrypt with first. Keys go from the end of the ring: memberlist 0.7.0 moves what
// is behind a key that it removes, under the eyes of who decrypts.
func (g *gossip) rekey(keys [][]byte) error {
	for _, k := range keys {
		if err := g.keys.AddKey(k); err != nil {
			return fmt.Errorf("give gossip a key: %w", err)
		}
	}
	if err := g.keys.UseKey(keys[0]); err != nil {
		return fmt.Errorf("give gossip a key: %w", err)
	}
	for _, k := range slices.Backward(g.keys.GetKeys()) {
		if slices.ContainsFunc(keys, func(wanted []byte) bool { return bytes.Equal(wanted, k) }) {
			continue
		}
		if err := g.keys.RemoveKey(k); err != nil {
			return fmt.Errorf("take a key from gossip: %w", err)
		}
	}
	return nil
}

// run ends with ctx, or when it was killed.
func (g *gossip) run(ctx context.Context) error {
	select {
	case <-g.goods:
	case <-ctx.Done():
		g.kill()
	}
	return nil
}

// leave says goodbye, for at most a second, so that the others needn't find out. Gossip still has to be killed.
func (g *gossip) leave() {
	g.ending.Lock()
	defer g.ending.Unlock()
	if !g.dead {
		_ = g.list.Leave(time.Second)
	}
}

// kill ends without a word.
func (g *gossip) kill() {
	g.once.Do(func() {
		close(g.goods)
		g.wire.close()
		g.ending.Lock()
		defer g.ending.Unlock()
		g.dead = true
		if g.list != nil {
			_ = g.list.Shutdown()
		}
	})
}

func (g *gossip) join(addresses []string) {
	if len(addresses) > 0 {
		_, _ = g.list.Join(addresses)
	}
}

const pingTries = 3

// unheard are the members that gossip reaches by other ways only: their packets, or those to them, don't come through.
func (g *gossip) unheard() []NodeID {
	var mu sync.Mutex
	var out []NodeID
	var pings sync.WaitGroup
	for _, n := range g.list.Members() {
		if n.Name == string(g.cfg.id) {
			continue
		}
		pings.Go(func() {
			for range pingTries { // one packet may be lost
				if _, err := g.list.Ping(n.Name, &net.UDPAddr{IP: n.Addr, Port: int(n.Port)}); err == nil {
					return
				}
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, NodeID(n.Name))
		})
	}
	pings.Wait()
	return out
}

func (g *gossip) alone() bool { return g.list.NumMembers() < 2 }

// NotifyJoin, NotifyLeave and NotifyUpdate run under memberlist's lock: they note and return.
func (g *gossip) NotifyJoin(n *memberlist.Node) { g.note(n, stateAlive) }

// NotifyUpdate notes a member's new addresses.
func (g *gossip) NotifyUpdate(n *memberlist.Node) { g.note(n, stateAlive) }

// NotifyLeave notes a member's end: by its own word, or by silence.
func (g *gossip) NotifyLeave(n *memberlist.Node) {
	state := stateDead
	if n.State == memberlist.StateLeft {
		state = stateLeft
	}
	g.note(n, state)
}

func (g *gossip) note(n *memberlist.Node, state string) {
	var meta gossipMeta
	_ = json.Unmarshal(n.Meta, &meta)
	g.mu.Lock()
	defer g.mu.Unlock()
	id := NodeID(n.Name)
	g.known[id] = hint{ID: id, Name: meta.Name, API: meta.API, Cluster: meta.Cluster, State: state, Since: time.Now()}
}

func (g *gossip) hint(id NodeID) (hint, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	h, ok := g.known[id]
	return h, ok
}

type gossipDelegate struct{ meta []byte }

func (d *gossipDelegate) NodeMeta(int) []byte             { return d.meta }
func (d *gossipDelegate) NotifyMsg([]byte)                {}
func (d *gossipDelegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d *gossipDelegate) LocalState(bool) []byte          { return nil }
func (d *gossipDelegate) MergeRemoteState([]byte, bool)   {}

// gossipWire is memberlist's transport: packets over the port's UDP side, streams over its gossip protocol.
type gossipWire struct {
	cfg     gossipConfig
	packets chan *memberlist.Packet
	streams chan net.Conn
	life    context.Context
	end     context.CancelFunc
	workers sync.WaitGroup
}

const (
	maxPacket = 65536
	// encryptedPacket is how every packet begins that a member sends: the version of the encryption. memberlist 0.7.0 doesn't
	// authenticate that byte, and a packet that somebody has kept and sends again as version 0 makes it take the last byte of
	// the text for a padding, which ends the process. It can go when pkcs7decode looks before it cuts.
	encryptedPacket = 1
)

func newGossipWire(cfg gossipConfig) *gossipWire {
	w := &gossipWire{cfg: cfg, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn)}
	w.life, w.end = context.WithCancel(context.Background())
	w.workers.Go(w.readPackets)
	w.workers.Go(w.acceptStreams)
	return w
}

func (w *gossipWire) close() {
	w.end()
	_ = w.cfg.port.Packets().Close()
	_ = w.cfg.port.Listener(port.ProtoGossip).Close()
	w.workers.Wait()
}

func (w *gossipWire) readPackets() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := w.cfg.port.Packets().ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case <-w.life.Done():
				return
			default:
				continue
			}
		}
		if n == 0 || buf[0] != encryptedPacket {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: time.Now()}
		select {
		case w.packets <- p:
		case <-w.life.Done():
			return
		}
	}
}

func (w *gossipWire) acceptStreams() {
	lis := w.cfg.port.Listener(port.ProtoGossip)
	for {
		c, err := lis.Accept()
		if err != nil {
			return
		}
		select {
		case w.streams <- c:
		case <-w.life.Done():
			_ = c.Close()
			return
		}
	}
}

// FinalAdvertiseAddr gives the IP that memberlist insists on. A name that can't be resolved yet is no reason not to start:
// the real address travels in the meta data.
func (w *gossipWire) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	host, number, err := net.SplitHostPort(w.cfg.advertise)
	if err != nil {
		return nil, 0, err
	}
	p, err := strconv.Atoi(number)
	if err != nil {
		return nil, 0, err
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return ip, p, nil
	}
	if ips, err := net.LookupIP(host); err == nil && len(ips) > 0 {
		return ips[0], p, nil
	}
	return net.IPv4(127, 0, 0, 1), p, nil
}

// WriteTo sends one packet.
func (w *gossipWire) WriteTo(b []byte, address string) (time.Time, error) {
	to, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return time.Time{}, err
	}
	_, err = w.cfg.port.Packets().WriteTo(b, to)
	return time.Now(), err
}

// PacketCh gives the packets that come.
func (w *gossipWire) PacketCh() <-chan *memberlist.Packet { return w.packets }

// DialTimeout opens a stream to whoever of the cluster is at the address.
func (w *gossipWire) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(w.life, timeout)
	defer cancel()
	return w.cfg.port.Dial(ctx, port.ProtoGossip, "", address)
}

// StreamCh gives the streams that others open.
func (w *gossipWire) StreamCh() <-chan net.Conn { return w.streams }

// Shutdown is memberlist's word that it is done.
func (w *gossipWire) Shutdown() error { return nil }
