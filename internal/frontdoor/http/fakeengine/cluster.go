package fakeengine

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/seine-net/seine/api"
)

// goodToken is the only one that lets the fake join.
const goodToken = "good"

func (e *Engine) enterCluster(joined bool) error {
	switch {
	case joined && e.joined == nil:
		return api.Errorf(api.Conflict, "cluster", "this machine is in none; found one with `seine cluster init`, or join one")
	case !joined && e.joined != nil:
		return api.Errorf(api.Conflict, "cluster", "this machine is in cluster %q already; leave it first (seine cluster leave)", e.joined.Name)
	}
	return nil
}

// begin puts the fake into a cluster with a second machine, n2; e.mu is held.
func (e *Engine) begin(c api.Cluster) api.Cluster {
	c.ID, c.Node, c.Members = "c1", "id-n1", []string{"id-n1"}
	e.joined = &c
	e.machines = []api.Node{
		{ID: "id-n1", Name: "n1", Version: "v0.0.0-fake", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Health: api.Alive},
		{ID: "id-n2", Name: "n2", Version: "v0.0.0-fake", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Health: api.Alive, Networks: 1, Endpoints: 3}}
	for i := range e.machines {
		e.machines[i].Since = "2026-01-02T03:04:05Z"
	}
	return c
}

// InitCluster founds a cluster.
func (e *Engine) InitCluster(ctx context.Context, q api.ClusterInit) (api.Cluster, error) {
	if err := e.enter(ctx, "InitCluster"); err != nil {
		return api.Cluster{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.enterCluster(false); err != nil {
		return api.Cluster{}, err
	}
	c := api.Cluster{Name: q.Name, Store: "embedded", Endpoints: []string{"https://192.0.2.1:7462"}}
	if c.Name == "" {
		c.Name = "default"
	}
	if len(q.Etcd) > 0 {
		c.Store, c.Endpoints = "etcd", q.Etcd
	}
	return e.begin(c), nil
}

// JoinCluster joins a cluster called "joined" with the token "good".
func (e *Engine) JoinCluster(ctx context.Context, q api.ClusterJoin) (api.Cluster, error) {
	if err := e.enter(ctx, "JoinCluster"); err != nil {
		return api.Cluster{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.enterCluster(false); err != nil {
		return api.Cluster{}, err
	}
	if q.Token != goodToken {
		return api.Cluster{}, api.Errorf(api.Invalid, "token", "lets nobody in, or not any more; want a new one (seine cluster token)")
	}
	return e.begin(api.Cluster{Name: "joined", Store: "embedded", Endpoints: []string{"https://" + q.Address + ":7462"}}), nil
}

// LeaveCluster leaves; with a store that is away (StoreAway) only by force.
func (e *Engine) LeaveCluster(ctx context.Context, force bool) error {
	if err := e.enter(ctx, "LeaveCluster"); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.enterCluster(true); err != nil {
		return err
	}
	if e.joined.StoreError != "" && !force {
		return api.Errorf(api.Unavailable, "cluster", "%s", e.joined.StoreError)
	}
	e.joined, e.machines = nil, nil
	return nil
}

// StoreAway has the cluster say that its store can't be used.
func (e *Engine) StoreAway(why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.joined.StoreError = why
}

// Cluster gives the cluster.
func (e *Engine) Cluster(ctx context.Context) (api.Cluster, error) {
	if err := e.enter(ctx, "Cluster"); err != nil {
		return api.Cluster{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.enterCluster(true); err != nil {
		return api.Cluster{}, err
	}
	return *e.joined, nil
}

// ClusterToken gives a token.
func (e *Engine) ClusterToken(ctx context.Context, rotate bool) (api.ClusterToken, error) {
	if err := e.enter(ctx, "ClusterToken"); err != nil {
		return api.ClusterToken{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t := api.ClusterToken{Token: goodToken, Expires: "2026-01-03T03:04:05Z"}
	if rotate {
		t.Token = "rotated"
	}
	return t, e.enterCluster(true)
}

// Nodes gives the machines; in no cluster that is the fake's Node.
func (e *Engine) Nodes(ctx context.Context) ([]api.Node, error) {
	if err := e.enter(ctx, "Nodes"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	all := slices.Clone(e.machines)
	e.mu.Unlock()
	if len(all) > 0 {
		return all, nil
	}
	self, err := e.Node(ctx)
	return []api.Node{self}, err
}

// machine finds a machine by name; e.mu is held.
func (e *Engine) machine(name string) (int, error) {
	if err := e.enterCluster(true); err != nil {
		return 0, err
	}
	i := slices.IndexFunc(e.machines, func(n api.Node) bool { return n.Name == name })
	if i < 0 {
		return 0, api.Errorf(api.NotFound, fmt.Sprintf("node %q", name), "is not in the cluster")
	}
	return i, nil
}

// RemoveNode removes a machine.
func (e *Engine) RemoveNode(ctx context.Context, name string, force bool) error {
	if err := e.enter(ctx, "RemoveNode"); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	i, err := e.machine(name)
	if err != nil {
		return err
	}
	noun := fmt.Sprintf("node %q", name)
	if i == 0 {
		return api.Errorf(api.Conflict, noun, "is this machine; want `seine cluster leave`")
	}
	if !force {
		return api.Errorf(api.InUse, noun, "answers: its containers use its addresses; want `seine cluster leave` there, or force")
	}
	e.machines = slices.Delete(e.machines, i, i+1)
	return nil
}

// DrainNode marks a machine.
func (e *Engine) DrainNode(ctx context.Context, name string, drained bool) error {
	if err := e.enter(ctx, "DrainNode"); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	i, err := e.machine(name)
	if err == nil {
		e.machines[i].Drained = drained
	}
	return err
}

// Paths gives Ways.
func (e *Engine) Paths(ctx context.Context) ([]api.Path, error) {
	return e.Ways, e.enter(ctx, "Paths")
}
