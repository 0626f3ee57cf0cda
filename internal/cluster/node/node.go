// Package node runs a machine's part in a cluster: it founds, joins and leaves one, keeps the machine's certificate, runs
// its member of the store where it has one, follows what is agreed on, announces what the machine has and tells the engine
// what other machines have.
//
//	cluster.json, *.pem ── session ┬ etcd member   a process of its own, on some machines
//	(this machine's part)          ├ store ──────► Follow ──► engine: networks
//	                               ├ gossip ◄────► announcer / peers ◄──► engine: endpoints, blocks, ways
//	                               ├ API           joining, certificates (HTTPS)
//	                               └ keeper        members of the store, blocks, renewal of the certificate
//
// What it can't reach it tries again; nothing that worked before ends because of it.
package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cluster"
)

// Engine is what the machine's part in a cluster works on.
type Engine interface {
	cluster.Definitions
	// SetMachine has the engine take part in a cluster, or, with nil, in none.
	SetCluster(Agreement)
	SetSelf(ctx context.Context, self api.Node) error
	Announce(self api.Node) (api.Node, error)
	SetPeer(ctx context.Context, id string, node api.Node, networks map[string]Has) error
	DropPeer(ctx context.Context, id string) error
	Blocks() map[string][]netip.Prefix
	ReturnBlocks(ctx context.Context) error
	PutNetwork(ctx context.Context, n api.Network, match uint64) (api.Network, error)
	Endpoints(ctx context.Context) ([]api.Endpoint, error)
	Watch(ctx context.Context, since uint64) (<-chan api.Event, error)
}

// Agreement is what the engine asks of a cluster; it is nil in none.
type Agreement = *cluster.Agreement

// Has is what a machine has of a network.
type Has struct {
	Blocks    []netip.Prefix
	Endpoints []api.Endpoint
}

// Config is what a Node is made of. All fields are required.
type Config struct {
	// Dir keeps this machine's part: who it is, certificates, the data of its member of the store.
	Dir string
	// Program is the daemon's file, which also runs a member (etcd.MemberCommand).
	Program string
	// Name is the machine's.
	Name, Version string
	Engine        Engine
	Log           *slog.Logger
}

// Node is the machine's part. Its methods may be called from several goroutines.
type Node struct {
	Config

	verbs sync.Mutex // one of Init, Join, Leave at a time
	mu    sync.Mutex
	run   context.Context // Run's; nil before
	now   *session        // nil while the machine is in no cluster
}

// New makes a Node; Run starts it.
func New(c Config) *Node { return &Node{Config: c} }

// Run takes part in the cluster that this machine is in, until ctx ends. ready is called once the engine knows whether
// there is one: no verb of the engine may come before.
func (n *Node) Run(ctx context.Context, ready func()) error {
	n.mu.Lock()
	n.run = ctx
	n.mu.Unlock()
	part, err := load(n.Dir)
	if err == nil {
		n.begin(part)
	}
	ready()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.Log.Error("this machine's part in its cluster can't be read: it is on its own", "err", err)
	}
	<-ctx.Done()
	n.end()
	return nil
}

// begin starts a session of a part that is kept.
func (n *Node) begin(p *part) {
	s := newSession(n, p)
	n.mu.Lock()
	n.now = s
	n.mu.Unlock()
	s.start(n.run)
}

// end ends the session, if there is one, and waits for it.
func (n *Node) end() {
	n.mu.Lock()
	s := n.now
	n.now = nil
	n.mu.Unlock()
	if s != nil {
		s.stop()
	}
}

// session gives the present session; an error of code Conflict where there is none.
func (n *Node) session() (*session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.now == nil {
		return nil, api.Errorf(api.Conflict, "cluster", "this machine is in none; found one with `seine cluster init`, or join one")
	}
	return n.now, nil
}
