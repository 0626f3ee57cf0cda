// Package docker is the driver, and the IPAM, that are somebody else's Docker plugins: docker:NAME has the plugin NAME do
// the work, called as dockerd calls it (libnetwork's docs/remote.md and docs/ipam.md).
//
//	attach:  CreateEndpoint ► Join ► ProgramExternalConnectivity ► EndpointOperInfo   then the interface is moved
//	detach:  the interface is moved back, then RevokeExternalConnectivity ► Leave ► DeleteEndpoint
//
// A plugin leaves an interface on the machine; taking it into the sandbox, its name, addresses and routes there are kernel
// objects of ours, as with any driver.
package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
)

// Driver is the network driver.
type Driver struct{ plugins *Plugins }

// New makes the driver.
func New(p *Plugins) Driver { return Driver{p} }

// Uses implements driver.Driver.
func (Driver) Uses() driver.Uses {
	return driver.Uses{Subnets: true, Sandbox: true, Ports: true, Named: true, AnyOption: true, NamesInterface: true}
}

// Interfaces implements driver.Driver: what is on the machine is the plugin's.
func (Driver) Interfaces(api.Network, api.Endpoint) (via, end string) { return "", "" }

// Network implements driver.Driver: nothing.
func (Driver) Network(api.Network, kernel.Facts) ([]kernel.Object, error) { return nil, nil }

// Objects implements driver.Driver: the plugin's interface, moved into the sandbox, with addresses and routes.
func (Driver) Objects(n api.Network, e api.Endpoint, _ kernel.Facts) ([]kernel.Object, error) {
	p := e.Plugin
	if p == nil || p.Interface == "" {
		return nil, nil
	}
	ns, dev := e.Sandbox.Netns, e.Sandbox.Interface
	out := []kernel.Object{&kernel.Link{NS: ns, Name: dev, Home: p.Interface}}
	if n.MTU != 0 || e.MAC != "" {
		out = append(out, &kernel.Attrs{NS: ns, Link: dev, MTU: n.MTU, MAC: e.MAC})
	}
	out = append(out, driver.Inside(n, e)...)
	for _, a := range p.Prefixes {
		out = append(out, &kernel.Addr{NS: ns, Link: dev, Prefix: a})
	}
	for _, r := range p.Routes {
		x := &kernel.Route{NS: ns, Dst: r.To.Masked(), Via: r.Via, Link: dev, Metric: e.Index + metric(r.To.Addr())}
		if !r.Via.IsValid() && r.To.Addr().Is4() {
			x.Scope = kernel.ScopeLink
		}
		out = append(out, x)
	}
	for _, g := range p.Gateways {
		out = append(out, &kernel.Route{NS: ns, Dst: netip.PrefixFrom(whole(g), 0), Via: g, Link: dev, Metric: e.Index + metric(g)})
	}
	return out, nil
}

// whole is the address that stands for all of a family.
func whole(of netip.Addr) netip.Addr {
	if of.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// metric is the lowest metric that can be asked for and read back.
func metric(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1024
}

// note is what taking back needs, of a network (with EndpointID "") or an endpoint.
type note struct {
	Plugin, NetworkID, EndpointID string
	// Joined and Programmed say which calls may have had an effect.
	Joined, Programmed bool
}

// plugin is the part of a name after the colon.
func plugin(name string) string {
	_, p, _ := strings.Cut(name, ":")
	return p
}

// The names of options.
const (
	labelIPv4     = "com.docker.network.enable_ipv4"
	labelIPv6     = "com.docker.network.enable_ipv6"
	labelInternal = "com.docker.network.internal"
	labelGeneric  = "com.docker.network.generic"
	labelExposed  = "com.docker.network.endpoint.exposedports"
	labelPortMap  = "com.docker.network.portmap"
	labelMAC      = "com.docker.network.endpoint.macaddress"
	labelGateway  = "com.docker.network.gateway"
	labelName     = "com.docker.network.endpoint.name"
)

type ipamData struct {
	AddressSpace, Pool string
	Gateway            string            `json:",omitempty"`
	AuxAddresses       map[string]string `json:",omitempty"`
}

// Setup implements driver.Attacher: CreateNetwork.
func (d Driver) Setup(ctx context.Context, n *api.Network, c driver.Call) error {
	name := plugin(n.Driver)
	if err := d.plugins.activate(ctx, name, "NetworkDriver"); err != nil {
		return err
	}
	var can struct{ Scope string }
	if err := d.plugins.call(ctx, name, "NetworkDriver.GetCapabilities", nil, &can); err != nil {
		return err
	}
	if can.Scope != "local" {
		return fmt.Errorf("plugin %q has the scope %q: only plugins of the scope local can be used", name, can.Scope)
	}
	type M = map[string]any
	options := M{labelIPv4: n.Subnet4() != nil, labelIPv6: n.Subnet6() != nil}
	if n.Internal {
		options[labelInternal] = true
	}
	generic := map[string]string{}
	for k, v := range n.Options {
		if !strings.HasPrefix(k, "dns.") { // ours
			generic[k] = v
		}
	}
	options[labelGeneric] = generic
	data := map[bool][]ipamData{true: {}, false: {}}
	for _, s := range n.Subnets {
		x := ipamData{AddressSpace: "LocalDefault", Pool: s.Prefix.String()}
		if s.Gateway.IsValid() {
			x.Gateway = netip.PrefixFrom(s.Gateway, s.Prefix.Bits()).String()
		}
		v4 := s.Prefix.Addr().Is4()
		data[v4] = append(data[v4], x)
	}
	x := note{Plugin: name, NetworkID: c.ID}
	if err := c.Keep(x); err != nil {
		return err
	}
	err := d.plugins.call(ctx, name, "NetworkDriver.CreateNetwork", M{"NetworkID": x.NetworkID, "Options": options,
		"IPv4Data": data[true], "IPv6Data": data[false]}, nil)
	return nothing(c.Keep, err)
}

// nothing notes that there is nothing to take back, where an error says so.
func nothing(keep driver.Keep, err error) error {
	if undone(err) {
		return errors.Join(err, keep(nil))
	}
	return err
}

// Teardown implements driver.Attacher: DeleteNetwork.
func (d Driver) Teardown(ctx context.Context, raw []byte, _ driver.Keep) error {
	var x note
	if err := json.Unmarshal(raw, &x); err != nil {
		return err
	}
	return forgotten(d.plugins.call(ctx, x.Plugin, "NetworkDriver.DeleteNetwork", map[string]string{"NetworkID": x.NetworkID}, nil))
}

type netInterface struct{ Address, AddressIPv6, MacAddress string }

type portBinding struct {
	Proto       int
	IP          string
	Port        uint16
	HostIP      string
	HostPort    uint16
	HostPortEnd uint16
}

type exposed struct {
	Proto int
	Port  uint16
}

var protocols = map[string]int{"tcp": 6, "udp": 17, "sctp": 132}

// portOptions are the ports in the words of the protocol.
func portOptions(e api.Endpoint) map[string]any {
	maps, open := []portBinding{}, []exposed{}
	for _, p := range e.Ports {
		b := portBinding{Proto: protocols[p.ProtocolOrTCP()], Port: p.ContainerPort, HostPort: p.HostPort, HostPortEnd: p.HostPort}
		if p.HostIP.IsValid() {
			b.HostIP = p.HostIP.String()
		}
		maps, open = append(maps, b), append(open, exposed{b.Proto, b.Port})
	}
	return map[string]any{labelPortMap: maps, labelExposed: open}
}

// Attach implements driver.Attacher.
func (d Driver) Attach(ctx context.Context, n api.Network, network []byte, e *api.Endpoint, c driver.Call) error {
	var of note
	if err := json.Unmarshal(network, &of); err != nil {
		return err
	}
	x := note{Plugin: of.Plugin, NetworkID: of.NetworkID, EndpointID: c.ID}
	if err := c.Keep(x); err != nil {
		return err
	}
	if err := d.create(ctx, n, x, e); err != nil {
		return nothing(c.Keep, err)
	}
	x.Joined = true
	if err := c.Keep(x); err != nil {
		return err
	}
	if err := d.join(ctx, x, e); err != nil {
		return err
	}
	if !n.Internal {
		x.Programmed = true
		if err := c.Keep(x); err != nil {
			return err
		}
		err := d.plugins.call(ctx, x.Plugin, "NetworkDriver.ProgramExternalConnectivity",
			x.request(map[string]any{"Options": portOptions(*e)}), nil)
		if len(e.Ports) == 0 {
			err = or404(err)
		}
		if err != nil {
			return err
		}
	}
	// What it says is for people; that it says something is not required.
	return or404(d.plugins.call(ctx, x.Plugin, "NetworkDriver.EndpointOperInfo", x.request(nil), nil))
}

func (x note) request(more map[string]any) map[string]any {
	out := map[string]any{"NetworkID": x.NetworkID, "EndpointID": x.EndpointID}
	for k, v := range more {
		out[k] = v
	}
	return out
}

// create has the plugin make the endpoint. It may give what it was not given, and may not repeat what it was.
func (d Driver) create(ctx context.Context, n api.Network, x note, e *api.Endpoint) error {
	var given netInterface
	p := e.Plugin
	for _, s := range n.Subnets {
		a := e.Address(s.Prefix.Addr().Is4())
		if !a.IsValid() {
			continue
		}
		full := netip.PrefixFrom(a, s.Prefix.Bits())
		p.Prefixes = append(p.Prefixes, full)
		if a.Is4() {
			given.Address = full.String()
		} else {
			given.AddressIPv6 = full.String()
		}
	}
	options := portOptions(*e)
	if e.MAC != "" {
		hw, err := net.ParseMAC(e.MAC)
		if err != nil {
			return err
		}
		given.MacAddress, options[labelMAC] = hw.String(), []byte(hw) // bytes are base64 in JSON
	}
	var out struct{ Interface *netInterface }
	err := d.plugins.call(ctx, x.Plugin, "NetworkDriver.CreateEndpoint", x.request(map[string]any{"Interface": given, "Options": options}), &out)
	if err != nil || out.Interface == nil {
		return err
	}
	got := *out.Interface
	for _, f := range []struct{ what, given, got string }{{"address", given.Address, got.Address}, {"address", given.AddressIPv6, got.AddressIPv6}, {"MAC", given.MacAddress, got.MacAddress}} {
		if f.got != "" && f.given != "" {
			return fmt.Errorf("plugin %q: CreateEndpoint: gives the %s %q where it was given %q", x.Plugin, f.what, f.got, f.given)
		}
	}
	if got.Address != "" || got.AddressIPv6 != "" {
		return fmt.Errorf("plugin %q: CreateEndpoint: gives the address %q of a family that the network has not", x.Plugin, got.Address+got.AddressIPv6)
	}
	if got.MacAddress != "" {
		hw, err := net.ParseMAC(got.MacAddress)
		if err != nil || len(hw) != 6 {
			return fmt.Errorf("plugin %q: CreateEndpoint: gives %q, which is no MAC", x.Plugin, got.MacAddress)
		}
		e.MAC = hw.String()
	}
	return nil
}

// join takes what the plugin says about the interface and its routes.
func (d Driver) join(ctx context.Context, x note, e *api.Endpoint) error {
	var out struct {
		InterfaceName        struct{ SrcName, DstPrefix string }
		Gateway, GatewayIPv6 string
		StaticRoutes         []struct {
			Destination string
			RouteType   int
			NextHop     string
		}
	}
	in := x.request(map[string]any{"SandboxKey": e.Sandbox.Netns, "Options": portOptions(*e)})
	if err := d.plugins.call(ctx, x.Plugin, "NetworkDriver.Join", in, &out); err != nil {
		return err
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("plugin %q: Join: "+format, append([]any{x.Plugin}, args...)...)
	}
	p := e.Plugin
	if p.Interface, p.Prefix = out.InterfaceName.SrcName, out.InterfaceName.DstPrefix; !isInterface(p.Interface) {
		return fail("gives %q, which is no name of an interface", p.Interface)
	}
	if p.Prefix != "" && (!isInterface(p.Prefix) || len(p.Prefix) > 12) { // a number follows
		return fail("gives the prefix %q, which is none for the name of an interface", p.Prefix)
	}
	for _, g := range []struct {
		text string
		v4   bool
	}{{out.Gateway, true}, {out.GatewayIPv6, false}} {
		if g.text == "" {
			continue
		}
		a, err := netip.ParseAddr(g.text)
		if err != nil || a.Is4() != g.v4 {
			return fail("gives the gateway %q, which is no address of its family", g.text)
		}
		p.Gateways = append(p.Gateways, a)
	}
	for _, r := range out.StaticRoutes {
		to, err := netip.ParsePrefix(r.Destination)
		if err != nil {
			return fail("gives a route to %q, which is no range", r.Destination)
		}
		route := api.PluginRoute{To: to}
		if r.RouteType == 0 {
			if route.Via, err = netip.ParseAddr(r.NextHop); err != nil || route.Via.Is4() != to.Addr().Is4() {
				return fail("gives a route to %s by %q, which is no address of its family", to, r.NextHop)
			}
		} else if r.RouteType != 1 {
			return fail("gives a route of type %d; want 0 or 1", r.RouteType)
		}
		p.Routes = append(p.Routes, route)
	}
	return nil
}

func isInterface(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n\v\f\r\x00%")
}

// Detach implements driver.Attacher.
func (d Driver) Detach(ctx context.Context, raw []byte, _ driver.Keep) error {
	var x note
	if err := json.Unmarshal(raw, &x); err != nil {
		return err
	}
	if x.Programmed {
		if err := forgotten(or404(d.plugins.call(ctx, x.Plugin, "NetworkDriver.RevokeExternalConnectivity", x.request(nil), nil))); err != nil {
			return err
		}
	}
	if x.Joined {
		if err := forgotten(d.plugins.call(ctx, x.Plugin, "NetworkDriver.Leave", x.request(nil), nil)); err != nil {
			return err
		}
	}
	return forgotten(d.plugins.call(ctx, x.Plugin, "NetworkDriver.DeleteEndpoint", x.request(nil), nil))
}
