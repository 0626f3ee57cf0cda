package cni

import (
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/internal/kernel"
)

// bridgeConf is the configuration of the plugin "bridge".
type bridgeConf struct {
	Bridge                    string      `json:"bridge"`
	IsGateway                 bool        `json:"isGateway"`
	IsDefaultGateway          bool        `json:"isDefaultGateway"`
	ForceAddress              bool        `json:"forceAddress"`
	IPMasq                    bool        `json:"ipMasq"`
	IPMasqBackend             *string     `json:"ipMasqBackend"`
	MTU                       int         `json:"mtu"`
	HairpinMode               bool        `json:"hairpinMode"`
	PromiscMode               bool        `json:"promiscMode"`
	Vlan                      int         `json:"vlan"`
	VlanTrunk                 []trunkConf `json:"vlanTrunk"`
	PreserveDefaultVlan       bool        `json:"preserveDefaultVlan"`
	MACSpoofCheck             bool        `json:"macspoofchk"`
	EnableDAD                 bool        `json:"enabledad"`
	DisableContainerInterface bool        `json:"disableContainerInterface"`
	PortIsolation             bool        `json:"portIsolation"`
}

// bridge is the plugin "bridge": a veth whose machine's end is a port of a Linux bridge. bridgevlan.go has what is about
// VLANs, macspoof.go what is about hardware addresses that are not the container's.
type bridge struct {
	bridgeConf
	hasIPAM bool
	// trunk are the VLANs of vlanTrunk.
	trunk []kernel.VLANRange
	// mac is the hardware address that was asked for, "" for none.
	mac string
}

func newBridge(r *request) (maker, error) {
	b := &bridge{bridgeConf: bridgeConf{Bridge: "cni0"}}
	if err := decode(r.stdin, &b.bridgeConf); err != nil {
		return nil, err
	}
	if r.argsErr != nil && r.verb == verbAdd {
		return nil, r.argsErr
	}
	b.IsGateway = b.IsGateway || b.IsDefaultGateway
	b.hasIPAM = ipamType(r) != ""
	b.mac = r.askedMAC("")
	return b, b.validate()
}

func (b *bridge) validate() error {
	if err := validIfname("bridge", b.Bridge); err != nil {
		return err
	}
	if err := validMTU(b.MTU); err != nil {
		return err
	}
	if err := validMasqBackend(b.IPMasqBackend); err != nil {
		return err
	}
	switch {
	case b.HairpinMode && b.PromiscMode:
		return invalid("promiscMode", true, "excludes hairpinMode", "one of the two")
	case b.DisableContainerInterface && b.hasIPAM:
		return invalid("disableContainerInterface", true, "excludes an address plugin", "no ipam, or false")
	}
	if err := b.validateVLANs(); err != nil {
		return err
	}
	var err error
	b.mac, err = validMAC(b.mac)
	return err
}

func (b *bridge) needsIPAM() bool   { return false }
func (b *bridge) masquerades() bool { return b.IPMasq && b.hasIPAM }

// plan: the bridge, its gateway addresses and forwarding are shared; the veth and what is on its far end are own.
func (b *bridge) plan(a *attaching, s *seen) (*plan, error) {
	if b.mac != "" {
		a.mac = b.mac
	}
	p := &plan{link: a.vethLink(b.MTU)}
	p.link.Master = b.Bridge
	if (b.HairpinMode || b.PortIsolation) && !a.check {
		p.link.Port = &kernel.Port{Hairpin: b.HairpinMode, Isolated: b.PortIsolation}
	}
	p.own = []kernel.Object{&kernel.LinkUp{Link: a.host}}
	if a.ipv6 {
		// A port speaks no IPv6 of its own: an address and routes for each would make every further one dearer.
		p.own = append(p.own, &kernel.Sysctl{Name: "net/ipv6/conf/" + a.host + "/disable_ipv6", Value: "1"})
	}
	b.planVLANs(p, a.host)
	if b.MACSpoofCheck {
		p.shared = append(p.shared, guardTable())
		p.own = append(p.own, guard(a)...)
	}
	brMAC, err := b.planBridge(p, a, s)
	if err != nil {
		return nil, err
	}
	links := []Interface{{Name: b.Bridge, MAC: brMAC}, {Name: a.host, MAC: a.hostMAC}}
	if a.ips == nil {
		if !b.DisableContainerInterface {
			p.own = append(p.own, &kernel.LinkUp{NS: a.netns, Link: a.ifname})
		}
		p.result = a.resultOf(links...)
		return p, nil
	}
	if len(a.ips.IPs) == 0 {
		return nil, invalid("ipam", "", "gives no address", "at least one")
	}
	if !a.check {
		a.ips = b.gateways(a.ips)
	}
	p.result = a.resultOf(links...)
	return p, b.planAddresses(p, a, s)
}

// planBridge adds the bridge itself and gives its hardware address. One that is there is taken as it is.
func (b *bridge) planBridge(p *plan, a *attaching, s *seen) (string, error) {
	br := &kernel.Link{Name: b.Bridge, Type: kernel.Bridge, Promisc: b.PromiscMode && !a.check, VLANFiltering: b.filters()}
	p.shared = append(p.shared, br, &kernel.LinkUp{Link: b.Bridge})
	have := s.link(b.Bridge)
	if have == nil {
		br.MTU, br.MAC = b.MTU, a.bridgeMAC
		if a.ipv6 && !a.check {
			// Its addresses and routes are ours to give, and IPv6 is to work at once.
			p.shared = append(p.shared, &kernel.Sysctl{Name: "net/ipv6/conf/" + b.Bridge + "/accept_ra", Value: "0"},
				&kernel.Sysctl{Name: "net/ipv6/conf/" + b.Bridge + "/accept_dad", Value: "0"})
		}
		return a.bridgeMAC, nil
	}
	if have.Type != kernel.Bridge {
		what := string(have.Type)
		if what == "" {
			what = "physical"
		}
		return "", invalid("bridge", b.Bridge, "is an interface of type "+what, "the name of a bridge or one that is free")
	}
	return have.MAC, nil
}

// gateways fills in the gateways that follow from isGateway and the default routes that follow from isDefaultGateway.
func (b *bridge) gateways(in *Result) *Result {
	if !b.IsGateway {
		return in
	}
	out := *in
	out.IPs = append([]IP(nil), in.IPs...)
	out.Routes = append([]Route(nil), in.Routes...)
	for i, ip := range out.IPs {
		if !ip.Gateway.IsValid() {
			out.IPs[i].Gateway = ip.Address.Masked().Addr().Next()
		}
	}
	if !b.IsDefaultGateway {
		return &out
	}
	for _, v4 := range []bool{true, false} {
		gw := out.gateway(v4)
		if !gw.IsValid() {
			continue
		}
		any := netip.IPv6Unspecified()
		if v4 {
			any = netip.IPv4Unspecified()
		}
		def, found := netip.PrefixFrom(any, 0), false
		for i, r := range out.Routes {
			if r.Dst.Prefix != def || r.Table != nil {
				continue
			}
			// A default route that the address plugin gives without a gateway is this one.
			if found = true; !r.GW.IsValid() {
				out.Routes[i].GW = gw
			}
		}
		if !found {
			out.Routes = append(out.Routes, Route{Dst: prefix{def}, GW: gw})
		}
	}
	return &out
}

// planAddresses adds all that hangs on the attachment's addresses.
func (b *bridge) planAddresses(p *plan, a *attaching, s *seen) error {
	if a.ipv6 {
		dad := "0"
		if b.EnableDAD {
			dad = "1"
			p.own = append(p.own, a.sysctl("net/ipv6/conf/"+a.ifname+"/enhanced_dad", "1"))
		}
		p.own = append(p.own, a.sysctl("net/ipv6/conf/"+a.ifname+"/accept_dad", dad))
	}
	p.own = append(p.own, a.sysctl("net/ipv4/conf/"+a.ifname+"/arp_notify", "1"))
	p.own = append(p.own, a.enable6()...)
	for _, ip := range a.ips.IPs {
		p.own = append(p.own, &kernel.Addr{NS: a.netns, Link: a.ifname, Prefix: ip.Address, DAD: b.EnableDAD && ip.Address.Addr().Is6()})
	}
	p.own = append(p.own, &kernel.LinkUp{NS: a.netns, Link: a.ifname})
	routes, err := a.routes()
	if err != nil {
		return err
	}
	p.own = append(p.own, routes...)
	if b.IsGateway {
		if err := b.planGateways(p, a, s); err != nil {
			return err
		}
		if !a.check {
			p.shared = append(p.shared, a.forwarding()...)
		}
	}
	if b.IPMasq {
		chains, elements := masquerade(a.ips.IPs, a.alias)
		p.chains = append(p.chains, chains...)
		p.own = append(p.own, elements...)
	}
	return nil
}

// planGateways adds the addresses of the bridge, or of what stands for it in the VLAN. Others that are in the way are an error or, with forceAddress, replaced:
// any other of IPv4, and of IPv6 those of subnets that overlap.
func (b *bridge) planGateways(p *plan, a *attaching, s *seen) error {
	dev := b.Bridge
	if b.Vlan != 0 {
		dev = b.planVLANGateway(p, a, s)
	}
	want := map[netip.Prefix]bool{}
	for _, ip := range a.ips.IPs {
		if !ip.Gateway.IsValid() {
			continue
		}
		gw := netip.PrefixFrom(ip.Gateway, ip.Address.Bits())
		if !want[gw] {
			want[gw] = true
			p.shared = append(p.shared, &kernel.Addr{Link: dev, Prefix: gw})
		}
	}
	p.look = append(p.look, &kernel.Addr{Link: dev})
	if a.check {
		return nil
	}
	for _, o := range s.all {
		have, ok := o.(*kernel.Addr)
		if !ok || have.NS != "" || have.Link != dev || want[have.Prefix] || have.Prefix.Addr().IsLinkLocalUnicast() {
			continue
		}
		for gw := range want {
			if gw.Addr().Is4() != have.Prefix.Addr().Is4() || gw.Addr().Is6() && !gw.Overlaps(have.Prefix) {
				continue
			}
			if !b.ForceAddress {
				return invalid("bridge", dev, fmt.Sprintf("has address %s already", have.Prefix),
					fmt.Sprintf("one with %s or none, or forceAddress", gw))
			}
			p.replace = append(p.replace, have)
			break
		}
	}
	return nil
}
