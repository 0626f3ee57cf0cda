package engine_test

import (
	"context"
	"testing"

	"github.com/seine-net/seine/api"
)

func TestHandoff(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	before := r.kernel.Dump()
	r.network(api.Network{Name: "a"})
	r.network(api.Network{Name: "p", Driver: "ptp"})
	ask := api.Endpoint{Network: "a", Name: "web", Sandbox: api.Sandbox{Handoff: true}}
	ep, err := r.PutEndpoint(ctx, ask, 0)
	if err != nil || ep.Status.State != api.Attached || len(ep.Status.Prefixes) != 2 || ep.Sandbox.Interface == "" {
		t.Fatalf("endpoint is %+v, %v", ep, err)
	}
	r.settled()

	ns := r.netns("taken")
	if !r.kernel.Move("", ep.Sandbox.Interface, ns, "eth3") {
		t.Fatalf("%q is not on the machine to be taken", ep.Sandbox.Interface)
	}
	taken := r.kernel.Dump()
	again, err := r.PutEndpoint(ctx, ask, 0)
	if err != nil || again.Revision != ep.Revision {
		t.Errorf("the same again made revision %d of %d, %v", again.Revision, ep.Revision, err)
	}
	r.restart()
	if now := r.kernel.Dump(); now != taken {
		t.Errorf("a restart changed what was handed over:\n%s\nwas:\n%s", now, taken)
	}
	if plan, err := r.Plan(ctx, "endpoint/a/web"); err != nil || len(plan.Changes) > 0 {
		t.Errorf("what was handed over counts as damaged: %v, %v", plan, err)
	}

	ask.Ports = []api.Port{{HostPort: 8080, ContainerPort: 80}}
	if again, err = r.PutEndpoint(ctx, ask, 0); err != nil || again.Sandbox != ep.Sandbox {
		t.Errorf("with a port it is %+v, %v", again, err)
	}
	r.settled()
	ask.Network = "p"
	_, err = r.PutEndpoint(ctx, ask, 0)
	code(t, err, api.Invalid, "sandbox.handoff")
	ask.Network, ask.Sandbox.Netns = "a", ns
	_, err = r.PutEndpoint(ctx, ask, 0)
	code(t, err, api.Invalid, "sandbox.handoff")

	for _, err := range []error{r.DeleteEndpoint(ctx, "a", "web", 0), r.DeleteNetwork(ctx, "a", 0), r.DeleteNetwork(ctx, "p", 0)} {
		if err != nil {
			t.Error(err)
		}
	}
	r.kernel.RemoveNamespace(ns)
	if after := r.kernel.Dump(); after != before {
		t.Errorf("left:\n%s\nwas:\n%s", after, before)
	}
}
