package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
)

// ipam gives addresses. One is made for a request with its configuration validated, on DEL and GC leniently so.
type ipam interface {
	// add takes addresses and gives a function that gives exactly those back.
	add(context.Context) (_ *Result, undo func(context.Context) error, _ error)
	// del gives back all that the attachment holds; nothing is success.
	del(context.Context) error
	check(context.Context) error
	gc(ctx context.Context, valid []attachment) error
	status(context.Context) error
	// held gives addresses that the attachment is known to hold; none where that can't be told.
	held() []netip.Addr
}

// ipams are the address plugins that are part of this program. All others are found in CNI_PATH and executed.
var ipams = map[string]func(*request) (ipam, error){
	"dhcp":       newDHCP,
	"host-local": newHostLocal,
	"static":     newStatic,
}

// ipamOf gives the address plugin that a configuration names; nil where it names none.
func ipamOf(r *request) (ipam, error) {
	if !given(r.conf.IPAM) {
		return nil, nil
	}
	var c struct {
		Type string `json:"type"`
	}
	if err := decode(r.conf.IPAM, &c); err != nil {
		return nil, fmt.Errorf("key %q: %w", "ipam", err)
	}
	if c.Type == "" {
		return nil, nil
	}
	if make := ipams[c.Type]; make != nil {
		return make(r)
	}
	return newExec(r, c.Type)
}

// routeConf is a route as configurations write it.
type routeConf struct {
	Dst      string `json:"dst"`
	GW       string `json:"gw"`
	MTU      int    `json:"mtu"`
	AdvMSS   int    `json:"advmss"`
	Priority int    `json:"priority"`
	Table    *int   `json:"table"`
	Scope    *int   `json:"scope"`
}

// parseRoutes validates ipam.routes.
func parseRoutes(confs []routeConf) ([]Route, error) {
	var out []Route
	for i, c := range confs {
		at := fmt.Sprintf("ipam.routes[%d]", i)
		var dst prefix
		if err := dst.UnmarshalText([]byte(c.Dst)); err != nil {
			return nil, invalid(at+".dst", c.Dst, "is no destination", "a prefix such as 10.1.0.0/16 or 0.0.0.0/0")
		}
		if dst.Prefix != dst.Masked() {
			return nil, invalid(at+".dst", c.Dst, "has host bits set", dst.Masked().String())
		}
		r := Route{Dst: dst, MTU: c.MTU, AdvMSS: c.AdvMSS, Priority: c.Priority, Table: c.Table, Scope: c.Scope}
		if c.GW != "" {
			gw, err := netip.ParseAddr(c.GW)
			if gw = gw.Unmap(); err != nil || gw.Zone() != "" || gw.Is4() != dst.Addr().Is4() {
				return nil, invalid(at+".gw", c.GW, "is no gateway for "+c.Dst, "an address of the same family")
			}
			r.GW = gw
		}
		for _, n := range []struct {
			key     string
			value   int
			largest int
		}{{"mtu", c.MTU, 65535}, {"advmss", c.AdvMSS, 65535}, {"priority", c.Priority, 1<<32 - 1},
			{"table", deref(c.Table), 1<<32 - 1}, {"scope", deref(c.Scope), 255}} {
			if n.value < 0 || n.value > n.largest {
				return nil, invalid(at+"."+n.key, n.value, "is out of range", fmt.Sprintf("0 to %d", n.largest))
			}
		}
		out = append(out, r)
	}
	return out, nil
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// checkFamilies holds the addresses to what the configuration's version can express.
func checkFamilies(version string, n4, n6 int) error {
	if (n4 > 1 || n6 > 1) && !atLeast(version, "0.3.0") {
		return errorf(CodeConfig, "cniVersion %q allows one address of each family; want 0.3.0 or newer for more", version)
	}
	return nil
}

// ipamPlugin makes an address plugin callable by its own name.
type ipamPlugin struct{ make func(*request) (ipam, error) }

func (p ipamPlugin) load(r *request) (ipam, error) {
	if !given(r.conf.IPAM) && r.verb != verbDel && r.verb != verbGC {
		return nil, errorf(CodeConfig, "key %q: is missing; want the address plugin's configuration", "ipam")
	}
	if !given(r.conf.IPAM) {
		r.conf.IPAM = json.RawMessage("{}")
	}
	return p.make(r)
}

func (p ipamPlugin) add(ctx context.Context, r *request) (*Result, error) {
	i, err := p.load(r)
	if err != nil {
		return nil, err
	}
	res, _, err := i.add(ctx)
	return res, err
}

func (p ipamPlugin) del(ctx context.Context, r *request) error {
	i, err := p.load(r)
	if err != nil {
		return err
	}
	return i.del(ctx)
}

func (p ipamPlugin) check(ctx context.Context, r *request) error {
	i, err := p.load(r)
	if err != nil {
		return err
	}
	return i.check(ctx)
}

func (p ipamPlugin) gc(ctx context.Context, r *request) error {
	valid, err := r.valid()
	if err != nil {
		return err
	}
	i, err := p.load(r)
	if err != nil {
		return err
	}
	return i.gc(ctx, valid)
}

func (p ipamPlugin) status(ctx context.Context, r *request) error {
	i, err := p.load(r)
	if err != nil {
		return err
	}
	return i.status(ctx)
}
