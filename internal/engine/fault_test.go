//go:build !race

// These tests run thousands of daemons, one after the other: without the race detector, which has the random sequences.

package engine_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

// verbs are the operations whose every kernel operation is made to fail, and at whose every one the process is ended.
func verbs() map[string]func(*rig) error {
	ctx := context.Background()
	ports := []api.Port{{HostPort: 8080, ContainerPort: 80}, {Protocol: "udp", HostPort: 5353, ContainerPort: 53},
		{HostPort: 8443, ContainerPort: 443, HostIP: netip.MustParseAddr("127.0.0.1")}}
	out := map[string]func(*rig) error{}
	for _, net := range []string{"bridge", "ptp"} {
		out["attach "+net] = func(r *rig) error { _, err := r.tryAttach(net, "new"); return err }
		out["attach with ports "+net] = func(r *rig) error { _, err := r.tryAttach(net, "new", ports...); return err }
		out["detach "+net] = func(r *rig) error { return r.DeleteEndpoint(ctx, net, "old-"+net, 0) }
		out["connect "+net] = func(r *rig) error {
			_, err := r.PutEndpoint(ctx, api.Endpoint{Network: net, Name: "second", Sandbox: api.Sandbox{Netns: "/run/netns/other"}}, 0)
			return err
		}
		out["change of ports "+net] = func(r *rig) error { _, err := r.tryAttach(net, "old-"+net, ports[:1]...); return err }
		out["isolate "+net] = func(r *rig) error { _, err := r.PutNetwork(ctx, api.Network{Name: net, ICC: off()}, 0); return err }
	}
	out["create network"] = func(r *rig) error { _, err := r.PutNetwork(ctx, api.Network{Name: "new"}, 0); return err }
	return out
}

// faultRig has something of everything before the verb under test.
func faultRig(t *testing.T) *rig {
	r := newRig(t)
	r.network(api.Network{Name: "bridge"})
	r.network(api.Network{Name: "ptp", Driver: "ptp"})
	r.network(api.Network{Name: "third"})
	r.attach("bridge", "old-bridge", api.Port{HostPort: 9000, ContainerPort: 80}, api.Port{Protocol: "udp", HostPort: 9000, ContainerPort: 80})
	r.attach("ptp", "old-ptp", api.Port{HostPort: 9001, ContainerPort: 80})
	r.attach("third", "other")
	r.settled()
	return r
}

func TestEveryKernelOperationFails(t *testing.T) {
	for name, verb := range verbs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for k := 1; ; k++ {
				r := faultRig(t)
				before := r.store.Endpoints()
				start := r.kernel.Ops()
				// One operation fails for good, as a kernel's refusal does: whenever it is tried in this verb.
				r.kernel.FailAt(k, errFault)
				err := verb(r)
				reached := r.kernel.Ops()-start >= k
				r.kernel.FailAt(0, nil)
				// An injected fault may have been mended by a second pass; a verb that failed has changed nothing.
				if err != nil && name[:6] != "detach" {
					if after := r.store.Endpoints(); fmt.Sprint(keys(after)) != fmt.Sprint(keys(before)) {
						t.Fatalf("operation %d: verb failed (%v) and endpoints are %v, were %v", k, err, keys(after), keys(before))
					}
				}
				r.restart()
				r.settled()
				r.stop()
				if !reached {
					if k == 1 {
						t.Fatal("the verb did nothing to the kernel")
					}
					return
				}
			}
		})
	}
}

// TestEveryKernelOperationIsRefused is the same with a kernel that goes on refusing the object that operation k is
// about, so that no second pass mends it: the verb has to fail and to leave everything as it was.
func TestEveryKernelOperationIsRefused(t *testing.T) {
	for name, verb := range verbs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for k := 1; ; k++ {
				r := faultRig(t)
				before, dump := r.store.Endpoints(), r.kernel.Dump()
				n := 0
				var refused *kernel.Change
				r.kernel.FailIf(func(c kernel.Change) error {
					if n++; n == k {
						refused = &c
					}
					if refused != nil && c.Key() == refused.Key() && (c.Op == kernel.Delete) == (refused.Op == kernel.Delete) {
						return errFault
					}
					return nil
				})
				err := verb(r)
				r.kernel.FailIf(nil)
				if refused == nil {
					return
				}
				if err == nil {
					r.settled() // it may be so already: a sysctl that had the value
				} else if refused.Op != kernel.Delete {
					if after := r.store.Endpoints(); fmt.Sprint(keys(after)) != fmt.Sprint(keys(before)) {
						t.Fatalf("operation %d (%s): endpoints are %v, were %v", k, refused, keys(after), keys(before))
					}
					if after := strip(r.kernel.Dump()); after != strip(dump) {
						t.Fatalf("operation %d (%s): kernel is\n%s\nwas\n%s", k, refused, after, dump)
					}
				}
				r.restart()
				r.settled()
				r.stop()
			}
		})
	}
}

// strip leaves out what a verb may change although it fails: the sandbox of the test is made for it, lo stays up.
func strip(dump string) string {
	var out []string
	for line := range strings.Lines(dump) {
		if !strings.Contains(line, " lo ") && !strings.Contains(line, "sysctl") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func TestProcessEndsAtEveryKernelOperation(t *testing.T) {
	for name, verb := range verbs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for k := 1; ; k++ {
				r := faultRig(t)
				start := r.kernel.Ops()
				r.kernel.CrashAt(k)
				_ = verb(r) // whoever asked gets no answer
				reached := r.kernel.Crashed() || r.kernel.Ops()-start >= k
				r.restart()
				r.settled()
				if err := verb(r); err != nil && api.CodeOf(err) != api.NotFound {
					t.Fatalf("operation %d: the verb again: %v", k, err)
				}
				r.settled()
				r.stop()
				if !reached {
					return
				}
			}
		})
	}
}
