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
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/ipam/pool"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/state"
)

// Network gives a network with its status; NotFound where there is none.
func (e *Engine) Network(_ context.Context, name string) (api.Network, error) {
	n, ok := e.Store.Network(name)
	if !ok {
		return n, api.Errorf(api.NotFound, api.NetworkNoun(name), "does not exist")
	}
	return e.networkStatus(n, e.Store.CountIn(n.Name)), nil
}

// Networks gives all networks with their status, by name.
func (e *Engine) Networks(context.Context) ([]api.Network, error) {
	counts := e.Store.CountByNetwork()
	all := e.Store.Networks()
	for i := range all {
		all[i] = e.networkStatus(all[i], counts[all[i].Name])
	}
	return all, nil
}

func (e *Engine) networkStatus(n api.Network, endpoints int) api.Network {
	n.Status = &api.NetworkStatus{Endpoints: endpoints, Error: driver.Trouble(e.parents(n), e.Facts())}
	if err := e.Loop.Cause(e.Want.Keys(driver.NetworkOwner(n.Name))); err != nil {
		n.Status.Error = err.Error()
	} else if n.Plugin == "" && len(e.parties(n)) > 0 {
		n.Status.Error = e.plugins.why(api.NetworkNoun(n.Name))
	}
	return n
}

// parents names the links of the machine that a network hangs on, and that need not be ours.
func (e *Engine) parents(n api.Network) []string {
	if p, ok := e.driver(n.Driver).(driver.Parented); ok {
		return p.Parents(n)
	}
	return nil
}

// PutNetwork makes a network, or changes what can be changed of one while it is used: icc, masquerade, internal,
// labels, aliases, reserved addresses. What n leaves out keeps its value. The same again changes nothing. match is a revision
// that the network must have, 0 for any, api.CreateOnly for none. When the kernel refuses, nothing is changed.
func (e *Engine) PutNetwork(ctx context.Context, n api.Network, match uint64) (api.Network, error) {
	noun := api.NetworkNoun(n.Name)
	if err := n.Validate(); err != nil {
		return n, err
	}
	unlock, err := e.busy.lock(ctx, noun)
	if err != nil {
		return n, refused(noun, err)
	}
	defer unlock()
	if was, ok := e.Store.Network(n.Name); ok && n.Shared() && !was.Shared() {
		return e.share(ctx, was)
	}
	if e.sharing(n) {
		return e.putShared(ctx, n, match)
	}
	if err := e.checkIPAM(noun, n); err != nil {
		return n, err
	}
	id, begun, err := e.requestSubnets(ctx, &n)
	if err != nil {
		return n, err
	}
	e.lookAgain(ctx, n)
	old, n, changed, err := e.storeNetwork(n, match)
	if err != nil && begun != nil {
		err = e.giveUp(ctx, n.Name, err)
	}
	if err != nil {
		return n, err
	}
	if n.Plugin == "" {
		made, err := e.setup(ctx, n, id, begun)
		if err != nil {
			if changed {
				e.undoNetwork(ctx, old, n)
			}
			return n, err
		}
		changed, n = changed || made.Plugin != "", made
	}
	if !changed {
		return e.Network(ctx, n.Name)
	}
	if err := e.applyNetwork(ctx, n); err != nil {
		e.undoNetwork(ctx, old, n)
		return n, refused(noun, err)
	}
	return e.Network(ctx, n.Name)
}

// lookAgain renews Facts where they say that the machine itself has addresses of a network: what had them may have gone a
// moment ago.
func (e *Engine) lookAgain(ctx context.Context, n api.Network) {
	f := e.Facts()
	for _, s := range n.Subnets {
		if _, taken := f.Overlapping(s.Prefix); taken && e.Refresh != nil {
			e.Refresh(ctx)
			return
		}
	}
}

// storeNetwork completes and checks a network and commits it; old is nil for a new one.
func (e *Engine) storeNetwork(n api.Network, match uint64) (old *api.Network, _ api.Network, changed bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if old, n, changed, err = e.prepareNetwork(n, match); err == nil && changed {
		n, err = e.commitNetwork(n)
	}
	return old, n, changed, err
}

// prepareNetwork completes and checks a network; old is nil for a new one. Nothing is changed. e.mu is held.
func (e *Engine) prepareNetwork(n api.Network, match uint64) (old *api.Network, _ api.Network, changed bool, err error) {
	noun := api.NetworkNoun(n.Name)
	was, exists := e.Store.Network(n.Name)
	if err := checkRevision(noun, match, exists, was.Revision); err != nil {
		return nil, n, false, err
	}
	n.Status, n.Meta.Revision, n.Created, n.Plugin = nil, 0, "", was.Plugin
	if !exists {
		err := e.completeNetwork(noun, &n)
		return nil, n, err == nil, err
	}
	n.Created = was.Created
	if err := e.mergeNetwork(noun, &n, was); err != nil {
		return &was, n, false, err
	}
	same := was
	same.Revision = 0
	if reflect.DeepEqual(same, n) {
		return &was, was, false, nil
	}
	return &was, n, true, nil
}

// commitNetwork stores a network and gives it its pools; e.mu is held.
func (e *Engine) commitNetwork(n api.Network) (api.Network, error) {
	c := state.Change{PutNetworks: []api.Network{n}}
	if _, err := e.Store.Commit(&c); err != nil {
		return n, refused(api.NetworkNoun(n.Name), err)
	}
	n = c.PutNetworks[0]
	e.reservePools(n)
	return n, nil
}

// mergeNetwork fills what n leaves out from the stored network and refuses what can't be changed.
func (e *Engine) mergeNetwork(noun string, n *api.Network, was api.Network) error {
	if n.Driver == "" {
		n.Driver = was.Driver
	}
	if n.Family == "" {
		n.Family = was.Family
	}
	if n.MTU == 0 {
		n.MTU = was.MTU
	}
	if n.Interface == "" {
		n.Interface = was.Interface
	}
	if n.ICC == nil {
		n.ICC = was.ICC
	}
	if n.Masquerade == nil {
		n.Masquerade = was.Masquerade
	}
	n.Options = merged(was.Options, n.Options)
	if n.IPAM == "" {
		n.IPAM = was.IPAM
	}
	if n.IPAMOptions == nil {
		n.IPAMOptions = was.IPAMOptions
	}
	if n.Labels == nil {
		n.Labels = was.Labels
	}
	if n.Aliases == nil {
		n.Aliases = was.Aliases
	}
	mergeShared(n, was)
	if len(n.Subnets) == 0 {
		n.Subnets = was.Subnets
	}
	n.Subnets = slices.Clone(n.Subnets)
	e.gateways(n)
	if err := e.checkUse(noun, *n); err != nil {
		return err
	}
	if err := e.complete(n, false); err != nil {
		return err
	}
	fixed := []struct {
		field    string
		was, now any
	}{{"driver", was.Driver, n.Driver}, {"family", was.Family, n.Family}, {"mtu", was.MTU, n.MTU},
		{"interface", was.Interface, n.Interface}, {"options", was.Options, n.Options},
		{"ipam", was.IPAM, n.IPAM}, {"ipamOptions", was.IPAMOptions, n.IPAMOptions}, {"subnets", shape(was), shape(*n)},
		{"scope", was.Shared(), n.Shared()}, {"id", was.ID, n.ID}, {"vni", was.VNI, n.VNI}, {"broadcast", was.Broadcast, n.Broadcast}}
	for _, f := range fixed {
		if !reflect.DeepEqual(f.was, f.now) {
			err := api.FieldError(noun, f.field, f.now, "can't be changed", fmt.Sprint(f.was))
			err.Code = api.Conflict
			return err
		}
	}
	return nil
}

// merged gives was with what more has; nil where that is nothing.
func merged(was, more map[string]string) map[string]string {
	if len(was)+len(more) == 0 {
		return nil
	}
	out := maps.Clone(was)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, more)
	return out
}

// gateways gives subnets the gateways that they were not given: the machine's own addresses, where the network's gateway
// is the machine.
func (e *Engine) gateways(n *api.Network) {
	if e.driver(n.Driver) == nil || e.driver(n.Driver).Uses().Router {
		return
	}
	for i := range n.Subnets {
		if s := &n.Subnets[i]; !s.Gateway.IsValid() {
			s.Gateway = api.FirstHost(s.Prefix)
		}
	}
}

// complete has the driver check a network and write its defaults into it; e.mu is held.
func (e *Engine) complete(n *api.Network, isNew bool) error {
	d, ok := e.driver(n.Driver).(driver.Completer)
	if !ok {
		return nil
	}
	all := e.Store.Networks()
	env := driver.Env{Facts: e.facts, New: isNew, Others: slices.DeleteFunc(all, func(o api.Network) bool { return o.Name == n.Name })}
	options := maps.Clone(n.Options)
	if n.Options = options; options == nil {
		n.Options = map[string]string{}
	}
	if err := d.Complete(n, env); err != nil {
		return err
	}
	if len(n.Options) == 0 {
		n.Options = nil
	}
	return nil
}

// shape is the part of a network's subnets that endpoints hang on.
func shape(n api.Network) []string {
	var out []string
	for _, s := range n.Subnets {
		out = append(out, fmt.Sprintf("%s gateway %s range %s", s.Prefix, s.Gateway, s.Range))
	}
	return out
}

// completeNetwork fills the defaults of a new network and checks it against the others and the machine; e.mu is held.
func (e *Engine) completeNetwork(noun string, n *api.Network) error {
	if n.Driver == "" {
		n.Driver = "bridge"
	}
	if err := e.checkUse(noun, *n); err != nil {
		return err
	}
	for _, o := range e.Store.Networks() {
		if api.Fold(o.Name) == api.Fold(n.Name) {
			return api.Errorf(api.Conflict, noun, "differs only in case from network %q", o.Name)
		}
		if n.Interface != "" && n.Interface == e.via(o) {
			err := api.FieldError(noun, "interface", n.Interface, fmt.Sprintf("is the interface of network %q", o.Name), "a name that is not in use")
			err.Code = api.Conflict
			return err
		}
	}
	if !e.driver(n.Driver).Uses().Subnets {
		n.Family = ""
		return nil
	}
	if n.Family == "" {
		n.Family = api.Dual
		if len(n.Subnets) == 1 {
			n.Family = api.IPv6
			if n.Subnets[0].Prefix.Addr().Is4() {
				n.Family = api.IPv4
			}
		} else if len(n.Subnets) == 0 && e.facts.NoIPv6 {
			n.Family = api.IPv4
		}
	}
	parents := e.parents(*n)
	foreign := e.attacher("driver", n.Driver) != nil
	if n.MTU == 0 && len(parents) == 0 && !foreign {
		n.MTU = e.facts.PathMTU()
		if n.Shared() {
			n.MTU -= tunnelRoom
		}
	}
	if n.Subnet6() != nil && n.MTU < 1280 && n.MTU != 0 {
		n.MTU = 1280
	}
	n.Subnets = slices.Clone(n.Subnets)
	for i, s := range n.Subnets {
		if with, what := e.overlap(s.Prefix, len(parents) > 0); what != "" {
			err := api.FieldError(noun, fmt.Sprintf("subnets[%d].prefix", i), s.Prefix, fmt.Sprintf("overlaps %s of %s", with, what),
				"a range that nothing else uses, or none to have one chosen")
			err.Code = api.Conflict
			return err
		}
	}
	for _, v4 := range []bool{true, false} {
		wanted := n.Family == api.Dual || v4 == (n.Family == api.IPv4)
		if !wanted || v4 && n.Subnet4() != nil || !v4 && n.Subnet6() != nil {
			continue
		}
		p, ok := e.Pools.Choose(v4, 0, e.used())
		if !ok {
			return api.Errorf(api.Exhausted, noun, "no range of the default pools is free; name a subnet, or give the daemon more pools")
		}
		n.Subnets = append(n.Subnets, api.Subnet{Prefix: p})
	}
	e.gateways(n)
	return e.complete(n, true)
}

// checkUse refuses what the driver would ignore.
func (e *Engine) checkUse(noun string, n api.Network) error {
	d := e.driver(n.Driver)
	if d == nil {
		var known []string
		for _, name := range slices.Sorted(mapKeys(e.Drivers)) {
			if e.Drivers[name].Uses().Named {
				name += ":NAME"
			}
			known = append(known, name)
		}
		return api.FieldError(noun, "driver", n.Driver, "is not known", strings.Join(known, ", "))
	}
	uses := d.Uses()
	if err := e.checkShared(noun, n); err != nil {
		return err
	}
	if n.IPAM != "" && !uses.Subnets {
		return api.FieldError(noun, "ipam", n.IPAM, fmt.Sprintf("has no meaning for driver %q", n.Driver), "none")
	}
	if uses.Subnets {
		if err := checkResolver(noun, n); err != nil {
			return err
		}
	}
	for k := range n.Options {
		if uses.Subnets && isDNSOption(k) {
			continue
		}
		if _, ok := uses.Options[k]; !ok && !uses.AnyOption {
			want := "no options"
			if len(uses.Options) > 0 {
				want = strings.Join(slices.Sorted(maps.Keys(uses.Options)), ", ")
			}
			return api.FieldError(noun, "options", k, fmt.Sprintf("is no option of driver %q", n.Driver), want)
		}
	}
	if _, foreign := d.(driver.Attacher); foreign && (n.ICC != nil || n.Masquerade != nil) {
		return api.FieldError(noun, "icc and masquerade", "", fmt.Sprintf("are up to the plugin with driver %q", n.Driver), "none; the plugin may have an option")
	}
	if uses.Subnets {
		if n.Interface != "" && n.Driver != "bridge" {
			return api.FieldError(noun, "interface", n.Interface, "has no meaning here", "none: only bridge networks have one interface on the machine")
		}
		if n.Internal && n.Masquerade != nil && *n.Masquerade {
			return api.FieldError(noun, "masquerade", true, "has no meaning on an internal network", "false, or a network that is not internal")
		}
		return nil
	}
	for field, value := range map[string]any{"subnets": n.Subnets, "mtu": n.MTU, "interface": n.Interface, "internal": n.Internal,
		"icc": n.ICC, "masquerade": n.Masquerade, "family": n.Family} {
		if !reflect.ValueOf(value).IsZero() {
			return api.FieldError(noun, field, fmt.Sprint(value), fmt.Sprintf("has no meaning for driver %q", n.Driver), "none")
		}
	}
	return nil
}

// checkIPAM refuses an IPAM that is not known.
func (e *Engine) checkIPAM(noun string, n api.Network) error {
	kind, plugin, _ := strings.Cut(n.IPAM, ":")
	switch {
	case n.IPAM == "" && len(n.IPAMOptions) > 0:
		return api.FieldError(noun, "ipamOptions", n.IPAMOptions, "have no meaning without an IPAM plugin", "none, or ipam")
	case n.IPAM != "" && (e.IPAMs[kind] == nil || plugin == ""):
		var known []string
		for _, name := range slices.Sorted(maps.Keys(e.IPAMs)) {
			known = append(known, name+":NAME")
		}
		return api.FieldError(noun, "ipam", n.IPAM, "is not known", strings.Join(append(known, "none for the daemon's own"), ", "))
	case n.IPAM != "" && n.Driver != "" && e.driver(n.Driver) != nil && !e.driver(n.Driver).Uses().Subnets:
		return api.FieldError(noun, "ipam", n.IPAM, fmt.Sprintf("has no meaning for driver %q", n.Driver), "none")
	}
	return nil
}

// overlap says what else uses addresses of p; e.mu is held. A network on a wire has the addresses that the machine has
// routes for.
func (e *Engine) overlap(p netip.Prefix, onWire bool) (netip.Prefix, string) {
	for _, o := range e.Store.Networks() {
		for _, s := range o.Subnets {
			if s.Prefix.Overlaps(p) {
				return s.Prefix, api.NetworkNoun(o.Name)
			}
		}
	}
	if r, ok := e.facts.Overlapping(p); ok && !onWire {
		return r, "the machine's routes"
	}
	return netip.Prefix{}, ""
}

// used gives the ranges that networks and the machine's routes and addresses have; e.mu is held.
func (e *Engine) used() []netip.Prefix {
	var out []netip.Prefix
	for _, n := range e.Store.Networks() {
		for _, s := range n.Subnets {
			out = append(out, s.Prefix)
		}
	}
	return append(out, e.facts.Ranges()...)
}

// FreeSubnet gives a range of the default pools that no network and no route of the machine has, and that shares nothing
// with those of given. bits is the length that is wanted, 0 for that of the pool. It is not reserved: who wants it makes a
// network of it.
func (e *Engine) FreeSubnet(v4 bool, bits int, given []netip.Prefix) (netip.Prefix, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.Pools.Choose(v4, bits, append(e.used(), given...))
	if ok {
		return p, nil
	}
	size := ""
	if bits != 0 {
		size = fmt.Sprintf(" for a subnet of length /%d", bits)
	}
	return p, api.Errorf(api.Exhausted, "", "no range of the default pools is free%s; name a subnet, or give the daemon more pools", size)
}

// Holder names the endpoint that has an address, or what else of a network keeps it from being given out; "" for nothing.
func (e *Engine) Holder(a netip.Addr) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, pools := range e.pools {
		for _, p := range pools {
			if p.Contains(a) {
				return p.Holder(a)
			}
		}
	}
	return ""
}

func (e *Engine) addPools(n api.Network) {
	pools := make([]*pool.Pool, 0, len(n.Subnets))
	for _, s := range n.Subnets {
		if !n.Shared() {
			pools = append(pools, pool.New(s))
			continue
		}
		p := pool.NewShared(s)
		p.SetBlocks(e.blocks(n, s.Prefix))
		pools = append(pools, p)
	}
	e.pools[n.Name] = pools
}

// reservePools renews a network's pools after its reserved addresses changed.
func (e *Engine) reservePools(n api.Network) {
	e.addPools(n)
	for _, ep := range e.Store.Endpoints() {
		if ep.Network != n.Name {
			continue
		}
		for _, a := range ep.Addresses {
			if p := e.poolFor(n, a); p != nil {
				_, _ = p.Reserve(a, ep.Key()) // it was reserved in the pool before
			}
		}
	}
}

// poolFor gives the pool of a network that an address belongs to, by family.
func (e *Engine) poolFor(n api.Network, a netip.Addr) *pool.Pool {
	for i, s := range n.Subnets {
		if s.Prefix.Addr().Is4() == a.Is4() {
			return e.pools[n.Name][i]
		}
	}
	return nil
}

// applyNetwork has the kernel hold a network, and what of its endpoints follows from it.
func (e *Engine) applyNetwork(ctx context.Context, n api.Network) error {
	if err := e.setMachine(); err != nil {
		return err
	}
	keys, err := e.setNetwork(n)
	if err != nil {
		return err
	}
	for _, ep := range e.Store.Endpoints() {
		if ep.Network == n.Name {
			more, err := e.resetEndpoint(ep)
			if err != nil {
				return err
			}
			keys = append(keys, more...)
		}
	}
	keys = append(keys, e.Want.Keys(MachineOwner)...)
	if err = e.Loop.Sync(ctx, keys); err == nil || ctx.Err() != nil {
		return err
	}
	// An endpoint that is detached or attached at the same moment may have been in the midst of it: what is still wrong now
	// is the change's.
	return e.Loop.Sync(ctx, keys)
}

// undoNetwork goes back to the network of before, or to none.
func (e *Engine) undoNetwork(ctx context.Context, old *api.Network, n api.Network) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if old == nil {
		if err := e.dropNetwork(ctx, n.Name); err != nil {
			e.Log.Error("undo of a network", "network", n.Name, "err", err)
		}
		return
	}
	e.mu.Lock()
	c := state.Change{PutNetworks: []api.Network{*old}}
	_, err := e.Store.Commit(&c)
	e.mu.Unlock()
	if err == nil {
		err = e.applyNetwork(ctx, *old)
	}
	if err != nil {
		e.Log.Error("undo of a network", "network", n.Name, "err", err)
	}
}

// DeleteNetwork removes a network that has no endpoints. It returns when the kernel holds nothing of it any more.
func (e *Engine) DeleteNetwork(ctx context.Context, name string, match uint64) error {
	return e.removeNetwork(ctx, name, match, e.dropNetwork)
}

// DropNetwork removes a network, too, but returns as soon as that is on disk; the kernel follows in a moment.
func (e *Engine) DropNetwork(ctx context.Context, name string, match uint64) error {
	return e.removeNetwork(ctx, name, match, func(_ context.Context, name string) error {
		keys, err := e.takeNetworkOut(name)
		e.Loop.Later(keys)
		e.plugins.poke()
		return err
	})
}

// removeNetwork finds a network and keeps others from it while how takes it away.
func (e *Engine) removeNetwork(ctx context.Context, name string, match uint64, how func(context.Context, string) error) error {
	noun := api.NetworkNoun(name)
	unlock, err := e.busy.lock(ctx, noun)
	if err != nil {
		return refused(noun, err)
	}
	defer unlock()
	n, ok := e.Store.Network(name)
	if !ok {
		return api.Errorf(api.NotFound, noun, "does not exist")
	}
	if err := checkRevision(noun, match, ok, n.Revision); err != nil {
		return err
	}
	if n.Shared() {
		return e.abolish(ctx, n)
	}
	return how(ctx, name)
}

// dropNetwork takes a network out of the store, then out of the kernel.
func (e *Engine) dropNetwork(ctx context.Context, name string) error {
	keys, err := e.takeNetworkOut(name)
	if err != nil {
		return err
	}
	if err := e.Loop.Sync(ctx, keys); err != nil {
		return refused(api.NetworkNoun(name), fmt.Errorf("it is removed, but the kernel is not clean yet; this is tried again: %w", err))
	}
	if err := e.takeBack(ctx, name, "", ""); err != nil {
		return refused(api.NetworkNoun(name), fmt.Errorf("it is removed, but not by its plugin yet; this is tried again: %w", err))
	}
	return nil
}

// takeNetworkOut takes a network out of the store and the desired set, and gives the keys that the kernel may still hold.
func (e *Engine) takeNetworkOut(name string) ([]kernel.Key, error) {
	noun := api.NetworkNoun(name)
	e.mu.Lock()
	if e.Store.CountIn(name) > 0 {
		defer e.mu.Unlock()
		var users []string
		for _, ep := range e.Store.Endpoints() {
			if ep.Network == name {
				users = append(users, ep.Name)
			}
		}
		return nil, api.Errorf(api.InUse, noun, "has %d endpoints: %s", len(users), short(users))
	}
	if _, err := e.Store.Commit(&state.Change{DeleteNetworks: []string{name}}); err != nil {
		e.mu.Unlock()
		return nil, refused(noun, err)
	}
	delete(e.pools, name)
	e.mu.Unlock()
	keys := e.Want.Drop(driver.NetworkOwner(name))
	if err := e.setMachine(); err != nil {
		return keys, refused(noun, err)
	}
	return keys, nil
}

// short lists the first few names.
func short(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:most], ", ") + ", …"
}
