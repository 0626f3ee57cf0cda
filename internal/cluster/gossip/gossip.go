// Package gossip spreads what each node announces about itself (its endpoints, addresses, keys, health) to the nodes
// that have a use for it, and tells which nodes are up.
//
// Who is up is found out by memberlist. What is announced goes by a protocol of this package's own, in messages that
// memberlist carries and encrypts: changes are pushed to a few peers, who push them on; what got lost is found by
// comparing digests, and only what differs is sent. README.md has the protocol, its sizes and timings. What two nodes
// have to tell each other is decided in package table, which is pure.
//
// It writes no disk and knows no meaning: data is opaque, the caller keeps its own records and puts them again when it
// starts.
package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/seine-net/seine/internal/cluster/gossip/table"
)

// Words of package table that are this package's too.
type (
	// Record is one thing that a node announces.
	Record = table.Record
	// Version orders the writes of one node.
	Version = table.Version
	// Signer makes and checks the signatures of records.
	Signer = table.Signer
	// Transport carries packets and streams, in place of sockets.
	Transport = memberlist.Transport
)

// Limits of what can be announced, in bytes.
const (
	MaxName = table.MaxName // of a node's or a network's name
	MaxKey  = table.MaxKey  // of a record's key
	MaxData = table.MaxData // of a record's data
)

// DefaultPort is where nodes listen, on UDP and TCP.
const DefaultPort = 7946

// Config says what a node needs to take part.
type Config struct {
	// Node is this node's name, unique in the cluster and the same after a restart.
	Node string
	// Epoch has to be greater than at any earlier start of this node. The time of the start in milliseconds does, if it
	// is raised above the one that was kept from the start before. All that the node said in earlier epochs is replaced.
	Epoch uint64
	// Persist keeps an epoch, so that the next start uses a greater one. It is called when peers show that Epoch was used
	// before: a disk was lost, put back or copied. It is called from Run, and may block.
	Persist func(epoch uint64) error
	// Cluster names the cluster. Messages of another one are not understood, even with the same key.
	Cluster string
	// Bind is the address to listen on; port 0 takes DefaultPort.
	Bind netip.AddrPort
	// Advertise is what others are told to send to; without an address, Bind's, or the first private IPv4 address of this
	// machine if that is 0.0.0.0; port 0 is Bind's.
	Advertise netip.AddrPort
	// Keys are one or two secrets of 16, 24 or 32 bytes (AES-GCM) that all nodes share. The first encrypts, both decrypt.
	Keys [][]byte
	// Signer makes this node's signatures and checks those of others. Without it, each node has to trust all others not
	// to speak in the name of another.
	Signer Signer
	// Admit reports whether a node belongs to the cluster. It must be quick and must not call back. Default: all that
	// have a key do.
	Admit func(node string) bool
	// Forget is after what time the records of a node that is down are dropped; 0 is DefaultForget.
	Forget time.Duration
	// Transport is used in place of sockets at Bind.
	Transport Transport
	// Log gets what goes wrong. Default: nobody does.
	Log *slog.Logger
}

// DefaultForget is how long the records of a node that is down are kept.
const DefaultForget = 24 * time.Hour

func (c *Config) validate() error {
	if err := table.CheckName("node", c.Node, false); err != nil {
		return err
	}
	if n := len(c.Keys); n < 1 || n > mostKeys {
		return fmt.Errorf("node %q: keys: there are %d; want 1 or %d", c.Node, n, mostKeys)
	}
	for i, k := range c.Keys {
		if err := memberlist.ValidateKey(k); err != nil {
			return fmt.Errorf("node %q: keys[%d]: has %d bytes; want 16, 24 or 32", c.Node, i, len(k))
		}
	}
	if len(c.Cluster) > 64 {
		return fmt.Errorf("node %q: cluster %q: has %d bytes; want at most 64", c.Node, c.Cluster, len(c.Cluster))
	}
	if c.Transport == nil && !c.Bind.Addr().IsValid() {
		return fmt.Errorf("node %q: bind: there is no address; want one to listen on", c.Node)
	}
	if b := c.Bind.Addr(); c.Transport == nil && b.Is6() && b.IsUnspecified() && !c.Advertise.Addr().IsValid() {
		return fmt.Errorf("node %q: advertise: there is no address; want one, since bind is every IPv6 address", c.Node)
	}
	if c.Forget < 0 {
		return fmt.Errorf("node %q: forget: is %v; want 0 or more", c.Node, c.Forget)
	}
	return nil
}

// Gossip is a node's part in the cluster.
type Gossip struct {
	conf    Config
	log     *slog.Logger
	keyring *memberlist.Keyring
	keyLock sync.Mutex
	news    *queue
	jobs    chan func()   // what blocks on the network
	push    chan struct{} // there is something to push
	ask     chan struct{} // there is somebody to ask
	ready   chan struct{} // closed when list is there
	ended   chan struct{} // closed when Run has ended
	list    carrier
	create  func(*memberlist.Config) (carrier, error) // makes list; tests have another

	mu      sync.Mutex // protects all below; never held while memberlist is called, which calls back
	table   *table.Table
	members map[string]*member
	up      []string // names of members that are up, in no order
	hot     []hot
	asks    map[string]map[string]bool // peer → networks to compare with it soon
	pulls   map[string]time.Time       // network → until when an answer is waited for
	seeds   []string
	turn    int // which networks are compared next
	running bool
	rejoin  time.Time // before that no further attempt to merge with nodes that were down
	refused int       // messages since the last report
	why     error     // of the last of them
}

// carrier is what is used of memberlist.
type carrier interface {
	Join(addrs []string) (int, error)
	Leave(timeout time.Duration) error
	Shutdown() error
	UpdateNode(timeout time.Duration) error
	SendToAddress(to memberlist.Address, message []byte) error
	SendReliable(to *memberlist.Node, message []byte) error
}

// New makes a node's part in the cluster. It starts nothing. What is Put before Run is there from the first moment: a
// node that restarts puts all its records first, and its peers see only what has changed.
func New(c Config) (*Gossip, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	t, err := table.New(c.Node, c.Epoch, c.Signer)
	if err != nil {
		return nil, fmt.Errorf("node %q: %w", c.Node, err)
	}
	keyring, err := memberlist.NewKeyring(c.Keys, c.Keys[0])
	if err != nil {
		return nil, fmt.Errorf("node %q: keys: %w", c.Node, err)
	}
	if c.Forget == 0 {
		c.Forget = DefaultForget
	}
	g := &Gossip{
		conf: c, log: c.Log, keyring: keyring, news: newQueue(), table: t,
		create: func(c *memberlist.Config) (carrier, error) { return memberlist.Create(c) },
		jobs:   make(chan func(), 64), push: make(chan struct{}, 1), ask: make(chan struct{}, 1), ready: make(chan struct{}), ended: make(chan struct{}),
		members: map[string]*member{}, asks: map[string]map[string]bool{}, pulls: map[string]time.Time{},
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	return g, nil
}

// Put announces a record of this node to all nodes that take part in a network, which this node has to be subscribed to;
// network "" goes to all nodes of the cluster. The data is kept and must not be changed afterwards.
func (g *Gossip) Put(network, key string, data []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	c, err := g.table.Put(network, key, data)
	if err != nil {
		return fmt.Errorf("node %q: %w", g.conf.Node, err)
	}
	g.tell(c)
	return nil
}

// Delete takes back a record of this node. What is not there is deleted.
func (g *Gossip) Delete(network, key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tell(g.table.Delete(network, key))
}

// Subscribe says in which networks this node takes part, all of them at once. It gets the records of other nodes there,
// and for those of networks that are no longer among them Watch tells a Delete each. This node's own records in such a
// network are taken back.
func (g *Gossip) Subscribe(networks []string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	tell, gone, err := g.table.Subscribe(networks)
	if err != nil {
		return fmt.Errorf("node %q: %w", g.conf.Node, err)
	}
	g.tell(tell...)
	g.report(gone)
	if len(tell) > 0 {
		g.askSome()
	}
	return nil
}

// Records gives all records of a network that this node knows, its own and those of nodes that are down too, by node and
// key.
func (g *Gossip) Records(network string) []Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.table.Records(network)
}

// Networks gives the networks that this node takes part in.
func (g *Gossip) Networks() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.table.Networks()
}

// Watch gives the changes of other nodes' records and of their state, in order for each record and node. A reader that
// is slow misses intermediate states, never the last one; so a Delete may come of what was never told. There is one
// channel, for one reader; it is closed when Run ends.
func (g *Gossip) Watch() <-chan Change { return g.news.out }

// Join makes this node a member of the cluster that the nodes at some addresses belong to ("host" or "host:port"). One
// that answers is enough. The addresses are kept: as long as no other node is up they are tried again. It needs Run.
func (g *Gossip) Join(ctx context.Context, addrs []string) error {
	g.mu.Lock()
	g.seeds = append([]string(nil), addrs...)
	g.mu.Unlock()
	select {
	case <-g.ready:
	case <-g.ended:
	case <-ctx.Done():
		return fmt.Errorf("node %q: join: %w", g.conf.Node, context.Cause(ctx))
	}
	return g.wait(ctx, "join", func() error { return g.join(addrs) })
}

// wait has a job done and waits for it, or until ctx or Run has ended.
func (g *Gossip) wait(ctx context.Context, verb string, job func() error) error {
	done := make(chan error, 1)
	run := g.jobs
	for {
		select {
		case run <- func() { done <- job() }:
			run = nil
		case err := <-done:
			return err
		case <-g.ended:
			return fmt.Errorf("node %q: %s: gossip has ended", g.conf.Node, verb)
		case <-ctx.Done():
			return fmt.Errorf("node %q: %s: %w", g.conf.Node, verb, context.Cause(ctx))
		}
	}
}

func (g *Gossip) join(addrs []string) error {
	if n, err := g.list.Join(addrs); n == 0 && len(addrs) > 0 {
		return fmt.Errorf("node %q: join %q: none answers: %w", g.conf.Node, addrs, err)
	}
	return nil
}

// Leave takes back all that this node has announced and tells the others that it leaves the cluster, which then don't
// wait for it. Afterwards Run can be ended. A restart is no leave.
func (g *Gossip) Leave(ctx context.Context) error {
	select {
	case <-g.ready:
	default:
		return nil // nobody knows of it
	}
	g.mu.Lock()
	tell, gone := g.table.Leave()
	g.tell(tell...)
	g.report(gone)
	alone := len(g.up) == 0
	g.mu.Unlock()
	if alone {
		return nil
	}
	g.flush() // more than one push: what is lost now, nobody asks this node for later
	g.mu.Lock()
	g.tell(tell...)
	g.mu.Unlock()
	g.flush()
	timeout := 5 * time.Second
	if d, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(d), time.Nanosecond)
	}
	return g.wait(ctx, "leave", func() error { return g.list.Leave(timeout) })
}
