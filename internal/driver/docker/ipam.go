package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
)

// IPAM gives out the addresses of a network of any driver by a plugin.
type IPAM struct{ plugins *Plugins }

// NewIPAM makes the IPAM.
func NewIPAM(p *Plugins) IPAM { return IPAM{p} }

// ipamNote is what a plugin gave out and gets back, of a network or an endpoint.
type ipamNote struct {
	Plugin string
	// NeedsMAC says that the plugin wants to know the MAC that an address is for.
	NeedsMAC  bool `json:",omitempty"`
	Pools     []heldPool
	Addresses []heldAddr
}

type heldPool struct {
	ID     string
	Prefix netip.Prefix
}

type heldAddr struct{ Pool, Address string }

// maxRanges bounds how often a plugin that chooses the range by itself is asked for another, as the one that it gave is in
// use on this machine.
const maxRanges = 32

// Setup implements driver.Attacher: it asks for a pool for each family, and for the gateways and reserved addresses.
// Without subnets, and unless the network's family says otherwise, that is IPv4, as with Docker.
func (m IPAM) Setup(ctx context.Context, n *api.Network, c driver.Call) error {
	x := ipamNote{Plugin: plugin(n.IPAM)}
	if err := m.plugins.activate(ctx, x.Plugin, "IpamDriver"); err != nil {
		return err
	}
	var can struct{ RequiresMACAddress bool }
	if err := or404(m.plugins.call(ctx, x.Plugin, "IpamDriver.GetCapabilities", nil, &can)); err != nil {
		return err
	}
	x.NeedsMAC = can.RequiresMACAddress
	var spaces struct{ LocalDefaultAddressSpace string }
	if err := m.plugins.call(ctx, x.Plugin, "IpamDriver.GetDefaultAddressSpaces", nil, &spaces); err != nil {
		return err
	}
	want := n.Subnets
	if len(want) == 0 {
		want = make([]api.Subnet, 1, 2)
		if n.Family == api.Dual {
			want = want[:2]
		}
	}
	subnets := make([]api.Subnet, 0, 2)
	for i, s := range want {
		v6 := i == 1 || n.Family == api.IPv6
		if s.Prefix.IsValid() {
			v6 = s.Prefix.Addr().Is6()
		}
		got, err := m.subnet(ctx, n, &x, spaces.LocalDefaultAddressSpace, s, v6, c)
		if err != nil {
			return err
		}
		subnets = append(subnets, got)
	}
	n.Subnets = subnets
	return nil
}

// subnet asks for one pool with its gateway.
func (m IPAM) subnet(ctx context.Context, n *api.Network, x *ipamNote, space string, s api.Subnet, v6 bool, c driver.Call) (api.Subnet, error) {
	pool, gateway, err := m.pool(ctx, n, x, space, s, v6, c)
	if err != nil {
		return s, err
	}
	asked := s.Prefix.IsValid()
	s.Prefix = pool.Prefix
	if s.Gateway.IsValid() || gateway == "" {
		var a netip.Addr
		options := map[string]string{"RequestAddressType": labelGateway}
		if a, err = m.address(ctx, x, pool, s.Gateway, options, c.Keep); err != nil {
			return s, err
		}
		s.Gateway = a
	} else {
		p, err := netip.ParsePrefix(gateway)
		if err != nil || !pool.Prefix.Contains(p.Addr()) {
			return s, fmt.Errorf("plugin %q: RequestPool: gives the gateway %q, which is no address of %s", x.Plugin, gateway, pool.Prefix)
		}
		s.Gateway = p.Addr()
		// It counts as requested: it is given back like one that was.
		x.Addresses = append(x.Addresses, heldAddr{pool.ID, p.Addr().String()})
		if err := c.Keep(x); err != nil {
			return s, err
		}
	}
	if asked {
		for _, a := range s.Reserved {
			if _, err := m.address(ctx, x, pool, a, nil, c.Keep); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

// pool asks for a range, until one fits the machine where the plugin chooses it. What doesn't fit is given back at the end,
// or it would be given again.
func (m IPAM) pool(ctx context.Context, n *api.Network, x *ipamNote, space string, s api.Subnet, v6 bool, c driver.Call) (heldPool, string, error) {
	in := map[string]any{"AddressSpace": space, "Pool": "", "SubPool": "", "Options": n.IPAMOptions, "V6": v6}
	if s.Prefix.IsValid() {
		in["Pool"] = s.Prefix.String()
	}
	if s.Range.IsValid() {
		in["SubPool"] = s.Range.String()
	}
	first := len(x.Pools)
	for range maxRanges {
		var out struct {
			PoolID, Pool string
			Data         map[string]string
		}
		if err := m.plugins.call(ctx, x.Plugin, "IpamDriver.RequestPool", in, &out); err != nil {
			return heldPool{}, "", err
		}
		p, perr := netip.ParsePrefix(out.Pool)
		got := heldPool{out.PoolID, p}
		x.Pools = append(x.Pools, got)
		if err := c.Keep(x); err != nil {
			return got, "", err
		}
		if perr != nil || p != p.Masked() || p.Addr().Is6() != v6 || p.Bits() == 0 || s.Prefix.IsValid() && p != s.Prefix {
			return got, "", fmt.Errorf("plugin %q: RequestPool: gives the range %q where %q was asked for (IPv6 %v)", x.Plugin, out.Pool, in["Pool"], v6)
		}
		if s.Prefix.IsValid() || c.Free == nil || c.Free(p) {
			return got, out.Data[labelGateway], m.giveBack(ctx, x, first, c.Keep)
		}
	}
	return heldPool{}, "", fmt.Errorf("plugin %q: RequestPool: gave %d ranges, all in use on this machine; name one", x.Plugin, maxRanges)
}

// giveBack releases the pools from first on but the last.
func (m IPAM) giveBack(ctx context.Context, x *ipamNote, first int, keep driver.Keep) error {
	for len(x.Pools) > first+1 {
		if err := m.releasePool(ctx, x.Plugin, x.Pools[first]); err != nil {
			return err
		}
		x.Pools = slices.Delete(x.Pools, first, first+1)
		if err := keep(x); err != nil {
			return err
		}
	}
	return nil
}

// address asks for an address: want, or any for the zero Addr.
func (m IPAM) address(ctx context.Context, x *ipamNote, pool heldPool, want netip.Addr, options map[string]string, keep driver.Keep) (netip.Addr, error) {
	in := map[string]any{"PoolID": pool.ID, "Address": "", "Options": options}
	if want.IsValid() {
		in["Address"] = want.String()
	}
	var out struct{ Address string }
	if err := m.plugins.call(ctx, x.Plugin, "IpamDriver.RequestAddress", in, &out); err != nil {
		return want, err
	}
	p, err := netip.ParsePrefix(out.Address)
	if err != nil {
		return want, fmt.Errorf("plugin %q: RequestAddress: gives %q, which is no address with a length", x.Plugin, out.Address)
	}
	x.Addresses = append(x.Addresses, heldAddr{pool.ID, p.Addr().String()})
	if err := keep(x); err != nil {
		return want, err
	}
	if a := p.Addr(); !pool.Prefix.Contains(a) || want.IsValid() && a != want {
		return a, fmt.Errorf("plugin %q: RequestAddress: gives %s; want %v of %s", x.Plugin, a, in["Address"], pool.Prefix)
	}
	return p.Addr(), nil
}

// Attach implements driver.Attacher: an address of each pool.
func (m IPAM) Attach(ctx context.Context, n api.Network, network []byte, e *api.Endpoint, c driver.Call) error {
	var of ipamNote
	if err := json.Unmarshal(network, &of); err != nil {
		return err
	}
	options := map[string]string{labelName: e.Name}
	if of.NeedsMAC {
		if e.MAC == "" {
			e.MAC = "02:5e:" + c.ID[0:2] + ":" + c.ID[2:4] + ":" + c.ID[4:6] + ":" + c.ID[6:8]
		}
		options[labelMAC] = e.MAC
	}
	x := ipamNote{Plugin: of.Plugin}
	asked := e.Addresses
	e.Addresses = nil
	for _, s := range n.Subnets {
		i := slices.IndexFunc(of.Pools, func(p heldPool) bool { return p.Prefix == s.Prefix })
		if i < 0 {
			return fmt.Errorf("plugin %q gave no pool for %s", of.Plugin, s.Prefix)
		}
		var want netip.Addr
		for _, a := range asked {
			if a.Is4() == s.Prefix.Addr().Is4() {
				want = a
			}
		}
		a, err := m.address(ctx, &x, of.Pools[i], want, options, c.Keep)
		if err != nil {
			return err
		}
		e.Addresses = append(e.Addresses, a)
	}
	return nil
}

// Detach implements driver.Attacher: each address is released once; one that was is taken out of the note.
func (m IPAM) Detach(ctx context.Context, raw []byte, keep driver.Keep) error {
	var x ipamNote
	if err := json.Unmarshal(raw, &x); err != nil {
		return err
	}
	for len(x.Addresses) > 0 {
		last := x.Addresses[len(x.Addresses)-1]
		err := m.plugins.call(ctx, x.Plugin, "IpamDriver.ReleaseAddress", map[string]string{"PoolID": last.Pool, "Address": last.Address}, nil)
		if err = forgotten(err); err != nil {
			return err
		}
		x.Addresses = x.Addresses[:len(x.Addresses)-1]
		if err := keep(x); err != nil {
			return err
		}
	}
	for len(x.Pools) > 0 {
		if err := m.releasePool(ctx, x.Plugin, x.Pools[len(x.Pools)-1]); err != nil {
			return err
		}
		x.Pools = x.Pools[:len(x.Pools)-1]
		if err := keep(x); err != nil {
			return err
		}
	}
	return nil
}

func (m IPAM) releasePool(ctx context.Context, plugin string, p heldPool) error {
	return forgotten(m.plugins.call(ctx, plugin, "IpamDriver.ReleasePool", map[string]string{"PoolID": p.ID}, nil))
}

// Teardown implements driver.Attacher: gateways, reserved addresses, then the pools.
func (m IPAM) Teardown(ctx context.Context, raw []byte, keep driver.Keep) error {
	return m.Detach(ctx, raw, keep)
}
