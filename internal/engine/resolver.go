package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// The fixed addresses of the name server are addresses of the machine's lo. A container's default route brings questions
// for them here, so they work whatever network it is on, and go on working when it leaves that one. Three kinds of askers
// are led on to the name server's port:
//
//	our networks     by the sets dns4 and dns6, as with the gateways
//	guests           containers on bridges of others (docker0), by the bridge's name and the fixed address
//	the machine      its own programs, and containers without a network of their own
//
// The last two have questions forwarded, and see no names of ours. Nobody beyond the machine can ask: packets that come in
// by another interface are neither led on nor let in at the name server's own port.

// fixed gives the fixed addresses that can be had: of families that the machine has, and not somebody else's already.
func (e *Engine) fixed(f kernel.Facts) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(e.DNSFixed), func(a netip.Addr) bool {
		return a.Is6() && f.NoIPv6 || holderOf(f, a) != ""
	})
}

// holderOf names the machine's interface that has an address; "" for none but lo.
func holderOf(f kernel.Facts, a netip.Addr) string {
	for _, l := range f.Links {
		if l.Name != "lo" && slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return l.Name
		}
	}
	return ""
}

// guestsOf gives the bridges of others whose containers may ask: those that nobody beyond the machine is on.
func guestsOf(f kernel.Facts) []kernel.LinkFact {
	var out []kernel.LinkFact
	for _, l := range f.Links {
		if l.Inner && l.Name != f.Default4 && l.Name != f.Default6 && len(l.Addrs) > 0 {
			out = append(out, l)
		}
	}
	return out
}

func fixedObjects(fixed []netip.Addr, guests []kernel.LinkFact) []kernel.Object {
	var out []kernel.Object
	for _, a := range fixed {
		out = append(out, &kernel.Addr{Link: "lo", Prefix: netip.PrefixFrom(a, a.BitLen())},
			ruleset.Element(ruleset.ByFamily(a, ruleset.DNS4, ruleset.DNS6), a.String(), "", MachineOwner),
			ruleset.Element(ruleset.ByFamily(a, ruleset.Fixed4, ruleset.Fixed6), a.String(), "", MachineOwner))
	}
	for _, l := range guests {
		out = append(out, ruleset.Element(ruleset.Guests, l.Name, "", MachineOwner))
	}
	return out
}

// guestPrefixes gives the addresses that guests ask from: those of their bridges' subnets, and the fixed addresses
// themselves, which the machine's own programs have as their source.
func guestPrefixes(fixed []netip.Addr, guests []kernel.LinkFact) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range fixed {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, l := range guests {
		for _, p := range l.Addrs {
			if !p.Addr().IsLinkLocalUnicast() || p.Addr().Is4() {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

// fixedFindings is what Doctor says about the fixed addresses.
func (e *Engine) fixedFindings(f kernel.Facts) []api.Finding {
	var out []api.Finding
	for _, a := range e.DNSFixed {
		if by := holderOf(f, a); by != "" {
			out = append(out, api.Finding{Level: "problem", Topic: "resolver", Found: fmt.Sprintf("%s has the address %s, at which the name server was to be found", by, a),
				Done: "it is left alone, and the name server answers at the gateways; start seined with another --dns-fixed"})
		}
	}
	fixed := e.fixed(f)
	if len(fixed) == 0 {
		return out
	}
	var names []string
	for _, l := range guestsOf(f) {
		names = append(names, l.Name)
	}
	found := fmt.Sprintf("the name server is found at %s, too", joined(fixed))
	if len(names) > 0 {
		found += "; containers on bridges of others (" + strings.Join(names, ", ") + ") may ask there for names outside"
	}
	return append(out, api.Finding{Level: "ok", Topic: "resolver", Found: found})
}

func joined[T fmt.Stringer](all []T) string {
	var out []string
	for _, x := range all {
		out = append(out, x.String())
	}
	return strings.Join(out, ", ")
}
