package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"github.com/seine-net/seine/api"
)

type endpointRequest struct {
	NetworkID, EndpointID string
	Interface             *netInterface
	SandboxKey            string
	Options               map[string]any
	ports                 []portBinding // of Options
}

// UnmarshalJSON reads the ports among the options, which have a form of their own.
func (r *endpointRequest) UnmarshalJSON(b []byte) error {
	type plain endpointRequest
	var more struct {
		Options struct {
			Ports []portBinding `json:"com.docker.network.portmap"`
		}
	}
	if err := json.Unmarshal(b, (*plain)(r)); err != nil {
		return err
	}
	if err := json.Unmarshal(b, &more); err != nil {
		return err
	}
	r.ports = more.Options.Ports
	return nil
}

type netInterface struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

// endpoint finds an endpoint by Docker's identities.
func (d *Door) endpoint(ctx context.Context, r endpointRequest) (api.Endpoint, error) {
	n, err := d.network(ctx, r.NetworkID)
	if err != nil {
		return api.Endpoint{}, err
	}
	if err := checkID("EndpointID", r.EndpointID); err != nil {
		return api.Endpoint{}, err
	}
	ep, err := d.engine.Endpoint(ctx, n.Name, endpointName(r.EndpointID))
	if err == nil && ep.Labels[LabelEndpoint] != r.EndpointID {
		err = api.Errorf(api.NotFound, api.EndpointNoun(n.Name, ep.Name), "is not Docker's endpoint %s", r.EndpointID)
	}
	return ep, err
}

func endpointName(id string) string { return "docker-" + id[:12] }

func (d *Door) createEndpoint(ctx context.Context, r endpointRequest) (any, error) {
	n, err := d.network(ctx, r.NetworkID)
	if err != nil {
		return nil, err
	}
	if err := checkID("EndpointID", r.EndpointID); err != nil {
		return nil, err
	}
	if err := checkEndpointOptions(r.Options); err != nil {
		return nil, err
	}
	ep := api.Endpoint{Network: n.Name, Name: endpointName(r.EndpointID), Sandbox: api.Sandbox{Handoff: true},
		Meta: api.Meta{Labels: map[string]string{LabelEndpoint: r.EndpointID}}}
	asked := netInterface{}
	if r.Interface != nil {
		asked = *r.Interface
	}
	for _, s := range []string{asked.Address, asked.AddressIPv6} {
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("address %q: is no address with a length", s)
		}
		ep.Addresses = append(ep.Addresses, p.Addr())
	}
	if asked.MacAddress != "" {
		hw, err := net.ParseMAC(asked.MacAddress)
		if err != nil {
			return nil, fmt.Errorf("MAC address %q: is no hardware address", asked.MacAddress)
		}
		ep.MAC = hw.String()
	}
	if was, err := d.engine.Endpoint(ctx, ep.Network, ep.Name); err == nil {
		if was.Labels[LabelEndpoint] != r.EndpointID {
			return nil, fmt.Errorf("endpoint %q: has the name of Docker's endpoint %s; want another name for it", was.Key(), r.EndpointID)
		}
		ep.Labels = nil // those that are there are kept: it may have joined since
	}
	if err := d.reapEndpoints(ctx, n, ep); err != nil {
		return nil, err
	}
	if ep, err = d.engine.PutEndpoint(ctx, ep, 0); err != nil {
		return nil, err
	}
	// What Docker gave may not be repeated to it.
	var give netInterface
	for _, p := range ep.Status.Prefixes {
		if p.Addr().Is4() && asked.Address == "" {
			give.Address = p.String()
		} else if p.Addr().Is6() && asked.AddressIPv6 == "" {
			give.AddressIPv6 = p.String()
		}
	}
	if asked.MacAddress == "" {
		give.MacAddress = ep.MAC
	}
	if give == (netInterface{}) {
		return none, nil
	}
	return map[string]any{"Interface": give}, nil
}

func (d *Door) endpointInfo(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err != nil {
		return nil, err
	}
	return map[string]any{"Value": map[string]string{"seine.endpoint": ep.Key()}}, nil
}

func (d *Door) deleteEndpoint(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err == nil {
		err = d.drop(ctx, ep)
	}
	if err != nil && api.CodeOf(err) != api.NotFound {
		return nil, err
	}
	return none, nil
}

func (d *Door) drop(ctx context.Context, ep api.Endpoint) error {
	if err := d.engine.DropEndpoint(ctx, ep.Network, ep.Name, 0); err != nil && api.CodeOf(err) != api.NotFound {
		return err
	}
	return nil
}

// join tells Docker which interface to take. It has been there since CreateEndpoint.
func (d *Door) join(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err != nil {
		return nil, err
	}
	if ep.Status.State != api.Attached {
		return nil, fmt.Errorf("endpoint %q: is %s: %s", ep.Key(), ep.Status.State, ep.Status.Error)
	}
	if err := d.label(ctx, ep, r.SandboxKey); err != nil {
		return nil, err
	}
	n, err := d.engine.Network(ctx, ep.Network)
	if err != nil {
		return nil, err
	}
	prefix := "eth"
	if n.Labels[LabelPrefix] != "" {
		prefix = n.Labels[LabelPrefix]
	}
	out := map[string]any{"InterfaceName": map[string]string{"SrcName": ep.Sandbox.Interface, "DstPrefix": prefix}}
	for _, g := range ep.Status.Gateways {
		if g.Is4() {
			out["Gateway"] = g.String()
		} else {
			out["GatewayIPv6"] = g.String()
		}
	}
	if len(ep.Status.Gateways) > 0 {
		return out, nil
	}
	if routes := connected(n, ep); len(routes) > 0 {
		out["StaticRoutes"] = routes
	} else {
		out["DisableGatewayService"] = true // or Docker leads a way out of an internal network by a bridge of its own
	}
	return out, nil
}

// routed reports whether a network's containers have no gateway, as the machine routes for them.
func routed(n api.Network) bool {
	return n.Driver == "ipvlan" && (n.Options["mode"] == "l3" || n.Options["mode"] == "l3s")
}

// connected gives the default routes of an endpoint whose way out is its interface, without a gateway: the machine routes
// for an ipvlan of mode l3 and l3s. RouteType 1 is libnetwork's "connected".
func connected(n api.Network, ep api.Endpoint) []map[string]any {
	if !routed(n) || n.Internal {
		return nil
	}
	var out []map[string]any
	for _, a := range ep.Addresses {
		all := "0.0.0.0/0"
		if a.Is6() {
			all = "::/0"
		}
		out = append(out, map[string]any{"Destination": all, "RouteType": 1})
	}
	return out
}

// label notes which sandbox an endpoint is in, "" for none. Names, which others change meanwhile, stay.
func (d *Door) label(ctx context.Context, ep api.Endpoint, sandbox string) error {
	if ep.Labels[LabelSandbox] == sandbox {
		return nil
	}
	_, err := d.engine.AmendEndpoint(ctx, ep.Network, ep.Name, func(e *api.Endpoint) {
		e.Labels = maps.Clone(e.Labels)
		if e.Labels[LabelSandbox] = sandbox; sandbox == "" {
			delete(e.Labels, LabelSandbox)
		}
	})
	return err
}

// leave takes the ports back, too: after its own restart, Docker does not ask for that.
func (d *Door) leave(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err == nil {
		err = d.setPorts(ctx, ep, []api.Port{})
	}
	if err == nil {
		err = d.label(ctx, ep, "")
	}
	if err != nil && api.CodeOf(err) != api.NotFound {
		return nil, err
	}
	return none, nil
}
