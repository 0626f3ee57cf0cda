package engine_test

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

// TestKernelHangs: whoever asks is answered within the time that he gives and a few seconds for the way back, and what was
// left in the midst is as it should be once the kernel goes on.
func TestKernelHangs(t *testing.T) {
	const limit = 20 * time.Second
	for name, verb := range map[string]func(context.Context, *rig) error{
		"attach": func(ctx context.Context, r *rig) error {
			_, err := r.PutEndpoint(ctx, api.Endpoint{Network: "a", Name: "new", Sandbox: api.Sandbox{Netns: "/run/netns/new"}}, 0)
			return err
		},
		"ports": func(ctx context.Context, r *rig) error {
			_, err := r.PutEndpoint(ctx, api.Endpoint{Network: "a", Name: "old", Ports: []api.Port{{HostPort: 80, ContainerPort: 80}}}, 0)
			return err
		},
		"detach": func(ctx context.Context, r *rig) error { return r.DeleteEndpoint(ctx, "a", "old", 0) },
		"create network": func(ctx context.Context, r *rig) error {
			_, err := r.PutNetwork(ctx, api.Network{Name: "b"}, 0)
			return err
		},
		"change network": func(ctx context.Context, r *rig) error {
			_, err := r.PutNetwork(ctx, api.Network{Name: "a", ICC: off()}, 0)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.network(api.Network{Name: "a"})
				old := r.attach("a", "old")
				r.netns("new")
				before := keys(r.store.Endpoints())
				goOn := make(chan struct{})
				r.kernel.FailIf(func(kernel.Change) error { <-goOn; return nil })
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				start := time.Now()
				err := verb(ctx, r)
				if took := time.Since(start); err == nil || took > limit+6*time.Second {
					t.Errorf("answered after %s: %v", took, err)
				}
				if api.CodeOf(err) != api.Unavailable {
					t.Errorf("error %v is %s", err, api.CodeOf(err))
				}
				if after := keys(r.store.Endpoints()); name != "detach" && len(after) != len(before) {
					t.Errorf("endpoints are %v, were %v", after, before)
				}
				close(goOn)
				r.kernel.FailIf(nil)
				if err := r.Collect(t.Context()); err != nil {
					t.Error(err)
				}
				if err := r.Loop.SyncAll(t.Context()); err != nil {
					t.Error(err)
				}
				r.settled()
				if name == "detach" { // its addresses are free
					ask := api.Endpoint{Network: "a", Name: "next", Addresses: old.Addresses, Sandbox: api.Sandbox{Netns: "/run/netns/new"}}
					if _, err := r.PutEndpoint(t.Context(), ask, 0); err != nil {
						t.Error(err)
					}
				}
				if name == "attach" {
					if by := r.Holder(netip.MustParseAddr("10.200.0.3")); by != "" {
						t.Errorf("the address of what was not attached is with %s", by)
					}
				}
			})
		})
	}
}
