package kernel

import (
	"net/netip"
	"slices"
)

// Facts is what the pure functions need to know about the machine. It is read at start, when the kernel says that
// something changed, and on a slow tick; nobody changes a Facts that was handed out.
type Facts struct {
	// Links are the interfaces of the machine, ours included.
	Links []LinkFact
	// Routes are the destinations that the machine has routes for, default routes and ours left out.
	Routes []netip.Prefix
	// Default4 and Default6 name the link of the default route, "" for none.
	Default4, Default6 string
	// Chains are the base chains of others that would drop forwarded or incoming packets that they don't know.
	Chains []ForeignChain
	// LegacyFilter has the families ("ip", "ip6") in which the kernel's older packet filter (iptables-legacy) has its
	// table "filter" loaded: what its chains do can't be seen nor changed from nftables.
	LegacyFilter []string
	// BridgeFilter4 and BridgeFilter6 say that frames bridged between ports pass the IP hooks too
	// (net.bridge.bridge-nf-call-iptables and -ip6tables).
	BridgeFilter4, BridgeFilter6 bool
	// Forward4 and Forward6 say that the machine forwarded packets before we asked it to.
	Forward4, Forward6 bool
	// NoIPv6 says that the kernel has IPv6 turned off.
	NoIPv6 bool
	// MachineID is a stable identity of the machine (machine-id(5)); "" where there is none.
	MachineID string
}

// LinkFact is an interface of the machine.
type LinkFact struct {
	Name  string
	Index int
	MTU   int
	MAC   string
	Up    bool
	// Ours says that the alias marks the link as ours.
	Ours bool
	// AcceptRA is the link's net.ipv6.conf.*.accept_ra: at 1 the kernel stops to listen to router advertisements as
	// soon as it forwards, at 2 it goes on. It is not read for links of ours.
	AcceptRA int
	// Inner says that the link is a bridge of somebody else that has containers' and virtual machines' interfaces as its
	// ports (veth, tap), or no ports: nobody beyond the machine is on it.
	Inner bool
	Addrs []netip.Prefix
}

// ForeignChain is a base chain of somebody else.
type ForeignChain struct {
	Family, Table, Chain string
	// Hook is "forward" or "input".
	Hook string
	// Why tells how the chain drops what it does not know: "policy drop" or "last rule rejects"; "" for one that lets it
	// pass, which Facts does not have.
	Why string
	// Locked says that the kernel keeps all but the owner from changing it (nft(8), table flag owner), as firewalld 2 asks
	// for.
	Locked bool
	// Owner guesses whose it is, for people: "iptables (Docker, ufw)", "firewalld".
	Owner string
}

// Link finds a link by name; nil where there is none.
func (f Facts) Link(name string) *LinkFact {
	i := slices.IndexFunc(f.Links, func(l LinkFact) bool { return l.Name == name })
	if i < 0 {
		return nil
	}
	return &f.Links[i]
}

// PathMTU is the MTU of the link that the machine's default route uses, the smaller one where the families differ;
// 1500 where there is none.
func (f Facts) PathMTU() int {
	mtu := 0
	for _, name := range []string{f.Default4, f.Default6} {
		if l := f.Link(name); l != nil && l.MTU > 0 && (mtu == 0 || l.MTU < mtu) {
			mtu = l.MTU
		}
	}
	if mtu == 0 {
		return 1500
	}
	return mtu
}

// Overlapping gives the first of the machine's routes and addresses, ours left out, that shares addresses with p.
func (f Facts) Overlapping(p netip.Prefix) (netip.Prefix, bool) {
	for _, r := range f.Ranges() {
		if r.Overlaps(p) {
			return r, true
		}
	}
	return netip.Prefix{}, false
}

// Ranges gives the destinations of the machine's routes and the ranges of its addresses, ours left out.
func (f Facts) Ranges() []netip.Prefix {
	out := slices.Clone(f.Routes)
	for _, l := range f.Links {
		if !l.Ours {
			out = append(out, l.Addrs...)
		}
	}
	return out
}
