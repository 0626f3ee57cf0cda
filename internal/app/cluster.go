package app

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cluster/etcd"
	"github.com/seine-net/seine/internal/cluster/node"
	"github.com/seine-net/seine/internal/engine"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/state"
)

// clusterEngine is the engine in the words of the machine's part in a cluster.
type clusterEngine struct{ *engine.Engine }

// SetCluster implements node.Engine.
func (e clusterEngine) SetCluster(a node.Agreement) {
	if a == nil {
		e.Engine.SetCluster(nil)
		return
	}
	e.Engine.SetCluster(a)
}

// SetPeer implements node.Engine.
func (e clusterEngine) SetPeer(ctx context.Context, id string, n api.Node, networks map[string]node.Has) error {
	n.ID = id
	p := engine.Peer{Node: n, Networks: map[string]engine.PeerNetwork{}}
	for nid, has := range networks {
		p.Networks[nid] = engine.PeerNetwork{Blocks: has.Blocks, Endpoints: has.Endpoints}
	}
	return e.Engine.SetPeer(ctx, p)
}

// ClusterEngine gives an engine to the machine's part in a cluster.
func ClusterEngine(e *engine.Engine) node.Engine { return clusterEngine{e} }

// newNode makes the machine's part in a cluster, which is kept beside the state file.
func newNode(o Options, e *engine.Engine, log *slog.Logger) (*node.Node, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return node.New(node.Config{Dir: filepath.Join(filepath.Dir(o.State), "cluster"), Program: self, Name: o.Node, Version: o.Version,
		Engine: ClusterEngine(e), Log: log.With("part", "cluster")}), nil
}

// part is the machine's part in a cluster, as the doors have it.
type part struct {
	node   *node.Node
	engine *engine.Engine
}

func (d *daemon) part() part { return part{d.node, d.engine} }

// InitCluster implements doors.Cluster.
func (p part) InitCluster(ctx context.Context, q api.ClusterInit) (api.Cluster, error) {
	return p.node.Init(ctx, q)
}

// JoinCluster implements doors.Cluster.
func (p part) JoinCluster(ctx context.Context, q api.ClusterJoin) (api.Cluster, error) {
	return p.node.Join(ctx, q)
}

// LeaveCluster implements doors.Cluster.
func (p part) LeaveCluster(ctx context.Context, force bool) error { return p.node.Leave(ctx, force) }

// Cluster implements doors.Cluster.
func (p part) Cluster(ctx context.Context) (api.Cluster, error) { return p.node.Cluster(ctx) }

// ClusterToken implements doors.Cluster.
func (p part) ClusterToken(ctx context.Context, rotate bool) (api.ClusterToken, error) {
	return p.node.Token(ctx, rotate)
}

// RemoveNode implements doors.Cluster.
func (p part) RemoveNode(ctx context.Context, name string, force bool) error {
	return p.node.Remove(ctx, name, force)
}

// DrainNode implements doors.Cluster.
func (p part) DrainNode(ctx context.Context, name string, drained bool) error {
	return p.node.Drain(ctx, name, drained)
}

// Paths implements doors.Cluster.
func (p part) Paths(context.Context) ([]api.Path, error) { return p.engine.Paths(), nil }

// Nodes implements doors.Cluster. What the machine knows about itself is the engine's.
func (p part) Nodes(ctx context.Context) ([]api.Node, error) {
	all, err := p.node.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	self, err := p.engine.Node(ctx)
	if err != nil || len(all) == 0 {
		return []api.Node{self}, err
	}
	c, err := p.node.Cluster(ctx)
	for i, n := range all {
		if err == nil && n.ID == c.Node {
			self.ID, self.Name, self.Addresses, self.Health, self.Drained = n.ID, n.Name, n.Addresses, n.Health, n.Drained
			all[i] = self
		}
	}
	return all, nil
}

// storeTime is how long the doctor waits for the cluster's store.
const storeTime = 3 * time.Second

// findings says how the cluster is, where the machine is in one.
func (p part) findings() []api.Finding {
	ctx, cancel := context.WithTimeout(context.Background(), storeTime)
	defer cancel()
	c, err := p.node.Cluster(ctx)
	if err != nil {
		return nil // it is in none
	}
	all, _ := p.node.Nodes(ctx) // has no other error
	return clusterFindings(c, all, p.engine.Paths())
}

func clusterFindings(c api.Cluster, nodes []api.Node, paths []api.Path) []api.Finding {
	var out []api.Finding
	problem := func(found, done string) {
		out = append(out, api.Finding{Level: api.LevelProblem, Topic: "cluster", Found: found, Done: done})
	}
	if len(nodes) > 0 && !slices.ContainsFunc(nodes, func(n api.Node) bool { return n.ID == c.Node }) {
		problem(fmt.Sprintf("this machine was removed from cluster %q", c.Name), "what is attached goes on; `seine cluster leave --force`, then join again")
	}
	if c.StoreError != "" {
		problem(fmt.Sprintf("the store of cluster %q does not answer: %s", c.Name, c.StoreError),
			"what is attached goes on; networks can't be changed, nor more addresses be had, until most of its members answer")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Problems)) {
		problem(c.Problems[name], "give the network of this machine another name or range, or remove it")
	}
	for _, n := range nodes {
		if n.Health == api.Dead {
			problem(fmt.Sprintf("node %q does not answer", n.Name), fmt.Sprintf("if it is gone for good: seine node rm %s", n.Name))
		}
	}
	for _, w := range paths {
		if w.Error != "" {
			problem(fmt.Sprintf("no way leads to node %q in network %q: %s", w.Node, w.Network, strings.ReplaceAll(w.Error, "\n", "; ")),
				"`seine network set "+w.Network+" --fabric NAME` asks for another way")
		}
	}
	if len(out) == 0 {
		out = append(out, api.Finding{Level: api.LevelOK, Topic: "cluster", Found: fmt.Sprintf("all %d machines of cluster %q answer, and so does its store", len(nodes), c.Name)})
	}
	return out
}

// whole is the engine with the machine's part in a cluster.
type whole struct {
	*engine.Engine
	node *node.Node
}

// Reset implements doors.Engine. A machine in a cluster leaves it first, as well as it can.
func (w whole) Reset(ctx context.Context) error {
	if err := w.node.Leave(ctx, true); err != nil && api.CodeOf(err) != api.Conflict {
		return err
	}
	return w.Engine.Reset(ctx)
}

// RunMember is the process of a member of the cluster's store.
func RunMember(ctx context.Context) error { return etcd.RunMember(ctx, os.Stdin, os.Stdout) }

// MemberCommand is the word that makes the daemon's program the process of a member.
const MemberCommand = etcd.MemberCommand

// wireGuardKey gives this machine's key for WireGuard, which is made once and kept.
func wireGuardKey(store *state.Store) (kernel.Secret, error) {
	const name = "wireguard/key"
	var key kernel.WGKey
	if v := store.Value(name); v != "" {
		b, err := base64.StdEncoding.DecodeString(v)
		if err != nil || len(b) != len(key) {
			return kernel.Secret{}, fmt.Errorf("state file: value %q is no key", name)
		}
		copy(key[:], b)
		return kernel.NewSecret(key, true), nil
	}
	_, _ = rand.Read(key[:]) // never fails (Go 1.24)
	return kernel.NewSecret(key, true), store.SetValue(name, base64.StdEncoding.EncodeToString(key[:]))
}
