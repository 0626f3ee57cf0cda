package docker

import (
	"context"
	"errors"
	"os"
	"time"
)

// How long something may be without its use before Collect takes it for forgotten.
const (
	lostAfter   = time.Minute      // an endpoint whose sandbox's file is gone: Docker 20.10 makes it only after Join
	unusedAfter = 10 * time.Minute // an endpoint that no sandbox joined, or that left; an address without an endpoint
)

// Collect removes what Docker has forgotten: it drops errors of Leave and Delete, and calls that it was killed before.
// It is called now and then, by one goroutine.
func (d *Door) Collect(ctx context.Context) error {
	eps, err := d.engine.Endpoints(ctx)
	if err != nil {
		return err
	}
	now, found := time.Now(), map[string]time.Time{}
	gone := func(key string, after time.Duration) bool {
		since, ok := d.absent[key]
		if !ok {
			since = now
		}
		found[key] = since
		return now.Sub(since) >= after
	}
	var errs []error
	for _, ep := range eps {
		if ep.Labels[LabelEndpoint] == "" {
			continue
		}
		after := lostAfter
		if path := ep.Labels[LabelSandbox]; path == "" {
			after = unusedAfter
		} else if _, err := os.Lstat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if gone(ep.Key()+" "+ep.Labels[LabelSandbox], after) {
			d.log.Info("Docker forgot an endpoint: it is removed", "endpoint", ep.Key())
			errs = append(errs, d.drop(ctx, ep))
		}
	}
	nets, err := d.engine.Networks(ctx)
	errs = append(errs, err)
	for _, l := range d.ipam.unused(nets) {
		if gone(l.String(), unusedAfter) {
			d.log.Info("Docker forgot what it had asked for: it is free again", "what", l)
			errs = append(errs, d.ipam.forget(l))
		}
	}
	d.absent = found
	return errors.Join(errs...)
}
