package cni

import (
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/internal/kernel"
)

// defaultMetric is what the kernel makes of an IPv6 route's metric 0.
const defaultMetric = 1024

// vethLink is the attachment's veth without a bridge.
func (a *attaching) vethLink(mtu int) *kernel.Link {
	l := &kernel.Link{Name: a.host, Type: kernel.Veth, Alias: a.alias, Peer: &kernel.Peer{NS: a.netns, Name: a.ifname}}
	if !a.check {
		l.MTU, l.MAC = mtu, a.hostMAC
		l.Peer.MTU, l.Peer.MAC = mtu, a.mac
	}
	return l
}

func (a *attaching) sysctl(name, value string) *kernel.Sysctl {
	return &kernel.Sysctl{NS: a.netns, Name: name, Value: value}
}

// outside gives what the machine's end of the veth needs whatever the plugin.
func (a *attaching) outside() []kernel.Object {
	out := []kernel.Object{&kernel.LinkUp{Link: a.host}}
	if a.ipv6 {
		out = append(out, &kernel.Sysctl{Name: "net/ipv6/conf/" + a.host + "/accept_ra", Value: "0"},
			// While its link-local address is tried out, the kernel asks for no neighbour of packets that it forwards.
			&kernel.Sysctl{Name: "net/ipv6/conf/" + a.host + "/accept_dad", Value: "0"})
	}
	return out
}

// has6 reports whether the attachment gets an IPv6 address.
func (a *attaching) has6() bool {
	for _, ip := range a.ips.IPs {
		if ip.Address.Addr().Is6() {
			return true
		}
	}
	return false
}

// enable6 gives the sysctls that an interface needs before it gets an IPv6 address: IPv6 may be off in the container's
// namespace, and addresses would go when the container takes the interface down.
func (a *attaching) enable6() []kernel.Object {
	if !a.has6() {
		return nil
	}
	return []kernel.Object{
		a.sysctl("net/ipv6/conf/lo/disable_ipv6", "0"),
		a.sysctl("net/ipv6/conf/"+a.ifname+"/disable_ipv6", "0"),
		a.sysctl("net/ipv6/conf/"+a.ifname+"/keep_addr_on_down", "1"),
	}
}

// forwarding gives the sysctls that let the machine route for the attachment's families.
func (a *attaching) forwarding() []kernel.Object {
	var out []kernel.Object
	have := map[string]bool{}
	for _, ip := range a.ips.IPs {
		name := "net/ipv6/conf/all/forwarding"
		if ip.Address.Addr().Is4() {
			name = "net/ipv4/ip_forward"
		}
		if !have[name] {
			have[name] = true
			out = append(out, &kernel.Sysctl{Name: name, Value: "1"})
		}
	}
	return out
}

// routes turns the result's routes into those of the container. One without a gateway goes by the family's first,
// unless its scope says that there is none.
func (a *attaching) routes() ([]kernel.Object, error) {
	var out []kernel.Object
	seen := map[kernel.Key]*kernel.Route{}
	for i, r := range a.ips.Routes {
		v4 := r.Dst.Addr().Is4()
		k := &kernel.Route{NS: a.netns, Link: a.ifname, Dst: r.Dst.Masked(), Via: r.GW, Metric: r.Priority, MTU: r.MTU,
			AdvMSS: r.AdvMSS, Table: deref(r.Table), Scope: kernel.RouteScope(deref(r.Scope))}
		if !k.Via.IsValid() && k.Scope < kernel.ScopeLink {
			k.Via = a.ips.gateway(v4)
		}
		if !v4 && k.Metric == 0 {
			k.Metric = defaultMetric
		}
		if old := seen[k.Key()]; old != nil {
			if old.Via != k.Via {
				return nil, invalid(fmt.Sprintf("routes[%d]", i), k, "has another gateway than an earlier route to the same destination: "+old.Via.String(), "another priority")
			}
			continue
		}
		seen[k.Key()] = k
		out = append(out, k)
	}
	return out, nil
}

// full is an address with the length that names it alone.
func full(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func metricFor(a netip.Addr) int {
	if a.Is6() {
		return defaultMetric
	}
	return 0
}

// sandboxed gives the result of an attachment: the links of the machine first, the container's last.
func (a *attaching) resultOf(hostLinks ...Interface) *Result {
	res := &Result{}
	if a.ips != nil {
		*res = *a.ips
	}
	res.Interfaces = append(hostLinks, Interface{Name: a.ifname, MAC: a.mac, Sandbox: a.netns})
	inside := len(hostLinks)
	res.IPs = append([]IP(nil), res.IPs...)
	for i := range res.IPs {
		res.IPs[i].Interface = &inside
	}
	if !a.dns.empty() {
		res.DNS = a.dns
	}
	return res
}
