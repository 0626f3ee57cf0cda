package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

var errFault = errors.New("injected fault")

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

func keys(eps []api.Endpoint) (out []string) {
	for _, e := range eps {
		out = append(out, e.Key(), fmt.Sprint(e.Ports), fmt.Sprint(e.Addresses))
	}
	return out
}

// TestRandomSequences runs random verbs, kills, restarts, damage and faults, and compares with a fresh application of
// what is then wanted. SEINE_SEQUENCES sets how many sequences; the seed is in the name of a failed one.
func TestRandomSequences(t *testing.T) {
	count := 10000
	if s := os.Getenv("SEINE_SEQUENCES"); s != "" {
		count, _ = strconv.Atoi(s)
	} else if testing.Short() {
		count = 200
	}
	const workers = 4
	for w := range workers {
		t.Run(fmt.Sprint("worker", w), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			for i := w; i < count; i += workers {
				if !sequence(t, r, uint64(i)) {
					t.Fatalf("sequence %d failed", i)
				}
			}
		})
	}
}

// sequence is ten random steps on what the sequences before left; it ends in a check.
func sequence(t *testing.T, r *rig, seed uint64) bool {
	rnd := rand.New(rand.NewPCG(seed, 1))
	ctx := context.Background()
	nets := []string{"a", "b", "c"}
	pick := func() string { return nets[rnd.IntN(len(nets))] }
	name := func() string { return fmt.Sprint("c", rnd.IntN(6)) }
	for range 10 {
		switch rnd.IntN(14) {
		case 0:
			n := api.Network{Name: pick()}
			if n.Name == "b" {
				n.Driver = "ptp"
			}
			on := rnd.IntN(2) == 0
			n.ICC, n.Masquerade = &on, &on
			_, _ = r.PutNetwork(ctx, n, 0)
		case 1:
			_ = r.DeleteNetwork(ctx, pick(), 0)
		case 2, 3, 4, 5:
			var ports []api.Port
			for range rnd.IntN(3) {
				ports = append(ports, api.Port{Protocol: []string{"tcp", "udp", "sctp"}[rnd.IntN(3)], HostPort: uint16(8000 + rnd.IntN(5)), ContainerPort: 80})
			}
			_, _ = r.tryAttach(pick(), name(), ports...)
		case 6, 7:
			_ = r.DeleteEndpoint(ctx, pick(), name(), 0)
		case 8:
			r.restart()
		case 9:
			r.kernel.CrashAt(1 + rnd.IntN(8))
			_, _ = r.tryAttach(pick(), name())
			_ = r.DeleteEndpoint(ctx, pick(), name(), 0)
			r.restart()
		case 10:
			r.kernel.FailAt(1+rnd.IntN(12), errFault)
			_, _ = r.tryAttach(pick(), name(), api.Port{HostPort: 8000, ContainerPort: 80})
			r.kernel.FailAt(0, nil)
		case 11:
			if ks := r.want.Keys(""); len(ks) > 0 {
				r.kernel.Break(ks[rnd.IntN(len(ks))])
			}
		case 12:
			r.kernel.RemoveNamespace("/run/netns/" + name())
		case 13:
			_ = r.Collect(ctx)
		}
	}
	r.restart()
	_ = r.Collect(ctx)
	r.settled()
	return !t.Failed()
}
