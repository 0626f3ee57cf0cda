package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/state"
)

// Node gives the state of this machine's daemon.
func (e *Engine) Node(context.Context) (api.Node, error) {
	nets, eps := e.Store.Counts()
	n := api.Node{Name: e.Config.Node, Version: e.Version, Revision: e.Store.Revision(), Networks: nets, Endpoints: eps, DNS: e.fixed(e.Facts()),
		DefaultNetwork: e.Fallback, Objects: e.Want.Len(), Since: e.since.Format(time.RFC3339)}
	for _, name := range slices.Sorted(mapKeys(e.Drivers)) {
		n.Drivers = append(n.Drivers, api.Driver{Name: name, Options: e.Drivers[name].Uses().Options})
	}
	for k, err := range e.Loop.Problems() {
		n.Problems = append(n.Problems, fmt.Sprintf("%s: %v", k, err))
	}
	n.Problems = append(n.Problems, e.pluginProblems()...)
	slices.Sort(n.Problems)
	return n, nil
}

// Plan gives what the reconciler would change now: for one owner ("network/a", "endpoint/a/web"), or with "" for all.
func (e *Engine) Plan(ctx context.Context, owner string) (api.Plan, error) {
	plan := api.Plan{Changes: []api.Change{}}
	if owner != "" && !slices.Contains(e.Want.Owners(), owner) {
		return plan, api.Errorf(api.NotFound, fmt.Sprintf("owner %q", owner), "wants nothing")
	}
	changes, err := e.Loop.Plan(ctx, owner)
	if err != nil {
		return plan, refused("plan", err)
	}
	for _, c := range changes {
		out := api.Change{Op: c.Op.String(), Owner: e.Want.OwnerOf(c.Key())}
		switch c.Op {
		case kernel.Delete:
			out.Object = c.Old.String()
		case kernel.Update:
			out.Object, out.Was = c.New.String(), c.Old.String()
		default:
			out.Object = c.New.String()
		}
		plan.Changes = append(plan.Changes, out)
	}
	plan.Changes = append(plan.Changes, e.checkPlugins(ctx, owner)...)
	return plan, nil
}

// Watch gives the changes after a revision; see state.Store.Watch. Endpoints and networks come without status.
func (e *Engine) Watch(ctx context.Context, since uint64) (<-chan api.Event, error) {
	return e.Store.Watch(ctx, since), nil
}

// Reset removes everything that is ours from the kernel and the store and puts back what was changed of the machine.
// The next start begins as the first one did.
func (e *Engine) Reset(ctx context.Context) error {
	e.machine.Lock() // a look at the machine that ends just now does not bring back what goes
	err := e.forgetAll()
	e.machine.Unlock()
	if err != nil {
		return refused("reset", err)
	}
	if err := e.Loop.SyncAll(ctx); err != nil {
		return refused("reset", err)
	}
	e.resetPlugins(ctx)
	return refusedOrNil("reset", e.Store.ForgetValues())
}

// forgetAll takes all nouns out of the store and all that is wanted; e.machine is held.
func (e *Engine) forgetAll() error {
	e.mu.Lock()
	var c state.Change
	eps := e.Store.Endpoints()
	for _, ep := range eps {
		c.DeleteEndpoints = append(c.DeleteEndpoints, ep.Key())
	}
	for _, n := range e.Store.Networks() {
		c.DeleteNetworks = append(c.DeleteNetworks, n.Name)
	}
	_, err := e.Store.Commit(&c)
	if err == nil {
		err = e.Store.SetValue(defaultsMade, "")
		clear(e.pools)
		clear(e.ports)
		clear(e.sandboxes)
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	e.placing.Lock()
	defer e.placing.Unlock()
	for _, ep := range eps {
		e.unannounce(ep)
	}
	for _, owner := range e.Want.Owners() {
		e.Want.Drop(owner)
	}
	return nil
}

func refusedOrNil(noun string, err error) error {
	if err == nil {
		return nil
	}
	return refused(noun, err)
}

// Doctor says what was found about the machine that matters here, what was done about it, and what needs somebody.
func (e *Engine) Doctor(context.Context) ([]api.Finding, error) {
	f := e.Facts()
	problems := e.Loop.Problems()
	var out []api.Finding
	add := func(level, topic, found, done string) {
		out = append(out, api.Finding{Level: level, Topic: topic, Found: found, Done: done})
	}
	for _, c := range f.Chains {
		place := fmt.Sprintf("chain %s %s %s (%s; %s)", c.Family, c.Table, c.Chain, c.Owner, c.Why)
		level, done := "note", "rules that accept packets of Seine's networks were added to that chain, behind its own"
		switch {
		case c.Locked:
			level, done = "problem", "only its owner may change it; have it accept what comes from or goes to interfaces "+kernel.HostPrefix+"*: "+
				"with firewalld, NftablesTableOwner=no in firewalld.conf lets Seine do that itself"
		case standsFirst(c):
			done = "rules that accept packets of Seine's networks were added to that chain, before its own"
		}
		for k, err := range problems {
			if k.Kind == kernel.KindAccept && strings.HasPrefix(k.Name, c.Family+" "+c.Table+" "+c.Chain+" ") {
				level, done = "problem", "an accept rule could not be added: "+err.Error()
			}
		}
		add(level, c.Hook+"-chain", place+" drops what it does not know", done)
	}
	if len(f.Chains) == 0 {
		add("ok", "forward-chain", "no chain of others drops forwarded packets", "")
	}
	if len(f.LegacyFilter) > 0 {
		add("problem", "legacy-iptables", "rules of legacy iptables are in force ("+strings.Join(f.LegacyFilter, ", ")+"), whose policy Seine can't see",
			"if it drops forwarded packets: iptables-legacy -A FORWARD -i sn-+ -j ACCEPT; iptables-legacy -A FORWARD -o sn-+ -j ACCEPT (and ip6tables-legacy)")
	}
	before := func(name string) string { return e.Store.Value("before/" + name) }
	if before("net/ipv4/ip_forward") == "0" || before("net/ipv6/conf/all/forwarding") == "0" {
		add("note", "forwarding", "the machine did not forward packets", "forwarding was turned on; `seine reset` turns it off again")
	} else if f.Forward4 {
		add("ok", "forwarding", "the machine forwards packets", "")
	}
	for _, l := range f.Links {
		if before("net/ipv6/conf/"+l.Name+"/accept_ra") == "1" {
			add("note", "router-advertisements", l.Name+" accepts routers' advertisements, which a forwarding machine ignores",
				"accept_ra of "+l.Name+" was set to 2, so they go on being accepted")
		}
	}
	if f.NoIPv6 {
		add("note", "ipv6", "the kernel has IPv6 turned off", "networks are made with IPv4 only")
	}
	if f.BridgeFilter4 || f.BridgeFilter6 {
		done := "nothing to do: Seine's rules hold either way"
		if f.BridgeFilter6 {
			done = "published ports are served at [::1] by seined itself, as the kernel can't; all other addresses by the kernel"
		}
		add("note", "bridge-netfilter", "bridged frames pass the IP hooks (net.bridge.bridge-nf-call-*)", done)
	}
	out = append(out, e.fixedFindings(f)...)
	for k, err := range problems {
		add("problem", "kernel", fmt.Sprintf("%s: %v", k, err), "it is tried again with growing delays")
	}
	for _, p := range e.pluginProblems() {
		add("problem", "plugins", p, "it is tried again with growing delays")
	}
	if e.Findings != nil {
		out = append(out, e.Findings()...)
	}
	slices.SortStableFunc(out, func(a, b api.Finding) int { return strings.Compare(a.Topic, b.Topic) })
	return out, nil
}

// defaultsMade is the name of a value that is set between the first start and a reset.
const defaultsMade = "defaults"

// DefaultNetwork makes the networks that a first start has: "default", "host" and "none". One that was removed since
// stays removed.
func (e *Engine) DefaultNetwork(ctx context.Context) error {
	if e.Store.Value(defaultsMade) != "" {
		return nil
	}
	for name, d := range map[string]string{"default": "bridge", "host": "host", "none": "null"} {
		if _, ok := e.Store.Network(name); ok || e.Drivers[d] == nil {
			continue
		}
		if _, err := e.PutNetwork(ctx, api.Network{Name: name, Driver: d}, 0); err != nil {
			return err
		}
	}
	return e.Store.SetValue(defaultsMade, "made")
}

// onDemand are the networks that are made when the first endpoint asks for them.
var onDemand = map[string]api.Network{
	// A container there reaches this machine by its gateways, and nothing beyond, as in rkt's network of that name.
	"default-restricted": {Driver: "ptp", Internal: true, ICC: new(bool)},
}

// makeOnDemand makes a network that is made when it is first asked for; others are left to be not found.
func (e *Engine) makeOnDemand(ctx context.Context, name string) error {
	n, ok := onDemand[name]
	if _, there := e.Store.Network(name); !ok || there {
		return nil
	}
	n.Name = name
	_, err := e.PutNetwork(ctx, n, 0)
	return err
}

// Owner gives the owner whose plan `seine check` asks for: of an endpoint "network/name", of a network "name".
func Owner(noun string) string {
	if network, name, ok := strings.Cut(noun, "/"); ok {
		return driver.EndpointOwner(network, name)
	}
	return driver.NetworkOwner(noun)
}
