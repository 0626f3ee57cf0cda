// Package cluster is what a machine that is in a cluster knows and does beyond itself: it keeps definitions and address
// blocks in the store that all agree on (Agreement).
package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cluster/agreed"
	"github.com/seine-net/seine/internal/cluster/blocks"
)

// Where the keys of the agreed truth are. Blocks are at blocks.Prefix.
const (
	NetworkPrefix = "networks/" // networks/NAME → api.Network
	VNIPrefix     = "vnis/"     // vnis/NUMBER → ID of the network that has it
)

// Agreement is what an engine asks of its cluster (engine.Cluster).
type Agreement struct {
	Store agreed.Store
	// Node is this machine's ID.
	Node string
	// Users, where set, names the other machines that have endpoints on a network.
	Users func(network string) []string
}

// refused makes an error of the store one of the API.
func refused(noun string, err error) error {
	var known *api.Error
	code := api.Internal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errors.Is(err, agreed.ErrConflict):
		code = api.Stale
	case errors.Is(err, agreed.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = api.Unavailable
	case errors.Is(err, blocks.ErrFull):
		code = api.Exhausted
	case errors.Is(err, blocks.ErrTaken):
		code = api.Conflict
	}
	return api.Errorf(code, noun, "%w", err)
}

// tries bounds how often somebody else may be first.
const tries = 16

// Agree implements engine.Cluster.
func (a *Agreement) Agree(ctx context.Context, old *api.Network, n api.Network) (api.Network, error) {
	noun := api.NetworkNoun(n.Name)
	n.Status, n.Revision = nil, 0
	for range tries {
		all, err := a.networks(ctx)
		if err != nil {
			return n, refused(noun, err)
		}
		there, exists := all[n.Name]
		if old == nil && exists {
			return n, api.Errorf(api.Conflict, noun, "exists in the cluster already; it gets here within moments")
		}
		if old != nil && (!exists || there.n.ID != old.ID) {
			return n, api.Errorf(api.Stale, noun, "was deleted in the cluster")
		}
		if old != nil && !sameDefinition(there.n, *old) {
			return n, api.Errorf(api.Stale, noun, "was changed on another machine; look at it again")
		}
		conds := []agreed.Cond{{Key: NetworkPrefix + n.Name, Revision: there.revision}}
		var ops []agreed.Op
		if old == nil {
			if err := checkOverlap(noun, n, all); err != nil {
				return n, err
			}
			if n.ID == "" {
				n.ID = newID()
			}
			number, err := a.vni(ctx, n)
			if err != nil {
				return n, refused(noun, err)
			}
			n.VNI = number
			key := fmt.Sprint(VNIPrefix, number)
			conds = append(conds, agreed.Cond{Key: key})
			ops = append(ops, agreed.Op{Key: key, Value: []byte(n.ID)})
		}
		value, err := json.Marshal(n)
		if err != nil {
			return n, refused(noun, err)
		}
		_, err = a.Store.Txn(ctx, conds, append(ops, agreed.Op{Key: NetworkPrefix + n.Name, Value: value}))
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, agreed.ErrConflict) {
			return n, refused(noun, err)
		}
	}
	return n, refused(noun, agreed.ErrConflict)
}

// sameDefinition compares what was agreed on; what a machine adds to it for itself does not count.
func sameDefinition(a, b api.Network) bool {
	strip := func(n api.Network) string {
		n.Revision, n.Status, n.Created = 0, nil, ""
		text, _ := json.Marshal(n) // it was JSON before
		return string(text)
	}
	return strip(a) == strip(b)
}

func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24)
	return hex.EncodeToString(b[:])
}

// vni chooses a number that no network has, the one that n asks for if it does.
func (a *Agreement) vni(ctx context.Context, n api.Network) (uint32, error) {
	kvs, _, err := a.Store.Get(ctx, VNIPrefix)
	if err != nil {
		return 0, err
	}
	taken := map[string]bool{}
	for _, kv := range kvs {
		taken[strings.TrimPrefix(kv.Key, VNIPrefix)] = string(kv.Value) != n.ID
	}
	if n.VNI != 0 {
		if taken[fmt.Sprint(n.VNI)] {
			err := api.FieldError(api.NetworkNoun(n.Name), "vni", n.VNI, "is another network's", "a number that is free, or 0 to have one given")
			err.Code = api.Conflict
			return 0, err
		}
		return n.VNI, nil
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(n.ID)) // never fails
	for i := range uint32(len(taken) + 1) {
		v := api.MinVNI + (h.Sum32()+i)%(api.MaxVNI-api.MinVNI+1)
		if !taken[fmt.Sprint(v)] {
			return v, nil
		}
	}
	return 0, errors.New("no number for VXLAN is left")
}

// checkOverlap refuses subnets that meet those of other networks of the cluster.
func checkOverlap(noun string, n api.Network, all map[string]definition) error {
	for i, s := range n.Subnets {
		for _, o := range all {
			for _, t := range o.n.Subnets {
				if s.Prefix.Overlaps(t.Prefix) {
					err := api.FieldError(noun, fmt.Sprintf("subnets[%d].prefix", i), s.Prefix,
						fmt.Sprintf("overlaps %s of network %q of the cluster", t.Prefix, o.n.Name), "a range that nothing else uses")
					err.Code = api.Conflict
					return err
				}
			}
		}
	}
	return nil
}

// definition is a network as the store has it.
type definition struct {
	n        api.Network
	revision int64
}

func (a *Agreement) networks(ctx context.Context) (map[string]definition, error) {
	kvs, _, err := a.Store.Get(ctx, NetworkPrefix)
	if err != nil {
		return nil, err
	}
	out := map[string]definition{}
	for _, kv := range kvs {
		n, err := ParseNetwork(kv)
		if err != nil {
			return nil, err
		}
		out[n.Name] = definition{n, kv.Revision}
	}
	return out, nil
}

// ParseNetwork reads the definition in a key of the store, which must be right in itself.
func ParseNetwork(kv agreed.KV) (api.Network, error) {
	var n api.Network
	if err := json.Unmarshal(kv.Value, &n); err != nil {
		return n, fmt.Errorf("store: key %q: %w", kv.Key, err)
	}
	if NetworkPrefix+n.Name != kv.Key || !n.Shared() || n.ID == "" || n.VNI == 0 {
		return n, fmt.Errorf("store: key %q: is no definition of a network of the cluster", kv.Key)
	}
	n.Revision, n.Status = 0, nil
	return n, n.Validate()
}

// Abolish implements engine.Cluster. Blocks of the network go with it: whoever still has some can't get at the definition.
func (a *Agreement) Abolish(ctx context.Context, n api.Network) error {
	noun := api.NetworkNoun(n.Name)
	if a.Users != nil {
		if users := a.Users(n.Name); len(users) > 0 {
			return api.Errorf(api.InUse, noun, "has endpoints on other machines: %s", strings.Join(users, ", "))
		}
	}
	kv, err := agreed.Get1(ctx, a.Store, NetworkPrefix+n.Name)
	if err != nil {
		return refused(noun, err)
	}
	if kv.Revision != 0 {
		there, err := ParseNetwork(kv)
		if err == nil && there.ID != n.ID {
			return nil // it is gone, and another one has its name
		}
		_, err = a.Store.Txn(ctx, []agreed.Cond{{Key: kv.Key, Revision: kv.Revision}},
			[]agreed.Op{{Key: kv.Key}, {Key: fmt.Sprint(VNIPrefix, n.VNI)}})
		if err != nil {
			return refused(noun, err)
		}
	}
	return refused(noun, a.leases().Forget(ctx, n.ID))
}

func (a *Agreement) leases() *blocks.Leases { return &blocks.Leases{Store: a.Store} }

// Lease implements engine.Cluster.
func (a *Agreement) Lease(ctx context.Context, n api.Network, subnet netip.Prefix, want netip.Addr, count int, mine []netip.Prefix) ([]netip.Prefix, error) {
	got, err := a.leases().Lease(ctx, n.ID, a.Node, subnet, want, count, mine)
	return got, refused(api.NetworkNoun(n.Name), err)
}

// Return implements engine.Cluster.
func (a *Agreement) Return(ctx context.Context, n api.Network, list []netip.Prefix) error {
	return refused(api.NetworkNoun(n.Name), a.leases().Return(ctx, n.ID, a.Node, list))
}
