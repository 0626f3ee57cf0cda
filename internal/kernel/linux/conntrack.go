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

// anyFlow reports whether an entry's original direction is one of those that are wanted gone.
func anyFlow(want []kernel.Flow, tuple []byte) bool {
	proto := attrOf(tuple, ctaTupleProto)
	if num := attrOf(proto, ctaProtoNum); len(num) != 1 || num[0] != unix.IPPROTO_UDP {
		return false
	}
	port := attrOf(proto, ctaProtoDst)
	ip := attrOf(tuple, ctaTupleIP)
	raw := attrOf(ip, ctaV4Dst)
	if raw == nil {
		raw = attrOf(ip, ctaV6Dst)
	}
	dst, _ := netip.AddrFromSlice(raw)
	for _, w := range want {
		if len(port) == 2 && binary.BigEndian.Uint16(port) == w.Port && (!w.Addr.IsValid() || w.Addr == dst) {
			return true
		}
	}
	return false
}
