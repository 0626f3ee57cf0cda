package dhcp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/seine-net/seine/internal/ipam/dhcprpc"
)

// advert is what a router says of the link (RFC 4861 section 4.2, RFC 8106): what DHCPv6 does not tell.
type advert struct {
	// router is a link-local address; gateway says that it takes packets to everywhere.
	router  netip.Addr
	gateway bool
	onLink  []netip.Prefix
	dns     []netip.Addr
	search  []string
}

// The numbers of ICMPv6 and its options.
const (
	icmpSolicit = 133
	icmpAdvert  = 134

	ndPrefix = 3
	ndDNS    = 25
	ndSearch = 31
)

// parseAdvert reads a router advertisement; its sum was looked at by the kernel.
func parseAdvert(b []byte, from netip.Addr) (*advert, error) {
	if len(b) < 16 || b[0] != icmpAdvert || b[1] != 0 || !from.IsLinkLocalUnicast() {
		return nil, errors.New("is no router advertisement")
	}
	a := &advert{router: from.WithZone(""), gateway: binary.BigEndian.Uint16(b[6:]) != 0}
	for b = b[16:]; len(b) > 0; {
		if len(b) < 8 || b[1] == 0 || len(b) < 8*int(b[1]) {
			return nil, errors.New("router advertisement: an option is cut off")
		}
		o := b[:8*int(b[1])]
		b = b[len(o):]
		switch {
		case o[0] == ndPrefix && len(o) == 32:
			p := netip.PrefixFrom(netip.AddrFrom16([16]byte(o[16:])), int(o[2]))
			if o[3]&0x80 != 0 && p.IsValid() && binary.BigEndian.Uint32(o[4:]) > 0 {
				a.onLink = append(a.onLink, p.Masked())
			}
		case o[0] == ndDNS && binary.BigEndian.Uint32(o[4:]) > 0:
			a.dns = append(a.dns, addrs6(o[8:])...)
		case o[0] == ndSearch && binary.BigEndian.Uint32(o[4:]) > 0:
			a.search = append(a.search, searchList(trimPadding(o[8:]))...)
		}
	}
	return a, nil
}

// trimPadding cuts off the zeros behind a list of names; the one that ends the last name stays.
func trimPadding(v []byte) []byte {
	for len(v) > 1 && v[len(v)-1] == 0 && v[len(v)-2] == 0 {
		v = v[:len(v)-1]
	}
	return v
}

// learn adds to a binding what a router says: how long the address's prefix on the link is, the default route, and the
// settings of the resolver where the server gave none.
func (b *binding) learn(a *advert) {
	for _, p := range a.onLink {
		if p.Contains(b.Addr.Addr()) {
			b.Addr = netip.PrefixFrom(b.Addr.Addr(), p.Bits())
			break
		}
	}
	if a.gateway {
		b.Gateway = a.router
		// As the container's kernel makes it, where that listens to routers: then the one that is there is this one.
		b.Routes = []dhcprpc.Route{{Dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), GW: a.router}}
	}
	if len(b.DNS) == 0 {
		b.DNS = slices.Clone(a.dns)
	}
	if len(b.Search) == 0 {
		b.Search = slices.Clone(a.search)
	}
}
