package docker

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/seine-net/seine/api"
)

// How long something may be without its use before Collect takes it for forgotten.
const (
	lostAfter   = time.Minute      // an endpoint whose sandbox's file is gone (Docker 20.10 makes it only after Join), or that Docker has not
	unusedAfter = 10 * time.Minute // an endpoint that no sandbox joined, or that left; an address, a pool, a network
)

// absences tells for how long something has been without its use, as far as it was looked at.
type absences struct {
	before, now map[string]time.Time
	at          time.Time
}

// reach reports whether what has no use has been so for at least after.
func (a *absences) reach(what string, after time.Duration) bool {
	since, ok := a.before[what]
	if !ok {
		since = a.at
	}
	a.now[what] = since
	return a.at.Sub(since) >= after
}

// Collect removes what Docker has forgotten: it drops errors of Leave and Delete, and calls that it was killed before.
// It is called now and then, by one goroutine. Where Docker can be asked, what it has stays and what it has not goes;
// where it can't, endpoints go by their sandbox alone, and networks by what Docker gave back.
func (d *Door) Collect(ctx context.Context) error {
	eps, err := d.engine.Endpoints(ctx)
	if err != nil {
		return err
	}
	nets, err := d.engine.Networks(ctx)
	if err != nil {
		return err
	}
	gone := &absences{before: d.absent, now: map[string]time.Time{}, at: time.Now()}
	errs := []error{d.collectEndpoints(ctx, eps, gone), d.collectNetworks(ctx, nets, gone)}
	for _, l := range d.ipam.unused(nets) {
		if gone.reach(l.String(), unusedAfter) {
			d.log.Info("Docker forgot what it had asked for: it is free again", "what", l)
			errs = append(errs, d.ipam.forget(l))
		}
	}
	d.absent = gone.now
	return errors.Join(errs...)
}

func (d *Door) collectEndpoints(ctx context.Context, eps []api.Endpoint, gone *absences) error {
	var errs []error
	has := d.watcher.has(ctx, eps)
	for _, ep := range eps {
		id := ep.Labels[LabelEndpoint]
		if id == "" {
			continue
		}
		after, why := lostAfter, ep.Labels[LabelSandbox]
		if have, known := has[id]; have {
			continue
		} else if known {
			why = "unknown to Docker"
		} else if why == "" {
			after = unusedAfter
		} else if inSandbox(ep) {
			continue
		}
		if !gone.reach("endpoint "+ep.Key()+" "+why, after) {
			continue
		}
		err := d.engine.DropEndpoint(ctx, ep.Network, ep.Name, ep.Revision)
		if code := api.CodeOf(err); err != nil && (code == api.Stale || code == api.NotFound) {
			continue // it has found a use, or its end
		}
		d.log.Info("Docker forgot an endpoint: it is removed", "endpoint", ep.Key(), "err", err)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// collectNetworks removes networks that Docker had by name and has no longer, and those of which Docker gave back all that
// it had from our IPAM driver: it does so before it removes a network, and only then.
func (d *Door) collectNetworks(ctx context.Context, nets []api.Network, gone *absences) error {
	var errs []error
	forgotten := d.watcher.forgotten(ctx)
	for _, n := range nets {
		id := n.Labels[LabelNetwork]
		if !slices.Contains(forgotten, id) && (id == "" || n.Labels[LabelIPAM] == "" || !d.dead(n, api.Network{})) {
			continue
		}
		if gone.reach("network "+n.Name+" "+n.Labels[LabelNetwork], unusedAfter) {
			d.log.Info("Docker forgot a network: it is removed", "network", n.Name)
			_, err := d.deleteNetwork(ctx, networkRequest{NetworkID: n.Labels[LabelNetwork]})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
