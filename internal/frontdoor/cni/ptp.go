package cni

import (
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/internal/kernel"
)

// ptpConf is the configuration of the plugin "ptp".
type ptpConf struct {
	IPMasq        bool    `json:"ipMasq"`
	IPMasqBackend *string `json:"ipMasqBackend"`
	MTU           int     `json:"mtu"`
}

// ptp is the plugin "ptp": a veth that the machine routes to. All of the container's traffic goes by the gateway
// address, which the machine has on its end:
//
//	machine                                   container
//	veth… gateway/32                          eth0 address/24 (without the subnet's route)
//	address/32 dev veth…                      gateway/32 dev eth0
//	                                          subnet/24 via gateway
type ptp struct{ ptpConf }

func newPTP(r *request) (maker, error) {
	p := &ptp{}
	if err := decode(r.stdin, &p.ptpConf); err != nil {
		return nil, err
	}
	if err := validMTU(p.MTU); err != nil {
		return nil, err
	}
	return p, validMasqBackend(p.IPMasqBackend)
}

func (t *ptp) needsIPAM() bool   { return true }
func (t *ptp) masquerades() bool { return t.IPMasq }

func (t *ptp) plan(a *attaching, _ *seen) (*plan, error) {
	if a.ips == nil {
		return nil, invalid("ipam.type", "dhcp", "asks over the interface, whose only neighbour is the machine", "host-local or static, or an interface plugin such as bridge or macvlan")
	}
	if len(a.ips.IPs) == 0 {
		return nil, invalid("ipam", "", "gives no address", "at least one")
	}
	p := &plan{link: a.vethLink(t.MTU), own: a.outside()}
	p.own = append(p.own, a.enable6()...)
	p.own = append(p.own, &kernel.LinkUp{NS: a.netns, Link: a.ifname})
	once := map[kernel.Key]bool{} // addresses of one subnet share gateway and routes
	add := func(o kernel.Object) {
		if !once[o.Key()] {
			once[o.Key()] = true
			p.own = append(p.own, o)
		}
	}
	for i, ip := range a.ips.IPs {
		addr, gw := ip.Address.Addr(), ip.Gateway
		if !gw.IsValid() || gw == addr {
			return nil, invalid(fmt.Sprintf("ipam: ips[%d].gateway", i), gw, "is no gateway for "+ip.Address.String(), "an address of the same family that is the machine's end")
		}
		metric := metricFor(addr)
		add(&kernel.Addr{NS: a.netns, Link: a.ifname, Prefix: ip.Address, NoRoute: true})
		scope := kernel.ScopeGlobal
		if addr.Is4() {
			scope = kernel.ScopeLink
		}
		add(&kernel.Route{NS: a.netns, Dst: full(gw), Link: a.ifname, Src: addr, Scope: scope, Metric: metric})
		if !ip.Address.IsSingleIP() {
			add(&kernel.Route{NS: a.netns, Dst: ip.Address.Masked(), Via: gw, Link: a.ifname, Src: addr, Metric: metric})
		}
		add(&kernel.Addr{Link: a.host, Prefix: full(gw)})
		add(t.hostRoute(a.host, addr, metric))
	}
	routes, err := a.routes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		add(r)
	}
	if !a.check {
		p.shared = a.forwarding()
	}
	if t.IPMasq {
		chains, elements := masquerade(a.ips.IPs, a.alias)
		p.chains = chains
		p.own = append(p.own, elements...)
	}
	p.result = a.resultOf(Interface{Name: a.host, MAC: a.hostMAC})
	return p, nil
}

func (t *ptp) hostRoute(link string, addr netip.Addr, metric int) *kernel.Route {
	r := &kernel.Route{Dst: full(addr), Link: link, Metric: metric}
	if addr.Is4() {
		r.Scope = kernel.ScopeHost
	}
	return r
}
