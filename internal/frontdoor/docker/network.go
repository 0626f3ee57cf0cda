package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
)

// The labels of what Docker made.
const (
	// LabelNetwork has the identity that Docker gives a network; LabelKept is there where the network was there before.
	LabelNetwork = "docker.network"
	LabelKept    = "docker.kept"
	// LabelName has Docker's name of a network, which is one of its aliases too, as far as it was learnt.
	LabelName = "docker.name"
	// LabelEndpoint has the identity that Docker gives an endpoint, LabelSandbox the path of the sandbox that it joined.
	LabelEndpoint = "docker.endpoint"
	LabelSandbox  = "docker.sandbox"
	// LabelPrefix has how the interfaces of a network's containers are called, before their number; eth where it is not there.
	LabelPrefix = "docker.prefix"
	// LabelIPAM has the identities of the pools, where Docker has the network's ranges from this IPAM driver.
	LabelIPAM = "docker.ipam"
	// LabelNew is there until Docker has been told that the network is made.
	LabelNew = "docker.new"
)

type networkRequest struct {
	NetworkID string
	Options   map[string]any
	IPv4Data  []ipamData
	IPv6Data  []ipamData
}

type ipamData struct {
	AddressSpace  string
	Pool, Gateway string
	AuxAddresses  map[string]string
}

// checkID holds an identity to what can be part of a name.
func checkID(what, id string) error {
	if len(id) < 12 || len(id) > 64 || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return fmt.Errorf("%s %q: is no identity of Docker's; want 12 to 64 digits and small letters", what, id)
	}
	return nil
}

func (d *Door) createNetwork(ctx context.Context, r networkRequest) (any, error) {
	if err := checkID("NetworkID", r.NetworkID); err != nil {
		return nil, err
	}
	n, existing, err := d.wanted(r)
	if err != nil {
		return nil, err
	}
	if was, err := d.network(ctx, r.NetworkID); err == nil {
		n.Name = was.Name
		return none, agrees(was, n)
	}
	if existing {
		return none, d.adopt(ctx, r.NetworkID, n)
	}
	n.Labels[LabelNetwork], n.Labels[LabelNew] = r.NetworkID, "true"
	_, err = d.engine.PutNetwork(ctx, n, api.CreateOnly)
	if api.CodeOf(err) == api.Conflict {
		if reaped, e2 := d.reapNetworks(ctx, n); reaped {
			_, err = d.engine.PutNetwork(ctx, n, api.CreateOnly)
		} else if e2 != nil {
			err = e2
		}
	}
	if err != nil {
		return nil, err
	}
	d.know(r.NetworkID, n.Name)
	return told{func(ctx context.Context) error {
		_, err := d.engine.AmendNetwork(ctx, n.Name, func(n *api.Network) {
			if n.Labels[LabelNetwork] == r.NetworkID {
				n.Labels = maps.Clone(n.Labels)
				delete(n.Labels, LabelNew)
			}
		})
		return err
	}}, nil
}

// wanted is the network that a request asks for, and whether it is to be there already.
func (d *Door) wanted(r networkRequest) (n api.Network, existing bool, err error) {
	// Docker's networks are one machine's, in a cluster too: Docker gives out their addresses by itself.
	n = api.Network{Name: "docker-" + r.NetworkID[:12], Scope: api.NodeScope, Meta: api.Meta{Labels: map[string]string{}}}
	options, err := generic(r.Options)
	if err == nil {
		err = applyOptions(&n, options)
	}
	if err == nil {
		n.Internal, err = boolean(r.Options, optInternal, false)
	}
	if err != nil {
		return n, false, err
	}
	existing = options[optExisting] != ""
	if !existing && !d.engine.HandsOff(n.Driver) {
		return n, false, fmt.Errorf("option %q: networks of driver %q can't be Docker's; want one that is known and leaves its interfaces to Docker, such as bridge", optDriver, n.Driver)
	}
	return n, existing, d.addRanges(&n, r)
}

// addRanges gives a network the ranges of a request. With Docker's IPAM driver "null" it has one without an address: the
// ranges, and each endpoint's addresses, are then ours to choose.
func (d *Door) addRanges(n *api.Network, r networkRequest) error {
	v4, err := boolean(r.Options, optIPv4, true)
	if err != nil {
		return err
	}
	v6, err := boolean(r.Options, optIPv6, len(r.IPv6Data) > 0)
	if err != nil {
		return err
	}
	ours := false
	for _, data := range slices.Concat(r.IPv4Data, r.IPv6Data) {
		s, err := data.subnet()
		if err != nil {
			return err
		}
		if id := d.ipam.poolOf(data.AddressSpace, s); id != "" {
			n.Labels[LabelIPAM] = strings.TrimSpace(n.Labels[LabelIPAM] + " " + id)
		}
		if s.Gateway.IsValid() && routed(*n) { // Docker before 28 has an address for one, whatever the driver
			s.Reserved, s.Gateway = append(s.Reserved, s.Gateway), netip.Addr{}
		}
		if s.Prefix.Bits() > 0 {
			n.Subnets = append(n.Subnets, s)
		} else {
			ours = true
		}
	}
	if !ours && len(n.Subnets) == 0 {
		return errors.New("the network has no subnet; want one of Docker's IPAM or of --ipam-driver seine")
	}
	if !ours || len(n.Subnets) > 0 {
		return nil
	}
	switch {
	case v4 && v6:
		n.Family = api.Dual
	case v6:
		n.Family = api.IPv6
	default:
		n.Family = api.IPv4
	}
	return nil
}

// subnet is one range in the engine's words.
func (data ipamData) subnet() (api.Subnet, error) {
	p, err := netip.ParsePrefix(data.Pool)
	if err != nil {
		return api.Subnet{}, fmt.Errorf("pool %q: is no address range", data.Pool)
	}
	s := api.Subnet{Prefix: p.Masked()}
	if data.Gateway != "" {
		g, err := netip.ParsePrefix(data.Gateway)
		if err != nil {
			return s, fmt.Errorf("gateway %q: is no address with a length", data.Gateway)
		}
		s.Gateway = g.Addr()
	}
	for _, name := range slices.Sorted(maps.Keys(data.AuxAddresses)) {
		a, err := netip.ParsePrefix(data.AuxAddresses[name])
		if err != nil {
			return s, fmt.Errorf("auxiliary address %q: %q is no address with a length", name, data.AuxAddresses[name])
		}
		s.Reserved = append(s.Reserved, a.Addr())
	}
	return s, nil
}

// agrees says whether a network is as a request wants it where Docker relies on it: subnets and gateways.
func agrees(have, want api.Network) error {
	for _, w := range want.Subnets {
		i := slices.IndexFunc(have.Subnets, func(h api.Subnet) bool { return h.Prefix == w.Prefix })
		if i < 0 {
			return fmt.Errorf("network %q: has not the subnet %s; want --subnet as `seine network inspect` shows it", have.Name, w.Prefix)
		}
		if h := have.Subnets[i]; w.Gateway.IsValid() && w.Gateway != h.Gateway {
			return fmt.Errorf("network %q: has gateway %s, not %s; want --gateway %s", have.Name, h.Gateway, w.Gateway, h.Gateway)
		}
	}
	if have.Internal != want.Internal {
		return fmt.Errorf("network %q: internal is %v; want the same for Docker (--internal)", have.Name, have.Internal)
	}
	return nil
}

// adopt gives Docker a network that is there already.
func (d *Door) adopt(ctx context.Context, id string, want api.Network) error {
	have, err := d.engine.Network(ctx, want.Name)
	if err != nil {
		return err
	}
	if by := have.Labels[LabelNetwork]; by != "" && d.dead(have, want) {
		if _, err := d.deleteNetwork(ctx, networkRequest{NetworkID: by}); err != nil {
			return err
		}
		return d.adopt(ctx, id, want)
	} else if by != "" {
		return fmt.Errorf("network %q: is Docker's already, as %s; want another network", have.Name, by)
	}
	if !d.engine.HandsOff(have.Driver) {
		return fmt.Errorf("network %q: driver %q can't be used by Docker; want a network of another one, such as bridge", have.Name, have.Driver)
	}
	if err := agrees(have, want); err != nil {
		return err
	}
	have.Labels = maps.Clone(have.Labels)
	if have.Labels == nil {
		have.Labels = map[string]string{}
	}
	have.Labels[LabelNetwork], have.Labels[LabelKept] = id, "true"
	maps.Copy(have.Labels, want.Labels)
	if _, err := d.engine.PutNetwork(ctx, have, have.Revision); err != nil {
		return err
	}
	d.know(id, have.Name)
	return nil
}

func (d *Door) know(id, name string) {
	d.mu.Lock()
	d.nets[id] = name
	d.mu.Unlock()
}

// network finds a network by Docker's identity.
func (d *Door) network(ctx context.Context, id string) (api.Network, error) {
	if err := checkID("NetworkID", id); err != nil {
		return api.Network{}, err
	}
	d.mu.Lock()
	name, indexed := d.nets[id], d.indexed
	d.mu.Unlock()
	if !indexed { // it is this door alone that gives networks identities
		all, err := d.engine.Networks(ctx)
		if err != nil {
			return api.Network{}, err
		}
		for _, n := range all {
			if by := n.Labels[LabelNetwork]; by != "" {
				d.know(by, n.Name)
			}
		}
		d.mu.Lock()
		d.indexed, name = true, d.nets[id]
		d.mu.Unlock()
	}
	if name != "" {
		if n, err := d.engine.Network(ctx, name); err == nil && n.Labels[LabelNetwork] == id {
			return n, nil
		}
	}
	return api.Network{}, api.Errorf(api.NotFound, fmt.Sprintf("network %q", id), "is not known here; it was made by another driver, or `seine reset` was run")
}

// dropAll removes the endpoints that Docker forgot in a network.
func (d *Door) dropAll(ctx context.Context, n api.Network) error {
	eps, err := d.engine.Endpoints(ctx)
	if err != nil {
		return err
	}
	for _, ep := range eps {
		if ep.Network == n.Name && ep.Labels[LabelEndpoint] != "" {
			if err := d.drop(ctx, ep); err != nil {
				return err
			}
		}
	}
	return nil
}

// deleteNetwork removes a network with what Docker forgot in it. One that others use goes on without Docker.
func (d *Door) deleteNetwork(ctx context.Context, r networkRequest) (any, error) {
	n, err := d.network(ctx, r.NetworkID)
	if api.CodeOf(err) == api.NotFound {
		return none, nil
	}
	if err != nil {
		return nil, err
	}
	if n.Status.Endpoints > 0 {
		if err := d.dropAll(ctx, n); err != nil {
			return nil, err
		}
	}
	err = api.Errorf(api.InUse, n.Name, "is kept")
	if n.Labels[LabelKept] == "" {
		err = d.engine.DropNetwork(ctx, n.Name, 0)
	}
	if api.CodeOf(err) == api.InUse {
		_, err = d.engine.AmendNetwork(ctx, n.Name, disown)
		d.log.Info("Docker removed a network that others use: it goes on without Docker", "network", n.Name)
	}
	if err != nil && api.CodeOf(err) != api.NotFound {
		return nil, err
	}
	d.mu.Lock()
	delete(d.nets, r.NetworkID)
	d.mu.Unlock()
	return none, d.ipam.forgetRanges(n)
}

// disown takes back what makes a network one of Docker's.
func disown(n *api.Network) {
	name := n.Labels[LabelName]
	n.Aliases = slices.DeleteFunc(slices.Clone(n.Aliases), func(alias string) bool { return alias == name })
	n.Labels = maps.Clone(n.Labels)
	for _, label := range []string{LabelNetwork, LabelKept, LabelPrefix, LabelIPAM, LabelNew, LabelName} {
		delete(n.Labels, label)
	}
}
