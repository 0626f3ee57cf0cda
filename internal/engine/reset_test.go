package engine_test

import (
	"context"
	"sync"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
)

// An endpoint that is detached between the look at a network's endpoints and its turn gets neither objects nor names back.
func TestDetachedWhileItsNetworkChanges(t *testing.T) {
	r := newRig(t)
	r.network(api.Network{Name: "a"})
	listed := r.attach("a", "c1", api.Port{HostPort: 8000, ContainerPort: 80})
	if err := r.DeleteEndpoint(t.Context(), "a", "c1", 0); err != nil {
		t.Fatal(err)
	}
	if keys, err := r.ResetEndpoint(listed); err != nil || len(keys) > 0 {
		t.Errorf("keys %v, error %v", keys, err)
	}
	if keys := r.want.Keys(driver.EndpointOwner("a", "c1")); len(keys) > 0 {
		t.Errorf("wanted again: %v", keys)
	}
	r.settled()
}

// The same while the network's changes and the detaching run at once.
func TestDetachingBesideChangesOfTheNetwork(t *testing.T) {
	r := newRig(t)
	n := r.network(api.Network{Name: "a"})
	var changes sync.WaitGroup
	defer changes.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes.Go(func() {
		for on := true; ctx.Err() == nil; on = !on {
			n.ICC = &on
			if _, err := r.PutNetwork(ctx, n, 0); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	for range 300 {
		r.attach("a", "c1")
		if err := r.DeleteEndpoint(t.Context(), "a", "c1", 0); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	changes.Wait()
	if keys := r.want.Keys(driver.EndpointOwner("a", "c1")); len(keys) > 0 {
		t.Errorf("wanted again: %v", keys)
	}
	r.settled()
}
