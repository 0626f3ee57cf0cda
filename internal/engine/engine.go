// Package engine has the verbs: it turns what the doors ask for into state, state into desired kernel objects by the
// drivers and addons, and waits for the reconciler to have the kernel hold them.
//
// It opens nothing itself: store, reconciler, drivers and what lives beside the kernel (name server, loopback proxy)
// are given to it.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/addon"
	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/ipam/pool"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/ruleset"
	"github.com/seine-net/seine/internal/state"
)

// MachineOwner owns what the machine as a whole needs: the table, forwarding, accepts in other people's chains.
const MachineOwner = "machine"

// Names is told the names of endpoints; the name server answers from it.
type Names interface {
	Set(key string, r NameRecord)
	Drop(key string)
	// SetGuests says which addresses may ask for names outside although no endpoint has them.
	SetGuests(from []netip.Prefix)
}

// NameRecord is what an endpoint brings into the name server.
type NameRecord struct {
	// Names are the endpoint's own, its container's and its aliases, seen in Network; the first one is the one to tell.
	Names   []string
	Network string
	// Aliases are further names of Network.
	Aliases []string
	Addrs   []netip.Addr
	// Container ties the endpoints of one sandbox together.
	Container string
	// Internal says that nothing is asked for outside on behalf of this endpoint.
	Internal bool
}

// Relays is told which published ports have to be served in user space.
type Relays interface {
	Set(key string, relays []Relay) error
	Drop(key string)
}

// Relay leads a port of the machine's loopback to an endpoint.
type Relay struct {
	Protocol   string
	Listen, To netip.AddrPort
}

// Machine is what the engine asks about the machine beyond Facts.
type Machine interface {
	// CheckNetns gives the identity of the network namespace that a path names, 0 where the kernel does not tell it. The
	// error says why an interface can't be put there.
	CheckNetns(path string) (cookie uint64, err error)
	// ProcessStart gives the start time of a process (proc_pid_stat(5), field 22), an error if there is none.
	ProcessStart(pid int) (uint64, error)
	// CheckMovable says why an interface of the machine can't be moved into a sandbox: it is not there, or in use.
	CheckMovable(link string) error
	// WatchProcess calls gone once when the process has ended or is another one than started then; it does not block.
	WatchProcess(pid int, start uint64, gone func())
}

// Config is what an Engine is made of. All fields but IPAMs, Names and Relays are required.
type Config struct {
	Store   *state.Store
	Want    *desired.Set
	Loop    *reconcile.Reconciler
	Drivers map[string]driver.Driver
	// IPAMs give out addresses in the place of the daemon; may be nil.
	IPAMs  map[string]driver.Attacher
	Addons map[string]addon.Addon
	// Fabrics are the ways from one machine of a cluster to another, by name.
	Fabrics map[string]fabric.Fabric
	Machine Machine
	Names   Names
	Relays  Relays
	Log     *slog.Logger
	// DNSPort is the port that the name server listens on, at every address.
	DNSPort uint16
	// DNSFixed are addresses of the machine's lo at which the name server is found whatever network a container is on, at
	// most one of each family; none for not at all.
	DNSFixed []netip.Addr
	// Pools are the ranges that networks without subnets get theirs from.
	Pools pool.Subnets
	// Named, where set, is called by Load when Names has all that the store holds, and before the kernel is looked at: from
	// then on the name server can answer.
	Named func()
	// Refresh, where set, has SetFacts called with what is the case now. Facts follow the machine by a fraction of a second;
	// it is asked for before a network is refused because of something that was there.
	Refresh func(context.Context)
	// Findings, where set, gives Doctor what others than the engine found.
	Findings func() []api.Finding
	// Fallback is the network of endpoints whose maker names none.
	Fallback string
	// Node is the machine's name, Version the program's, Boot an identity of the machine's present uptime.
	Node, Version, Boot string
}

// Engine has the verbs. Its methods may be called from several goroutines.
type Engine struct {
	Config
	since time.Time
	busy  keyLock // one verb at a time per network and per endpoint

	plugins refusedPlugins

	// placing has what the store says of an endpoint come into the desired set, or out of it, in the store's order: a commit
	// comes before it, and who has not just committed looks at the store while he holds it. e.mu may be taken under it.
	placing sync.Mutex

	machine sync.Mutex // one setMachine at a time, and none during the first steps of Reset

	mu    sync.Mutex // guards what follows and the order of commits
	facts kernel.Facts
	pools map[string][]*pool.Pool
	ports map[portKey][]portUse
	// sandboxes are the keys of the endpoints with an interface in each namespace.
	sandboxes map[string][]string
	// leaving are endpoints that the kernel was not clean of when they were detached, by key.
	leaving map[string]leaving
	cluster Cluster // nil while the machine is in none
	// self is what the cluster knows this machine as; peers are the others by ID, and paths the ways to them.
	self  api.Node
	peers map[string]Peer
	paths map[string][]api.Path
	hops  fabric.Numbers
}

// New makes an Engine from a store; Load makes it work.
func New(c Config, facts kernel.Facts) *Engine {
	e := &Engine{Config: c, since: time.Now().UTC(), facts: facts, pools: map[string][]*pool.Pool{}, ports: map[portKey][]portUse{},
		sandboxes: map[string][]string{}, leaving: map[string]leaving{},
		peers: map[string]Peer{}, paths: map[string][]api.Path{}}
	e.busy.held = map[string]chan struct{}{}
	e.plugins.by, e.plugins.wake = map[string]*refusal{}, make(chan struct{}, 1)
	return e
}

// Load takes up what the store holds, has the kernel hold it, and removes what is ours and unwanted. It must have
// returned before the first verb. What the kernel refuses is in the nouns' status and tried again; it is no error here.
func (e *Engine) Load(ctx context.Context) error {
	if err := e.forgetBoot(); err != nil {
		return err
	}
	if err := e.forgetReplaced(); err != nil {
		return err
	}
	e.mu.Lock()
	for _, n := range e.Store.Networks() {
		e.addPools(n)
	}
	for _, ep := range e.Store.Endpoints() {
		if err := e.adopt(ep); err != nil {
			e.Log.Error("stored endpoint", "endpoint", ep.Key(), "err", err)
		}
	}
	e.mu.Unlock()
	if err := e.setMachine(); err != nil {
		return err
	}
	for _, ep := range e.Store.Endpoints() {
		e.announceNames(ep)
	}
	if e.Named != nil {
		e.Named()
	}
	for _, n := range e.Store.Networks() {
		if _, err := e.setNetwork(n); err != nil {
			e.Log.Error("stored network", "network", n.Name, "err", err)
		}
	}
	for _, ep := range e.Store.Endpoints() {
		if _, err := e.setEndpoint(ep); err != nil {
			e.Log.Error("stored endpoint", "endpoint", ep.Key(), "err", err)
		}
	}
	e.Loop.Loaded()
	if err := e.Loop.SyncAll(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		e.Log.Warn("not all could be restored", "err", err)
	}
	for _, ep := range e.Store.Endpoints() {
		e.announce(ep)
		e.watchSandbox(ep)
	}
	return nil
}

// forgetBoot drops the endpoints of an earlier uptime of the machine: their sandboxes can't have survived.
func (e *Engine) forgetBoot() error {
	if e.Boot == "" || e.Store.Value("boot") == e.Boot {
		return nil
	}
	if e.Store.Value("boot") != "" {
		var c state.Change
		for _, ep := range e.Store.Endpoints() {
			c.DeleteEndpoints = append(c.DeleteEndpoints, ep.Key())
		}
		if len(c.DeleteEndpoints) > 0 {
			if _, err := e.Store.Commit(&c); err != nil {
				return err
			}
			e.Log.Info("the machine was restarted: endpoints of before are dropped", "count", len(c.DeleteEndpoints))
		}
	}
	return e.Store.SetValue("boot", e.Boot)
}

// forgetReplaced drops the endpoints of namespaces that are gone while another one has their path.
func (e *Engine) forgetReplaced() error {
	var c state.Change
	for _, ep := range e.Store.Endpoints() {
		if e.replaced(ep) {
			c.DeleteEndpoints = append(c.DeleteEndpoints, ep.Key())
		}
	}
	if len(c.DeleteEndpoints) == 0 {
		return nil
	}
	e.Log.Info("other namespaces have the paths of endpoints, which are dropped", "endpoints", c.DeleteEndpoints)
	_, err := e.Store.Commit(&c)
	return err
}

// replaced reports whether another namespace has the path of an endpoint's.
func (e *Engine) replaced(ep api.Endpoint) bool {
	if ep.Sandbox.Cookie == 0 {
		return false
	}
	cookie, err := e.Machine.CheckNetns(ep.Sandbox.Netns)
	return err == nil && cookie != 0 && cookie != ep.Sandbox.Cookie
}

// Facts gives what is known about the machine.
func (e *Engine) Facts() kernel.Facts {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.facts
}

// SetFacts takes up what changed about the machine and recomputes what hangs on it.
func (e *Engine) SetFacts(ctx context.Context, f kernel.Facts) error {
	e.mu.Lock()
	old := e.facts
	e.facts = f
	e.mu.Unlock()
	err := e.setMachine()
	for _, n := range e.Store.Networks() {
		if moved(e.parents(n), old, f) {
			err = errors.Join(err, e.renew(n))
		}
	}
	if old.BridgeFilter4 != f.BridgeFilter4 || old.BridgeFilter6 != f.BridgeFilter6 {
		for _, ep := range e.Store.Endpoints() {
			if len(ep.Ports) > 0 {
				_, e2 := e.resetEndpoint(ep)
				err = errors.Join(err, e2)
			}
		}
		e.Loop.Touch(e.Want.Keys("")...)
	}
	e.refreshSoon(ctx)
	return err
}

// moved reports whether one of the links came, went, or changed from down to up.
func moved(links []string, old, now kernel.Facts) bool {
	return slices.ContainsFunc(links, func(name string) bool {
		a, b := old.Link(name), now.Link(name)
		return (a == nil) != (b == nil) || a != nil && (a.Index != b.Index || a.Up != b.Up || a.Ours != b.Ours)
	})
}

// renew has a network and its endpoints looked at in the kernel: what was made on a link goes with it.
func (e *Engine) renew(n api.Network) error {
	keys, err := e.setNetwork(n)
	keys = append(keys, e.Want.Keys(driver.NetworkOwner(n.Name))...)
	for _, ep := range e.Store.Endpoints() {
		if ep.Network == n.Name {
			keys = append(keys, e.Want.Keys(driver.EndpointOwner(ep.Network, ep.Name))...)
		}
	}
	if len(keys) > 0 {
		e.Loop.Touch(keys...)
	}
	return err
}

// setMachine computes what the machine as a whole needs and hands it to the reconciler without waiting. Forwarding is not
// needed while there is no network that the machine is on, and nothing at all before the first one and after a reset.
func (e *Engine) setMachine() error {
	e.machine.Lock()
	defer e.machine.Unlock()
	f := e.Facts()
	var out []kernel.Object
	var names []string
	for _, n := range e.Store.Networks() {
		if via := e.via(n); len(n.Subnets) > 0 && via != "" && (!n.Shared() || e.takesPart(n)) {
			names = append(names, via)
		}
	}
	var fixed []netip.Addr
	if len(names) > 0 || e.Store.Value(defaultsMade) != "" {
		fixed = e.fixed(f)
	}
	var guests []kernel.LinkFact
	if len(fixed) > 0 {
		guests = guestsOf(f)
		out = append(out, fixedObjects(fixed, guests)...)
	}
	if e.Names != nil {
		e.Names.SetGuests(guestPrefixes(fixed, guests))
	}
	if len(names) > 0 {
		more, err := e.forwarding(f)
		if err != nil {
			return err
		}
		out = append(append(out, more...), apart(f)...)
	}
	if len(out) > 0 {
		out = append(out, ruleset.Table(e.DNSPort, f.BridgeFilter6))
		for _, c := range f.Chains {
			out = append(out, e.accepts(c, patterns(names), guests)...)
		}
	}
	keys, err := e.Want.Set(MachineOwner, out...)
	if err != nil {
		return err
	}
	if len(keys) > 0 {
		e.Loop.Touch(keys...)
	}
	return nil
}

// setNetwork computes a network's objects and hands them to the desired set.
func (e *Engine) setNetwork(n api.Network) ([]kernel.Key, error) {
	d := e.driver(n.Driver)
	if d == nil {
		return nil, fmt.Errorf("driver %q is not known", n.Driver)
	}
	if n.Shared() && !e.takesPart(n) {
		return e.Want.Drop(driver.NetworkOwner(n.Name)), nil
	}
	objects, err := d.Network(n, e.Facts())
	if err != nil {
		return nil, err
	}
	if n.Shared() {
		shared := fabric.Network{Network: n, Link: e.via(n)}
		objects = append(objects, fabric.Shared(shared, driver.NetworkOwner(n.Name))...)
	}
	return e.Want.Set(driver.NetworkOwner(n.Name), objects...)
}

// setEndpoint computes the objects of an endpoint that is as the store has it, and hands them to the desired set.
func (e *Engine) setEndpoint(ep api.Endpoint) ([]kernel.Key, error) {
	e.placing.Lock()
	defer e.placing.Unlock()
	return e.wantEndpoint(ep)
}

// wantEndpoint is setEndpoint for who holds e.placing.
func (e *Engine) wantEndpoint(ep api.Endpoint) ([]kernel.Key, error) {
	objects, err := e.endpointObjects(ep)
	if err != nil {
		return nil, err
	}
	return e.Want.Set(driver.EndpointOwner(ep.Network, ep.Name), objects...)
}

// resetEndpoint computes and announces an endpoint anew, after something that it follows from has changed: as it is now,
// which may be gone since it was listed. It does not keep the endpoint from verbs: one that waits for blocks of addresses
// waits for the verbs of its network, which call this.
func (e *Engine) resetEndpoint(listed api.Endpoint) ([]kernel.Key, error) {
	e.placing.Lock()
	defer e.placing.Unlock()
	ep, ok := e.Store.Endpoint(listed.Key())
	if !ok {
		return nil, nil
	}
	keys, err := e.wantEndpoint(ep)
	if err == nil {
		e.announce(ep)
	}
	return keys, err
}

func (e *Engine) endpointObjects(ep api.Endpoint) ([]kernel.Object, error) {
	n, ok := e.Store.Network(ep.Network)
	if !ok {
		return nil, fmt.Errorf("network %q is not known", ep.Network)
	}
	d := e.driver(n.Driver)
	if d == nil {
		return nil, fmt.Errorf("driver %q is not known", n.Driver)
	}
	if len(e.parties(n)) > 0 && ep.Plugin == nil {
		return nil, nil // not attached yet
	}
	f := e.Facts()
	objects, err := d.Objects(n, ep, f)
	if _, foreign := d.(driver.Attacher); err != nil || foreign { // the rest is the plugin's
		return objects, err
	}
	at := addon.Place{Owner: driver.EndpointOwner(ep.Network, ep.Name)}
	at.HostInterface, _ = d.Interfaces(n, ep)
	for _, name := range slices.Sorted(mapKeys(e.Addons)) {
		more, err := e.Addons[name].Objects(n, ep, at, f)
		if err != nil {
			return nil, fmt.Errorf("addon %s: %w", name, err)
		}
		objects = append(objects, more...)
	}
	if n.Shared() {
		objects = append(objects, fabric.Local(fabric.Network{Network: n, Link: e.via(n)}, ep)...)
	}
	return objects, nil
}

// via is the machine's interface of a network, or one that is named alike where each endpoint has its own.
func (e *Engine) via(n api.Network) string {
	if d := e.driver(n.Driver); d != nil {
		via, _ := d.Interfaces(n, api.Endpoint{})
		return via
	}
	return ""
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// keyLock lets one holder at a time have each key, without keeping keys that nobody holds.
type keyLock struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits for the key and returns what gives it back.
func (l *keyLock) lock(ctx context.Context, key string) (func(), error) {
	for {
		l.mu.Lock()
		ch, taken := l.held[key]
		if !taken {
			mine := make(chan struct{})
			l.held[key] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, key)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// checkRevision compares a caller's If-Match with the noun as it is stored.
func checkRevision(noun string, match uint64, exists bool, revision uint64) error {
	switch {
	case match == 0:
		return nil
	case match == api.CreateOnly:
		if exists {
			return api.Errorf(api.Conflict, noun, "exists already")
		}
		return nil
	case !exists:
		return api.Errorf(api.NotFound, noun, "does not exist")
	case match != revision:
		return api.Errorf(api.Stale, noun, "is at revision %d, not %d: somebody changed it meanwhile", revision, match)
	}
	return nil
}

// refused turns what the kernel or the desired set said into an error of the API.
func refused(noun string, err error) error {
	var known *api.Error
	code := api.Internal
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, kernel.ErrInUse), errors.Is(err, kernel.ErrExists), errors.Is(err, desired.ErrConflict):
		code = api.Conflict
	case errors.Is(err, kernel.ErrNamespaceGone):
		code = api.Conflict
	case errors.Is(err, kernel.ErrUnsupported):
		code = api.Unsupported
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, reconcile.ErrEnded):
		code = api.Unavailable
	}
	return api.Errorf(code, noun, "%w", err)
}
