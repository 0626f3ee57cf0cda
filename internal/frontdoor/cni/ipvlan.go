package cni

import (
	"context"
	"slices"

	"github.com/seine-net/seine/internal/kernel"
)

// ipvlan is the plugin "ipvlan": an interface that shares its master's hardware address and is told from it by its
// addresses. Called after another plugin it takes that one's interface as the master and, without an address plugin of
// its own, that one's addresses.
type ipvlan struct {
	upper
	mode    string
	hasIPAM bool
	prev    *Result
}

func newIpvlan(r *request) (maker, error) {
	var c struct {
		upperConf
		Mode string `json:"mode"`
	}
	if err := decode(r.stdin, &c); err != nil {
		return nil, err
	}
	v := &ipvlan{upper: upper{upperConf: c.upperConf}, mode: c.Mode, hasIPAM: ipamType(r) != "", prev: r.prev}
	if v.mode == "" {
		v.mode = "l2"
	}
	if !slices.Contains(kernel.Modes[kernel.Ipvlan], v.mode) {
		return nil, invalid("mode", v.mode, "is no mode of an ipvlan", "l2, l3 or l3s")
	}
	if v.Master == "" && r.prev != nil && r.verb == verbAdd {
		if len(r.prev.Interfaces) != 1 || r.prev.Interfaces[0].Name == "" {
			return nil, invalid("master", "", "is missing, and prevResult has not just one interface, which it would be", "the name of an interface")
		}
		v.Master = r.prev.Interfaces[0].Name
	}
	return v, v.validate()
}

// needsIPAM: the addresses of prevResult do as well. CHECK's prevResult has them in any case, and STATUS has none.
func (v *ipvlan) needsIPAM() bool { return v.prev == nil || len(v.prev.IPs) == 0 }

func (v *ipvlan) resolve(ctx context.Context, r *request) error {
	if err := v.upper.resolve(ctx, r); err != nil {
		return err
	}
	return v.free()
}

func (v *ipvlan) plan(a *attaching, _ *seen) (*plan, error) {
	if !v.hasIPAM {
		ips := &Result{IPs: slices.Clone(v.prev.IPs), Routes: v.prev.Routes, DNS: v.prev.DNS}
		a.ips = ips
	}
	p := &plan{link: v.link(a, kernel.Ipvlan)}
	p.link.Mode = v.mode
	if !a.check {
		a.mac = v.on.MAC
	}
	return p, a.planInner(p, true)
}
