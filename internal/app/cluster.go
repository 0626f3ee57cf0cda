package app

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

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
