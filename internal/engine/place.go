package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/state"
)

// handOver notes that an interface which has no end on the machine was made for the caller to take: from then on it is
// no longer looked for. A caller that is not told so, as the daemon ended before, finds it made when it asks again.
func (e *Engine) handOver(ep api.Endpoint) (api.Endpoint, error) {
	n, _ := e.Store.Network(ep.Network)
	if !ep.Sandbox.Handoff || ep.Sandbox.Taken || e.driver(n.Driver) == nil {
		return ep, nil
	}
	if _, end := e.driver(n.Driver).Interfaces(n, ep); end != "" {
		return ep, nil
	}
	ep.Sandbox.Taken = true
	c := state.Change{PutEndpoints: []api.Endpoint{ep}}
	e.mu.Lock()
	_, err := e.Store.Commit(&c)
	e.mu.Unlock()
	if err == nil {
		ep = c.PutEndpoints[0]
		_, err = e.setEndpoint(ep)
	}
	return ep, refusedOrNil(api.EndpointNoun(ep.Network, ep.Name), err)
}

// checkLimits refuses what the endpoints of a network can't have; e.mu is held.
func (e *Engine) checkLimits(noun string, n api.Network, ep api.Endpoint) (driver.Limits, error) {
	d, ok := e.driver(n.Driver).(driver.Limited)
	if !ok {
		return driver.Limits{}, nil
	}
	l := d.Limits(n)
	if l.NoMAC != "" && ep.MAC != "" {
		return l, api.FieldError(noun, "mac", ep.MAC, "can't be had: "+l.NoMAC, "none")
	}
	if l.One == "" {
		return l, nil
	}
	for _, o := range e.Store.Endpoints() {
		if o.Network == n.Name && o.Name != ep.Name {
			return l, api.Errorf(api.Conflict, noun, "network %q has endpoint %q: %s", n.Name, o.Name, l.One)
		}
	}
	return l, nil
}

// bindPorts gives ports that name no address of the machine the one that the network publishes on.
func bindPorts(n api.Network, ep *api.Endpoint) {
	a, err := netip.ParseAddr(n.Options[api.OptHostBinding])
	if err != nil || a.IsUnspecified() {
		return
	}
	ep.Ports = slices.Clone(ep.Ports)
	for i := range ep.Ports {
		if !ep.Ports[i].HostIP.IsValid() {
			ep.Ports[i].HostIP = a
		}
	}
}

// placeEndpoint gives the endpoint its index and interface name among those of its sandbox.
func (e *Engine) placeEndpoint(noun string, n api.Network, uses driver.Uses, ep *api.Endpoint, old *api.Endpoint) error {
	if !uses.Sandbox || !uses.Subnets && !uses.PluginAddresses {
		return nil
	}
	if ep.Sandbox.Handoff { // the name inside is the caller's to choose
		ep.Sandbox.Interface = driver.PortName(kernel.HandoffPrefix, ep.Network, ep.Name)
		return nil
	}
	indexes, names := map[int]bool{}, map[string]string{}
	for _, key := range e.sandboxes[ep.Sandbox.Netns] {
		if o, ok := e.Store.Endpoint(key); ok && key != ep.Key() {
			indexes[o.Index] = true
			names[o.Sandbox.Interface] = key
		}
	}
	if old == nil || old.Sandbox.Netns != ep.Sandbox.Netns {
		ep.Index = 0
		for indexes[ep.Index] {
			ep.Index++
		}
	}
	prefix := driver.IfacePrefix(n)
	if uses.NamesInterface {
		if ep.Plugin == nil {
			return nil // it is asked again when that is known
		}
		if ep.Plugin.Prefix != "" {
			prefix = ep.Plugin.Prefix
		}
	}
	if ep.Sandbox.Interface == "" {
		for i := ep.Index; ; i++ {
			if ep.Sandbox.Interface = prefix + strconv.Itoa(i); names[ep.Sandbox.Interface] == "" {
				break
			}
		}
	}
	if by := names[ep.Sandbox.Interface]; by != "" {
		err := api.FieldError(noun, "sandbox.interface", ep.Sandbox.Interface, fmt.Sprintf("is taken by endpoint %q of the same sandbox", by),
			"another name, or none to have one chosen")
		err.Code = api.Conflict
		return err
	}
	return nil
}
