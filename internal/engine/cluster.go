package engine

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/state"
)

// Cluster is what the engine asks of the cluster that its machine is in. Its errors are *api.Error; Unavailable says that
// the cluster's store can't be reached.
type Cluster interface {
	// Agree has the cluster put n in the place of old, which is nil for a new network, and gives what was agreed on, with ID
	// and VNI. Conflict or Stale says that somebody else was first.
	Agree(ctx context.Context, old *api.Network, n api.Network) (api.Network, error)
	// Abolish ends a network in the whole cluster. InUse says that other machines have endpoints on it.
	Abolish(ctx context.Context, n api.Network) error
	// Lease gives this machine up to count more blocks of one of a network's subnets, or the block that want is in; mine are
	// those that it has.
	Lease(ctx context.Context, n api.Network, subnet netip.Prefix, want netip.Addr, count int, mine []netip.Prefix) ([]netip.Prefix, error)
	// Return gives blocks back.
	Return(ctx context.Context, n api.Network, blocks []netip.Prefix) error
}

// SetCluster tells the engine that its machine is in a cluster now, or, with nil, in none.
func (e *Engine) SetCluster(c Cluster) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cluster = c
}

func (e *Engine) inCluster() Cluster {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cluster
}

// tunnelRoom is what the fabric that needs most adds to a packet, in bytes: WireGuard over IPv6. A cluster's network has so
// much less, as its fabric may be another one tomorrow.
const tunnelRoom = 80

// shareable tells drivers whose networks can be on several machines.
func shareable(name string) bool { return name == "" || name == "bridge" }

// sharing reports whether a network is, or is to become, one of the cluster.
func (e *Engine) sharing(n api.Network) bool {
	if was, ok := e.Store.Network(n.Name); ok {
		return was.Shared()
	}
	return n.Shared() || n.Scope == "" && n.IPAM == "" && e.inCluster() != nil && shareable(n.Driver)
}

// checkShared refuses what only a cluster's network can have; e.mu is held.
func (e *Engine) checkShared(noun string, n api.Network) error {
	if !n.Shared() {
		for _, f := range []struct {
			field string
			value any
		}{{"fabric", n.Fabric}, {"encrypt", n.Encrypt}, {"broadcast", n.Broadcast}, {"id", n.ID}, {"vni", n.VNI}} {
			if !reflect.ValueOf(f.value).IsZero() {
				return api.FieldError(noun, f.field, f.value, "has no meaning on one machine", `none, or scope "cluster"`)
			}
		}
		return nil
	}
	if e.cluster == nil {
		return api.FieldError(noun, "scope", n.Scope, "is not to be had: this machine is in no cluster", `"node", or a machine that has joined one`)
	}
	if n.Fabric != "" && n.Fabric != AutoFabric {
		f := e.Fabrics[n.Fabric]
		if f == nil {
			return api.FieldError(noun, "fabric", n.Fabric, "is not known", strings.Join(append(slices.Sorted(maps.Keys(e.Fabrics)), AutoFabric), ", "))
		}
		if err := suits(f, fabric.Network{Network: n}); err != nil {
			return api.FieldError(noun, "fabric", n.Fabric, err.Error(), "another one, or "+AutoFabric)
		}
	}
	if !shareable(n.Driver) {
		return api.FieldError(noun, "scope", n.Scope, fmt.Sprintf("can't be had with driver %q", n.Driver), `"node", or driver "bridge"`)
	}
	if n.IPAM != "" {
		return api.FieldError(noun, "ipam", n.IPAM, "can't give out addresses of a network of the cluster", `none, or scope "node"`)
	}
	return nil
}

// mergeShared fills what n leaves out of what only a cluster's network has.
func mergeShared(n *api.Network, was api.Network) {
	if n.Scope == "" {
		n.Scope = was.Scope
	}
	if n.Fabric == "" {
		n.Fabric = was.Fabric
	}
	if n.ID == "" {
		n.ID = was.ID
	}
	if n.VNI == 0 {
		n.VNI = was.VNI
	}
}

// putShared is PutNetwork for a network of the cluster; the network is locked.
func (e *Engine) putShared(ctx context.Context, n api.Network, match uint64) (api.Network, error) {
	n.Scope = api.ClusterScope
	e.mu.Lock()
	old, n, changed, err := e.prepareNetwork(n, match)
	cluster := e.cluster
	e.mu.Unlock()
	if err != nil {
		return n, err
	}
	if !changed {
		return e.Network(ctx, n.Name)
	}
	if n, err = cluster.Agree(ctx, old, n); err != nil {
		return n, err
	}
	if err := e.adoptNetwork(ctx, n); err != nil {
		return n, err
	}
	return e.Network(ctx, n.Name)
}

// AdoptNetwork takes up a definition that the cluster agreed on. The same again changes nothing. An error says why it can't
// be used on this machine: another network has its name or addresses.
func (e *Engine) AdoptNetwork(ctx context.Context, n api.Network) error {
	noun := api.NetworkNoun(n.Name)
	unlock, err := e.busy.lock(ctx, noun)
	if err != nil {
		return refused(noun, err)
	}
	defer unlock()
	return e.adoptNetwork(ctx, n)
}

func (e *Engine) adoptNetwork(ctx context.Context, n api.Network) error {
	noun := api.NetworkNoun(n.Name)
	if err := n.Validate(); err != nil {
		return err
	}
	n.Status = nil
	if was, ok := e.Store.Network(n.Name); ok && (!was.Shared() || was.ID != n.ID) {
		if was.Scope == api.NodeScope {
			return api.Errorf(api.Conflict, noun, "of the cluster can't be used here: this machine has one of its own with that name")
		}
		// Without endpoints it is nothing that could be lost: each machine makes a "default" for itself.
		if err := e.dropNetwork(ctx, n.Name); err != nil {
			return fmt.Errorf("the cluster's %s can't be used here yet: %w", noun, err)
		}
	}
	e.mu.Lock()
	was, exists := e.Store.Network(n.Name)
	n.Revision, n.Created = was.Revision, was.Created
	if exists && reflect.DeepEqual(was, n) {
		e.mu.Unlock()
		return nil
	}
	if !exists {
		for i, s := range n.Subnets {
			if with, what := e.overlap(s.Prefix, false); what != "" {
				e.mu.Unlock()
				err := api.FieldError(noun, fmt.Sprintf("subnets[%d].prefix", i), s.Prefix, fmt.Sprintf("overlaps %s of %s on this machine", with, what),
					"a range that no machine of the cluster uses otherwise")
				err.Code = api.Conflict
				return err
			}
		}
	}
	n, err := e.commitNetwork(n)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if err := e.applyNetwork(ctx, n); err != nil {
		return refused(noun, err)
	}
	e.refreshSoon(ctx)
	return nil
}

// ForgetNetwork drops a network that the cluster has abolished. One that still has endpoints here stays until they are gone:
// what works goes on working.
func (e *Engine) ForgetNetwork(ctx context.Context, name, id string) error {
	noun := api.NetworkNoun(name)
	unlock, err := e.busy.lock(ctx, noun)
	if err != nil {
		return refused(noun, err)
	}
	defer unlock()
	n, ok := e.Store.Network(name)
	if !ok || !n.Shared() || n.ID != id {
		return nil
	}
	return e.dropShared(ctx, n)
}

// abolish is DeleteNetwork for a network of the cluster; the network is locked.
func (e *Engine) abolish(ctx context.Context, n api.Network) error {
	noun := api.NetworkNoun(n.Name)
	cluster := e.inCluster()
	if cluster == nil {
		return e.dropShared(ctx, n) // it was left
	}
	if users := e.Store.CountIn(n.Name); users > 0 {
		return api.Errorf(api.InUse, noun, "has %d endpoints on this machine", users)
	}
	if err := cluster.Abolish(ctx, n); err != nil {
		return err
	}
	return e.dropShared(ctx, n)
}

func (e *Engine) dropShared(ctx context.Context, n api.Network) error {
	if err := e.dropNetwork(ctx, n.Name); err != nil {
		return err
	}
	for key := range e.Store.Values(blockKey(n, "")) {
		if err := e.Store.SetValue(key, ""); err != nil {
			return refused(api.NetworkNoun(n.Name), err)
		}
	}
	return nil
}

// blockKey is under which name a block is kept that this machine holds.
func blockKey(n api.Network, block string) string { return "block/" + n.ID + "/" + block }

// blocks gives the blocks of a subnet that this machine holds, as they are kept.
func (e *Engine) blocks(n api.Network, subnet netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for key := range e.Store.Values(blockKey(n, "")) {
		if p, err := netip.ParsePrefix(strings.TrimPrefix(key, blockKey(n, ""))); err == nil && subnet.Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// Blocks gives the blocks that this machine holds of each network of the cluster, by name.
func (e *Engine) Blocks() map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	for _, n := range e.Store.Networks() {
		if n.Shared() {
			out[n.Name] = e.blocksOf(n.Name)
		}
	}
	return out
}

func (e *Engine) blocksOf(network string) []netip.Prefix {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []netip.Prefix
	for _, p := range e.pools[network] {
		out = append(out, p.Blocks()...)
	}
	return out
}

// takesPart reports whether a network of the cluster is used on this machine: it is as long as the machine has blocks of it.
func (e *Engine) takesPart(n api.Network) bool {
	return len(e.blocksOf(n.Name)) > 0
}

// room sees to it that this machine has blocks with the addresses that an endpoint needs. It asks the cluster only where
// it has none.
func (e *Engine) room(ctx context.Context, ep api.Endpoint) error {
	n, ok := e.Store.Network(ep.Network)
	if !ok || !n.Shared() {
		return nil
	}
	was, _ := e.Store.Endpoint(ep.Key())
	for i, s := range n.Subnets {
		want := ep.Address(s.Prefix.Addr().Is4())
		if had := was.Address(s.Prefix.Addr().Is4()); had.IsValid() && (!want.IsValid() || want == had) || want.IsValid() && !s.Prefix.Contains(want) {
			continue // nothing is needed, or the pool says what is wrong
		}
		if err := e.lease(ctx, n, i, want); err != nil {
			return err
		}
	}
	return nil
}

// lease gets blocks of the i-th subnet, unless there are free addresses, or want is in a block that the machine has.
func (e *Engine) lease(ctx context.Context, n api.Network, i int, want netip.Addr) error {
	noun := api.NetworkNoun(n.Name)
	unlock, err := e.busy.lock(ctx, "blocks of "+noun)
	if err != nil {
		return refused(noun, err)
	}
	defer unlock()
	e.mu.Lock()
	cluster, p := e.cluster, e.pools[n.Name][i]
	mine := p.Blocks()
	enough := p.Free()
	if want.IsValid() {
		enough = p.Holder(want) != "" || slices.ContainsFunc(mine, func(b netip.Prefix) bool { return b.Contains(want) })
	}
	e.mu.Unlock()
	if enough {
		return nil
	}
	if cluster == nil {
		return api.Errorf(api.Unavailable, noun, "this machine has left the cluster, and has no free address of the network")
	}
	// As many as there are: a machine that needs much asks seldom.
	got, err := cluster.Lease(ctx, n, n.Subnets[i].Prefix, want, max(1, len(mine)), mine)
	if err != nil {
		return err
	}
	for _, b := range got {
		if err := e.Store.SetValue(blockKey(n, b.String()), "1"); err != nil {
			return refused(noun, err)
		}
	}
	return e.setBlocks(ctx, n, i, append(mine, got...))
}

// setBlocks gives a pool its blocks, and the machine the network where it takes part from now on.
func (e *Engine) setBlocks(ctx context.Context, n api.Network, i int, blocks []netip.Prefix) error {
	before := e.takesPart(n)
	e.mu.Lock()
	slices.SortFunc(blocks, netip.Prefix.Compare)
	e.pools[n.Name][i].SetBlocks(slices.Compact(blocks))
	e.mu.Unlock()
	return e.changePart(ctx, n, before)
}

// changePart makes the kernel's objects of a network, or takes them away, where it has begun or ended to take part.
func (e *Engine) changePart(ctx context.Context, n api.Network, before bool) error {
	if before == e.takesPart(n) {
		return nil
	}
	noun := api.NetworkNoun(n.Name)
	unlock, err := e.busy.lock(ctx, noun) // a definition that comes just now looks at it too
	if err != nil {
		return refused(noun, err)
	}
	defer unlock()
	n, ok := e.Store.Network(n.Name)
	if !ok {
		return api.Errorf(api.NotFound, noun, "does not exist")
	}
	if err := e.setMachine(); err != nil {
		return refused(noun, err)
	}
	keys, err := e.setNetwork(n)
	if err == nil {
		err = e.Loop.Sync(ctx, append(keys, e.Want.Keys(MachineOwner)...))
	}
	if err == nil {
		e.refreshSoon(ctx)
	}
	return refusedOrNil(noun, err)
}

// refreshSoon has what leads to peers follow a change. What can't be had is the peers' trouble, not that of the change.
func (e *Engine) refreshSoon(ctx context.Context) {
	if err := e.refreshPeers(ctx); err != nil {
		e.Log.Warn("ways to other machines", "err", err)
	}
}

// ReturnBlocks gives back the blocks of which no address is in use, but for one of each subnet while the network has
// endpoints here. It is to be called now and then, not at every detach: the next attach may need them.
func (e *Engine) ReturnBlocks(ctx context.Context) error {
	counts := e.Store.CountByNetwork()
	for _, n := range e.Store.Networks() {
		if !n.Shared() {
			continue
		}
		for i := range n.Subnets {
			if err := e.returnBlocks(ctx, n, i, counts[n.Name] > 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *Engine) returnBlocks(ctx context.Context, n api.Network, i int, keepOne bool) error {
	noun := api.NetworkNoun(n.Name)
	unlock, err := e.busy.lock(ctx, "blocks of "+noun)
	if err != nil {
		return refused(noun, err)
	}
	defer unlock()
	before := e.takesPart(n)
	e.mu.Lock()
	cluster := e.cluster
	var idle, kept []netip.Prefix
	if pools := e.pools[n.Name]; cluster != nil && i < len(pools) {
		for _, b := range pools[i].Blocks() {
			switch {
			case pools[i].Used(b) > 0:
				kept = append(kept, b)
			case keepOne:
				kept, keepOne = append(kept, b), false
			default:
				idle = append(idle, b)
			}
		}
		// From here on nothing of the others is given out. What is kept goes at the same time: a change of the network
		// makes its pools anew from it.
		pools[i].SetBlocks(kept)
		for _, b := range idle {
			if err := e.Store.SetValue(blockKey(n, b.String()), ""); err != nil {
				e.mu.Unlock()
				return refused(noun, err)
			}
		}
	}
	e.mu.Unlock()
	if len(idle) == 0 {
		return nil
	}
	if err := e.changePart(ctx, n, before); err != nil {
		return err
	}
	return cluster.Return(ctx, n, idle)
}

// share makes a network of this machine one of the cluster; the network is locked. Its endpoints go on as they are: the
// blocks that their addresses are in become this machine's first.
func (e *Engine) share(ctx context.Context, n api.Network) (api.Network, error) {
	noun := api.NetworkNoun(n.Name)
	n.Scope = api.ClusterScope
	e.mu.Lock()
	cluster, err := e.cluster, e.checkShared(noun, n)
	e.mu.Unlock()
	if err != nil {
		return n, err
	}
	agreed, err := cluster.Agree(ctx, nil, n)
	if err != nil {
		return n, err
	}
	if err := e.leaseUsed(ctx, cluster, agreed); err != nil {
		return n, err
	}
	e.mu.Lock()
	c := state.Change{PutNetworks: []api.Network{agreed}}
	if _, err = e.Store.Commit(&c); err == nil {
		e.reservePools(agreed)
	}
	e.mu.Unlock()
	if err != nil {
		return agreed, refused(noun, err)
	}
	return c.PutNetworks[0], refusedOrNil(noun, e.applyNetwork(ctx, agreed))
}

// leaseUsed leases the blocks with the addresses that are in use.
func (e *Engine) leaseUsed(ctx context.Context, cluster Cluster, n api.Network) error {
	for _, s := range n.Subnets {
		var mine []netip.Prefix
		for _, ep := range e.Store.Endpoints() {
			a := ep.Address(s.Prefix.Addr().Is4())
			if ep.Network != n.Name || !a.IsValid() || slices.ContainsFunc(mine, func(b netip.Prefix) bool { return b.Contains(a) }) {
				continue
			}
			got, err := cluster.Lease(ctx, n, s.Prefix, a, 1, mine)
			if err != nil {
				return err
			}
			for _, b := range got {
				if err := e.Store.SetValue(blockKey(n, b.String()), "1"); err != nil {
					return refused(api.NetworkNoun(n.Name), err)
				}
			}
			mine = append(mine, got...)
		}
	}
	return nil
}
