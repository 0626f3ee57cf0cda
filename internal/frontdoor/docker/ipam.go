package docker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seine-net/seine/api"
)

const addressSpace = "seine"

// bookPrefix begins the names of what the IPAM driver keeps: "docker/ipam/POOL" is there for each pool that was given
// out, "docker/ipam/POOL ADDRESS" says what an address of it was given out for (see lease).
const bookPrefix = "docker/ipam/"

// ipam is the IPAM driver. Docker asks for ranges and addresses before there is a network or an endpoint, and for
// networks of other drivers as well; so it keeps what it promised until Docker gives it back. Which network an address is
// for Docker does not say. An address is given out if neither this book nor an endpoint of any network has it.
//
// A pool's identity says all about it: "10.1.0.0/24,10.1.0.128/25,NONCE" is the range, the part that is given out from,
// and what tells it from another one of the same range. Docker may ask for one range twice, have the second network
// refused, and then give one of the two back; and an answer that got lost leaves a pool that nobody knows of. So a record
// that nobody seems to use can be dropped: if somebody does, he brings the identity, and the pool is taken up again.
type ipam struct {
	engine Engine
	book   Book

	mu    sync.Mutex
	pools map[string]*ipamPool // what the book has; see known
	nth   uint64               // counts leases
}

// ipamPool is a range that was given out.
type ipamPool struct {
	id          string
	whole, part netip.Prefix
	next        netip.Addr // where the last search ended: a released address rests for as long as possible
	leases      map[netip.Addr]lease
	rests       int // how many of the leases are over
}

// lease is what an address was given out for. One for a named endpoint is kept when it is over: the endpoint gets it
// again, unless others need it meanwhile.
type lease struct {
	use  string
	name string // of the endpoint, where Docker tells it (since 29)
	over int64  // since when, in seconds since 1970; 0 for one that lasts
	nth  uint64 // tells it from others of the address; 0 for one that an earlier run of the daemon gave out
}

// The values of lease.use.
const (
	forGateway  = "gateway"
	forEndpoint = "endpoint"
)

// maxRests is how many addresses of a pool are kept for endpoints that are gone.
const maxRests = 256

// String gives the lease as it stands in the book.
func (l lease) String() string {
	s := l.use
	if l.name != "" || l.over != 0 {
		s += " " + strconv.FormatInt(l.over, 10) + " " + l.name
	}
	return s
}

func parseLease(s string) lease {
	f := strings.SplitN(s, " ", 3)
	l := lease{use: f[0]}
	if len(f) == 3 {
		l.name = f[2]
		l.over, _ = strconv.ParseInt(f[1], 10, 64) // 0 for what can't be read: it lasts
	}
	return l
}

// parsePool reads a pool's identity.
func parsePool(id string) (*ipamPool, error) {
	p := &ipamPool{id: id, leases: map[netip.Addr]lease{}}
	bad := fmt.Errorf("pool %q: is no pool of this driver", id)
	f := strings.Split(id, ",")
	if len(f) != 3 || len(f[2]) != 16 || strings.Trim(f[2], "0123456789abcdef") != "" {
		return nil, bad
	}
	var err error
	if p.whole, err = netip.ParsePrefix(f[0]); err != nil || p.whole != p.whole.Masked() || p.whole.Bits() == 0 {
		return nil, bad
	}
	if p.part = p.whole; f[1] != "" {
		if p.part, err = netip.ParsePrefix(f[1]); err != nil || p.part != p.part.Masked() || p.part.Bits() < p.whole.Bits() || !p.whole.Contains(p.part.Addr()) {
			return nil, bad
		}
	}
	return p, nil
}

// load takes up what the book has.
func (m *ipam) load() {
	m.pools = map[string]*ipamPool{}
	values := m.book.Values(bookPrefix)
	for name := range values {
		if id := strings.TrimPrefix(name, bookPrefix); !strings.Contains(id, " ") {
			if p, err := parsePool(id); err == nil {
				m.pools[id] = p
			}
		}
	}
	for name, value := range values {
		id, addr, _ := strings.Cut(strings.TrimPrefix(name, bookPrefix), " ")
		if a, err := netip.ParseAddr(addr); err == nil && m.pools[id] != nil {
			m.pools[id].set(a, parseLease(value))
		}
	}
}

// set notes a lease; one without a use is none.
func (p *ipamPool) set(a netip.Addr, l lease) {
	if p.leases[a].over != 0 {
		p.rests--
	}
	if l.over != 0 {
		p.rests++
	}
	if p.leases[a] = l; l.use == "" {
		delete(p.leases, a)
	}
}

// known gives the pools that the book has: `seine reset` empties it.
func (m *ipam) known() []*ipamPool {
	var out []*ipamPool
	for id, p := range m.pools {
		if m.book.Value(bookPrefix+id) == "" {
			delete(m.pools, id)
		} else {
			out = append(out, p)
		}
	}
	return out
}

// pool gives a pool by its identity, and takes up one that is not in the book.
func (m *ipam) pool(id string) (*ipamPool, error) {
	if p := m.pools[id]; p != nil && m.book.Value(bookPrefix+id) != "" {
		return p, nil
	}
	p, err := parsePool(id)
	if err != nil {
		return nil, err
	}
	return p, m.add(p)
}

func (m *ipam) add(p *ipamPool) error {
	err := m.book.SetValue(bookPrefix+p.id, "pool")
	if err == nil {
		m.pools[p.id] = p
	}
	return err
}

// lease notes in the book, then in memory, what an address is given out for; nothing for the zero lease.
func (m *ipam) lease(p *ipamPool, a netip.Addr, l lease) error {
	value := ""
	if l.use != "" {
		value = l.String()
		m.nth++
		l.nth = m.nth
	}
	err := m.book.SetValue(bookPrefix+p.id+" "+a.String(), value)
	if err == nil {
		p.set(a, l)
	}
	return err
}

// drop takes a pool out of the book, its addresses first.
func (m *ipam) drop(p *ipamPool) error {
	for a := range p.leases {
		if err := m.lease(p, a, lease{}); err != nil {
			return err
		}
	}
	delete(m.pools, p.id)
	return m.book.SetValue(bookPrefix+p.id, "")
}

type ipamRequest struct {
	AddressSpace  string
	Pool, SubPool string
	V6            bool
	PoolID        string
	Address       string
	Options       map[string]string
}

// checkSpace refuses an address space that this driver has not named.
func checkSpace(name string) error {
	if name != "" && name != addressSpace {
		return fmt.Errorf("address space %q: is not known; want %q", name, addressSpace)
	}
	return nil
}

func (m *ipam) requestPool(_ context.Context, r ipamRequest) (any, error) {
	if err := checkSpace(r.AddressSpace); err != nil {
		return nil, err
	}
	for k := range r.Options {
		return nil, fmt.Errorf("--ipam-opt %q: is not known; want none", k)
	}
	whole, part, err := r.ranges()
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if whole.Addr().IsUnspecified() || !whole.IsValid() {
		var given []netip.Prefix
		for _, p := range m.known() {
			given = append(given, p.whole)
		}
		if whole, err = m.engine.FreeSubnet(!r.V6, max(whole.Bits(), 0), given); err != nil {
			return nil, err
		}
	} else if by := m.overlapping(whole, part); by != "" {
		return nil, fmt.Errorf("pool %s: %s; want another --subnet, or an --ip-range of its own in the same one", r.Pool, by)
	}
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // it never fails
	id := whole.String() + ","
	if part.IsValid() {
		id += part.String()
	}
	p, err := parsePool(id + "," + hex.EncodeToString(nonce[:]))
	if err != nil {
		return nil, err
	}
	if err := m.add(p); err != nil {
		return nil, err
	}
	return map[string]any{"PoolID": p.id, "Pool": p.whole.String(), "Data": map[string]string{}}, nil
}

// ranges gives the range that a request names and the part of it to give out from; a range without an address, such as
// 0.0.0.0/24, asks for any one of that size.
func (r ipamRequest) ranges() (whole, part netip.Prefix, err error) {
	if r.Pool != "" {
		if whole, err = netip.ParsePrefix(r.Pool); err != nil || whole.Addr().Is4() == r.V6 || whole.Addr().Is4In6() {
			return whole, part, fmt.Errorf("pool %q: can't be used; want a range of the family that is asked for, such as 10.1.0.0/24 or fd00:1::/64", r.Pool)
		}
		whole = whole.Masked()
		if most := whole.Addr().BitLen() - 2; whole.Addr().IsUnspecified() && (whole.Bits() == 0 || whole.Bits() > most) {
			return whole, part, fmt.Errorf("pool %q: can't be used; want a range such as 10.1.0.0/24, or a size such as %s/%d", r.Pool, whole.Addr(), most-6)
		}
		if whole.Bits() == 0 {
			return whole, part, fmt.Errorf("pool %q: can't be used; want a part of it", r.Pool)
		}
	}
	if r.SubPool == "" {
		return whole, part, nil
	}
	part, err = netip.ParsePrefix(r.SubPool)
	if err != nil || !whole.IsValid() || whole.Addr().IsUnspecified() || !whole.Contains(part.Addr()) || part.Bits() < whole.Bits() {
		return whole, part, fmt.Errorf("part %q: is no part of the pool %q; want --subnet, and --ip-range within it", r.SubPool, r.Pool)
	}
	return whole, part.Masked(), nil
}

// overlapping says which pool that Docker uses is in the way of another one; "" for none. As with Docker's own IPAM
// driver, two networks may share a range if each gives out from a part of its own. A pool that no address was asked of
// does not count: Docker may not have got the answer.
func (m *ipam) overlapping(whole, part netip.Prefix) string {
	for _, p := range m.known() {
		if !p.whole.Overlaps(whole) || len(p.leases) == p.rests {
			continue
		}
		if p.whole != whole {
			return fmt.Sprintf("overlaps pool %s, which Docker has already", p.whole)
		}
		if !part.IsValid() || p.part == p.whole || p.part.Overlaps(part) {
			return fmt.Sprintf("Docker has it already, with the range %s", p.part)
		}
	}
	return ""
}

func (m *ipam) releasePool(_ context.Context, r ipamRequest) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pools[r.PoolID]
	if p == nil {
		return none, nil // given back before
	}
	return none, m.drop(p)
}

// The options of RequestAddress.
const (
	optAddressType  = "RequestAddressType"
	optGatewayType  = "com.docker.network.gateway"
	optEndpointName = "com.docker.network.endpoint.name" // since Docker 29
)

func (m *ipam) requestAddress(_ context.Context, r ipamRequest) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, err := m.pool(r.PoolID)
	if err != nil {
		return nil, err
	}
	l := lease{use: forEndpoint, name: r.Options[optEndpointName]}
	if r.Options[optAddressType] == optGatewayType {
		l = lease{use: forGateway}
	}
	if len(l.name) > 256 || strings.ContainsAny(l.name, "\x00\n") {
		l.name = "" // it would only be remembered
	}
	a, err := m.choose(p, r.Address, l)
	if err != nil {
		return nil, err
	}
	if err := m.lease(p, a, l); err != nil {
		return nil, err
	}
	return map[string]any{"Address": netip.PrefixFrom(a, p.whole.Bits()).String(), "Data": map[string]string{}}, nil
}

// choose finds the address for a lease: the one that is asked for; that of an endpoint of the same name before; the next
// one that is free and rests for nobody; any that is free.
func (m *ipam) choose(p *ipamPool, asked string, l lease) (netip.Addr, error) {
	if asked != "" {
		a, err := netip.ParseAddr(asked)
		if err != nil || !p.usable(a) {
			return a, fmt.Errorf("address %q: is no address to give out of pool %s", asked, p.whole)
		}
		if m.again(p, a, l) {
			return a, nil
		}
		return a, m.free(p, a, l.use)
	}
	if first := api.FirstHost(p.whole); l.use == forGateway && p.usable(first) && m.free(p, first, l.use) == nil {
		return first, nil
	}
	if l.name != "" && p.rests > 0 {
		for a, was := range p.leases {
			if was.name == l.name && was.over != 0 && m.free(p, a, l.use) == nil {
				return a, nil
			}
		}
	}
	for _, disturb := range []bool{false, true} {
		if a, ok := m.search(p, disturb); ok {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("pool %s: no address of %s is left: %d are with Docker, the others with networks of Seine's; want a larger --subnet or --ip-range",
		p.whole, p.part, len(p.leases)-p.rests)
}

// again reports whether Docker asks once more for what it was given: a pool has one gateway; and an address that was given
// out before the daemon was killed, and that no endpoint took, is one of which Docker did not get the answer.
func (m *ipam) again(p *ipamPool, a netip.Addr, l lease) bool {
	was := p.leases[a]
	if was.use != l.use || was.over != 0 {
		return false
	}
	by := m.engine.Holder(a)
	return l.use == forGateway && (by == "" || strings.HasPrefix(by, gatewayOf)) || l.use == forEndpoint && was.nth == 0 && by == "" && m.ours(p.whole)
}

// ours reports whether one of Docker's networks here has the range.
func (m *ipam) ours(whole netip.Prefix) bool {
	nets, err := m.engine.Networks(context.Background())
	return err == nil && slices.ContainsFunc(nets, func(n api.Network) bool {
		return n.Labels[LabelNetwork] != "" && slices.ContainsFunc(n.Subnets, func(s api.Subnet) bool { return s.Prefix == whole })
	})
}

// gatewayOf begins what Engine.Holder says of a gateway.
const gatewayOf = "the gateway "

// usable tells addresses of the pool from others, and from the network's own and the broadcast address.
func (p *ipamPool) usable(a netip.Addr) bool {
	if !p.whole.Contains(a) {
		return false
	}
	if p.whole.Bits() >= a.BitLen()-1 {
		return true // RFC 3021, RFC 6164
	}
	return a != p.whole.Addr() && (a.Is6() || a != api.LastAddr(p.whole))
}

// free says why an address can't be given out. A network that is there already has its gateway.
func (m *ipam) free(p *ipamPool, a netip.Addr, use string) error {
	if by := m.engine.Holder(a); by != "" && !m.left(by, a) && !(use == forGateway && strings.HasPrefix(by, gatewayOf)) {
		return fmt.Errorf("address %s of pool %s: is in use by %s", a, p.whole, by)
	}
	for _, o := range m.sharing(p) {
		if l := o.leases[a]; l.use != "" && l.over == 0 {
			return fmt.Errorf("address %s of pool %s: is in use by Docker (%s)", a, p.whole, strings.TrimSpace(l.use+" "+l.name))
		}
	}
	return nil
}

// left reports whether what holds an address is an endpoint of Docker's that no sandbox joined, while Docker has given the
// address back: it does not know of it.
func (m *ipam) left(by string, a netip.Addr) bool {
	network, name, ok := strings.Cut(by, "/")
	if !ok {
		return false
	}
	ep, err := m.engine.Endpoint(context.Background(), network, name)
	if err != nil || ep.Labels[LabelEndpoint] == "" || inSandbox(ep) {
		return false
	}
	for _, p := range m.pools {
		if l := p.leases[a]; l.use != "" && l.over == 0 {
			return false
		}
	}
	return true
}

// sharing gives the pools of the same range, p among them.
func (m *ipam) sharing(p *ipamPool) []*ipamPool {
	if p.part == p.whole {
		return []*ipamPool{p}
	}
	out := []*ipamPool{p}
	for _, o := range m.pools {
		if o != p && o.whole == p.whole {
			out = append(out, o)
		}
	}
	return out
}

// search gives the next free address of the pool's part, or with disturb one that rests for an endpoint that is gone. Only
// addresses that somebody has are passed over, so it ends early, but for a range in which others have very many.
func (m *ipam) search(p *ipamPool, disturb bool) (netip.Addr, bool) {
	a := p.next
	for range maxSearch {
		if !a.IsValid() || !p.part.Contains(a) {
			a = p.part.Addr()
		}
		if p.usable(a) && (disturb || p.leases[a].over == 0) && m.free(p, a, forEndpoint) == nil {
			p.next = a.Next()
			return a, true
		}
		if a = a.Next(); a == p.next || !p.part.Contains(a) && (!p.next.IsValid() || p.next == p.part.Addr()) {
			break
		}
	}
	return netip.Addr{}, false
}

// maxSearch bounds a search: that many addresses in a row in use is more than a machine has containers.
const maxSearch = 1 << 16

func (m *ipam) releaseAddress(_ context.Context, r ipamRequest) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, err := netip.ParseAddr(r.Address)
	if err != nil {
		return nil, fmt.Errorf("address %q: is no address", r.Address)
	}
	p := m.pools[r.PoolID]
	if p == nil {
		return none, nil // given back with its pool
	}
	l := p.leases[a]
	if l.name == "" || l.over != 0 {
		if l.over != 0 {
			return none, nil // given back before
		}
		return none, m.lease(p, a, lease{})
	}
	if p.rests >= maxRests {
		if err := m.lease(p, p.eldest(), lease{}); err != nil {
			return nil, err
		}
	}
	l.over = time.Now().Unix()
	return none, m.lease(p, a, l)
}

// eldest gives the address that rests for the longest time.
func (p *ipamPool) eldest() netip.Addr {
	var found netip.Addr
	for a, l := range p.leases {
		if l.over != 0 && (!found.IsValid() || l.over < p.leases[found].over) {
			found = a
		}
	}
	return found
}

// lost is something that was promised and that nobody seems to use.
type lost struct {
	pool string
	addr netip.Addr // the zero Addr for the pool itself
	nth  uint64     // which lease of the address
}

func (l lost) String() string {
	if !l.addr.IsValid() {
		return "pool " + l.pool
	}
	return "address " + l.addr.String() + " of pool " + l.pool
}

// unused gives the pools without a network of ours of which no address is given out, and the addresses that were given
// out for endpoints of networks of ours, and that none has. Of the networks of other drivers it can't be known.
func (m *ipam) unused(nets []api.Network) []lost {
	ours := map[netip.Prefix]bool{}
	for _, n := range nets {
		for _, s := range n.Subnets {
			ours[s.Prefix] = ours[s.Prefix] || n.Labels[LabelNetwork] != ""
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []lost
	for _, p := range m.known() {
		if !ours[p.whole] && len(p.leases) == p.rests {
			out = append(out, lost{pool: p.id})
		}
		for a, l := range p.leases {
			if ours[p.whole] && l.use == forEndpoint && l.over == 0 && m.engine.Holder(a) == "" {
				out = append(out, lost{p.id, a, l.nth})
			}
		}
	}
	slices.SortFunc(out, func(a, b lost) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// forget gives one of unused back, unless it has found a use meanwhile.
func (m *ipam) forget(l lost) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pools[l.pool]
	switch {
	case p == nil:
		return nil
	case l.addr.IsValid():
		if now := p.leases[l.addr]; now.nth != l.nth || now.use == "" || m.engine.Holder(l.addr) != "" {
			return nil
		}
		return m.lease(p, l.addr, lease{})
	case len(p.leases) != p.rests:
		return nil
	}
	return m.drop(p)
}

// has reports whether Docker has a pool.
func (m *ipam) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pools[id] != nil && m.book.Value(bookPrefix+id) != ""
}

// poolOf gives the identity of the pool that Docker has a network's range from; "" for one of another IPAM driver. Where
// there are several of the range it is the one with the gateway: of the others the answer was lost.
func (m *ipam) poolOf(space string, s api.Subnet) string {
	if space != addressSpace {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	found := ""
	for _, p := range m.known() {
		if p.whole == s.Prefix && (found == "" || p.leases[s.Gateway].use == forGateway) {
			found = p.id
		}
	}
	return found
}

// forgetRanges drops the pools of a network of ours that Docker removed. It gives them back before: what is there is what
// it could not tell, or the same range for another driver's network, which then has endpoints.
func (m *ipam) forgetRanges(n api.Network) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range n.Subnets {
		for _, p := range m.known() {
			if p.whole != s.Prefix || p.serves(s.Reserved) {
				continue
			}
			if err := m.drop(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// serves reports whether an endpoint has an address of the pool. Auxiliary addresses are asked for as if for one.
func (p *ipamPool) serves(aux []netip.Addr) bool {
	for a, l := range p.leases {
		if l.use == forEndpoint && l.over == 0 && !slices.Contains(aux, a) {
			return true
		}
	}
	return false
}
