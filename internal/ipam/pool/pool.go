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
	ErrForeign = errors.New("is in no block that this machine holds")
)

// Pool gives out addresses of one subnet, each after the one before, so that a released address rests for as long as
// possible. It is not safe for concurrent use.
type Pool struct {
	subnet   api.Subnet
	spans    []span // what is given out by itself, in order
	next     netip.Addr
	taken    map[netip.Addr]string
	reserved map[netip.Addr]bool
	// shared subnets are several machines': this one has the blocks only.
	shared bool
	blocks []netip.Prefix
}

// span is a range of addresses, both ends included.
type span struct{ from, to netip.Addr }

func (s span) contains(a netip.Addr) bool { return a.Compare(s.from) >= 0 && a.Compare(s.to) <= 0 }

// New makes a pool; the subnet has been validated and has its gateway.
func New(s api.Subnet) *Pool {
	p := &Pool{subnet: s, taken: map[netip.Addr]string{}, reserved: map[netip.Addr]bool{}}
	p.spans = []span{p.span(s.Prefix)}
	p.next = p.spans[0].from
	for _, a := range s.Reserved {
		p.reserved[a] = true
	}
	return p
}

// NewShared makes the pool of a subnet that several machines share: it gives out nothing before SetBlocks.
func NewShared(s api.Subnet) *Pool {
	p := New(s)
	p.shared, p.spans = true, nil
	return p
}

// SetBlocks tells which parts of a shared subnet this machine gives addresses out of. Addresses in use outside of them
// stay in use.
func (p *Pool) SetBlocks(blocks []netip.Prefix) {
	p.blocks = slices.Clone(blocks)
	slices.SortFunc(p.blocks, netip.Prefix.Compare)
	p.spans = nil
	for _, b := range p.blocks {
		if s := p.span(b); s.from.Compare(s.to) <= 0 {
			p.spans = append(p.spans, s)
		}
	}
}

// Blocks are the parts of a shared subnet that this machine has.
func (p *Pool) Blocks() []netip.Prefix { return slices.Clone(p.blocks) }

// Used is how many addresses of a part are in use.
func (p *Pool) Used(part netip.Prefix) int {
	n := 0
	for a := range p.taken {
		if part.Contains(a) {
			n++
		}
	}
	return n
}

// span is what of a part of the subnet can be given out by itself: what is in the subnet's range, without the network's
// own address and, for IPv4, the broadcast address.
func (p *Pool) span(part netip.Prefix) span {
	r := p.subnet.Range
	if !r.IsValid() {
		r = p.subnet.Prefix
	}
	if !r.Overlaps(part) {
		return span{from: part.Addr().Next(), to: part.Addr()}
	}
	if part.Bits() > r.Bits() {
		r = part
	}
	s := span{r.Addr(), api.LastAddr(r)}
	if s.from == p.subnet.Prefix.Addr() {
		s.from = s.from.Next() // the network's own address; for IPv6 the subnet-router anycast (RFC 4291 2.6.1)
	}
	if s.to == api.LastAddr(p.subnet.Prefix) && s.to.Is4() {
		s.to = s.to.Prev() // broadcast
	}
	return s
}

// Free reports whether Reserve would give an address out.
func (p *Pool) Free() bool {
	_, ok := p.free()
	return ok
}

// free finds the next address to give out.
func (p *Pool) free() (netip.Addr, bool) {
	if len(p.spans) == 0 {
		return netip.Addr{}, false
	}
	a := p.next
	i := slices.IndexFunc(p.spans, func(s span) bool { return s.contains(a) })
	if i < 0 {
		i, a = 0, p.spans[0].from
	}
	// Only addresses that are taken or reserved are skipped, so the bound is their number, one for the gateway, and one for
	// coming back to the span where it began.
	for range len(p.taken) + len(p.reserved) + len(p.spans) + 3 {
		if a.Compare(p.spans[i].to) > 0 {
			i = (i + 1) % len(p.spans)
			a = p.spans[i].from
		}
		if _, ok := p.taken[a]; !ok && !p.reserved[a] && a != p.subnet.Gateway {
			return a, true
		}
		a = a.Next()
	}
	return netip.Addr{}, false
}

// Reserve takes an address for holder: want, or the next free one where want is the zero Addr. The same want for the
// same holder succeeds again.
func (p *Pool) Reserve(want netip.Addr, holder string) (netip.Addr, error) {
	if want.IsValid() {
		return want, p.reserve(want, holder)
	}
	if a, ok := p.free(); ok {
		p.taken[a], p.next = holder, a.Next()
		return a, nil
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
	} else if !ok && p.shared && !slices.ContainsFunc(p.blocks, func(b netip.Prefix) bool { return b.Contains(a) }) {
		return fmt.Errorf("%s: %w", a, ErrForeign)
	}
	p.taken[a] = holder
	return nil
}

// Adopt is Reserve for an address that its holder had before a restart. What is given out by itself goes on behind it, so
// that addresses that were released shortly before the restart rest too.
func (p *Pool) Adopt(a netip.Addr, holder string) error {
	err := p.reserve(a, holder)
	if err == nil && a.Compare(p.next) >= 0 {
		p.next = a.Next()
	}
	return err
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
