package api

import (
	"fmt"
	"net/netip"
	"strings"
)

// Family says which address families a network has.
type Family string

// The families.
const (
	Dual Family = "dual" // IPv4 and IPv6; the default
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Scope says who knows a network.
type Scope string

// The scopes.
const (
	NodeScope    Scope = "node"    // one machine; "" is the same
	ClusterScope Scope = "cluster" // every machine of the cluster
)

// Network is a set of endpoints that reach each other.
type Network struct {
	Meta
	// Name is unique; at most 63 bytes.
	Name string `json:"name"`
	// Aliases are further names by which look-ups may name the network: "web.ALIAS"; several networks may share one.
	Aliases []string `json:"aliases,omitempty"`
	// Driver says how endpoints get their interface: "bridge" (the default), "ptp", "host", "null"; "cni" has
	// any CNI plugin do it, "docker:NAME" Docker's network plugin of that name.
	Driver string `json:"driver,omitempty"`
	// Family says which subnets are taken from the default pools where Subnets names none. Default "dual".
	Family Family `json:"family,omitempty"`
	// Subnets are the address ranges, at most one of each family. Empty: one of each family in Family, from the
	// daemon's default pools, chosen so that it overlaps nothing that the machine has a route for.
	Subnets []Subnet `json:"subnets,omitempty"`
	// Internal networks have no way out: no default route, nothing is forwarded to or from them.
	Internal bool `json:"internal,omitempty"`
	// ICC (inter-container communication): with false the network's containers can't reach each other directly.
	// Default true.
	ICC *bool `json:"icc,omitempty"`
	// Masquerade hides the containers' addresses behind the machine's on the way out. Default true; an internal
	// network has nothing to masquerade.
	Masquerade *bool `json:"masquerade,omitempty"`
	// MTU of the interfaces in bytes, 68 (1280 with IPv6) to 65535. Default: that of the link with the machine's
	// default route.
	MTU int `json:"mtu,omitempty"`
	// Interface is the name of the bridge on the machine. Default: "sn-" and the network's name, or a hash of it.
	Interface string `json:"interface,omitempty"`
	// Scope says who knows the network: this machine alone, or every machine of the cluster. Default: "cluster" for a new
	// bridge network of a machine that is in a cluster, else "node".
	Scope Scope `json:"scope,omitempty"`
	// Fabric is how packets get from one machine of the cluster to another: "auto" (the default), "hostgw", "vxlan",
	// "wireguard", "udp". It can be changed while the network is used.
	Fabric string `json:"fabric,omitempty"`
	// Encrypt has packets between machines encrypted, whatever way they take. A machine that can't is refused.
	Encrypt bool `json:"encrypt,omitempty"`
	// Broadcast makes the network one layer 2 switch over all machines, with broadcast and multicast. Without it packets
	// between machines are routed.
	Broadcast bool `json:"broadcast,omitempty"`
	// ID tells a network of a cluster from others that had its name before. Given by the cluster.
	ID string `json:"id,omitempty"`
	// VNI is the network's number in VXLAN headers (RFC 7348 section 5), 4096 to 16777215. Given by the cluster.
	VNI uint32 `json:"vni,omitempty"`
	// Options are the driver's own. A network with subnets has besides: "dns.search", domains for the search list of its
	// containers' resolvers, separated by commas ("." for none), and "dns.options", options of resolv.conf(5) likewise.
	Options map[string]string `json:"options,omitempty"`
	// IPAM says who gives out the addresses: "" is the daemon, "docker:NAME" Docker's IPAM plugin of that name.
	IPAM string `json:"ipam,omitempty"`
	// IPAMOptions are the IPAM plugin's own.
	IPAMOptions map[string]string `json:"ipamOptions,omitempty"`
	// Plugin is what a driver or IPAM that is somebody else's program knows the network by; "" before it knows it. Filled
	// in by the daemon; it is ignored in a PUT.
	Plugin string `json:"plugin,omitempty"`
	// Status is what the daemon saw last; it is ignored in a PUT.
	Status *NetworkStatus `json:"status,omitempty"`
}

// Subnet is one address range of a network.
type Subnet struct {
	// Prefix is the subnet without host bits: 10.1.0.0/24, fd00:1::/64.
	Prefix netip.Prefix `json:"prefix"`
	// Gateway is the machine's own address in the subnet. Default: the first host address.
	Gateway netip.Addr `json:"gateway,omitzero"`
	// Range is the part that addresses are given out from. Default: all of Prefix.
	Range netip.Prefix `json:"range,omitzero"`
	// Reserved addresses are never given out unless an endpoint asks for them by name.
	Reserved []netip.Addr `json:"reserved,omitempty"`
}

// NetworkStatus is what the daemon knows about a network beyond what was asked for.
type NetworkStatus struct {
	// Endpoints is how many the network has on this node.
	Endpoints int `json:"endpoints"`
	// Error is why the kernel does not hold what the network needs; "" when it does.
	Error string `json:"error,omitempty"`
}

// NetworkNoun is how errors name a network.
func NetworkNoun(name string) string { return fmt.Sprintf("network %q", name) }

// ICCOn is ICC with its default.
func (n *Network) ICCOn() bool { return n.ICC == nil || *n.ICC }

// MasqueradeOn is Masquerade with its default.
func (n *Network) MasqueradeOn() bool { return (n.Masquerade == nil || *n.Masquerade) && !n.Internal }

// Subnet4 and Subnet6 give the network's subnet of that family; nil for none.
func (n *Network) Subnet4() *Subnet { return n.subnet(true) }

// Subnet6 gives the network's IPv6 subnet; nil for none.
func (n *Network) Subnet6() *Subnet { return n.subnet(false) }

func (n *Network) subnet(v4 bool) *Subnet {
	for i := range n.Subnets {
		if n.Subnets[i].Prefix.Addr().Is4() == v4 {
			return &n.Subnets[i]
		}
	}
	return nil
}

// Validate checks every field by itself; what needs the other networks or the machine is the engine's to check.
func (n *Network) Validate() error {
	noun := NetworkNoun(n.Name)
	if err := checkName(noun, "name", n.Name, 63); err != nil {
		return err
	}
	for i, a := range n.Aliases {
		if err := checkName(noun, fmt.Sprintf("aliases[%d]", i), a, 128); err != nil {
			return err
		}
	}
	if n.Driver != "" {
		if err := checkPlugin(noun, "driver", n.Driver); err != nil {
			return err
		}
	}
	if n.IPAM != "" {
		if err := checkPlugin(noun, "ipam", n.IPAM); err != nil {
			return err
		}
	}
	switch n.Family {
	case "", Dual, IPv4, IPv6:
	default:
		return FieldError(noun, "family", n.Family, "is no address family", `"dual", "ipv4" or "ipv6"`)
	}
	if err := n.validateSubnets(noun); err != nil {
		return err
	}
	if err := n.validateScope(noun); err != nil {
		return err
	}
	least := 68
	if n.Subnet6() != nil || len(n.Subnets) == 0 && n.Family != IPv4 {
		least = 1280 // RFC 8200 section 5
	}
	if n.MTU != 0 && (n.MTU < least || n.MTU > 65535) {
		return FieldError(noun, "mtu", n.MTU, "is out of range", fmt.Sprintf("%d to 65535, or 0 for the default", least))
	}
	if n.Interface != "" {
		if err := checkIfname(noun, "interface", n.Interface); err != nil {
			return err
		}
	}
	for field, options := range map[string]map[string]string{"options": n.Options, "ipamOptions": n.IPAMOptions} {
		for k, v := range options {
			if k == "" || len(k) > 256 || len(v) > 4096 {
				return FieldError(noun, field, k, "is no option", "keys of 1 to 256 bytes and values of at most 4096")
			}
		}
	}
	return checkLabels(noun, n.Labels)
}

// checkPlugin holds the name of a driver to a word, or two with a colon between: the second names somebody else's plugin
// and may become part of a path.
func checkPlugin(noun, field, name string) error {
	kind, plugin, two := strings.Cut(name, ":")
	if err := checkName(noun, field, kind, 32); err != nil {
		return err
	}
	if !two {
		return nil
	}
	return checkName(noun, field, plugin, 64)
}

// Shared reports whether the network is one of all machines of a cluster.
func (n *Network) Shared() bool { return n.Scope == ClusterScope }

// The bounds of Network.VNI: numbers below are left to networks that somebody makes by hand.
const (
	MinVNI = 4096
	MaxVNI = 1<<24 - 1
)

func (n *Network) validateScope(noun string) error {
	switch n.Scope {
	case "", NodeScope, ClusterScope:
	default:
		return FieldError(noun, "scope", n.Scope, "is no scope", `"node" or "cluster"`)
	}
	if n.Scope == NodeScope {
		for _, f := range []struct {
			field string
			value any
			set   bool
		}{{"fabric", n.Fabric, n.Fabric != ""}, {"encrypt", n.Encrypt, n.Encrypt}, {"broadcast", n.Broadcast, n.Broadcast}} {
			if f.set {
				return FieldError(noun, f.field, f.value, "has no meaning on one machine", `none, or scope "cluster"`)
			}
		}
	}
	if n.Fabric != "" {
		if err := checkName(noun, "fabric", n.Fabric, 32); err != nil {
			return err
		}
	}
	if n.VNI != 0 && (n.VNI < MinVNI || n.VNI > MaxVNI) {
		return FieldError(noun, "vni", n.VNI, "is out of range", fmt.Sprintf("%d to %d, or 0 to have one given", MinVNI, MaxVNI))
	}
	return nil
}

func (n *Network) validateSubnets(noun string) error {
	seen := map[bool]bool{}
	for i := range n.Subnets {
		s := &n.Subnets[i]
		f := func(name string) string { return fmt.Sprintf("subnets[%d].%s", i, name) }
		p := s.Prefix
		if !p.IsValid() {
			return FieldError(noun, f("prefix"), "", "is empty", "an address range such as 10.1.0.0/24 or fd00:1::/64")
		}
		a := p.Addr()
		if a.Is4In6() || a.Zone() != "" || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || p.Bits() == 0 ||
			p.Overlaps(netip.MustParsePrefix("0.0.0.0/8")) {
			return FieldError(noun, f("prefix"), p, "can't be used for containers", "a private unicast range")
		}
		if p != p.Masked() {
			return FieldError(noun, f("prefix"), p, "has host bits", p.Masked().String())
		}
		if most := a.BitLen() - 2; p.Bits() > most {
			return FieldError(noun, f("prefix"), p, "is too small", fmt.Sprintf("a length of at most /%d", most))
		}
		if seen[a.Is4()] {
			return FieldError(noun, f("prefix"), p, "is a second subnet of its family", "at most one IPv4 and one IPv6 subnet")
		}
		seen[a.Is4()] = true
		if s.Gateway.IsValid() && (!p.Contains(s.Gateway) || s.Gateway == a || s.Gateway == LastAddr(p)) {
			return FieldError(noun, f("gateway"), s.Gateway, "is no host address of the subnet", "an address in "+p.String())
		}
		if r := s.Range; r.IsValid() && (r != r.Masked() || r.Bits() < p.Bits() || !p.Contains(r.Addr())) {
			return FieldError(noun, f("range"), r, "is no part of the subnet", "a prefix without host bits within "+p.String())
		}
		for j, x := range s.Reserved {
			if !p.Contains(x) {
				return FieldError(noun, fmt.Sprintf("%s[%d]", f("reserved"), j), x, "is not in the subnet", "an address in "+p.String())
			}
		}
	}
	if len(n.Subnets) > 0 && n.Family != "" {
		want := map[bool]bool{true: n.Family != IPv6, false: n.Family != IPv4}
		for _, v4 := range []bool{true, false} {
			if seen[v4] && !want[v4] {
				return FieldError(noun, "family", n.Family, "has a subnet of the other family", "subnets and family that agree")
			}
		}
	}
	return nil
}

// LastAddr is the highest address of p: for IPv4 the broadcast address.
func LastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// FirstHost is the address after the network's own: the default gateway.
func FirstHost(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// Fold makes two names that DNS takes for one equal (RFC 4343).
func Fold(name string) string { return strings.ToLower(name) }
