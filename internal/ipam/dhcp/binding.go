package dhcp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/seine-net/seine/internal/ipam/dhcprpc"
)

// binding is what a server gave: an address for some time and what goes with it.
type binding struct {
	Addr netip.Prefix `json:"addr"`
	// Server is the address that a DHCPv4 server is asked at, ServerID the name of a DHCPv6 server.
	Server   netip.Addr `json:"server,omitzero"`
	ServerID []byte     `json:"serverID,omitempty"`
	// Via is the hardware address that the server's answer came from: its own, or that of the way to it.
	Via [6]byte `json:"via"`
	// Gateway is the zero Addr for none.
	Gateway netip.Addr      `json:"gateway,omitzero"`
	Routes  []dhcprpc.Route `json:"routes,omitempty"`
	DNS     []netip.Addr    `json:"dns,omitempty"`
	NTP     []netip.Addr    `json:"ntp,omitempty"`
	Domain  string          `json:"domain,omitempty"`
	Search  []string        `json:"search,omitempty"`
	// Since is when the server was asked; Expire is the zero Time for never.
	Since  time.Time `json:"since"`
	Renew  time.Time `json:"renew,omitzero"`
	Rebind time.Time `json:"rebind,omitzero"`
	Expire time.Time `json:"expire,omitzero"`
}

// The lease of a server that does not say how long, as the reference takes it.
const defaultLease = time.Hour

// forever is the number of seconds that stands for a lease without end (RFC 2131 section 3.3, RFC 8415 section 7.7).
const forever = 1<<32 - 1

// last sets the times from what the server said, 0 for nothing. Times that are in no order are replaced by the usual
// ones (RFC 2131 section 4.4.5).
func (b *binding) last(since time.Time, lease, renew, rebind uint32) {
	b.Since = since
	if lease == forever {
		b.Renew, b.Rebind, b.Expire = time.Time{}, time.Time{}, time.Time{}
		return
	}
	whole := time.Duration(lease) * time.Second
	t1, t2 := time.Duration(renew)*time.Second, time.Duration(rebind)*time.Second
	if t2 == 0 || t2 >= whole {
		t2 = whole * 7 / 8
	}
	if t1 == 0 || t1 >= t2 {
		t1 = min(whole/2, t2*4/7)
	}
	b.Renew, b.Rebind, b.Expire = since.Add(t1), since.Add(t2), since.Add(whole)
}

// result is the binding as the plugin tells it.
func (b *binding) result(priority int, out *dhcprpc.Result) {
	out.IPs = append(out.IPs, dhcprpc.IP{Address: b.Addr, Gateway: b.Gateway})
	for _, r := range b.Routes {
		r.Priority = priority
		out.Routes = append(out.Routes, r)
	}
	for _, a := range b.DNS {
		if s := a.String(); !slices.Contains(out.DNS.Nameservers, s) {
			out.DNS.Nameservers = append(out.DNS.Nameservers, s)
		}
	}
	if out.DNS.Domain == "" {
		out.DNS.Domain = b.Domain
	}
	for _, s := range b.Search {
		if !slices.Contains(out.DNS.Search, s) {
			out.DNS.Search = append(out.DNS.Search, s)
		}
	}
}

// bind4 reads an ACK.
func bind4(p *packet4, via [6]byte, since time.Time) (*binding, error) {
	server, ok := oneAddr4(p.option(optServer))
	if !ok {
		return nil, fmt.Errorf("server: names itself by no address (option %d)", optServer)
	}
	mask := p.option(optMask)
	if len(mask) != 4 {
		return nil, fmt.Errorf("server %s: gives no subnet mask (option %d)", server, optMask)
	}
	ones, ok := dhcprpc.MaskBits(mask)
	if !ok {
		return nil, fmt.Errorf("server %s: subnet mask %s: has holes", server, netip.AddrFrom4([4]byte(mask)))
	}
	if !p.your.IsValid() || p.your.IsMulticast() || p.your.IsLoopback() || p.your == everybody {
		return nil, fmt.Errorf("server %s: gives %s, which is no address of a container", server, p.your)
	}
	b := &binding{Addr: netip.PrefixFrom(p.your, ones), Server: server, Via: via, DNS: addrs4(p.option(optDNS)), NTP: addrs4(p.option(optNTP))}
	if d, ok := domain(string(p.option(optDomain))); ok {
		b.Domain = d
	}
	b.Search = searchList(p.option(optSearch))
	if r := addrs4(p.option(optRouters)); len(r) > 0 {
		b.Gateway = r[0]
	}
	b.Routes = routes4(p, b.Gateway)
	if v := p.option(optMTU); len(v) == 2 {
		if mtu := int(binary.BigEndian.Uint16(v)); mtu >= 68 { // RFC 2132 section 5.1
			for i := range b.Routes {
				b.Routes[i].MTU = mtu
			}
		}
	}
	lease := seconds(p.option(optLeaseTime))
	if lease == 0 {
		lease = uint32(defaultLease / time.Second)
	}
	b.last(since, lease, seconds(p.option(optRenewTime)), seconds(p.option(optRebindTime)))
	return b, nil
}

func seconds(v []byte) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(v)
}

func oneAddr4(v []byte) (netip.Addr, bool) {
	if len(v) != 4 {
		return netip.Addr{}, false
	}
	a := addr4(v)
	return a, a.IsValid() && !a.IsMulticast()
}

// addrs4 reads a list of addresses and leaves out what is none.
func addrs4(v []byte) []netip.Addr {
	var out []netip.Addr
	for ; len(v) >= 4; v = v[4:] {
		if a, ok := oneAddr4(v[:4]); ok && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

const scopeLink = 253 // of a route without a gateway (rtnetlink(7))

// routes4 are those of option 121, which stands for all others (RFC 3442), or else those of option 33 and the default
// route by the first router.
func routes4(p *packet4, gateway netip.Addr) []dhcprpc.Route {
	if out := classless(p.option(optClassless)); len(out) > 0 {
		return out
	}
	var out []dhcprpc.Route
	for v := p.option(optStaticRoute); len(v) >= 8; v = v[8:] {
		dst, gw := addr4(v[:4]), addr4(v[4:8])
		if !dst.IsValid() || !gw.IsValid() || dst.IsMulticast() {
			continue
		}
		bits := 24
		switch first := dst.As4()[0]; {
		case first < 128:
			bits = 8
		case first < 192:
			bits = 16
		case first >= 224:
			continue
		}
		out = append(out, dhcprpc.Route{Dst: netip.PrefixFrom(dst, bits).Masked(), GW: gw})
	}
	if gateway.IsValid() {
		out = append(out, dhcprpc.Route{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), GW: gateway})
	}
	return out
}

// classless reads option 121; one that is cut off gives what comes before.
func classless(v []byte) []dhcprpc.Route {
	var out []dhcprpc.Route
	for len(v) > 0 {
		bits := int(v[0])
		n := (bits + 7) / 8
		if bits > 32 || len(v) < 1+n+4 {
			break
		}
		var dst [4]byte
		copy(dst[:], v[1:1+n])
		r := dhcprpc.Route{Dst: netip.PrefixFrom(netip.AddrFrom4(dst), bits).Masked(), GW: addr4(v[1+n : 5+n])}
		if !r.GW.IsValid() {
			scope := scopeLink
			r.Scope = &scope
		}
		out = append(out, r)
		v = v[5+n:]
	}
	return out
}

// domain holds a name from the network to what may stand in resolv.conf: what breaks out of its line must not.
func domain(s string) (string, bool) {
	for len(s) > 0 && (s[len(s)-1] == 0 || s[len(s)-1] == '.') {
		s = s[:len(s)-1]
	}
	if s == "" || len(s) > 253 || s[0] == '.' || s[0] == '-' {
		return "", false
	}
	label := 0
	for _, c := range []byte(s) {
		switch {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = 0
			continue
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return "", false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	return s, true
}

// searchList reads names in the form of DNS, compressed or not (RFC 3397, RFC 8415 section 10), and leaves out those
// that can't be domains.
func searchList(v []byte) []string {
	var out []string
	for at := 0; at < len(v) && len(out) < 64; {
		name, next, ok := dnsName(v, at)
		if !ok {
			break
		}
		if d, ok := domain(name); ok && !slices.Contains(out, d) {
			out = append(out, d)
		}
		at = next
	}
	return out
}

// dnsName reads one name and says where the next one begins. Pointers lead backwards only, so it ends.
func dnsName(v []byte, at int) (name string, next int, ok bool) {
	limit := at
	for {
		if at >= len(v) || len(name) > 253 {
			return "", 0, false
		}
		n := int(v[at])
		switch {
		case n == 0:
			return name, max(next, at+1), true
		case n >= 0xc0:
			if at+1 >= len(v) {
				return "", 0, false
			}
			next = max(next, at+2)
			if at = n&0x3f<<8 | int(v[at+1]); at >= limit {
				return "", 0, false
			}
			limit = at
		case n > 63 || at+1+n > len(v):
			return "", 0, false
		default:
			if name != "" {
				name += "."
			}
			name += string(v[at+1 : at+1+n])
			at += 1 + n
		}
	}
}

// sameAs reports whether a container that was set up by one binding is by the other too.
func (b *binding) sameAs(o *binding) bool {
	same := func(a, b dhcprpc.Route) bool { return a.Dst == b.Dst && a.GW == b.GW && a.MTU == b.MTU }
	return b.Addr == o.Addr && b.Gateway == o.Gateway && slices.EqualFunc(b.Routes, o.Routes, same) && slices.Equal(b.DNS, o.DNS) &&
		b.Domain == o.Domain && slices.Equal(b.Search, o.Search)
}
