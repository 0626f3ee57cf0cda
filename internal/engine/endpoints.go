package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/ipam/pool"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/state"
)

// portKey and portUse say who publishes what, so that a port that is taken is refused with the name of who has it.
type portKey struct {
	protocol string
	port     uint16
}

type portUse struct {
	addr     netip.Addr
	endpoint string
}

// Endpoint gives an endpoint with its status; NotFound where there is none.
func (e *Engine) Endpoint(_ context.Context, network, name string) (api.Endpoint, error) {
	ep, ok := e.Store.Endpoint(network + "/" + name)
	if !ok {
		return ep, api.Errorf(api.NotFound, api.EndpointNoun(network, name), "does not exist")
	}
	return e.endpointStatus(ep), nil
}

// Endpoints gives all endpoints with their status, by key.
func (e *Engine) Endpoints(context.Context) ([]api.Endpoint, error) {
	all := e.Store.Endpoints()
	for i := range all {
		all[i] = e.endpointStatus(all[i])
	}
	return all, nil
}

func (e *Engine) endpointStatus(ep api.Endpoint) api.Endpoint {
	st := &api.EndpointStatus{State: api.Attached}
	n, _ := e.Store.Network(ep.Network)
	d := e.driver(n.Driver)
	_, foreign := d.(driver.Attacher)
	for _, s := range n.Subnets {
		if a := ep.Address(s.Prefix.Addr().Is4()); a.IsValid() && !foreign {
			st.Prefixes = append(st.Prefixes, netip.PrefixFrom(a, s.Prefix.Bits()))
			if !n.Internal && s.Gateway.IsValid() {
				st.Gateways = append(st.Gateways, s.Gateway)
			}
		}
	}
	if len(st.Prefixes) > 0 {
		st.MTU = n.MTU
		st.Search, st.DNSOptions = resolverOptions(n)
		if d != nil {
			_, st.HostInterface = d.Interfaces(n, ep)
			st.DNS = driver.OwnAddrs(d, n)
		}
		if f := e.Facts(); st.MTU == 0 { // that of what the interface is on
			for _, p := range e.parents(n) {
				if l := f.Link(p); l != nil {
					st.MTU = l.MTU
					break
				}
			}
		}
	}
	if foreign && ep.Plugin != nil {
		e.pluginStatus(n, ep, st)
	}
	if ep.Plugin == nil && len(e.parties(n)) > 0 {
		st.State, st.Error = api.Pending, e.plugins.why(api.EndpointNoun(ep.Network, ep.Name))
	}
	keys := e.Want.Keys(driver.EndpointOwner(ep.Network, ep.Name))
	if err := e.Loop.Cause(keys); err != nil {
		st.State, st.Error = api.Failed, err.Error()
		if errors.Is(err, kernel.ErrNamespaceGone) {
			st.State = api.Lost
		}
	}
	ep.Status = st
	return ep
}

// PutEndpoint attaches a sandbox to a network, or changes an endpoint. It returns when the kernel holds all of it. The
// same again changes nothing. match is a revision that the endpoint must have, 0 for any, api.CreateOnly for none. When
// the kernel refuses, everything is as it was before and the error is the first cause.
func (e *Engine) PutEndpoint(ctx context.Context, ep api.Endpoint, match uint64) (api.Endpoint, error) {
	noun := api.EndpointNoun(ep.Network, ep.Name)
	if err := ep.Validate(); err != nil {
		return ep, err
	}
	if err := e.checkSandbox(noun, &ep); err != nil {
		return ep, err
	}
	if err := e.makeOnDemand(ctx, ep.Network); err != nil {
		return ep, err
	}
	unlock, err := e.busy.lock(ctx, noun)
	if err != nil {
		return ep, refused(noun, err)
	}
	defer unlock()
	if err := e.room(ctx, ep); err != nil {
		return ep, err
	}
	old, ep, changed, err := e.storeEndpoint(ep, match)
	if err != nil {
		return ep, err
	}
	before := ep.Plugin
	if ep, err = e.attach(ctx, ep); err != nil {
		if changed {
			e.undoEndpoint(ctx, old, ep)
		}
		return ep, err
	}
	changed = changed || ep.Plugin != before
	keys, err := e.setEndpoint(ep)
	if old != nil && old.Sandbox.Cookie != ep.Sandbox.Cookie { // nothing of before is in the other namespace
		e.Loop.Touch(e.Want.Keys(driver.EndpointOwner(ep.Network, ep.Name))...)
	}
	if err == nil && (changed || len(keys) > 0) {
		err = e.Loop.Sync(ctx, e.Want.Keys(driver.EndpointOwner(ep.Network, ep.Name)))
		if err == nil && len(keys) > 0 {
			err = e.Loop.Sync(ctx, keys) // what a change dropped
		}
	}
	if err != nil {
		err = e.portRefused(noun, ep, err)
		e.undoEndpoint(ctx, old, ep)
		return ep, err
	}
	if old != nil {
		e.releaseOld(*old, ep)
	}
	if ep, err = e.handOver(ep); err != nil {
		return ep, err
	}
	e.announce(ep)
	if old == nil || old.Sandbox != ep.Sandbox {
		e.watchSandbox(ep)
	}
	return e.endpointStatus(ep), nil
}

// checkSandbox checks what can be known about the sandbox before anything is touched.
func (e *Engine) checkSandbox(noun string, ep *api.Endpoint) error {
	if ep.Sandbox.Netns != "" {
		cookie, err := e.Machine.CheckNetns(ep.Sandbox.Netns)
		if err != nil {
			return api.FieldError(noun, "sandbox.netns", ep.Sandbox.Netns, err.Error(), "the path of a network namespace")
		}
		if ep.Sandbox.Cookie != 0 && ep.Sandbox.Cookie != cookie {
			return api.FieldError(noun, "sandbox.cookie", ep.Sandbox.Cookie, "is of another namespace", fmt.Sprintf("%d, or none", cookie))
		}
		ep.Sandbox.Cookie = cookie
	} else {
		ep.Sandbox.Cookie = 0
	}
	if ep.Sandbox.PID != 0 {
		start, err := e.Machine.ProcessStart(ep.Sandbox.PID)
		if err != nil || ep.Sandbox.PIDStart != 0 && ep.Sandbox.PIDStart != start {
			return api.FieldError(noun, "sandbox.pid", ep.Sandbox.PID, "is no running process", "a process of this machine, or 0")
		}
		ep.Sandbox.PIDStart = start
	}
	return nil
}

// storeEndpoint completes and checks an endpoint, reserves what it needs and commits it; old is nil for a new one.
func (e *Engine) storeEndpoint(ep api.Endpoint, match uint64) (old *api.Endpoint, _ api.Endpoint, changed bool, err error) {
	noun := api.EndpointNoun(ep.Network, ep.Name)
	e.mu.Lock()
	defer e.mu.Unlock()
	was, exists := e.Store.Endpoint(ep.Key())
	if err := checkRevision(noun, match, exists, was.Revision); err != nil {
		return nil, ep, false, err
	}
	n, ok := e.Store.Network(ep.Network)
	if !ok {
		return nil, ep, false, api.Errorf(api.NotFound, noun, "network %q does not exist", ep.Network)
	}
	ep.Status, ep.Revision, ep.Created, ep.Plugin, ep.Sandbox.Taken = nil, 0, "", was.Plugin, false
	if exists {
		old = &was
		keep(&ep, was)
		if err := e.checkAttached(noun, n, ep, was); err != nil {
			return old, ep, false, err
		}
	}
	if err := e.completeEndpoint(noun, n, &ep, old); err != nil {
		return old, ep, false, err
	}
	if exists {
		same := was
		same.Revision = 0
		if reflect.DeepEqual(same, ep) {
			return old, was, false, nil
		}
	}
	c := state.Change{PutEndpoints: []api.Endpoint{ep}}
	if _, err := e.Store.Commit(&c); err != nil {
		e.release(n, ep, old)
		return old, ep, false, refused(noun, err)
	}
	if old != nil {
		e.unindex(*old)
	}
	e.index(ep)
	return old, c.PutEndpoints[0], true, nil
}

// checkAttached refuses to change what a plugin was told when it attached the endpoint: no plugin can be told anew.
func (e *Engine) checkAttached(noun string, n api.Network, ep, was api.Endpoint) error {
	if was.Plugin == nil {
		return nil
	}
	fixed := map[string][2]any{"addresses": {ep.Addresses, was.Addresses}}
	if e.attacher("driver", n.Driver) != nil {
		maps.Copy(fixed, map[string][2]any{"ports": {ep.Ports, was.Ports}, "mac": {ep.MAC, was.MAC}, "sandbox": {ep.Sandbox, was.Sandbox}})
	}
	for field, v := range fixed {
		if !reflect.DeepEqual(v[0], v[1]) {
			err := api.FieldError(noun, field, v[0], "can't be changed: its plugin was told another when it attached it", fmt.Sprintf("%v, or to detach first", v[1]))
			err.Code = api.Conflict
			return err
		}
	}
	return nil
}

// keep fills what a change leaves out from the endpoint as it is stored.
func keep(ep *api.Endpoint, was api.Endpoint) {
	ep.Created = was.Created
	ep.Index = was.Index
	if ep.Sandbox.Netns == "" {
		ep.Sandbox = was.Sandbox
	} else if ep.Sandbox.Interface == "" && ep.Sandbox.Netns == was.Sandbox.Netns {
		ep.Sandbox.Interface = was.Sandbox.Interface
	}
	for _, a := range was.Addresses {
		if !ep.Address(a.Is4()).IsValid() {
			ep.Addresses = append(slices.Clone(ep.Addresses), a)
		}
	}
	if ep.MAC == "" {
		ep.MAC = was.MAC
	}
	if ep.Labels == nil {
		ep.Labels = was.Labels
	}
	if ep.Aliases == nil {
		ep.Aliases = was.Aliases
	}
	if ep.Container == (api.Container{}) {
		ep.Container = was.Container
	}
	if ep.Ports == nil {
		ep.Ports = was.Ports
	}
}

// completeEndpoint checks an endpoint against its network and the other endpoints, and gives it what it left to the
// daemon. With an error nothing is reserved. e.mu is held.
func (e *Engine) completeEndpoint(noun string, n api.Network, ep *api.Endpoint, old *api.Endpoint) error {
	d := e.driver(n.Driver)
	if d == nil {
		return api.Errorf(api.Internal, noun, "driver %q is not known", n.Driver)
	}
	uses := d.Uses()
	_, foreign := d.(driver.Attacher)
	if ep.Sandbox.Handoff && !uses.Handoff {
		return api.FieldError(noun, "sandbox.handoff", true, fmt.Sprintf("can't be had with driver %q", n.Driver), "the path of a network namespace in sandbox.netns")
	}
	if uses.Sandbox && ep.Sandbox.Netns == "" && !ep.Sandbox.Handoff {
		return api.FieldError(noun, "sandbox.netns", "", "is empty", "the path of a network namespace")
	}
	if !uses.Sandbox && ep.Sandbox.Netns != "" {
		return api.FieldError(noun, "sandbox.netns", ep.Sandbox.Netns, fmt.Sprintf("has no meaning for driver %q", n.Driver), "none: its endpoints use the machine's own network")
	}
	if !uses.Subnets && !uses.PluginAddresses && (len(ep.Addresses) > 0 || ep.MAC != "") {
		return api.FieldError(noun, "addresses", ep.Addresses, fmt.Sprintf("have no meaning for driver %q", n.Driver), "none, and no MAC")
	}
	if len(ep.Ports) > 0 && !uses.Ports {
		msg := fmt.Sprintf("can't be published with driver %q", n.Driver)
		if uses.NoPorts != "" {
			msg += ": " + uses.NoPorts
		}
		return api.FieldError(noun, "ports", ep.Ports[0], msg, "none")
	}
	if len(ep.Ports) > 0 && n.Internal {
		return api.FieldError(noun, "ports", ep.Ports[0], "can't be published on an internal network", "none, or a network that is not internal")
	}
	limits, err := e.checkLimits(noun, n, *ep)
	if err != nil {
		return err
	}
	bindPorts(n, ep)
	if err := e.placeEndpoint(noun, n, uses, ep, old); err != nil {
		return err
	}
	if uses.Subnets && (n.IPAM == "" || ep.Plugin != nil) {
		if err := e.reserve(noun, n, ep, old); err != nil {
			return err
		}
		if ep.MAC == "" && len(ep.Addresses) > 0 && limits.NoMAC == "" && !foreign {
			ep.MAC = driver.MAC(ep.Addresses[0])
		}
	}
	if err := e.checkPorts(noun, *ep); err != nil {
		e.release(n, *ep, old)
		return err
	}
	return nil
}

// reserve takes the endpoint's addresses from the network's pools; e.mu is held.
func (e *Engine) reserve(noun string, n api.Network, ep *api.Endpoint, old *api.Endpoint) error {
	for i, a := range ep.Addresses {
		if e.poolFor(n, a) == nil {
			return api.FieldError(noun, fmt.Sprintf("addresses[%d]", i), a, fmt.Sprintf("is of a family that network %q has not", n.Name), "an address of "+subnets(n))
		}
	}
	want := ep.Addresses
	ep.Addresses = nil
	for i, s := range n.Subnets {
		var ask netip.Addr
		field := "addresses"
		for j, a := range want {
			if a.Is4() == s.Prefix.Addr().Is4() {
				ask, field = a, fmt.Sprintf("addresses[%d]", j)
			}
		}
		a, err := e.pools[n.Name][i].Reserve(ask, ep.Key())
		if err == nil {
			ep.Addresses = append(ep.Addresses, a)
			continue
		}
		e.release(n, *ep, old)
		if errors.Is(err, pool.ErrFull) {
			return api.Errorf(api.Exhausted, noun, "%w", err)
		}
		bad := api.FieldError(noun, field, ask, err.Error(), "a free address of "+s.Prefix.String()+", or none to have one chosen")
		if errors.Is(err, pool.ErrTaken) {
			bad.Code = api.Conflict
		}
		return bad
	}
	return nil
}

func subnets(n api.Network) string {
	s := ""
	for i, x := range n.Subnets {
		if i > 0 {
			s += " or "
		}
		s += x.Prefix.String()
	}
	return s
}

// release gives back the addresses of ep that keep, if not nil, does not have; e.mu is held.
func (e *Engine) release(n api.Network, ep api.Endpoint, keep *api.Endpoint) {
	for _, a := range ep.Addresses {
		if keep != nil && slices.Contains(keep.Addresses, a) {
			continue
		}
		if p := e.poolFor(n, a); p != nil {
			p.Release(a, ep.Key())
		}
	}
}

// releaseOld gives back what a changed endpoint had and has no longer.
func (e *Engine) releaseOld(old, now api.Endpoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n, ok := e.Store.Network(old.Network); ok {
		e.release(n, old, &now)
	}
}

// adopt takes up a stored endpoint: its addresses and ports are in use; e.mu is held.
func (e *Engine) adopt(ep api.Endpoint) error {
	n, ok := e.Store.Network(ep.Network)
	if !ok {
		return fmt.Errorf("network %q is not known", ep.Network)
	}
	e.index(ep)
	var errs []error
	for _, a := range ep.Addresses {
		if p := e.poolFor(n, a); p != nil {
			errs = append(errs, p.Adopt(a, ep.Key()))
		}
	}
	return errors.Join(errs...)
}

// checkPorts refuses a port that another endpoint publishes; e.mu is held.
func (e *Engine) checkPorts(noun string, ep api.Endpoint) error {
	for i, p := range ep.Ports {
		for _, u := range e.ports[portKey{p.ProtocolOrTCP(), p.HostPort}] {
			if u.endpoint == ep.Key() || !meet(u.addr, p.HostIP) {
				continue
			}
			err := api.FieldError(noun, fmt.Sprintf("ports[%d].hostPort", i), p.HostPort,
				fmt.Sprintf("is published already by endpoint %q", u.endpoint), "a port that is free")
			err.Code = api.Conflict
			return err
		}
	}
	return nil
}

// meet reports whether two addresses to publish on have one in common.
func meet(a, b netip.Addr) bool {
	if !a.IsValid() || !b.IsValid() || a == b {
		return true
	}
	return a.Is4() == b.Is4() && (a.IsUnspecified() || b.IsUnspecified())
}

// index notes what ep publishes and where it is; e.mu is held.
func (e *Engine) index(ep api.Endpoint) {
	if ep.Sandbox.Netns != "" && ep.Sandbox.Interface != "" {
		e.sandboxes[ep.Sandbox.Netns] = append(e.sandboxes[ep.Sandbox.Netns], ep.Key())
	}
	for _, p := range ep.Ports {
		k := portKey{p.ProtocolOrTCP(), p.HostPort}
		e.ports[k] = append(e.ports[k], portUse{p.HostIP, ep.Key()})
	}
}

// unindex takes back what index noted; e.mu is held.
func (e *Engine) unindex(ep api.Endpoint) {
	left := slices.DeleteFunc(e.sandboxes[ep.Sandbox.Netns], func(key string) bool { return key == ep.Key() })
	if e.sandboxes[ep.Sandbox.Netns] = left; len(left) == 0 {
		delete(e.sandboxes, ep.Sandbox.Netns)
	}
	for _, p := range ep.Ports {
		k := portKey{p.ProtocolOrTCP(), p.HostPort}
		e.ports[k] = slices.DeleteFunc(e.ports[k], func(u portUse) bool { return u.endpoint == ep.Key() })
		if len(e.ports[k]) == 0 {
			delete(e.ports, k)
		}
	}
}

// portRefused names the port in the error where the kernel refused one.
func (e *Engine) portRefused(noun string, ep api.Endpoint, err error) error {
	for k, problem := range e.Loop.Problems() {
		i := slices.IndexFunc(ep.Ports, func(p api.Port) bool { return k.Kind == kernel.KindHold && holdsPort(k, p) })
		switch {
		case i < 0:
		case errors.Is(problem, kernel.ErrInUse):
			bad := api.FieldError(noun, fmt.Sprintf("ports[%d].hostPort", i), ep.Ports[i].HostPort, problem.Error(), "a port that is free")
			bad.Code = api.Conflict
			return bad
		case errors.Is(problem, kernel.ErrAbsent):
			return api.FieldError(noun, fmt.Sprintf("ports[%d].hostIP", i), ep.Ports[i].HostIP, problem.Error(), "an address of the machine")
		}
	}
	return refused(noun, err)
}

func holdsPort(k kernel.Key, p api.Port) bool {
	h := kernel.Hold{Protocol: p.ProtocolOrTCP(), Addr: p.HostIP, Port: p.HostPort}
	if p.HostIP.IsValid() {
		return h.Key() == k
	}
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if h.Addr = a; h.Key() == k {
			return true
		}
	}
	return false
}

// undoTime bounds what is waited for after a verb failed: whoever asked gets an answer, however the kernel fares. What is
// not undone by then the reconciler goes on with.
const undoTime = 5 * time.Second

// undoEndpoint goes back to the endpoint of before, or to none.
func (e *Engine) undoEndpoint(ctx context.Context, old *api.Endpoint, ep api.Endpoint) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if old == nil {
		if err := e.dropEndpoint(ctx, ep); err != nil {
			e.Log.Error("undo of an attach", "endpoint", ep.Key(), "err", err)
		}
		return
	}
	e.mu.Lock()
	c := state.Change{PutEndpoints: []api.Endpoint{*old}}
	_, err := e.Store.Commit(&c)
	if err == nil {
		e.unindex(ep)
		e.index(*old)
		if n, ok := e.Store.Network(ep.Network); ok {
			e.release(n, ep, old)
		}
	}
	e.mu.Unlock()
	if err == nil {
		var keys []kernel.Key
		if keys, err = e.setEndpoint(*old); err == nil {
			err = e.Loop.Sync(ctx, keys)
		}
	}
	if err != nil {
		e.Log.Error("undo of a change", "endpoint", ep.Key(), "err", err)
	}
}

// DeleteEndpoint detaches. It returns when the kernel holds nothing of it any more; NotFound where there is none.
func (e *Engine) DeleteEndpoint(ctx context.Context, network, name string, match uint64) error {
	return e.detach(ctx, network, name, match, e.dropEndpoint)
}

// DropEndpoint detaches, too, but returns as soon as that is on disk; the kernel follows in a moment. It is for callers
// that have taken the interface out of the sandbox: its addresses are free at once.
func (e *Engine) DropEndpoint(ctx context.Context, network, name string, match uint64) error {
	return e.detach(ctx, network, name, match, func(_ context.Context, ep api.Endpoint) error {
		keys, err := e.takeOut(ep)
		if err != nil {
			return err
		}
		e.Loop.Later(keys)
		e.plugins.poke()
		e.mu.Lock()
		defer e.mu.Unlock()
		e.unindex(ep)
		if n, ok := e.Store.Network(ep.Network); ok {
			e.release(n, ep, nil)
		}
		return nil
	})
}

// HandsOff reports whether a driver is known and leaves interfaces to the caller to move (api.Sandbox.Handoff).
func (e *Engine) HandsOff(driver string) bool {
	d := e.driver(driver)
	return d != nil && d.Uses().Handoff
}

// detach finds an endpoint and keeps others from it while how takes it away.
func (e *Engine) detach(ctx context.Context, network, name string, match uint64, how func(context.Context, api.Endpoint) error) error {
	noun := api.EndpointNoun(network, name)
	unlock, err := e.busy.lock(ctx, noun)
	if err != nil {
		return refused(noun, err)
	}
	defer unlock()
	ep, ok := e.Store.Endpoint(network + "/" + name)
	if !ok {
		return api.Errorf(api.NotFound, noun, "does not exist")
	}
	if err := checkRevision(noun, match, ok, ep.Revision); err != nil {
		return err
	}
	return how(ctx, ep)
}

// takeOut takes an endpoint out of the store and the desired set, and gives the keys that the kernel may still hold.
func (e *Engine) takeOut(ep api.Endpoint) ([]kernel.Key, error) {
	e.mu.Lock()
	_, err := e.Store.Commit(&state.Change{DeleteEndpoints: []string{ep.Key()}})
	e.mu.Unlock()
	if err != nil {
		return nil, refused(api.EndpointNoun(ep.Network, ep.Name), err)
	}
	e.placing.Lock()
	defer e.placing.Unlock()
	e.unannounce(ep)
	return e.Want.Drop(driver.EndpointOwner(ep.Network, ep.Name)), nil
}

// dropEndpoint takes an endpoint out of the store, then out of the kernel, and then gives its addresses back: they are
// not given out again while the kernel may still use them.
func (e *Engine) dropEndpoint(ctx context.Context, ep api.Endpoint) error {
	keys, err := e.takeOut(ep)
	if err != nil {
		return err
	}
	err = e.Loop.Sync(ctx, keys)
	back := e.takeBack(ctx, ep.Network, ep.Name, "")
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unindex(ep)
	if err != nil {
		e.leaving[ep.Key()] = leaving{ep, keys}
		return refused(api.EndpointNoun(ep.Network, ep.Name), fmt.Errorf("it is detached, but the kernel is not clean yet; this is tried again: %w", err))
	}
	if back != nil {
		e.leaving[ep.Key()] = leaving{ep, keys}
		return refused(api.EndpointNoun(ep.Network, ep.Name), fmt.Errorf("it is detached, but not by its plugin yet; this is tried again: %w", back))
	}
	if n, ok := e.Store.Network(ep.Network); ok {
		e.release(n, ep, nil)
	}
	return nil
}

// leaving is an endpoint that was detached and may still be in the kernel, which keeps its addresses from being given out.
type leaving struct {
	endpoint api.Endpoint
	keys     []kernel.Key
}

// releaseLeft gives back the addresses of detached endpoints of which the kernel and plugins hold nothing any more.
func (e *Engine) releaseLeft(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, undoTime)
	defer cancel()
	e.mu.Lock()
	left := maps.Clone(e.leaving)
	e.mu.Unlock()
	for key, l := range left {
		if e.Loop.Sync(ctx, l.keys) != nil || e.leftWithPlugins(l.endpoint) {
			continue
		}
		e.mu.Lock()
		delete(e.leaving, key)
		if n, ok := e.Store.Network(l.endpoint.Network); ok {
			now, _ := e.Store.Endpoint(key) // it may have been attached again
			e.release(n, l.endpoint, &now)
		}
		e.mu.Unlock()
	}
}

// watchSandbox detaches the endpoint when the process that it is tied to ends.
func (e *Engine) watchSandbox(ep api.Endpoint) {
	if ep.Sandbox.PID == 0 {
		return
	}
	e.Machine.WatchProcess(ep.Sandbox.PID, ep.Sandbox.PIDStart, func() {
		now, ok := e.Store.Endpoint(ep.Key())
		if !ok || now.Sandbox.PID != ep.Sandbox.PID || now.Sandbox.PIDStart != ep.Sandbox.PIDStart {
			return
		}
		err := e.DeleteEndpoint(context.Background(), ep.Network, ep.Name, 0)
		if err != nil && api.CodeOf(err) != api.NotFound {
			e.Log.Warn("detach after the process ended", "endpoint", ep.Key(), "err", err)
		}
	})
}

// Collect detaches endpoints whose namespace is gone, and gives back the addresses of those that left only now.
func (e *Engine) Collect(ctx context.Context) error {
	e.releaseLeft(ctx)
	var keys []kernel.Key
	for k, err := range e.Loop.Problems() {
		if errors.Is(err, kernel.ErrNamespaceGone) {
			keys = append(keys, k)
		}
	}
	var errs []error
	for _, ep := range e.owners(keys) {
		if _, err := e.Machine.CheckNetns(ep.Sandbox.Netns); err != nil {
			errs = append(errs, e.lose(ctx, ep, "the namespace is gone: endpoint is detached"))
		}
	}
	return errors.Join(errs...)
}

// CollectReplaced detaches endpoints that own one of the keys and whose namespace's path is another one's now. It is for
// interfaces that somebody else removed: they are not to be made anew in a namespace that nobody attached.
func (e *Engine) CollectReplaced(ctx context.Context, keys []kernel.Key) error {
	var errs []error
	for _, ep := range e.owners(keys) {
		if e.replaced(ep) {
			errs = append(errs, e.lose(ctx, ep, "another namespace has the path: endpoint is detached"))
		}
	}
	return errors.Join(errs...)
}

// owners gives the endpoints that own keys, each once.
func (e *Engine) owners(keys []kernel.Key) map[string]api.Endpoint {
	out := map[string]api.Endpoint{}
	for _, k := range keys {
		if key, ok := driver.OwnerEndpoint(e.Want.OwnerOf(k)); ok {
			if ep, ok := e.Store.Endpoint(key); ok {
				out[key] = ep
			}
		}
	}
	return out
}

func (e *Engine) lose(ctx context.Context, ep api.Endpoint, why string) error {
	e.Log.Info(why, "endpoint", ep.Key())
	err := e.DeleteEndpoint(ctx, ep.Network, ep.Name, 0)
	if api.CodeOf(err) == api.NotFound {
		return nil
	}
	return err
}
