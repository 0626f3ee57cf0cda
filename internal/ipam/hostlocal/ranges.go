// Package hostlocal gives out the addresses of CNI's host-local IPAM: it understands its ranges and keeps its store, a
// directory with one small file per address in use, byte for byte as the reference plugin does, so that either can take
// over from the other at any time on a node with running containers.
//
// It does not know CNI: configuration, results and error codes belong to the front door.
package hostlocal

import (
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/api"
)

// RangeConfig is one range as configurations write it (the keys of host-local's "ranges").
type RangeConfig struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart,omitempty"`
	RangeEnd   string `json:"rangeEnd,omitempty"`
	Gateway    string `json:"gateway,omitempty"`
}

// Range is a part of a subnet that addresses are given out from, all four fields set.
type Range struct {
	// Subnet has no host bits.
	Subnet netip.Prefix
	// First and Last bound the range, both inclusive.
	First, Last netip.Addr
	// Gateway is never given out, even where it lies in the range.
	Gateway netip.Addr
}

// RangeSet is what one address is taken from: ranges of one family that are used one after the other.
type RangeSet []Range

// Contains reports whether an address lies in one of the ranges, the gateways included.
func (s RangeSet) Contains(a netip.Addr) bool { return s.rangeOf(a) != nil }

func (s RangeSet) rangeOf(a netip.Addr) *Range {
	for i := range s {
		if s[i].contains(a) {
			return &s[i]
		}
	}
	return nil
}

// String gives the ranges as "10.1.0.1-10.1.0.254,…".
func (s RangeSet) String() string {
	out := ""
	for i, r := range s {
		if i > 0 {
			out += ","
		}
		out += r.String()
	}
	return out
}

// String gives the range as "10.1.0.1-10.1.0.254".
func (r *Range) String() string { return r.First.String() + "-" + r.Last.String() }

func (r *Range) contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

func (r *Range) overlaps(o *Range) bool {
	return r.First.BitLen() == o.First.BitLen() && r.First.Compare(o.Last) <= 0 && o.First.Compare(r.Last) <= 0
}

// ParseSets validates range sets and fills in what was left out: the gateway is the subnet's first address, the range
// all of the subnet without the network's own address and, for IPv4, the broadcast address. The error is an *api.Error
// that names the field below path, the value and what would be right.
func ParseSets(path string, confs [][]RangeConfig) ([]RangeSet, error) {
	var sets []RangeSet
	for i, conf := range confs {
		at := fmt.Sprintf("%s[%d]", path, i)
		if len(conf) == 0 {
			return nil, api.FieldError("", at, "[]", "is an empty range set", "at least one range")
		}
		var set RangeSet
		for j, c := range conf {
			r, err := c.Parse(fmt.Sprintf("%s[%d]", at, j))
			if err != nil {
				return nil, err
			}
			if j > 0 && r.Subnet.Addr().Is4() != set[0].Subnet.Addr().Is4() {
				return nil, api.FieldError("", fmt.Sprintf("%s[%d].subnet", at, j), c.Subnet,
					"is of another address family than the set's first", "one range set for each family")
			}
			set = append(set, r)
		}
		sets = append(sets, set)
	}
	return sets, checkOverlaps(path, sets)
}

func checkOverlaps(path string, sets []RangeSet) error {
	type place struct {
		at string
		r  *Range
	}
	var seen []place
	for i := range sets {
		for j := range sets[i] {
			p := place{fmt.Sprintf("%s[%d][%d]", path, i, j), &sets[i][j]}
			for _, q := range seen {
				if p.r.overlaps(q.r) {
					return api.FieldError("", p.at, p.r, fmt.Sprintf("overlaps %s (%s)", q.at, q.r), "ranges that share no address")
				}
			}
			seen = append(seen, p)
		}
	}
	return nil
}

// Parse validates one range; path is what errors call it.
func (c RangeConfig) Parse(path string) (Range, error) {
	bad := func(field, value, msg, want string) (Range, error) {
		return Range{}, api.FieldError("", path+"."+field, value, msg, want)
	}
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		return bad("subnet", c.Subnet, "is no subnet", "a prefix such as 10.1.0.0/16 or fd00:1::/64")
	}
	if subnet != subnet.Masked() {
		return bad("subnet", c.Subnet, "has host bits set", subnet.Masked().String())
	}
	if subnet.Addr().Is4In6() {
		return bad("subnet", c.Subnet, "is IPv4 written as IPv6", "a prefix such as 10.1.0.0/16")
	}
	if subnet.Addr().BitLen()-subnet.Bits() < 2 {
		return bad("subnet", c.Subnet, "is too small to give out addresses from", "at most /30, or /126 for IPv6")
	}
	r := Range{Subnet: subnet, Gateway: subnet.Addr().Next(), First: subnet.Addr().Next(), Last: lastOf(subnet)}
	for _, f := range []struct {
		field, value string
		to           *netip.Addr
		inside       bool
	}{{"gateway", c.Gateway, &r.Gateway, false}, {"rangeStart", c.RangeStart, &r.First, true}, {"rangeEnd", c.RangeEnd, &r.Last, true}} {
		if f.value == "" {
			continue
		}
		a, err := netip.ParseAddr(f.value)
		if a = a.Unmap(); err != nil || a.Zone() != "" {
			return bad(f.field, f.value, "is no address", "an address of "+c.Subnet)
		}
		if a.Is4() != subnet.Addr().Is4() || f.inside && !subnet.Contains(a) {
			return bad(f.field, f.value, "does not lie in the subnet", "an address of "+c.Subnet)
		}
		*f.to = a
	}
	if r.Last.Less(r.First) {
		return bad("rangeEnd", c.RangeEnd, "comes before rangeStart", "an address from "+r.First.String()+" on")
	}
	return r, nil
}

// lastOf is the last address of a subnet that may be given out: IPv4's broadcast address may not.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	if a.Is4() {
		a = a.Prev()
	}
	return a
}
