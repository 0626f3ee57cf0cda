package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// Result is a CNI result, whatever the version that it is read or written in.
type Result struct {
	Interfaces []Interface
	IPs        []IP
	Routes     []Route
	DNS        DNS
}

// Interface is an interface of a result.
type Interface struct {
	MAC        string `json:"mac,omitempty"`
	MTU        int    `json:"mtu,omitempty"`
	Name       string `json:"name"`
	PCIID      string `json:"pciID,omitempty"`
	Sandbox    string `json:"sandbox,omitempty"`
	SocketPath string `json:"socketPath,omitempty"`
}

// IP is an address of a result.
type IP struct {
	Address netip.Prefix
	// Gateway is the zero Addr for none.
	Gateway netip.Addr
	// Interface is an index into Interfaces; nil where that is not known.
	Interface *int
}

// Route is a route of a result. Table and Scope are nil where they are not given.
type Route struct {
	AdvMSS   int        `json:"advmss,omitempty"`
	Dst      prefix     `json:"dst"`
	GW       netip.Addr `json:"gw,omitzero"`
	MTU      int        `json:"mtu,omitempty"`
	Priority int        `json:"priority,omitempty"`
	Scope    *int       `json:"scope,omitempty"`
	Table    *int       `json:"table,omitempty"`
}

// DNS is what a container's resolver should use.
type DNS struct {
	Domain      string   `json:"domain,omitempty"`
	Nameservers []string `json:"nameservers,omitempty"`
	Options     []string `json:"options,omitempty"`
	Search      []string `json:"search,omitempty"`
}

func (d *DNS) empty() bool {
	return d.Domain == "" && len(d.Nameservers) == 0 && len(d.Options) == 0 && len(d.Search) == 0
}

// prefix is a netip.Prefix in JSON. IPv4 that is written as IPv6 is taken as IPv4.
type prefix struct{ netip.Prefix }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *prefix) UnmarshalText(text []byte) error {
	v, err := netip.ParsePrefix(string(text))
	if err != nil {
		return fmt.Errorf("%q is no prefix; want one such as 10.1.0.0/16", text)
	}
	if a := v.Addr(); a.Is4In6() && v.Bits() >= 96 {
		v = netip.PrefixFrom(a.Unmap(), v.Bits()-96)
	}
	p.Prefix = v
	return nil
}

// wireIP is an address of versions 0.3.0 and up.
type wireIP struct {
	Address   prefix     `json:"address"`
	Gateway   netip.Addr `json:"gateway,omitzero"`
	Interface *int       `json:"interface,omitempty"`
	Version   string     `json:"version,omitempty"` // up to 0.4.0
}

// wireResult is a result of versions 0.3.0 and up.
type wireResult struct {
	CNIVersion string      `json:"cniVersion,omitempty"`
	DNS        *DNS        `json:"dns,omitempty"` // an empty one is written up to 0.4.0 and left out later
	Interfaces []Interface `json:"interfaces,omitempty"`
	IPs        []wireIP    `json:"ips,omitempty"`
	Routes     []Route     `json:"routes,omitempty"`
}

// oldIP and oldResult are those of versions 0.1.0 and 0.2.0: one address of each family.
type oldIP struct {
	IP      prefix     `json:"ip"`
	Gateway netip.Addr `json:"gateway,omitzero"`
	Routes  []oldRoute `json:"routes,omitempty"`
}

type oldRoute struct {
	Dst prefix     `json:"dst"`
	GW  netip.Addr `json:"gw,omitzero"`
}

type oldResult struct {
	CNIVersion string `json:"cniVersion,omitempty"`
	IP4        *oldIP `json:"ip4,omitempty"`
	IP6        *oldIP `json:"ip6,omitempty"`
	DNS        DNS    `json:"dns"`
}

// encode writes a result in the form of a version.
func (r *Result) encode(version string) ([]byte, error) {
	if !atLeast(version, "0.3.0") {
		old, err := r.old(version)
		if err != nil {
			return nil, err
		}
		return json.MarshalIndent(old, "", "    ")
	}
	w := wireResult{CNIVersion: version, Interfaces: r.Interfaces, Routes: r.Routes}
	named := !atLeast(version, "1.0.0")
	if named || !r.DNS.empty() {
		w.DNS = &r.DNS
	}
	for _, ip := range r.IPs {
		o := wireIP{Address: prefix{ip.Address}, Gateway: ip.Gateway, Interface: ip.Interface}
		if named {
			o.Version = "6"
			if ip.Address.Addr().Is4() {
				o.Version = "4"
			}
		}
		w.IPs = append(w.IPs, o)
	}
	return json.MarshalIndent(w, "", "    ")
}

func (r *Result) old(version string) (*oldResult, error) {
	out := &oldResult{CNIVersion: version, DNS: r.DNS}
	for _, ip := range r.IPs {
		to := &out.IP6
		if ip.Address.Addr().Is4() {
			to = &out.IP4
		}
		if *to == nil {
			*to = &oldIP{IP: prefix{ip.Address}, Gateway: ip.Gateway}
		}
	}
	if out.IP4 == nil && out.IP6 == nil {
		return nil, errorf(CodeConfig, "cniVersion %q can't express a result without addresses; want 0.3.0 or newer", version)
	}
	for _, rt := range r.Routes {
		to := out.IP6
		if rt.Dst.Addr().Is4() {
			to = out.IP4
		}
		if to != nil {
			to.Routes = append(to.Routes, oldRoute{rt.Dst, rt.GW})
		}
	}
	return out, nil
}

// decodeResult reads a result. version is what it is taken for where it does not say itself.
func decodeResult(data []byte, version string) (*Result, error) {
	var head struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := decode(data, &head); err != nil {
		return nil, err
	}
	if head.CNIVersion != "" {
		version = head.CNIVersion
	}
	version, err := supported(version)
	if err != nil {
		return nil, err
	}
	out := &Result{}
	if !atLeast(version, "0.3.0") {
		var old oldResult
		if err := decode(data, &old); err != nil {
			return nil, err
		}
		out.DNS = old.DNS
		for _, ip := range []*oldIP{old.IP4, old.IP6} {
			if ip == nil {
				continue
			}
			out.IPs = append(out.IPs, IP{Address: ip.IP.Prefix, Gateway: ip.Gateway.Unmap()})
			for _, rt := range ip.Routes {
				out.Routes = append(out.Routes, Route{Dst: rt.Dst, GW: rt.GW.Unmap()})
			}
		}
		return out, out.validate()
	}
	var w wireResult
	if err := decode(data, &w); err != nil {
		return nil, err
	}
	out.Interfaces, out.Routes = w.Interfaces, w.Routes
	if w.DNS != nil {
		out.DNS = *w.DNS
	}
	for i := range out.Routes {
		out.Routes[i].GW = out.Routes[i].GW.Unmap()
	}
	for _, ip := range w.IPs {
		out.IPs = append(out.IPs, IP{ip.Address.Prefix, ip.Gateway.Unmap(), ip.Interface})
	}
	return out, out.validate()
}

// validate holds what was read to what the plugins rely on.
func (r *Result) validate() error {
	for i, ip := range r.IPs {
		if !ip.Address.IsValid() || ip.Address.Addr().IsUnspecified() {
			return invalid(fmt.Sprintf("ips[%d].address", i), ip.Address, "is missing", "an address such as 10.1.0.2/24")
		}
		if ip.Gateway.IsValid() && ip.Gateway.Is4() != ip.Address.Addr().Is4() {
			return invalid(fmt.Sprintf("ips[%d].gateway", i), ip.Gateway, "is of another family than the address", "one of the same")
		}
		if n := ip.Interface; n != nil && (*n < 0 || *n >= len(r.Interfaces)) {
			return invalid(fmt.Sprintf("ips[%d].interface", i), *n, "is no index into interfaces", fmt.Sprintf("less than %d, or none", len(r.Interfaces)))
		}
	}
	for i, rt := range r.Routes {
		if !rt.Dst.IsValid() {
			return invalid(fmt.Sprintf("routes[%d].dst", i), "", "is missing", "a prefix such as 0.0.0.0/0")
		}
		if rt.GW.IsValid() && rt.GW.Is4() != rt.Dst.Addr().Is4() {
			return invalid(fmt.Sprintf("routes[%d].gw", i), rt.GW, "is of another family than the destination", "one of the same")
		}
	}
	return nil
}

// addrs gives the addresses of all IPs.
func (r *Result) addrs() []netip.Addr {
	if r == nil {
		return nil
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		out = append(out, ip.Address.Addr())
	}
	return out
}

// gateway is the first gateway of a family; the zero Addr for none.
func (r *Result) gateway(v4 bool) netip.Addr {
	for _, ip := range r.IPs {
		if ip.Gateway.IsValid() && ip.Gateway.Is4() == v4 {
			return ip.Gateway
		}
	}
	return netip.Addr{}
}
