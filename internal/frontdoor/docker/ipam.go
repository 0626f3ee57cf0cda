package docker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/seine-net/seine/api"
)

const addressSpace = "seine"

// bookPrefix begins the names of what the IPAM driver keeps: "docker/ipam/POOL" has the pool's range and the part that
// is given out from, "docker/ipam/POOL/ADDRESS" says what an address was given out for.
const bookPrefix = "docker/ipam/"

// The values of an address.
const (
	forGateway  = "gateway"
	forEndpoint = "endpoint"
)

// ipam is the IPAM driver. Docker asks for ranges and addresses before there is a network or an endpoint, and for
// networks of other drivers as well; so it keeps what it promised until Docker gives it back. Which network an address is
// for Docker does not say. An address is given out if neither this book nor an endpoint of any network has it.
//
// Each pool has an identity of its own, since Docker may ask for one range twice, have the second network refused, and
// then give one of the two back.
type ipam struct {
	engine Engine
	book   Book

	mu   sync.Mutex
	next map[string]netip.Addr // where the last search in a pool ended: a released address rests for as long as possible
}

type ipamRequest struct {
	Pool, SubPool string
	V6            bool
	PoolID        string
	Address       string
	Options       map[string]string
}

func (m *ipam) requestPool(_ context.Context, r ipamRequest) (any, error) {
	var p, part netip.Prefix
	var err error
	if r.Pool != "" {
		if p, err = netip.ParsePrefix(r.Pool); err != nil || p.Bits() == 0 || p.Addr().IsUnspecified() || p.Addr().Is4() == r.V6 {
			return nil, fmt.Errorf("pool %q: can't be used; want a range of the family that is asked for, such as 10.1.0.0/24 or fd00:1::/64", r.Pool)
		}
		p = p.Masked()
	}
	if r.SubPool != "" {
		part, err = netip.ParsePrefix(r.SubPool)
		if err != nil || !p.IsValid() || !p.Contains(part.Addr()) || part.Bits() < p.Bits() {
			return nil, fmt.Errorf("part %q: is no part of the pool %q; want --subnet, and --ip-range within it", r.SubPool, r.Pool)
		}
		part = part.Masked()
	}
	for k := range r.Options {
		return nil, fmt.Errorf("--ipam-opt %q: is not known; want none", k)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !p.IsValid() {
		given := m.pools()
		p, err = m.engine.FreeSubnet(!r.V6, func(p netip.Prefix) bool {
			for _, g := range given {
				if g.Overlaps(p) {
					return true
				}
			}
			return false
		})
		if err != nil {
			return nil, err
		}
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // it never fails
	pool := hex.EncodeToString(id[:])
	value := p.String()
	if part.IsValid() {
		value += " " + part.String()
	}
	if err := m.book.SetValue(bookPrefix+pool, value); err != nil {
		return nil, err
	}
	return map[string]any{"PoolID": pool, "Pool": p.String(), "Data": map[string]string{}}, nil
}

// pools gives the ranges that were given out.
func (m *ipam) pools() map[string]netip.Prefix {
	out := map[string]netip.Prefix{}
	for name, v := range m.book.Values(bookPrefix) {
		id := strings.TrimPrefix(name, bookPrefix)
		whole, _, _ := strings.Cut(v, " ")
		if p, err := netip.ParsePrefix(whole); err == nil && !strings.Contains(id, "/") {
			out[id] = p
		}
	}
	return out
}

// pool gives a pool's range and the part that is given out from.
func (m *ipam) pool(id string) (p, part netip.Prefix, err error) {
	if id != "" && strings.Trim(id, "0123456789abcdef") == "" {
		whole, sub, _ := strings.Cut(m.book.Value(bookPrefix+id), " ")
		if p, err = netip.ParsePrefix(whole); err == nil {
			if part = p; sub != "" {
				part, err = netip.ParsePrefix(sub)
			}
			return p, part, err
		}
	}
	return p, part, fmt.Errorf("pool %q: is not known here", id)
}

func (m *ipam) releasePool(_ context.Context, r ipamRequest) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, _, err := m.pool(r.PoolID); err != nil {
		return none, nil // given back before
	}
	for name := range m.book.Values(bookPrefix + r.PoolID + "/") {
		if err := m.book.SetValue(name, ""); err != nil {
			return nil, err
		}
	}
	delete(m.next, r.PoolID)
	return none, m.book.SetValue(bookPrefix+r.PoolID, "")
}

func (m *ipam) requestAddress(_ context.Context, r ipamRequest) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, part, err := m.pool(r.PoolID)
	if err != nil {
		return nil, err
	}
	use := forEndpoint
	if r.Options["RequestAddressType"] == "com.docker.network.gateway" {
		use = forGateway
	}
	var a netip.Addr
	switch {
	case r.Address != "":
		if a, err = netip.ParseAddr(r.Address); err != nil || !p.Contains(a) {
			return nil, fmt.Errorf("address %q: is no address of %s", r.Address, p)
		}
		if err = m.free(r.PoolID, a, use); err != nil {
			return nil, err
		}
	case use == forGateway && m.free(r.PoolID, api.FirstHost(p), use) == nil:
		a = api.FirstHost(p)
	default:
		if a, err = m.search(r.PoolID, p, part); err != nil {
			return nil, err
		}
	}
	if err := m.book.SetValue(bookPrefix+r.PoolID+"/"+a.String(), use); err != nil {
		return nil, err
	}
	return map[string]any{"Address": netip.PrefixFrom(a, p.Bits()).String(), "Data": map[string]string{}}, nil
}

// free says why an address can't be given out. A network that is there already has its gateway.
func (m *ipam) free(pool string, a netip.Addr, use string) error {
	if by := m.engine.Holder(a); by != "" && !(use == forGateway && strings.HasPrefix(by, "the gateway ")) {
		return fmt.Errorf("address %s: is in use by %s", a, by)
	}
	if by := m.book.Value(bookPrefix + pool + "/" + a.String()); by != "" {
		return fmt.Errorf("address %s: is in use by Docker (%s)", a, by)
	}
	return nil
}

// maxSearch bounds a search: that many addresses in a row in use is more than a machine has containers.
const maxSearch = 1 << 16

func (m *ipam) search(pool string, p, part netip.Prefix) (netip.Addr, error) {
	last := api.LastAddr(p)
	a := m.next[pool]
	for range maxSearch {
		if !a.IsValid() || !part.Contains(a) {
			a = part.Addr()
		}
		usable := a != p.Addr() && (a != last || a.Is6())
		if usable && m.free(pool, a, forEndpoint) == nil {
			m.next[pool] = a.Next()
			return a, nil
		}
		if a = a.Next(); a == m.next[pool] || !part.Contains(a) && !m.next[pool].IsValid() {
			break
		}
	}
	return netip.Addr{}, fmt.Errorf("pool %s: no address of %s is left", p, part)
}

func (m *ipam) releaseAddress(_ context.Context, r ipamRequest) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, err := netip.ParseAddr(r.Address)
	if err != nil {
		return nil, fmt.Errorf("address %q: is no address", r.Address)
	}
	if _, _, err := m.pool(r.PoolID); err != nil {
		return none, nil // given back with its pool
	}
	return none, m.book.SetValue(bookPrefix+r.PoolID+"/"+a.String(), "")
}

// unused gives the names of addresses that were given out for endpoints of networks of ours, and that none has. Of the
// networks of other drivers it can't be known.
func (m *ipam) unused(nets []api.Network) []string {
	ours := map[netip.Prefix]bool{}
	for _, n := range nets {
		for _, s := range n.Subnets {
			ours[s.Prefix] = n.Labels[LabelNetwork] != ""
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	pools := m.pools()
	var out []string
	for name, use := range m.book.Values(bookPrefix) {
		id, addr, ok := strings.Cut(strings.TrimPrefix(name, bookPrefix), "/")
		if a, err := netip.ParseAddr(addr); ok && err == nil && use == forEndpoint && ours[pools[id]] && m.engine.Holder(a) == "" {
			out = append(out, name)
		}
	}
	return out
}

// forget gives one of unused back.
func (m *ipam) forget(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !strings.HasPrefix(name, bookPrefix) {
		return errors.New("no name of the book's")
	}
	return m.book.SetValue(name, "")
}
