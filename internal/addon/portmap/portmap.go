// Package portmap is the addon that publishes an endpoint's ports on the machine: an element in a map from (protocol,
// port) to (address, port), so that ten thousand of them cost a packet what one does.
//
// Programs of the machine itself reach the port at 127.0.0.1 because route_localnet lets their packets leave with a
// loopback source, which is then masqueraded. IPv6 has no such sysctl: a local route to ::1 on the network's interface
// makes the kernel take the reply, unless bridge netfilter hands it the packet translated too early; where that is on
// (Facts.BridgeFilter6), internal/loopback serves [::1] in user space.
package portmap

import (
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/addon"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// Addon is the portmap addon.
type Addon struct{}

// New makes the addon; it has no state.
func New() Addon { return Addon{} }

// Objects implements addon.Addon.
func (Addon) Objects(n api.Network, e api.Endpoint, at addon.Place, f kernel.Facts) ([]kernel.Object, error) {
	var out []kernel.Object
	var any4, any6 bool
	for _, to := range e.Addresses {
		any := false
		for _, p := range e.Ports {
			if n.GatewayMode(to.Is4()) == api.GatewayRouted {
				out = append(out, ruleset.Element(ruleset.ByFamily(to, ruleset.Open4, ruleset.Open6),
					fmt.Sprintf("%s . %s . %d", to, p.ProtocolOrTCP(), p.ContainerPort), "", at.Owner))
				continue
			}
			if !Publishes(p, to) || to.Is6() && f.NoIPv6 {
				continue
			}
			out = append(out, element(p, to, at.Owner), hold(p, to))
			any = true
		}
		if any && (to.Is4() && f.BridgeFilter4 || to.Is6() && f.BridgeFilter6) {
			set := ruleset.ByFamily(to, ruleset.Self4, ruleset.Self6)
			out = append(out, ruleset.Element(set, to.String()+" . "+to.String(), "", at.Owner))
		}
		any4, any6 = any4 || any && to.Is4(), any6 || any && to.Is6()
	}
	if any4 {
		out = append(out, &kernel.Sysctl{Name: "net/ipv4/conf/" + at.HostInterface + "/route_localnet", Value: "1", Before: "0"})
	}
	if any6 && !f.BridgeFilter6 {
		out = append(out, &kernel.Route{Type: "local", Dst: netip.PrefixFrom(netip.IPv6Loopback(), 128), Link: at.HostInterface,
			Table: kernel.TableLocal, Metric: 4096})
	}
	return out, nil
}

// Publishes reports whether a port leads to an address of the endpoint: their families have to agree.
func Publishes(p api.Port, to netip.Addr) bool {
	return !p.HostIP.IsValid() || p.HostIP.Is4() == to.Is4()
}

func element(p api.Port, to netip.Addr, owner string) *kernel.Element {
	proto := p.ProtocolOrTCP()
	data := fmt.Sprintf("%s . %d", to, p.ContainerPort)
	var el *kernel.Element
	var on netip.Addr
	if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
		on = p.HostIP
		el = ruleset.Element(ruleset.ByFamily(to, ruleset.AddrPort4, ruleset.AddrPort6),
			fmt.Sprintf("%s . %s . %d", proto, on, p.HostPort), data, owner)
	} else {
		el = ruleset.Element(ruleset.ByFamily(to, ruleset.Port4, ruleset.Port6),
			fmt.Sprintf("%s . %d", proto, p.HostPort), data, owner)
	}
	if proto == "udp" {
		el.Flush = &kernel.Flow{Protocol: proto, Addr: on, Port: p.HostPort}
	}
	return el
}

func hold(p api.Port, to netip.Addr) *kernel.Hold {
	on := p.HostIP
	if !on.IsValid() {
		on = netip.IPv4Unspecified()
		if to.Is6() {
			on = netip.IPv6Unspecified()
		}
	}
	return &kernel.Hold{Protocol: p.ProtocolOrTCP(), Addr: on, Port: p.HostPort}
}
