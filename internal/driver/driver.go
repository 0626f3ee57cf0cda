// Package driver declares what a driver is: the pure function that says which kernel objects give an endpoint its
// interface. Each driver is a folder below; internal/builtin lists them. What drivers share is here: names, the veth
// into a sandbox, the elements of a network.
package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// Driver says which kernel objects give an endpoint its interface. It changes nothing: the same arguments give the
// same objects.
type Driver interface {
	// Network gives the objects that the network needs on this machine, whether it has endpoints or not. Objects that
	// endpoints share are here, computed from the network alone.
	Network(api.Network, kernel.Facts) ([]kernel.Object, error)
	// Objects gives the objects of one endpoint. The endpoint is complete: addresses, MAC, index and interface name
	// are set.
	Objects(api.Network, api.Endpoint, kernel.Facts) ([]kernel.Object, error)
	// Interfaces names the machine's interfaces: via is the one that the endpoint's packets come by, which rules about it
	// name; end is the machine's end of what leads into the sandbox. Both are "" where there is none.
	Interfaces(api.Network, api.Endpoint) (via, end string)
	// Uses says what of the nouns the driver works with.
	Uses() Uses
}

// Uses says what of a network and an endpoint a driver works with; the engine refuses what it would ignore.
type Uses struct {
	// Subnets: the network has subnets and its endpoints have addresses.
	Subnets bool
	// Sandbox: endpoints have a network namespace of their own.
	Sandbox bool
	// Handoff: an interface can be left to the caller to move.
	Handoff bool
	// Ports can be published. NoPorts says why they can't be, and what is done instead; "" for nothing to say.
	Ports   bool
	NoPorts string
	// Router: a subnet's gateway is a router that is not the machine. There is none unless somebody names it.
	Router bool
	// Options are the keys of Network.Options that the driver knows, with what they mean.
	Options map[string]string
	// PluginAddresses: the network has no subnets; its endpoints get their addresses by an Attacher.
	PluginAddresses bool
	// AnyOption: all keys of Network.Options are passed on to a plugin, which knows them.
	AnyOption bool
	// Named: the driver's name is followed by a colon and the name of a plugin.
	Named bool
	// NamesInterface: what the interface in the sandbox is called is known after attaching.
	NamesInterface bool
}

// Completer is a driver that knows more about its networks than Uses says.
type Completer interface {
	// Complete checks a network before anything is touched, and writes the driver's defaults into it: the other methods
	// read them there. What is complete stays as it is. The network's Options are its own, and not nil.
	Complete(n *api.Network, env Env) error
}

// Env is what a network is completed in.
type Env struct {
	Facts kernel.Facts
	// Others are all other networks.
	Others []api.Network
	// New says that the network is about to be made; it is changed otherwise.
	New bool
}

// Parented is a driver whose networks hang on links of the machine that need not be ours.
type Parented interface {
	// Parents names them, the one that interfaces are made on first; none for a network that hangs on none.
	Parents(api.Network) []string
}

// Limited is a driver whose networks don't take all that an endpoint can ask for.
type Limited interface {
	Limits(api.Network) Limits
}

// Limits says what the endpoints of a network can't have, and why.
type Limits struct {
	// One, where it is not "", says why the network takes one endpoint on this machine.
	One string
	// NoMAC, where it is not "", says why interfaces have no hardware address of their own.
	NoMAC string
}

// Present is a driver with networks on which the machine's own addresses are not the gateways.
type Present interface {
	// OwnAddrs gives them; none where the machine is not on the network.
	OwnAddrs(api.Network) []netip.Addr
}

// OwnAddrs gives the machine's own addresses on a network: containers find the name server there.
func OwnAddrs(d Driver, n api.Network) []netip.Addr {
	if p, ok := d.(Present); ok {
		return p.OwnAddrs(n)
	}
	var out []netip.Addr
	for _, s := range n.Subnets {
		out = append(out, s.Gateway)
	}
	return out
}

// NetworkOwner and EndpointOwner name the owners in the desired set.
func NetworkOwner(name string) string { return "network/" + name }

// EndpointOwner names the owner of an endpoint's objects.
func EndpointOwner(network, name string) string { return endpointOwner + network + "/" + name }

const endpointOwner = "endpoint/"

// OwnerEndpoint gives the key (api.Endpoint.Key) of the endpoint that an owner is; ok is false for other owners.
func OwnerEndpoint(owner string) (key string, ok bool) {
	return strings.CutPrefix(owner, endpointOwner)
}

// Alias marks a link of an owner as ours.
func Alias(owner string) string { return kernel.AliasPrefix + owner }

// HostName is the name of the machine's interface of a network: the prefix and the network's name where that makes an
// interface name, else a hash of it.
func HostName(network string) string {
	if n := kernel.HostPrefix + network; len(n) <= 15 {
		return n
	}
	return kernel.HostPrefix + digest(network, 12)
}

// PortName is the name of the machine's end of an endpoint's veth, with the given prefix.
func PortName(prefix, network, endpoint string) string {
	return prefix + digest(network+"/"+endpoint, 12)
}

func digest(s string, n int) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:n]
}

// MAC derives a hardware address from an endpoint's first address, so that it is the same after a restart and no
// neighbour's table goes stale. 02 marks it as locally administered (IEEE 802-2014 section 8.4).
func MAC(a netip.Addr) string {
	b := a.AsSlice()
	if len(b) > 4 {
		sum := sha256.Sum256(b)
		b = sum[:4]
	}
	return fmt.Sprintf("02:5e:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}

// Elements gives the elements of the nftables table that tell it about a network.
func Elements(n api.Network) []kernel.Object {
	var own []netip.Addr
	for _, s := range n.Subnets {
		own = append(own, s.Gateway)
	}
	return ElementsAt(n, own)
}

// ElementsAt is Elements with the machine's own addresses on the network.
func ElementsAt(n api.Network, own []netip.Addr) []kernel.Object {
	owner := NetworkOwner(n.Name)
	g := fmt.Sprint(ruleset.Group(n.Name))
	add := func(s *kernel.Set, item string) kernel.Object { return ruleset.Element(s, item, "", owner) }
	out := []kernel.Object{add(ruleset.Nets, g), add(ruleset.Same, g+" . "+g)}
	if n.ICCOn() {
		out = append(out, add(ruleset.Intra, g+" . "+g))
	}
	if n.Internal {
		out = append(out, add(ruleset.Internal, g))
	}
	out = append(out, gatewayElements(n, func(s *kernel.Set, item, data string) kernel.Object {
		return ruleset.Element(s, item, data, owner)
	})...)
	for _, a := range own {
		out = append(out, add(ruleset.ByFamily(a, ruleset.DNS4, ruleset.DNS6), a.String()))
	}
	return out
}

// Inside gives what every driver with a veth puts into the sandbox, apart from addresses and routes: lo and the
// interface up, and IPv6 usable at once.
func Inside(n api.Network, e api.Endpoint) []kernel.Object {
	ns, dev := e.Sandbox.Netns, e.Sandbox.Interface
	out := []kernel.Object{
		&kernel.LinkUp{NS: ns, Link: "lo", Keep: true},
		// It goes with the link; one of that name that is somebody else's is not to be set down.
		&kernel.LinkUp{NS: ns, Link: dev, Keep: true},
	}
	if n.Subnet6() != nil {
		out = append(out, IPv6(ns, dev)...)
	}
	return out
}

// IPv6 gives the sysctls of an interface of ours, before it is up. No router advertisement is believed: neighbours
// could send one (CVE-2020-10749). The link-local address is used without trying whether somebody has it, as the MAC is
// ours too: while it is tried the kernel sends no neighbour solicitation for packets that it forwards
// (ndisc_send_ns in net/ipv6/ndisc.c), and IPv6 would not work for a second.
func IPv6(ns, link string) []kernel.Object {
	conf := "net/ipv6/conf/" + link + "/"
	return []kernel.Object{
		&kernel.Sysctl{NS: ns, Name: conf + "accept_ra", Value: "0"},
		&kernel.Sysctl{NS: ns, Name: conf + "accept_dad", Value: "0"},
	}
}

// Addresses gives the endpoint's addresses in the sandbox, with the lengths of the subnets.
func Addresses(n api.Network, e api.Endpoint) []kernel.Object {
	var out []kernel.Object
	for _, s := range n.Subnets {
		if a := e.Address(s.Prefix.Addr().Is4()); a.IsValid() {
			out = append(out, &kernel.Addr{NS: e.Sandbox.Netns, Link: e.Sandbox.Interface, Prefix: netip.PrefixFrom(a, s.Prefix.Bits())})
		}
	}
	return out
}

// DefaultRoutes gives the sandbox its way out by the network's gateways, where it has them. The metric is the endpoint's
// index, so that the lowest one is used and the next takes over when it goes. Internal networks have none.
func DefaultRoutes(n api.Network, e api.Endpoint) []kernel.Object {
	with := n
	with.Subnets = nil
	for _, s := range n.Subnets {
		if s.Gateway.IsValid() {
			with.Subnets = append(with.Subnets, s)
		}
	}
	return defaultRoutes(with, e, func(s api.Subnet) netip.Addr { return s.Gateway })
}

// defaultRoutes is DefaultRoutes with a gateway of its own for each subnet; the zero Addr for none.
func defaultRoutes(n api.Network, e api.Endpoint, via func(api.Subnet) netip.Addr) []kernel.Object {
	if n.Internal {
		return nil
	}
	var out []kernel.Object
	for _, s := range n.Subnets {
		r := &kernel.Route{NS: e.Sandbox.Netns, Via: via(s), Link: e.Sandbox.Interface, Metric: e.Index}
		if s.Prefix.Addr().Is4() {
			r.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		} else {
			r.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if !r.Via.IsValid() && r.Dst.Addr().Is4() {
			r.Scope = kernel.ScopeLink
		}
		r.Metric += firstMetric(r.Dst.Addr())
		out = append(out, r)
	}
	return out
}

// firstMetric is the lowest metric that can be asked for in a's family and read back.
func firstMetric(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1024
}
