package linux

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// Numbers of nfnetlink_conntrack.h.
const (
	ctGet, ctDelete = 1, 2 // IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE
	ctaTupleOrig    = 1
	ctaID           = 12
	ctaTupleIP      = 1
	ctaTupleProto   = 2
	ctaV4Dst        = 2
	ctaV6Dst        = 4
	ctaProtoNum     = 1
	ctaProtoDst     = 3
	ctaFilter       = 25 // CTA_FILTER, with CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS below it
	ctaFilterOrig   = 1
	ctaFilterReply  = 2
	ctGetStats      = 5 // IPCTNL_MSG_CT_GET_STATS
	ctaStatsEntries = 1 // CTA_STATS_GLOBAL_ENTRIES
)

// flushFlows drops the UDP conntrack entries that the elements of a committed transaction ask for. TCP needs none of
// it: a connection ends, and the next one is looked up anew.
func (s *session) flushFlows(sp *space, steps []*nftStep) {
	var want4, want6 []kernel.Flow
	for _, st := range steps {
		e, ok := subject(st.Change).(*kernel.Element)
		if !ok || e.Flush == nil || e.Flush.Protocol != "udp" {
			continue
		}
		if flowFamily(e) == unix.AF_INET {
			want4 = append(want4, *e.Flush)
		} else {
			want6 = append(want6, *e.Flush)
		}
	}
	// What holds, holds: an entry that can't be dropped runs out by itself.
	if len(want4) > 0 {
		_ = sp.dropFlows(unix.AF_INET, want4)
	}
	if len(want6) > 0 {
		_ = sp.dropFlows(unix.AF_INET6, want6)
	}
}

// flowFamily is the family of the entries to drop: that of the address, else that of the element's data or key.
func flowFamily(e *kernel.Element) int {
	if e.Flush.Addr.IsValid() {
		return int(family(e.Flush.Addr))
	}
	for _, types := range [][]kernel.Type{e.Set.Data, e.Set.Key} {
		for _, t := range types {
			switch t {
			case kernel.TypeIPv4:
				return unix.AF_INET
			case kernel.TypeIPv6:
				return unix.AF_INET6
			}
		}
	}
	return unix.AF_INET
}

func (p *space) dropFlows(fam uint8, want []kernel.Flow) error {
	so, err := p.nft()
	if err != nil {
		return err
	}
	// A dump walks the buckets of all namespaces, some ten milliseconds of them; how many entries this one has is known.
	if r, err := so.get(newMsg(unix.NFNL_SUBSYS_CTNETLINK<<8|ctGetStats, 0, []byte{unix.AF_UNSPEC, 0, 0, 0})); err == nil {
		if n := attrOf(r.rest(nfgenLen), ctaStatsEntries); len(n) == 4 && binary.BigEndian.Uint32(n) == 0 {
			return nil
		}
	}
	if len(want) <= maxFiltered && dropFiltered(so, fam, want) {
		return nil
	}
	return dropDumped(so, fam, want)
}

// dropDumped finds the entries in a dump of all.
func dropDumped(so *sock, fam uint8, want []kernel.Flow) error {
	rs, err := so.dump(newMsg(unix.NFNL_SUBSYS_CTNETLINK<<8|ctGet, 0, []byte{fam, 0, 0, 0}))
	if err != nil {
		return err
	}
	var dels []*msg
	for _, r := range rs {
		b := r.rest(nfgenLen)
		tuple, id := attrOf(b, ctaTupleOrig), attrOf(b, ctaID)
		if tuple == nil || !anyFlow(want, tuple) {
			continue
		}
		m := newMsg(unix.NFNL_SUBSYS_CTNETLINK<<8|ctDelete, 0, []byte{fam, 0, 0, 0})
		m.attr(ctaTupleOrig|unix.NLA_F_NESTED, tuple)
		if id != nil {
			m.attr(ctaID, id)
		}
		dels = append(dels, m)
	}
	for _, err := range so.exec(dels...) {
		if err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// maxFiltered is up to how many flows one message each is cheaper than one dump: the kernel walks its table for each, but
// passes over empty buckets without locking them: tens of microseconds instead of 12 ms for 262,144 of them.
const maxFiltered = 16

// What of a tuple a filter compares (enum in the kernel's nf_conntrack_netlink.c).
const (
	filterIPDst     = 1 << 1
	filterProto     = 1 << 3
	filterProtoPort = 1 << 5
)

// dropFiltered has the kernel find the entries by itself, which it can from 6.9 on. It reports whether it could. It
// can't with an IPv6 address: the kernel (6.18 still) takes the entries of all others then.
func dropFiltered(so *sock, fam uint8, want []kernel.Flow) bool {
	var msgs []*msg
	for _, w := range want {
		if w.Addr.Is6() {
			return false
		}
		// Version 1 of the header means that the family counts.
		m := newMsg(unix.NFNL_SUBSYS_CTNETLINK<<8|ctDelete, 0, []byte{fam, 1, 0, 0})
		flags := uint32(filterProto | filterProtoPort)
		m.nested(ctaTupleOrig, func() {
			if w.Addr.IsValid() {
				flags |= filterIPDst
				m.nested(ctaTupleIP, func() { m.attr(ctaV4Dst, w.Addr.AsSlice()) })
			}
			m.nested(ctaTupleProto, func() {
				m.u8(ctaProtoNum, unix.IPPROTO_UDP)
				m.attr(ctaProtoDst, binary.BigEndian.AppendUint16(nil, w.Port))
			})
		})
		m.nested(ctaFilter, func() {
			m.u32(ctaFilterOrig, flags)
			m.u32(ctaFilterReply, 0)
		})
		msgs = append(msgs, m)
	}
	for _, err := range so.exec(msgs...) {
		if err != nil {
			return false
		}
	}
	return true
}

// anyFlow reports whether an entry's original direction is one of those that are wanted gone.
func anyFlow(want []kernel.Flow, tuple []byte) bool {
	proto := attrOf(tuple, ctaTupleProto)
	if num := attrOf(proto, ctaProtoNum); len(num) != 1 || num[0] != unix.IPPROTO_UDP {
		return false
	}
	dst := destination(tuple)
	for _, w := range want {
		if dst.Port() == w.Port && (!w.Addr.IsValid() || w.Addr == dst.Addr()) {
			return true
		}
	}
	return false
}

// destination gives address and port that a tuple leads to; the port is 0 where it has none.
func destination(tuple []byte) netip.AddrPort {
	ip := attrOf(tuple, ctaTupleIP)
	raw := attrOf(ip, ctaV4Dst)
	if raw == nil {
		raw = attrOf(ip, ctaV6Dst)
	}
	addr, _ := netip.AddrFromSlice(raw)
	port := uint16(0)
	if b := attrOf(attrOf(tuple, ctaTupleProto), ctaProtoDst); len(b) == 2 {
		port = binary.BigEndian.Uint16(b)
	}
	return netip.AddrPortFrom(addr, port)
}
