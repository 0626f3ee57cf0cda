package engine_test

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/engine"
)

// names is a name server's memory.
type names struct {
	mu   sync.Mutex
	have map[string]engine.NameRecord
}

func (n *names) Set(key string, r engine.NameRecord) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.have[key] = r
}

func (n *names) Drop(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.have, key)
}

func (*names) SetGuests([]netip.Prefix) {}

func (n *names) record(key string) engine.NameRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.have[key]
}

// TestAmend: what an endpoint and its network are called changes without the kernel, and outlives a restart.
func TestAmend(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	told := &names{have: map[string]engine.NameRecord{}}
	r.Names = told
	r.network(api.Network{Name: "a", Meta: api.Meta{Labels: map[string]string{"mine": "1"}}})
	ep, err := r.PutEndpoint(ctx, api.Endpoint{Network: "a", Name: "x", Sandbox: api.Sandbox{Handoff: true},
		Ports: []api.Port{{HostPort: 8080, ContainerPort: 80}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := told.record("a/x"); got.Names[0] != "x" || got.Container != "endpoint a/x" {
		t.Errorf("before, the name server has %+v", got)
	}
	before := r.kernel.Dump()
	call := func(e *api.Endpoint) {
		e.Container = api.Container{ID: "0123", Name: "web"}
		e.Aliases = []string{"www"}
		e.Labels = map[string]string{"k": "v"}
		e.MAC, e.Ports, e.Name = "02:00:00:00:00:01", nil, "y" // is none of its business
	}
	for i, want := range []bool{true, false} {
		if changed, err := r.AmendEndpoint(ctx, "a", "x", call); err != nil || changed != want {
			t.Fatalf("amendment %d: changed %v, %v", i, changed, err)
		}
	}
	now, err := r.Endpoint(ctx, "a", "x")
	ep.Container, ep.Aliases, ep.Labels = now.Container, now.Aliases, now.Labels
	if now.Revision <= ep.Revision || now.Container.Name != "web" || now.Labels["k"] != "v" {
		t.Errorf("endpoint is %+v, %v", now, err)
	}
	if ep.Revision = now.Revision; !reflect.DeepEqual(now, ep) {
		t.Errorf("endpoint is %+v, want %+v", now, ep)
	}
	if changed, err := r.AmendNetwork(ctx, "a", func(n *api.Network) { n.Aliases, n.MTU = []string{"shop"}, 9000 }); !changed || err != nil {
		t.Errorf("network: changed %v, %v", changed, err)
	}
	want := engine.NameRecord{Names: []string{"web", "x", "www"}, Network: "a", Aliases: []string{"shop"}, Container: "container 0123", Addrs: ep.Addresses}
	if got := told.record("a/x"); !reflect.DeepEqual(got, want) {
		t.Errorf("the name server has %+v, want %+v", got, want)
	}
	if after := r.kernel.Dump(); after != before {
		t.Errorf("the kernel was touched:\n%s\nwas:\n%s", after, before)
	}

	// Other verbs that leave it out keep it.
	if _, err := r.PutEndpoint(ctx, api.Endpoint{Network: "a", Name: "x", Sandbox: api.Sandbox{Handoff: true}, Ports: []api.Port{}}, 0); err != nil {
		t.Fatal(err)
	}
	r.network(api.Network{Name: "a"})
	r.restart()
	now, _ = r.Endpoint(ctx, "a", "x")
	n, _ := r.Network(ctx, "a")
	if now.Container != (api.Container{ID: "0123", Name: "web"}) || !slices.Equal(now.Aliases, []string{"www"}) || len(now.Ports) > 0 {
		t.Errorf("after a restart the endpoint is %+v", now)
	}
	if !slices.Equal(n.Aliases, []string{"shop"}) || n.Labels["mine"] != "1" || n.MTU == 9000 {
		t.Errorf("after a restart the network is %+v", n)
	}
	r.settled()
}

func TestAmendRefuses(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	r.network(api.Network{Name: "a"})
	r.attach("a", "x")
	never := func(*api.Endpoint) { t.Error("what is not there is edited") }
	_, err := r.AmendEndpoint(ctx, "a", "y", never)
	code(t, err, api.NotFound, "")
	_, err = r.AmendNetwork(ctx, "b", func(*api.Network) { t.Error("what is not there is edited") })
	code(t, err, api.NotFound, "")
	revision := r.store.Revision()
	_, err = r.AmendEndpoint(ctx, "a", "x", func(e *api.Endpoint) { e.Aliases = []string{"no name"} })
	code(t, err, api.Invalid, "aliases[0]")
	_, err = r.AmendEndpoint(ctx, "a", "x", func(e *api.Endpoint) { e.Container.Name = "/web" })
	code(t, err, api.Invalid, "container.name")
	_, err = r.AmendNetwork(ctx, "a", func(n *api.Network) { n.Aliases = []string{""} })
	code(t, err, api.Invalid, "aliases[0]")
	if now := r.store.Revision(); now != revision {
		t.Errorf("what is refused made revision %d of %d", now, revision)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	started, end := make(chan struct{}), make(chan struct{})
	var other sync.WaitGroup
	other.Go(func() {
		_, _ = r.AmendEndpoint(ctx, "a", "x", func(*api.Endpoint) { close(started); <-end })
	})
	<-started
	_, err = r.AmendEndpoint(gone, "a", "x", never)
	code(t, err, api.Unavailable, "")
	close(end)
	other.Wait()
}
