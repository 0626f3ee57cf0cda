package linux

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	ruleHdrLen = 12 // struct fib_rule_hdr
	frActTable = 1  // FR_ACT_TO_TBL
)

// ruleChange is the message that makes or deletes a policy routing rule. Deleting names the protocol too, so that only
// ours goes.
func ruleChange(op kernel.Op, r *kernel.Rule) *msg {
	typ, flags := how(op, unix.RTM_NEWRULE)
	b := make([]byte, ruleHdrLen)
	b[0] = unix.AF_INET
	if r.V6 {
		b[0] = unix.AF_INET6
	}
	b[7] = frActTable
	if r.From.IsValid() {
		b[2] = uint8(r.From.Bits())
	}
	if r.To.IsValid() {
		b[1] = uint8(r.To.Bits())
	}
	m := newMsg(typ, flags, b)
	if r.From.IsValid() && r.From.Bits() > 0 {
		m.attr(unix.FRA_SRC, r.From.Masked().Addr().AsSlice())
	}
	if r.To.IsValid() && r.To.Bits() > 0 {
		m.attr(unix.FRA_DST, r.To.Masked().Addr().AsSlice())
	}
	m.u32(unix.FRA_PRIORITY, uint32(r.Priority))
	m.u32(unix.FRA_TABLE, uint32(r.Table))
	if r.Mark != 0 || r.Mask != 0 {
		m.u32(unix.FRA_FWMARK, r.Mark)
		m.u32(unix.FRA_FWMASK, r.Mask)
	}
	if r.IIF != "" {
		m.str(unix.FRA_IIFNAME, r.IIF)
	}
	m.u8(unix.FRA_PROTOCOL, protocol(r.Proto))
	return m
}

func parseRule(r reply) (rule *kernel.Rule, proto uint8) {
	if r.typ != unix.RTM_NEWRULE || len(r.data) < ruleHdrLen || r.data[7] != frActTable {
		return nil, 0
	}
	b := r.data
	o := &kernel.Rule{V6: b[0] == unix.AF_INET6, Table: int(b[4])}
	for t, v := range attrs(r.rest(ruleHdrLen)) {
		switch t {
		case unix.FRA_SRC:
			a, _ := netip.AddrFromSlice(v)
			o.From = netip.PrefixFrom(a, int(b[2]))
		case unix.FRA_DST:
			a, _ := netip.AddrFromSlice(v)
			o.To = netip.PrefixFrom(a, int(b[1]))
		case unix.FRA_PRIORITY:
			o.Priority = int(num32(v))
		case unix.FRA_TABLE:
			o.Table = int(num32(v))
		case unix.FRA_FWMARK:
			o.Mark = num32(v)
		case unix.FRA_FWMASK:
			o.Mask = num32(v)
		case unix.FRA_IIFNAME:
			o.IIF = cstr(v)
		case unix.FRA_PROTOCOL:
			if len(v) > 0 {
				proto = v[0]
			}
		}
	}
	if o.Mark == 0 && o.Mask == 0xffffffff {
		o.Mask = 0 // what the kernel shows where neither was given
	}
	return o, proto
}

// rules lists the rules of both families; with own only those that carry our protocol number.
func (p *space) rules(own bool) ([]*kernel.Rule, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	var out []*kernel.Rule
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		b := make([]byte, ruleHdrLen)
		b[0] = fam
		rs, err := so.dump(newMsg(unix.RTM_GETRULE, 0, b))
		if isErrno(err, unix.EOPNOTSUPP, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, r := range rs {
			o, number := parseRule(r)
			if o == nil || own && number != kernel.RouteProtocol {
				continue
			}
			o.NS = p.path
			if !own {
				o.Proto = proto(number)
			}
			out = append(out, o)
		}
	}
	return out, nil
}

func (s *session) listRules(sp *space, want []kernel.Object, f *found) error {
	keys := map[kernel.Key]*kernel.Rule{}
	every := false
	for _, o := range want {
		r := *o.(*kernel.Rule)
		every = every || r.Table == 0
		keys[ruleKey(r)] = o.(*kernel.Rule)
	}
	have, err := sp.rules(false)
	if err != nil {
		return err
	}
	for _, r := range have {
		number := r.Proto
		r.Proto = 0
		if w := keys[ruleKey(*r)]; w != nil {
			f.add(w)
		}
		if r.Proto = number; every {
			f.add(r)
		}
	}
	return nil
}

// ruleKey is the key with what means the same written the same.
func ruleKey(r kernel.Rule) kernel.Key {
	clean := func(p netip.Prefix) netip.Prefix {
		if !p.IsValid() || p.Bits() == 0 {
			return netip.Prefix{}
		}
		return p.Masked()
	}
	r.From, r.To = clean(r.From), clean(r.To)
	return r.Key()
}
