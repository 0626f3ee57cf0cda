// Package pool gives out the addresses of one subnet. It keeps no store: who holds which address is part of the
// endpoints in the daemon's state, and a Pool is filled from them at start. So an address is in use exactly as long as
// an endpoint has it.
package pool

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/seine-net/seine/api"
)

// The errors of Reserve.
var (
	ErrTaken   = errors.New("is in use")
	ErrFull    = errors.New("no address is left")
	ErrOutside = errors.New("is not in the subnet")
	ErrUnfit   = errors.New("can't be given to a container")
)

// Pool gives out addresses of one subnet, each after the one before, so that a released address rests for as long as
// possible. It is not safe for concurrent use.
type Pool struct {
	subnet   api.Subnet
	from, to netip.Addr // what is given out by itself, both included
	next     netip.Addr
	taken    map[netip.Addr]string
	reserved map[netip.Addr]bool
}

// New makes a pool; the subnet has been validated and has its gateway.
func New(s api.Subnet) *Pool {
	r := s.Range
	if !r.IsValid() {
		r = s.Prefix
	}
	p := &Pool{subnet: s, from: r.Addr(), to: api.LastAddr(r), taken: map[netip.Addr]string{}, reserved: map[netip.Addr]bool{}}
	if p.from == s.Prefix.Addr() {
		p.from = p.from.Next() // the network's own address; for IPv6 the subnet-router anycast (RFC 4291 2.6.1)
	}
	if p.to == api.LastAddr(s.Prefix) && p.to.Is4() {
		p.to = p.to.Prev() // broadcast
	}
	p.next = p.from
	for _, a := range s.Reserved {
		p.reserved[a] = true
	}
	return p
}

// Reserve takes an address for holder: want, or the next free one where want is the zero Addr. The same want for the
// same holder succeeds again.
func (p *Pool) Reserve(want netip.Addr, holder string) (netip.Addr, error) {
	if want.IsValid() {
		return want, p.reserve(want, holder)
	}
	// Only addresses that are taken or reserved are skipped, so the bound is their number and two more.
	a := p.next
	for range len(p.taken) + len(p.reserved) + 3 {
		if a.Compare(p.from) < 0 || a.Compare(p.to) > 0 {
			a = p.from
		}
		if _, ok := p.taken[a]; !ok && !p.reserved[a] && a != p.subnet.Gateway && a.Compare(p.to) <= 0 {
			p.taken[a], p.next = holder, a.Next()
			return a, nil
		}
		a = a.Next()
	}
	return netip.Addr{}, fmt.Errorf("subnet %s: %w: %d are in use", p.subnet.Prefix, ErrFull, len(p.taken))
}

func (p *Pool) reserve(a netip.Addr, holder string) error {
	switch last := api.LastAddr(p.subnet.Prefix); {
	case !p.subnet.Prefix.Contains(a):
		return fmt.Errorf("%s: %w %s", a, ErrOutside, p.subnet.Prefix)
	case a == p.subnet.Gateway:
		return fmt.Errorf("%s: %w: it is the gateway", a, ErrUnfit)
	case a == p.subnet.Prefix.Addr() || a == last && a.Is4():
		return fmt.Errorf("%s: %w: it is the network's own or the broadcast address", a, ErrUnfit)
	}
	if by, ok := p.taken[a]; ok && by != holder {
		return fmt.Errorf("%s: %w by %s", a, ErrTaken, by)
	}
	p.taken[a] = holder
	return nil
}

// Release gives an address back, if holder has it.
func (p *Pool) Release(a netip.Addr, holder string) {
	if p.taken[a] == holder {
		delete(p.taken, a)
	}
}

// Holder names who has an address of the subnet, or what keeps it from being given out; "" for nothing.
func (p *Pool) Holder(a netip.Addr) string {
	switch by := p.taken[a]; {
	case by != "":
		return by
	case a == p.subnet.Gateway:
		return "the gateway of " + p.subnet.Prefix.String()
	case p.reserved[a]:
		return "what it is reserved for in " + p.subnet.Prefix.String()
	}
	return ""
}

// Contains says whether an address is of the subnet.
func (p *Pool) Contains(a netip.Addr) bool { return p.subnet.Prefix.Contains(a) }

// Len is how many addresses are in use.
func (p *Pool) Len() int { return len(p.taken) }

// Subnets are ranges that networks without subnets of their own are given a part of.
type Subnets []Source

// Source is a range that is cut into subnets of one size.
type Source struct {
	Prefix netip.Prefix
	// Bits is the length of the subnets.
	Bits int
}

// Choose gives the first subnet of the family that shares addresses with none of used, and whether there was one. bits is
// the length that is wanted, 0 for that of each source. It tries at most 65536 subnets of each source.
func (s Subnets) Choose(v4 bool, bits int, used []netip.Prefix) (netip.Prefix, bool) {
	for _, src := range s {
		if bits != 0 {
			src.Bits = bits
		}
		if src.Prefix.Addr().Is4() == v4 && src.Bits >= src.Prefix.Bits() {
			if p, ok := src.choose(used); ok {
				return p, true
			}
		}
	}
	return netip.Prefix{}, false
}

// choose looks each candidate up: with thousands of ranges in use, comparing each with each would take longer than all
// the rest.
func (src Source) choose(used []netip.Prefix) (netip.Prefix, bool) {
	taken, wide := make(map[netip.Prefix]bool, len(used)), []netip.Prefix(nil)
	for _, u := range used {
		switch {
		case u.Addr().Is4() != src.Prefix.Addr().Is4():
		case u.Bits() < src.Bits:
			wide = append(wide, u.Masked())
		default:
			taken[netip.PrefixFrom(u.Addr(), src.Bits).Masked()] = true
		}
	}
	p := netip.PrefixFrom(src.Prefix.Addr(), src.Bits)
	for range 1 << 16 {
		if !p.IsValid() || !src.Prefix.Contains(p.Addr()) {
			break
		}
		last := p
		if i := slices.IndexFunc(wide, func(w netip.Prefix) bool { return w.Overlaps(p) }); i >= 0 {
			last = wide[i]
		} else if !taken[p] {
			return p, true
		}
		p = netip.PrefixFrom(api.LastAddr(last).Next(), src.Bits)
	}
	return netip.Prefix{}, false
}

// UniqueLocal is the /48 of unique local addresses (RFC 4193 section 3.2.2) that a seed gives: the same each time for
// one machine, and most likely no other machine's.
func UniqueLocal(seed string) netip.Prefix {
	sum := sha256.Sum256([]byte("seine unique local prefix " + seed))
	b := [16]byte{0xfd}
	copy(b[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}
