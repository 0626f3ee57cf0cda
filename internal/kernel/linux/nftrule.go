package linux

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// source is where a field comes from.
type source struct {
	meta, ct         uint32
	isMeta, isCt     bool
	base, offset     uint32
	nfproto, l4proto uint8 // what the packet has to be, 0 for anything
	size             int
}

const (
	baseLink      = 0 // NFT_PAYLOAD_LL_HEADER
	baseNetwork   = 1 // NFT_PAYLOAD_NETWORK_HEADER
	baseTransport = 2 // NFT_PAYLOAD_TRANSPORT_HEADER
)

func metaSource(key uint32, size int) source { return source{meta: key, isMeta: true, size: size} }
func ctSource(key uint32) source             { return source{ct: key, isCt: true, size: 4} }
func portSource(proto uint8, offset uint32) source {
	return source{base: baseTransport, offset: offset, l4proto: proto, size: 2}
}

var sources = map[kernel.Field]source{
	kernel.FieldIifname:   metaSource(unix.NFT_META_IIFNAME, unix.IFNAMSIZ),
	kernel.FieldOifname:   metaSource(unix.NFT_META_OIFNAME, unix.IFNAMSIZ),
	kernel.FieldIifgroup:  metaSource(metaIifgroup, 4),
	kernel.FieldOifgroup:  metaSource(metaOifgroup, 4),
	kernel.FieldL4proto:   metaSource(unix.NFT_META_L4PROTO, 1),
	kernel.FieldNfproto:   metaSource(unix.NFT_META_NFPROTO, 1),
	kernel.FieldMark:      metaSource(unix.NFT_META_MARK, 4),
	kernel.FieldCtMark:    ctSource(unix.NFT_CT_MARK),
	kernel.FieldCtState:   ctSource(unix.NFT_CT_STATE),
	kernel.FieldCtStatus:  ctSource(unix.NFT_CT_STATUS),
	kernel.FieldFibDaddr:  {size: 4},
	kernel.FieldEthSaddr:  {base: baseLink, offset: 6, size: 6},
	kernel.FieldIPSaddr:   {base: baseNetwork, offset: 12, size: 4, nfproto: unix.NFPROTO_IPV4},
	kernel.FieldIPDaddr:   {base: baseNetwork, offset: 16, size: 4, nfproto: unix.NFPROTO_IPV4},
	kernel.FieldIP6Saddr:  {base: baseNetwork, offset: 8, size: 16, nfproto: unix.NFPROTO_IPV6},
	kernel.FieldIP6Daddr:  {base: baseNetwork, offset: 24, size: 16, nfproto: unix.NFPROTO_IPV6},
	kernel.FieldTCPSport:  portSource(unix.IPPROTO_TCP, 0),
	kernel.FieldTCPDport:  portSource(unix.IPPROTO_TCP, 2),
	kernel.FieldUDPSport:  portSource(unix.IPPROTO_UDP, 0),
	kernel.FieldUDPDport:  portSource(unix.IPPROTO_UDP, 2),
	kernel.FieldSCTPSport: portSource(unix.IPPROTO_SCTP, 0),
	kernel.FieldSCTPDport: portSource(unix.IPPROTO_SCTP, 2),
	kernel.FieldThSport:   portSource(0, 0),
	kernel.FieldThDport:   portSource(0, 2),
	kernel.FieldVNI:       {base: baseTransport, offset: 12, l4proto: unix.IPPROTO_UDP, size: 4},
}

// compiler turns one rule into expressions.
type compiler struct {
	exprs
	// set finds the declaration of a set of the rule's table; nil where there is none.
	set func(name string) *kernel.Set
	// bridge says that the rule is in a table of that family.
	bridge bool
	// What the rule has made sure of so far, 0 for nothing.
	nfproto, l4proto uint8
	// anyL4 says that the rule looked at the transport protocol, so that a port to translate to means something.
	anyL4 bool
}

// compile adds the expressions of a rule to m.
func compile(m *msg, family uint8, rule string, set func(string) *kernel.Set) error {
	return (&compiler{set: set, bridge: family == unix.NFPROTO_BRIDGE}).compile(m, rule)
}

func (c *compiler) compile(m *msg, rule string) error {
	p, err := kernel.ParseRule(rule)
	if err != nil {
		return err
	}
	c.exprs = exprs{m}
	m.nested(unix.NFTA_RULE_EXPRESSIONS, func() {
		for _, st := range p.Stmts {
			if err = c.stmt(st); err != nil {
				err = fmt.Errorf("rule %q: %w", rule, err)
				return
			}
		}
	})
	return err
}

func (c *compiler) stmt(st kernel.Stmt) error {
	switch st := st.(type) {
	case kernel.Simple:
		if st == "counter" {
			c.add("counter", func(m *msg) {
				m.be64(unix.NFTA_COUNTER_BYTES, 0)
				m.be64(unix.NFTA_COUNTER_PACKETS, 0)
			})
		} else {
			c.add(string(st), nil)
		}
		return nil
	case *kernel.Match:
		return c.match(st)
	case *kernel.Vmap:
		return c.vmap(st)
	case *kernel.NAT:
		return c.nat(st)
	case *kernel.SetMark:
		c.setMark(st)
		return nil
	case *kernel.Verdict:
		return c.end(st)
	}
	return fmt.Errorf("statement %T is unknown", st)
}

// depend makes sure that the packet is of the protocols that a field is part of, as nft does in family inet.
func (c *compiler) depend(f kernel.Field) error {
	s := sources[f]
	if f == kernel.FieldEthSaddr && !c.bridge {
		return fmt.Errorf("%q outside of family bridge: %w", f, kernel.ErrUnsupported)
	}
	if c.bridge && (s.nfproto != 0 || s.base == baseTransport) {
		return fmt.Errorf("%q in family bridge: %w", f, kernel.ErrUnsupported)
	}
	if s.nfproto != 0 && c.nfproto != s.nfproto {
		if c.nfproto != 0 {
			return fmt.Errorf("%q after a match of the other address family", f)
		}
		c.meta(unix.NFT_META_NFPROTO, 0)
		c.cmp(unix.NFT_CMP_EQ, []byte{s.nfproto})
		c.nfproto = s.nfproto
	}
	if s.base == baseTransport {
		c.anyL4 = true
	}
	if s.l4proto != 0 && c.l4proto != s.l4proto {
		if c.l4proto != 0 {
			return fmt.Errorf("%q after a match of another protocol", f)
		}
		c.meta(unix.NFT_META_L4PROTO, 0)
		c.cmp(unix.NFT_CMP_EQ, []byte{s.l4proto})
		c.l4proto = s.l4proto
	}
	return nil
}

// load puts a field into the registers from slot on and gives the number of slots that it takes.
func (c *compiler) load(f kernel.Field, slot int) int {
	s := sources[f]
	switch {
	case s.isMeta:
		c.meta(s.meta, slot)
	case s.isCt:
		c.ct(s.ct, slot)
	case f == kernel.FieldFibDaddr:
		c.add("fib", func(m *msg) {
			m.be32(unix.NFTA_FIB_DREG, reg(slot))
			m.be32(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE)
			m.be32(unix.NFTA_FIB_FLAGS, unix.NFTA_FIB_F_DADDR)
		})
	default:
		c.payload(s.base, s.offset, uint32(s.size), slot)
	}
	return (s.size + 3) / 4
}

// lookup loads the fields and looks them up; dreg is where what a map gives goes.
func (c *compiler) lookup(fields []kernel.Field, set string, data []kernel.Type, dreg *uint32, not bool) error {
	decl := c.set(set)
	if decl == nil {
		return fmt.Errorf("there is no set or map %q in the table: %w", set, kernel.ErrAbsent)
	}
	if len(decl.Key) != len(fields) {
		return fmt.Errorf("set %q has %d fields in its key, the rule looks up %d", set, len(decl.Key), len(fields))
	}
	for i, f := range fields {
		if decl.Key[i] != f.Type() {
			return fmt.Errorf("set %q has a %s where the rule looks up %q", set, decl.Key[i], f)
		}
	}
	if isMap := len(decl.Data) > 0; isMap != (len(data) > 0) {
		return fmt.Errorf("%q is a map: %v, used as one: %v", set, isMap, !isMap)
	}
	for _, f := range fields {
		if err := c.depend(f); err != nil {
			return err
		}
	}
	slot := 0
	for _, f := range fields {
		if f == kernel.FieldL4proto {
			c.anyL4 = true
		}
		slot += c.load(f, slot)
	}
	if slot > 16 {
		return fmt.Errorf("the key of set %q is longer than the 64 bytes of the registers", set)
	}
	c.add("lookup", func(m *msg) {
		m.str(unix.NFTA_LOOKUP_SET, set)
		m.be32(unix.NFTA_LOOKUP_SREG, reg(0))
		if dreg != nil {
			m.be32(unix.NFTA_LOOKUP_DREG, *dreg)
		}
		if not {
			m.be32(unix.NFTA_LOOKUP_FLAGS, lookupInvert)
		}
	})
	return nil
}

func (c *compiler) vmap(v *kernel.Vmap) error {
	decl := c.set(v.Map)
	if decl != nil && (len(decl.Data) != 1 || decl.Data[0] != kernel.TypeVerdict) {
		return fmt.Errorf("%q is no verdict map", v.Map)
	}
	dreg := uint32(unix.NFT_REG_VERDICT)
	return c.lookup(v.Fields, v.Map, []kernel.Type{kernel.TypeVerdict}, &dreg, false)
}

func (c *compiler) match(m *kernel.Match) error {
	if m.Set != "" {
		return c.lookup(m.Fields, m.Set, nil, nil, m.Not)
	}
	f := m.Fields[0]
	if err := c.depend(f); err != nil {
		return err
	}
	op := uint32(unix.NFT_CMP_EQ)
	if m.Not {
		op = unix.NFT_CMP_NEQ
	}
	switch s := sources[f]; {
	case m.Name != "":
		c.load(f, 0)
		name := []byte(m.Name)
		if !m.Wildcard {
			name = append(name, make([]byte, unix.IFNAMSIZ-len(name))...)
		}
		c.cmp(op, name)
	case m.Prefix.IsValid():
		c.prefix(s, m.Prefix, op)
	case f == kernel.FieldCtState || f == kernel.FieldCtStatus:
		c.load(f, 0)
		if m.Not {
			c.cmp(op, host32(m.Lo))
			break
		}
		c.mask(host32(m.Lo))
		c.cmp(unix.NFT_CMP_NEQ, host32(0))
	case m.Lo != m.Hi:
		c.load(f, 0)
		c.between(number(s, m.Lo), number(s, m.Hi), m.Not)
	default:
		c.load(f, 0)
		if m.Mask != 0 {
			c.mask(host32(m.Mask))
		}
		c.cmp(op, number(s, m.Lo))
		c.learn(f, m)
	}
	return nil
}

// learn notes what an explicit match made sure of, so that no further one is made for it.
func (c *compiler) learn(f kernel.Field, m *kernel.Match) {
	switch f {
	case kernel.FieldNfproto:
		if !m.Not {
			c.nfproto = uint8(m.Lo)
		}
	case kernel.FieldL4proto:
		if !m.Not {
			c.l4proto = uint8(m.Lo)
			c.anyL4 = true
		}
	}
}

// number gives a number as the register has it: ports in network order, the rest in the machine's.
func number(s source, n uint32) []byte {
	switch s.size {
	case 1:
		return []byte{byte(n)}
	case 2:
		return binary.BigEndian.AppendUint16(nil, uint16(n))
	}
	return host32(n)
}

func host32(n uint32) []byte { return native.AppendUint32(nil, n) }

func (c *compiler) between(lo, hi []byte, not bool) {
	if !not {
		c.cmp(unix.NFT_CMP_GTE, lo)
		c.cmp(unix.NFT_CMP_LTE, hi)
		return
	}
	c.add("range", func(m *msg) {
		m.be32(unix.NFTA_RANGE_SREG, reg(0))
		m.be32(unix.NFTA_RANGE_OP, unix.NFT_RANGE_NEQ)
		value(m, unix.NFTA_RANGE_FROM_DATA, lo)
		value(m, unix.NFTA_RANGE_TO_DATA, hi)
	})
}

// prefix compares an address. Where the prefix ends on a byte, only those bytes are loaded.
func (c *compiler) prefix(s source, p netip.Prefix, op uint32) {
	addr := p.Masked().Addr().AsSlice()
	n := len(addr)
	if p.Bits()%8 == 0 {
		n = p.Bits() / 8
	}
	c.payload(s.base, s.offset, uint32(n), 0)
	if p.Bits()%8 != 0 {
		mask := make([]byte, n)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		c.mask(mask)
	}
	c.cmp(op, addr[:n])
}

func (c *compiler) setMark(s *kernel.SetMark) {
	switch {
	case s.Keep != 0:
		if s.Ct {
			c.ct(unix.NFT_CT_MARK, 0)
		} else {
			c.meta(unix.NFT_META_MARK, 0)
		}
		c.bitwise(host32(s.Keep), host32(s.Value))
	case !s.Copy:
		c.immediate(0, host32(s.Value))
	case s.Ct:
		c.meta(unix.NFT_META_MARK, 0)
	default:
		c.ct(unix.NFT_CT_MARK, 0)
	}
	if s.Ct {
		c.add("ct", func(m *msg) {
			m.be32(unix.NFTA_CT_KEY, unix.NFT_CT_MARK)
			m.be32(unix.NFTA_CT_SREG, reg(0))
		})
		return
	}
	c.add("meta", func(m *msg) {
		m.be32(unix.NFTA_META_KEY, unix.NFT_META_MARK)
		m.be32(unix.NFTA_META_SREG, reg(0))
	})
}

func (c *compiler) end(v *kernel.Verdict) error {
	if v.Kind != "reject" {
		c.verdict(verdict{verdictCodes[v.Kind], v.Chain})
		return nil
	}
	typ, code := uint32(unix.NFT_REJECT_ICMPX_UNREACH), uint8(unix.NFT_REJECT_ICMPX_PORT_UNREACH)
	switch {
	case v.Reset && c.l4proto != unix.IPPROTO_TCP:
		return fmt.Errorf("a TCP reset without a match of protocol tcp before it")
	case v.Reset:
		typ, code = unix.NFT_REJECT_TCP_RST, 0
	case c.nfproto == unix.NFPROTO_IPV4:
		typ, code = unix.NFT_REJECT_ICMP_UNREACH, 3 // port unreachable
	case c.nfproto == unix.NFPROTO_IPV6:
		typ, code = unix.NFT_REJECT_ICMP_UNREACH, 4
	}
	c.add("reject", func(m *msg) {
		m.be32(unix.NFTA_REJECT_TYPE, typ)
		m.u8(unix.NFTA_REJECT_ICMP_CODE, code)
	})
	return nil
}

func (c *compiler) nat(n *kernel.NAT) error {
	switch n.Kind {
	case "masquerade":
		c.add("masq", func(m *msg) {
			if n.Random {
				m.be32(unix.NFTA_MASQ_FLAGS, natRandom)
			}
		})
		return nil
	case "redirect":
		if !c.anyL4 {
			return errNoProtocol
		}
		c.immediate(0, binary.BigEndian.AppendUint16(nil, n.Port))
		c.add("redir", func(m *msg) {
			m.be32(unix.NFTA_REDIR_REG_PROTO_MIN, reg(0))
			m.be32(unix.NFTA_REDIR_FLAGS, natProtoSpecified)
		})
		return nil
	}
	typ, family, slots := uint32(unix.NFT_NAT_SNAT), uint32(unix.NFPROTO_IPV4), 1
	if n.Kind == "dnat" {
		typ = unix.NFT_NAT_DNAT
	}
	if n.V6 {
		family, slots = unix.NFPROTO_IPV6, 4
	}
	port, flags := n.Port != 0, uint32(0)
	if n.Map != "" {
		var err error
		if port, err = c.natMap(n); err != nil {
			return err
		}
	} else {
		c.immediate(0, n.Addr.AsSlice())
		if port {
			slots = 4 // as nft does: the next whole register
			c.immediate(slots, binary.BigEndian.AppendUint16(nil, n.Port))
			flags = natProtoSpecified
		}
	}
	if port && !c.anyL4 {
		return errNoProtocol
	}
	c.add("nat", func(m *msg) {
		m.be32(unix.NFTA_NAT_TYPE, typ)
		m.be32(unix.NFTA_NAT_FAMILY, family)
		m.be32(unix.NFTA_NAT_REG_ADDR_MIN, reg(0))
		if port {
			m.be32(unix.NFTA_NAT_REG_PROTO_MIN, reg(slots))
		}
		if flags != 0 {
			m.be32(unix.NFTA_NAT_FLAGS, flags)
		}
	})
	return nil
}

var errNoProtocol = fmt.Errorf("a port to translate to without a match of the protocol before it")

func (c *compiler) natMap(n *kernel.NAT) (port bool, err error) {
	want := kernel.TypeIPv4
	if n.V6 {
		want = kernel.TypeIPv6
	}
	var data []kernel.Type
	if decl := c.set(n.Map); decl != nil {
		data = decl.Data
		port = len(data) == 2 && data[1] == kernel.TypeService
		if len(data) == 0 || data[0] != want || len(data) > 1 && !port {
			return false, fmt.Errorf("map %q does not give a %s, or one and a port", n.Map, want)
		}
	}
	dreg := reg(0)
	return port, c.lookup(n.Fields, n.Map, data, &dreg, false)
}
