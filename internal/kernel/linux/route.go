package linux

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	rtmsgLen = unix.SizeofRtMsg
	rtaxMTU  = 2 // RTAX_MTU
	// rtaxAdvMSS is RTAX_ADVMSS.
	rtaxAdvMSS = 8
	// rtaNHID is RTA_NH_ID.
	rtaNHID = 30
)

var routeTypes = map[string]uint8{"": unix.RTN_UNICAST, "local": unix.RTN_LOCAL, "blackhole": unix.RTN_BLACKHOLE,
	"unreachable": unix.RTN_UNREACHABLE, "prohibit": unix.RTN_PROHIBIT}

func routeType(t uint8) (string, bool) {
	for s, v := range routeTypes {
		if v == t {
			return s, true
		}
	}
	return "", false
}

// protocol gives the number for the Proto of a route or rule, proto the other way round.
func protocol(proto int) uint8 {
	switch proto {
	case 0:
		return kernel.RouteProtocol
	case kernel.NoProtocol:
		return unix.RTPROT_UNSPEC
	}
	return uint8(proto)
}

func proto(number uint8) int {
	switch number {
	case kernel.RouteProtocol:
		return 0
	case unix.RTPROT_UNSPEC:
		return kernel.NoProtocol
	}
	return int(number)
}

// routeMsg is the message that makes, changes or deletes a route.
func (p *space) routeMsg(typ, flags uint16, r *kernel.Route) (*msg, error) {
	ip := r.Dst.Addr()
	b := make([]byte, rtmsgLen)
	b[0], b[1] = family(ip), uint8(r.Dst.Bits())
	b[4] = unix.RT_TABLE_UNSPEC // RTA_TABLE has it
	b[5] = protocol(r.Proto)
	b[6] = uint8(r.Scope)
	b[7] = routeTypes[r.Type]
	if r.OnLink {
		native.PutUint32(b[8:], unix.RTNH_F_ONLINK)
	}
	if typ == unix.RTM_DELROUTE {
		b[6], b[7] = unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC
		native.PutUint32(b[8:], 0)
		if r.Type == "local" {
			b[7] = unix.RTN_LOCAL
		}
	}
	m := newMsg(typ, flags, b)
	if r.Dst.Bits() > 0 {
		m.attr(unix.RTA_DST, r.Dst.Masked().Addr().AsSlice())
	}
	m.u32(unix.RTA_TABLE, uint32(r.TableOrMain()))
	if r.Metric != 0 {
		m.u32(unix.RTA_PRIORITY, uint32(r.Metric))
	}
	// A metric of 0 is no metric to the kernel: what else is known keeps a deletion from another metric's route.
	if exact := typ != unix.RTM_DELROUTE || r.Metric == 0 || r.Type == "local" || r.Proto != 0; !exact {
		return m, nil
	}
	if r.Nexthop != 0 {
		m.u32(rtaNHID, r.Nexthop)
	} else if r.Link != "" {
		i, err := p.ifindex(r.Link)
		if err != nil {
			return nil, err
		}
		m.u32(unix.RTA_OIF, uint32(i))
	}
	switch {
	case !r.Via.IsValid() || r.Nexthop != 0:
	case r.Via.Is4() == ip.Is4():
		m.attr(unix.RTA_GATEWAY, r.Via.AsSlice())
	default:
		m.attr(unix.RTA_VIA, append(native.AppendUint16(nil, uint16(family(r.Via))), r.Via.AsSlice()...))
	}
	if typ == unix.RTM_DELROUTE {
		return m, nil
	}
	if r.Src.IsValid() {
		m.attr(unix.RTA_PREFSRC, r.Src.AsSlice())
	}
	if r.MTU != 0 || r.AdvMSS != 0 {
		m.nested(unix.RTA_METRICS, func() {
			if r.MTU != 0 {
				m.u32(rtaxMTU, uint32(r.MTU))
			}
			if r.AdvMSS != 0 {
				m.u32(rtaxAdvMSS, uint32(r.AdvMSS))
			}
		})
	}
	return m, nil
}

// routeMsgs gives the messages that carry out a change of a route.
func (p *space) routeMsgs(c kernel.Change) ([]*msg, error) {
	one := func(m *msg, err error) ([]*msg, error) { return []*msg{m}, err }
	if c.Op == kernel.Delete {
		return one(p.routeMsg(unix.RTM_DELROUTE, 0, c.Old.(*kernel.Route)))
	}
	r := c.New.(*kernel.Route)
	perLink := r.Type == "local" && r.Dst.Addr().Is6()
	switch {
	case c.Op == kernel.Create && perLink:
		// NLM_F_EXCL would see the entry of another link as the same.
		return one(p.routeMsg(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, r))
	case c.Op == kernel.Create:
		return one(p.routeMsg(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, r))
	}
	old := c.Old.(*kernel.Route)
	if perLink || r.Dst.Addr().Is6() && (sortOf(old) != sortOf(r) || old.Type != r.Type) {
		// NLM_F_REPLACE of IPv6 replaces only among routes of one sort (with a gateway of its own, without), so that the old
		// one would stay beside the new one.
		del, err := p.routeMsg(unix.RTM_DELROUTE, 0, old)
		if err != nil {
			return nil, err
		}
		add, err := p.routeMsg(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, r)
		return []*msg{del, add}, err
	}
	return one(p.routeMsg(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, r))
}

// sortOf tells apart what IPv6 does not replace by one another.
func sortOf(r *kernel.Route) bool { return r.Via.IsValid() && r.Nexthop == 0 }

// routeInfo is a route as the kernel tells it.
type routeInfo struct {
	kernel.Route
	index int
	proto uint8
	typ   uint8
	cache bool
}

func parseRoute(r reply) (routeInfo, bool) {
	if r.typ != unix.RTM_NEWROUTE || len(r.data) < rtmsgLen {
		return routeInfo{}, false
	}
	b := r.data
	o := routeInfo{proto: b[5], typ: b[7], cache: native.Uint32(b[8:])&unix.RTM_F_CLONED != 0}
	o.Table, o.Scope = int(b[4]), kernel.RouteScope(b[6])
	o.OnLink = native.Uint32(b[8:])&unix.RTNH_F_ONLINK != 0
	t, ok := routeType(o.typ)
	if !ok {
		return o, false
	}
	o.Type = t
	dst := netip.IPv4Unspecified()
	switch b[0] {
	case unix.AF_INET:
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return o, false
	}
	for t, v := range attrs(r.rest(rtmsgLen)) {
		switch t {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(v)
		case unix.RTA_GATEWAY:
			o.Via, _ = netip.AddrFromSlice(v)
		case unix.RTA_VIA:
			if len(v) > 2 {
				o.Via, _ = netip.AddrFromSlice(v[2:])
			}
		case unix.RTA_PREFSRC:
			o.Src, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			o.index = int(num32(v))
		case rtaNHID:
			o.Nexthop = num32(v)
		case unix.RTA_TABLE:
			o.Table = int(num32(v))
		case unix.RTA_PRIORITY:
			o.Metric = int(num32(v))
		case unix.RTA_METRICS:
			o.MTU, o.AdvMSS = int(num32(attrOf(v, rtaxMTU))), int(num32(attrOf(v, rtaxAdvMSS)))
		}
	}
	o.Dst = netip.PrefixFrom(dst, int(b[1]))
	return o, dst.IsValid()
}

// routes lists the routes of a family; table and proto narrow it down where they are not 0.
func (p *space) routes(fam uint8, table int, proto uint8) ([]routeInfo, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	b := make([]byte, rtmsgLen)
	b[0], b[5] = fam, proto
	m := newMsg(unix.RTM_GETROUTE, 0, b)
	if table != 0 {
		m.u32(unix.RTA_TABLE, uint32(table))
	}
	rs, err := so.dump(m)
	if isErrno(err, unix.ENOENT) { // no such table yet
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []routeInfo
	for _, r := range rs {
		o, ok := parseRoute(r)
		if ok && !o.cache && (table == 0 || o.Table == table) && (proto == 0 || o.proto == proto) {
			out = append(out, o)
		}
	}
	return out, nil
}

// linkName gives the name of a link by number, from the session's cache where it is there.
func (p *space) linkName(index int, names map[int]string) string {
	if index == 0 {
		return ""
	}
	n, ok := names[index]
	if !ok {
		if l, err := p.linkBy(nil, index); err == nil {
			n = l.name
		}
		names[index] = n
	}
	return n
}

// object turns what the kernel tells into what can be wanted, in the words of the wanted route.
func (o *routeInfo) object(p *space, names map[int]string) *kernel.Route {
	r := o.Route
	r.NS = p.path
	r.Link = p.linkName(o.index, names)
	if o.typ != unix.RTN_UNICAST && o.typ != unix.RTN_LOCAL {
		r.Link = "" // IPv6 shows lo there
	}
	return &r
}

func (s *session) listRoutes(sp *space, want []kernel.Object, f *found) error {
	type part struct {
		fam   uint8
		table int
	}
	names := map[int]string{}
	parts := map[part]map[kernel.Key]*kernel.Route{}
	for _, o := range want {
		r := o.(*kernel.Route)
		if !r.Dst.IsValid() {
			if err := sp.everyRoute(r.Link, names, f); err != nil {
				return err
			}
			continue
		}
		if len(want) <= fewRoutes {
			got, sure, err := sp.hostRoute(r)
			if err != nil {
				return err
			}
			if sure {
				if got != nil {
					keepRoute(got.object(sp, names), got.proto, r, f)
				}
				continue
			}
		}
		p := part{family(r.Dst.Addr()), r.TableOrMain()}
		if parts[p] == nil {
			parts[p] = map[kernel.Key]*kernel.Route{}
		}
		parts[p][r.Key()] = r
	}
	for p, byKey := range parts {
		have, err := sp.routes(p.fam, p.table, 0)
		if err != nil {
			return err
		}
		for _, o := range have {
			got := o.object(sp, names)
			if w := byKey[got.Key()]; w != nil {
				keepRoute(got, o.proto, w, f)
			}
		}
	}
	return nil
}

// everyRoute lists all routes of the namespace, or those over a link.
func (p *space) everyRoute(link string, names map[int]string, f *found) error {
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		have, err := p.routes(fam, 0, 0)
		if isErrno(err, unix.EOPNOTSUPP, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return err
		}
		for _, o := range have {
			r := o.object(p, names)
			if r.Proto = proto(o.proto); link == "" || r.Link == link {
				f.add(r)
			}
		}
	}
	return nil
}

// keepRoute lists a route. One that somebody else made is in order where it is just what is wanted. Else it stays
// unlisted, so that nobody takes it for one to change: making ours will say that it is in the way.
func keepRoute(got *kernel.Route, proto uint8, want *kernel.Route, f *found) {
	got.Table = want.Table // 0 and main are the same
	if proto == kernel.RouteProtocol || want.Holds(got) {
		f.add(got)
	}
}

// fewRoutes is how many routes are looked up one by one.
const fewRoutes = 16

// hostRoute looks a route to a single address up in the main table, which costs the same however many routes there are.
// sure says that the answer tells: another table or another metric may come before what was asked for.
func (p *space) hostRoute(r *kernel.Route) (got *routeInfo, sure bool, err error) {
	if !r.Dst.IsSingleIP() || r.TableOrMain() != kernel.TableMain || r.Type != "" {
		return nil, false, nil
	}
	so, err := p.route()
	if err != nil {
		return nil, false, err
	}
	b := make([]byte, rtmsgLen)
	b[0], b[1] = family(r.Dst.Addr()), uint8(r.Dst.Bits())
	native.PutUint32(b[8:], unix.RTM_F_FIB_MATCH|unix.RTM_F_LOOKUP_TABLE)
	m := newMsg(unix.RTM_GETROUTE, 0, b)
	m.attr(unix.RTA_DST, r.Dst.Addr().AsSlice())
	answer, err := so.get(m)
	if isErrno(err, unix.ENETUNREACH) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, nil // whatever stands in the way: the dump tells
	}
	o, ok := parseRoute(answer)
	switch {
	case !ok || o.Table != kernel.TableMain:
		return nil, false, nil
	case o.Dst.Bits() < r.Dst.Bits():
		return nil, true, nil
	case o.Metric != r.Metric:
		return nil, false, nil
	}
	return &o, true, nil
}
