package docker

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
)

// When this daemon is killed within a call, Docker takes the call for failed, though it may have been done, and never
// mentions what it made again. Collect removes that in time; but its user tries again at once, and what was made is in the
// way. So what is in the way is looked at: Docker gives no range and no address twice, and what it has given back is dead.

// reapNetworks removes networks that are in the way of one that Docker makes, and that Docker does not know of.
func (d *Door) reapNetworks(ctx context.Context, want api.Network) (reaped bool, err error) {
	nets, err := d.engine.Networks(ctx)
	if err != nil {
		return false, err
	}
	for _, n := range nets {
		id := n.Labels[LabelNetwork]
		if id == "" || id == want.Labels[LabelNetwork] || !inTheWay(n, want) || !d.dead(n, want) {
			continue
		}
		d.log.Info("Docker knows nothing of a network that it asked for: it is removed", "network", n.Name)
		if _, err := d.deleteNetwork(ctx, networkRequest{NetworkID: id}); err != nil {
			return reaped, err
		}
		reaped = true
	}
	return reaped, nil
}

// inTheWay reports whether a network has something that another one wants.
func inTheWay(n, want api.Network) bool {
	return n.Name == want.Name || want.Interface != "" && n.Interface == want.Interface ||
		slices.ContainsFunc(n.Subnets, func(s api.Subnet) bool {
			return slices.ContainsFunc(want.Subnets, func(w api.Subnet) bool { return w.Prefix.Overlaps(s.Prefix) })
		})
}

// dead reports whether Docker can't know a network any more. With ranges of our IPAM driver that is so when it gave them
// back. Otherwise it is one of which Docker may not have got the answer, without endpoints, that wants for something that
// Docker gives to one network at a time.
func (d *Door) dead(n, want api.Network) bool {
	if pools := n.Labels[LabelIPAM]; pools != "" {
		return !slices.ContainsFunc(strings.Fields(pools), d.ipam.has)
	}
	return n.Labels[LabelNew] != "" && n.Status.Endpoints == 0 && want.Labels[LabelIPAM] == ""
}

// reapEndpoints removes endpoints that have an address which Docker gives to another one.
func (d *Door) reapEndpoints(ctx context.Context, n api.Network, want api.Endpoint) error {
	for _, a := range want.Addresses {
		key := d.engine.Holder(a)
		name, ok := strings.CutPrefix(key, n.Name+"/")
		if !ok || name == want.Name {
			continue
		}
		ep, err := d.engine.Endpoint(ctx, n.Name, name)
		if err != nil || ep.Labels[LabelEndpoint] == "" || inSandbox(ep) {
			continue
		}
		d.log.Info("Docker has another endpoint for an address: the one before is removed", "endpoint", key, "address", a)
		if err := d.drop(ctx, ep); err != nil {
			return err
		}
	}
	return nil
}

// inSandbox reports whether the sandbox that an endpoint joined is there.
func inSandbox(ep api.Endpoint) bool {
	path := ep.Labels[LabelSandbox]
	if path == "" {
		return false
	}
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
