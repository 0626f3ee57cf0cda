// Package fakeengine is an engine in memory for tests of what stands before it: the HTTP door, the client, the command
// line. It keeps nouns, revisions and a history for watches, and gives out addresses; it knows no kernel, and of the
// real engine's checks only those that its users meet.
package fakeengine

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/seine-net/seine/api"
)

// Engine is the fake. The zero value is no good; use New.
type Engine struct {
	// Fail, if set, is asked before each verb ("PutNetwork", "Node", …); an error that it returns is the verb's. It is
	// called without a lock and may block, or panic.
	Fail func(verb string) error
	// Findings and Changes are what Doctor and Plan give; Changes are filtered by owner.
	Findings []api.Finding
	Changes  []api.Change
	// Ways are what Paths gives.
	Ways []api.Path

	mu        sync.Mutex
	revision  uint64
	forgotten uint64 // the history begins after this revision
	networks  map[string]api.Network
	endpoints map[string]api.Endpoint
	history   []api.Event
	changed   chan struct{} // closed and replaced with every event
	hosts     byte
	joined    *api.Cluster
	machines  []api.Node // of the cluster, by name
}

// New makes an engine without nouns.
func New() *Engine {
	return &Engine{networks: map[string]api.Network{}, endpoints: map[string]api.Endpoint{}, changed: make(chan struct{})}
}

func (e *Engine) enter(ctx context.Context, verb string) error {
	if e.Fail != nil {
		if err := e.Fail(verb); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func check(noun string, match uint64, exists bool, revision uint64) error {
	switch {
	case match == api.CreateOnly && exists:
		return api.Errorf(api.Conflict, noun, "exists already")
	case match == 0 || match == api.CreateOnly:
		return nil
	case !exists:
		return api.Errorf(api.NotFound, noun, "does not exist")
	case match != revision:
		return api.Errorf(api.Stale, noun, "is at revision %d, not %d: somebody changed it meanwhile", revision, match)
	}
	return nil
}

// record notes an event; e.mu is held.
func (e *Engine) record(ev api.Event) {
	ev.Revision = e.revision
	e.history = append(e.history, ev)
	close(e.changed)
	e.changed = make(chan struct{})
}

// Forget drops the history, as a restart of the daemon does.
func (e *Engine) Forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.history, e.forgotten = nil, e.revision
}

// PutNetwork stores a network; one without subnets gets 10.N.0.0/24 and fd00:N::/64.
func (e *Engine) PutNetwork(ctx context.Context, n api.Network, match uint64) (api.Network, error) {
	if err := e.enter(ctx, "PutNetwork"); err != nil {
		return n, err
	}
	if err := n.Validate(); err != nil {
		return n, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	old, exists := e.networks[n.Name]
	if err := check(api.NetworkNoun(n.Name), match, exists, old.Revision); err != nil {
		return n, err
	}
	n.Driver = cmp.Or(n.Driver, "bridge")
	if len(n.Subnets) == 0 && (n.Driver == "bridge" || n.Driver == "ptp") {
		if n.Subnets = old.Subnets; len(n.Subnets) == 0 {
			k := byte(len(e.networks) + 1)
			n.Subnets = []api.Subnet{{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, k, 0, 0}), 24)},
				{Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, k}), 64)}}
		}
	}
	for i := range n.Subnets {
		if !n.Subnets[i].Gateway.IsValid() {
			n.Subnets[i].Gateway = api.FirstHost(n.Subnets[i].Prefix)
		}
	}
	e.revision++
	n.Revision, n.Created = e.revision, "2026-01-02T03:04:05Z"
	e.networks[n.Name] = n
	e.record(api.Event{Type: api.EventPut, Kind: "network", Network: &n})
	return e.withCount(n), nil
}

func (e *Engine) withCount(n api.Network) api.Network {
	n.Status = &api.NetworkStatus{}
	for _, ep := range e.endpoints {
		if ep.Network == n.Name {
			n.Status.Endpoints++
		}
	}
	return n
}

// Network gives a network.
func (e *Engine) Network(ctx context.Context, name string) (api.Network, error) {
	if err := e.enter(ctx, "Network"); err != nil {
		return api.Network{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n, ok := e.networks[name]
	if !ok {
		return n, api.Errorf(api.NotFound, api.NetworkNoun(name), "does not exist")
	}
	return e.withCount(n), nil
}

// Networks gives all networks, in no order.
func (e *Engine) Networks(ctx context.Context) ([]api.Network, error) {
	if err := e.enter(ctx, "Networks"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []api.Network
	for _, n := range e.networks {
		out = append(out, e.withCount(n))
	}
	return out, nil
}

// DeleteNetwork removes a network without endpoints.
func (e *Engine) DeleteNetwork(ctx context.Context, name string, match uint64) error {
	if err := e.enter(ctx, "DeleteNetwork"); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	noun := api.NetworkNoun(name)
	n, ok := e.networks[name]
	if !ok {
		return api.Errorf(api.NotFound, noun, "does not exist")
	}
	if err := check(noun, match, true, n.Revision); err != nil {
		return err
	}
	if c := e.withCount(n).Status.Endpoints; c > 0 {
		return api.Errorf(api.InUse, noun, "has %d endpoints", c)
	}
	delete(e.networks, name)
	e.revision++
	e.record(api.Event{Type: api.EventDelete, Kind: "network", Network: &n})
	return nil
}

// PutEndpoint stores an endpoint and gives it the next address of each subnet where it asks for none.
func (e *Engine) PutEndpoint(ctx context.Context, ep api.Endpoint, match uint64) (api.Endpoint, error) {
	if err := e.enter(ctx, "PutEndpoint"); err != nil {
		return ep, err
	}
	if err := ep.Validate(); err != nil {
		return ep, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	noun := api.EndpointNoun(ep.Network, ep.Name)
	old, exists := e.endpoints[ep.Key()]
	if err := check(noun, match, exists, old.Revision); err != nil {
		return ep, err
	}
	n, ok := e.networks[ep.Network]
	if !ok {
		return ep, api.Errorf(api.NotFound, noun, "network %q does not exist", ep.Network)
	}
	if exists && ep.Sandbox.Netns == "" {
		ep.Sandbox = old.Sandbox
	}
	for _, o := range e.endpoints {
		for _, p := range o.Ports {
			if i := slices.IndexFunc(ep.Ports, func(q api.Port) bool { return q.HostPort == p.HostPort }); i >= 0 && o.Key() != ep.Key() {
				err := api.FieldError(noun, "ports[0].hostPort", p.HostPort, "is published already by endpoint \""+o.Key()+"\"", "a port that is free")
				err.Code = api.Conflict
				return ep, err
			}
		}
	}
	st := &api.EndpointStatus{State: api.Attached, HostInterface: "sp-" + ep.Name, MTU: 1500}
	if e.hosts++; e.hosts < 2 {
		e.hosts = 2
	}
	for _, s := range n.Subnets {
		a := ep.Address(s.Prefix.Addr().Is4())
		if !a.IsValid() {
			b := s.Prefix.Addr().AsSlice()
			b[len(b)-1] = e.hosts
			a, _ = netip.AddrFromSlice(b)
			ep.Addresses = append(ep.Addresses, a)
		}
		st.Prefixes = append(st.Prefixes, netip.PrefixFrom(a, s.Prefix.Bits()))
		st.Gateways = append(st.Gateways, s.Gateway)
		st.DNS = append(st.DNS, s.Gateway)
		if search := n.Options["dns.search"]; search != "" {
			st.Search, st.DNSOptions = strings.Split(search, ","), strings.Split(n.Options["dns.options"], ",")
		}
	}
	e.revision++
	ep.Revision, ep.Created, ep.Status = e.revision, "2026-01-02T03:04:05Z", st
	if ep.Index = old.Index; !exists {
		for _, o := range e.endpoints {
			if o.Sandbox.Netns == ep.Sandbox.Netns {
				ep.Index++
			}
		}
	}
	ep.Sandbox.Interface = cmp.Or(ep.Sandbox.Interface, fmt.Sprintf("eth%d", ep.Index))
	e.endpoints[ep.Key()] = ep
	e.record(api.Event{Type: api.EventPut, Kind: "endpoint", Endpoint: &ep})
	return ep, nil
}

// Endpoint gives an endpoint.
func (e *Engine) Endpoint(ctx context.Context, network, name string) (api.Endpoint, error) {
	if err := e.enter(ctx, "Endpoint"); err != nil {
		return api.Endpoint{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	ep, ok := e.endpoints[network+"/"+name]
	if !ok {
		return ep, api.Errorf(api.NotFound, api.EndpointNoun(network, name), "does not exist")
	}
	return ep, nil
}

// Endpoints gives all endpoints, in no order.
func (e *Engine) Endpoints(ctx context.Context) ([]api.Endpoint, error) {
	if err := e.enter(ctx, "Endpoints"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []api.Endpoint
	for _, ep := range e.endpoints {
		out = append(out, ep)
	}
	return out, nil
}

// SetState changes what the status of an endpoint says, without a new revision.
func (e *Engine) SetState(key string, s api.State, cause string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ep := e.endpoints[key]
	st := *ep.Status
	st.State, st.Error = s, cause
	ep.Status = &st
	e.endpoints[key] = ep
}

// DeleteEndpoint removes an endpoint.
func (e *Engine) DeleteEndpoint(ctx context.Context, network, name string, match uint64) error {
	if err := e.enter(ctx, "DeleteEndpoint"); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	ep, ok := e.endpoints[network+"/"+name]
	if !ok {
		return api.Errorf(api.NotFound, api.EndpointNoun(network, name), "does not exist")
	}
	if err := check(api.EndpointNoun(network, name), match, true, ep.Revision); err != nil {
		return err
	}
	delete(e.endpoints, ep.Key())
	e.revision++
	e.record(api.Event{Type: api.EventDelete, Kind: "endpoint", Endpoint: &ep})
	return nil
}

// Node gives the counts.
func (e *Engine) Node(ctx context.Context) (api.Node, error) {
	if err := e.enter(ctx, "Node"); err != nil {
		return api.Node{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return api.Node{Name: "n1", Version: "v0.0.0-fake", Revision: e.revision, Networks: len(e.networks), DefaultNetwork: "default",
		Drivers:   []api.Driver{{Name: "bridge"}, {Name: "macvlan", Options: map[string]string{"parent": "the machine's interface", "mode": "bridge or private"}}},
		Endpoints: len(e.endpoints), Objects: 10 * len(e.endpoints), Since: "2026-01-02T03:04:05Z"}, nil
}

// Plan gives those Changes that an owner wants.
func (e *Engine) Plan(ctx context.Context, owner string) (api.Plan, error) {
	if err := e.enter(ctx, "Plan"); err != nil {
		return api.Plan{}, err
	}
	var p api.Plan
	for _, c := range e.Changes {
		if owner == "" || owner == c.Owner {
			p.Changes = append(p.Changes, c)
		}
	}
	return p, nil
}

// Doctor gives Findings.
func (e *Engine) Doctor(ctx context.Context) ([]api.Finding, error) {
	if err := e.enter(ctx, "Doctor"); err != nil {
		return nil, err
	}
	return e.Findings, nil
}

// Reset removes all nouns.
func (e *Engine) Reset(ctx context.Context) error {
	if err := e.enter(ctx, "Reset"); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ep := range e.endpoints {
		e.revision++
		e.record(api.Event{Type: api.EventDelete, Kind: "endpoint", Endpoint: &ep})
	}
	for _, n := range e.networks {
		e.revision++
		e.record(api.Event{Type: api.EventDelete, Kind: "network", Network: &n})
	}
	clear(e.endpoints)
	clear(e.networks)
	return nil
}

// Watch sends the history after since, then what happens.
func (e *Engine) Watch(ctx context.Context, since uint64) (<-chan api.Event, error) {
	if err := e.enter(ctx, "Watch"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	var first []api.Event
	if since == 0 || since < e.forgotten || since > e.revision {
		if since != 0 {
			first = append(first, api.Event{Type: api.EventReset})
		}
		first = append(first, e.present()...)
		since = e.revision
	}
	e.mu.Unlock()
	out := make(chan api.Event)
	go func() {
		defer close(out)
		for {
			for _, ev := range first {
				select {
				case out <- ev:
				case <-ctx.Done():
					return
				}
			}
			e.mu.Lock()
			first = nil
			for _, ev := range e.history {
				if ev.Revision > since {
					first = append(first, ev)
					since = ev.Revision
				}
			}
			changed := e.changed
			e.mu.Unlock()
			if len(first) > 0 {
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// present is the state as puts, by revision; e.mu is held.
func (e *Engine) present() []api.Event {
	var out []api.Event
	for _, n := range e.networks {
		out = append(out, api.Event{Revision: n.Revision, Type: api.EventPut, Kind: "network", Network: &n})
	}
	for _, ep := range e.endpoints {
		out = append(out, api.Event{Revision: ep.Revision, Type: api.EventPut, Kind: "endpoint", Endpoint: &ep})
	}
	slices.SortFunc(out, func(a, b api.Event) int { return cmp.Compare(a.Revision, b.Revision) })
	return out
}
