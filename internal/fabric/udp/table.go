package udp

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Peer is another node, as the Runner needs to know it.
type Peer struct {
	// Local is the address of this node that packets to the peer come from, of the family of Remote.
	Local netip.Addr
	// Remote is where the peer receives, and all that it sends comes from.
	Remote netip.AddrPort
	// Tag is what the peer told.
	Tag string
	// Blocks lead to the peer, the longest prefix first; only packets that come from them are taken from it. One that
	// two peers have belongs to the one that was set last.
	Blocks []netip.Prefix
}

// peer is one that is in use.
type peer struct {
	Peer
	id     string
	set    uint64 // counts the calls of SetPeer
	tag    tag
	v6     bool
	name   []byte // struct sockaddr_in or sockaddr_in6
	source []byte // control message that says where to send from
}

func newPeer(id string, p Peer, t tag, set uint64) *peer {
	out := &peer{Peer: p, id: id, set: set, tag: t, v6: p.Remote.Addr().Is6()}
	n := binary.NativeEndian
	if out.v6 {
		out.name = make([]byte, unix.SizeofSockaddrInet6)
		n.PutUint16(out.name, unix.AF_INET6)
		a := p.Remote.Addr().As16()
		copy(out.name[8:], a[:])
		info := make([]byte, unix.SizeofInet6Pktinfo)
		from := p.Local.As16()
		copy(info, from[:])
		out.source = control(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, info)
	} else {
		out.name = make([]byte, unix.SizeofSockaddrInet4)
		n.PutUint16(out.name, unix.AF_INET)
		a := p.Remote.Addr().As4()
		copy(out.name[4:], a[:])
		info := make([]byte, unix.SizeofInet4Pktinfo)
		from := p.Local.As4()
		copy(info[4:], from[:]) // ipi_spec_dst
		out.source = control(unix.IPPROTO_IP, unix.IP_PKTINFO, info)
	}
	binary.BigEndian.PutUint16(out.name[2:], p.Remote.Port())
	return out
}

// table is who is where, as it was at one moment.
type table struct {
	blocks [2]tiers
	at     map[netip.AddrPort]*peer
}

// tiers are prefixes of one family, by length.
type tiers struct {
	lengths []int // the longest first
	of      map[netip.Prefix]*peer
}

func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

func newTable(peers map[string]*peer) *table {
	t := &table{at: map[netip.AddrPort]*peer{}}
	for i := range t.blocks {
		t.blocks[i].of = map[netip.Prefix]*peer{}
	}
	for _, p := range slices.SortedFunc(maps.Values(peers), func(a, b *peer) int { return int(int64(a.set) - int64(b.set)) }) {
		t.at[p.Remote] = p
		for _, b := range p.Blocks {
			f := &t.blocks[family(b.Addr().Is6())]
			f.of[b] = p
			if !slices.Contains(f.lengths, b.Bits()) {
				f.lengths = append(f.lengths, b.Bits())
			}
		}
	}
	for i := range t.blocks {
		slices.SortFunc(t.blocks[i].lengths, func(a, b int) int { return b - a })
	}
	return t
}

// find gives the peer that has an address; nil for none.
func (t *table) find(a netip.Addr) *peer {
	f := &t.blocks[family(a.Is6())]
	for _, n := range f.lengths {
		p, err := a.Prefix(n)
		if err != nil {
			continue
		}
		if to := f.of[p]; to != nil {
			return to
		}
	}
	return nil
}
