// Package blocks leases parts of a cluster network's subnets to nodes. A node gives the addresses of its blocks to its
// containers without asking anybody, so it goes on attaching while the cluster's store is away.
//
//	subnet  10.200.0.0/22 ├────┼────┼────┼────┼── … ──┤   cut into units of one size (Unit)
//	blocks                 n1   n1   n2         n3        a unit is leased by one key, made only where there is none
//
// A key names its node; that is the whole truth. What a node may use it also keeps itself, in this order: it leases, keeps,
// uses; and it forgets, then gives back. So a crash leaves at most a lease that is not used, which the next start finds.
// A node that is dead keeps its blocks: its containers may live on, cut off. They are taken only when it has been removed
// from the cluster.
package blocks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/cluster/agreed"
)

// Prefix is where the keys are: blocks/NETWORK-ID/ADDRESS-BITS.
const Prefix = "blocks/"

// The errors of Lease.
var (
	// ErrFull says that all of the subnet is leased.
	ErrFull = errors.New("all blocks are leased")
	// ErrTaken says that the block with the wanted address is another node's.
	ErrTaken = errors.New("is in a block of another node")
)

// record is the value of a key.
type record struct {
	Node string `json:"node"`
}

// Lease is a block that a node holds.
type Lease struct {
	Network string // its ID
	Block   netip.Prefix
	Node    string // its ID

	revision int64
}

// Unit gives the length of the blocks of a subnet: IPv4 subnets are cut into up to 256 blocks of at least 16 addresses, or
// of an eighth where the subnet is smaller than that; IPv6 subnets into 65,536, or into as many as they have addresses.
func Unit(subnet netip.Prefix) int {
	b := subnet.Bits()
	switch {
	case !subnet.Addr().Is4():
		return min(b+16, 128)
	case b < 26:
		return min(b+8, 28)
	}
	return min(b+3, 32)
}

// Leases is the book of all leases, which the store holds. Its methods may be called from several goroutines.
type Leases struct {
	Store agreed.Store
}

func key(network string, block netip.Prefix) string {
	return fmt.Sprintf("%s%s/%s-%d", Prefix, network, block.Addr(), block.Bits())
}

// parse is the inverse of key and record.
func parse(kv agreed.KV) (Lease, error) {
	l := Lease{revision: kv.Revision}
	rest := strings.TrimPrefix(kv.Key, Prefix)
	network, block, ok := strings.Cut(rest, "/")
	if ok {
		if i := strings.LastIndexByte(block, '-'); i > 0 {
			if p, err := netip.ParsePrefix(block[:i] + "/" + block[i+1:]); err == nil && p == p.Masked() {
				var r record
				if err := json.Unmarshal(kv.Value, &r); err != nil || r.Node == "" {
					return l, fmt.Errorf("store: key %q: value %q names no node", kv.Key, kv.Value)
				}
				l.Network, l.Block, l.Node = network, p, r.Node
				return l, nil
			}
		}
	}
	return l, fmt.Errorf("store: key %q: is no block; want %sNETWORK/ADDRESS-BITS", kv.Key, Prefix)
}

// List gives the leases of a network, of all networks where network is "". Keys that are no leases are in the error, beside
// those that are.
func (b *Leases) List(ctx context.Context, network string) ([]Lease, error) {
	prefix := Prefix
	if network != "" {
		prefix += network + "/"
	}
	kvs, _, err := b.Store.Get(ctx, prefix)
	if err != nil {
		return nil, err
	}
	var out []Lease
	var errs []error
	for _, kv := range kvs {
		l, err := parse(kv)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, l)
	}
	return out, errors.Join(errs...)
}

// tries bounds how often others may be first.
const tries = 100

// Lease leases up to n units of a subnet to a node, or the one with the address want, where that is valid, and gives those
// that the node did not have before. It gives fewer where few are left, and ErrFull where none is. A unit that the node has
// already, but does not have in mine, is taken first: an answer of the store was lost.
func (b *Leases) Lease(ctx context.Context, network, node string, subnet netip.Prefix, want netip.Addr, n int, mine []netip.Prefix) ([]netip.Prefix, error) {
	value, err := json.Marshal(record{node})
	if err != nil {
		return nil, err
	}
	for range tries {
		held, err := b.List(ctx, network)
		if err != nil && held == nil {
			return nil, err
		}
		blocks, forgotten, err := choose(held, network, node, subnet, want, n, mine)
		if err != nil || forgotten {
			return blocks, err
		}
		conds, ops := make([]agreed.Cond, len(blocks)), make([]agreed.Op, len(blocks))
		for i, p := range blocks {
			conds[i] = agreed.Cond{Key: key(network, p)}
			ops[i] = agreed.Op{Key: key(network, p), Value: value}
		}
		_, err = b.Store.Txn(ctx, conds, ops)
		if err == nil {
			return blocks, nil
		}
		if !errors.Is(err, agreed.ErrConflict) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("subnet %s: %w: %d times others were first", subnet, agreed.ErrConflict, tries)
}

// maxUnits bounds one lease: a store takes about a hundred changes at once.
const maxUnits = 64

// choose gives the units to lease; forgotten says that the node has them already.
func choose(held []Lease, network, node string, subnet netip.Prefix, want netip.Addr, n int, mine []netip.Prefix) (_ []netip.Prefix, forgotten bool, _ error) {
	taken := map[netip.Prefix]string{}
	var again []netip.Prefix
	for _, l := range held {
		if !subnet.Overlaps(l.Block) {
			continue
		}
		taken[l.Block] = l.Node
		if l.Node == node && !slices.Contains(mine, l.Block) {
			again = append(again, l.Block)
		}
	}
	bits := Unit(subnet)
	if want.IsValid() {
		p, err := want.Prefix(bits)
		if err != nil || !subnet.Contains(want) {
			return nil, false, fmt.Errorf("%s: is not in %s", want, subnet)
		}
		switch by := taken[p]; by {
		case "":
			return []netip.Prefix{p}, false, nil
		case node:
			return []netip.Prefix{p}, true, nil
		default:
			return nil, false, fmt.Errorf("%s: %w: %s is leased to %s", want, ErrTaken, p, by)
		}
	}
	if len(again) > 0 {
		return again, true, nil
	}
	var out []netip.Prefix
	units := uint64(1) << min(bits-subnet.Bits(), 63)
	// Nodes begin at different places, so they seldom want the same unit.
	h := fnv.New64a()
	_, _ = h.Write([]byte(network + "/" + node)) // never fails
	at := h.Sum64() % units
	for i := uint64(0); i < units && len(out) < min(n, maxUnits) && i < uint64(len(taken)+n); i++ {
		p := unit(subnet, bits, (at+i)%units)
		if taken[p] == "" {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, false, fmt.Errorf("subnet %s: %w to %d nodes", subnet, ErrFull, nodes(held))
	}
	return out, false, nil
}

// unit gives the i-th block of a subnet.
func unit(subnet netip.Prefix, bits int, i uint64) netip.Prefix {
	b := subnet.Addr().AsSlice()
	for at := bits - 1; i > 0; at, i = at-1, i>>1 {
		if i&1 != 0 {
			b[at/8] |= 0x80 >> (at % 8)
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, bits)
}

func nodes(held []Lease) int {
	seen := map[string]bool{}
	for _, l := range held {
		seen[l.Node] = true
	}
	return len(seen)
}

// Return gives blocks back that a node does not use any more, and has forgotten. Those that are not its own stay.
func (b *Leases) Return(ctx context.Context, network, node string, blocks []netip.Prefix) error {
	return b.drop(ctx, network, func(l Lease) bool { return l.Node == node && slices.Contains(blocks, l.Block) })
}

// Reclaim takes all blocks of a node that has been removed from the cluster.
func (b *Leases) Reclaim(ctx context.Context, node string) error {
	return b.drop(ctx, "", func(l Lease) bool { return l.Node == node })
}

// Forget drops all leases of a network that is deleted.
func (b *Leases) Forget(ctx context.Context, network string) error {
	return b.drop(ctx, network, func(Lease) bool { return true })
}

func (b *Leases) drop(ctx context.Context, network string, which func(Lease) bool) error {
	for range tries {
		held, err := b.List(ctx, network)
		if err != nil && held == nil {
			return err
		}
		var conds []agreed.Cond
		var ops []agreed.Op
		for _, l := range held {
			if which(l) && len(ops) < maxUnits {
				k := key(l.Network, l.Block)
				conds = append(conds, agreed.Cond{Key: k, Revision: l.revision})
				ops = append(ops, agreed.Op{Key: k})
			}
		}
		if len(ops) == 0 {
			return nil
		}
		if _, err := b.Store.Txn(ctx, conds, ops); err != nil && !errors.Is(err, agreed.ErrConflict) {
			return err
		}
	}
	return agreed.ErrConflict
}
