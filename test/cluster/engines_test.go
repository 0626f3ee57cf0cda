// Package cluster_test has stories about several machines.
package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/builtin"
	"github.com/seine-net/seine/internal/cluster"
	"github.com/seine-net/seine/internal/cluster/agreed"
	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/engine"
	"github.com/seine-net/seine/internal/ipam/pool"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/fake"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/state"
)

// machine is a daemon's engine on a kernel in memory. It can be killed and started again.
type machine struct {
	*testing.T
	name   string
	path   string
	kernel *fake.Kernel
	store  agreed.Store
	state  *state.Store
	engine *engine.Engine
	stop   func()

	mu       sync.Mutex
	problems map[string]string
}

func newMachine(t *testing.T, name string, store agreed.Store) *machine {
	m := &machine{T: t, name: name, kernel: fake.New(), store: store, path: filepath.Join(t.TempDir(), "state.db")}
	m.start()
	t.Cleanup(func() { m.stop() })
	return m
}

func (m *machine) start() {
	m.Helper()
	var err error
	if m.state, err = state.Open(m.path); err != nil {
		m.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	fabrics, err := builtin.Fabrics(kernel.NewSecret(kernel.WGKey{1}, true), log)
	if err != nil {
		m.Fatal(err)
	}
	want := desired.New()
	loop := reconcile.New(m.kernel, want, log)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { loop.Run(ctx) })
	m.engine = engine.New(engine.Config{Store: m.state, Want: want, Loop: loop, Drivers: builtin.Drivers(), Addons: builtin.Addons(),
		Machine: noMachine{}, Log: log, DNSPort: 5380, Node: m.name, Version: "test", Boot: "boot", Fabrics: fabrics,
		Pools: pool.Subnets{{Prefix: netip.MustParsePrefix("10.200.0.0/16"), Bits: 26}, {Prefix: netip.MustParsePrefix("fd00:5e::/48"), Bits: 64}},
	}, kernel.Facts{})
	if err := m.engine.Load(ctx); err != nil {
		m.Fatal(err)
	}
	if m.store != nil {
		m.engine.SetCluster(&cluster.Agreement{Store: m.store, Node: m.name})
		running.Go(func() {
			cluster.Follow(ctx, m.store, m.engine, log, func(p map[string]string) {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.problems = p
			})
		})
	}
	m.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		m.state.Close()
	})
}

// restart is what SIGKILL and a new start are.
func (m *machine) restart() {
	m.Helper()
	m.stop()
	m.kernel.Restart()
	m.start()
}

type noMachine struct{}

func (noMachine) CheckNetns(string) (uint64, error) { return 0, nil }
func (noMachine) CheckMovable(string) error         { return nil }
func (noMachine) ProcessStart(int) (uint64, error)  { return 0, errors.New("no such process") }
func (noMachine) WatchProcess(int, uint64, func())  {}

func (m *machine) attach(network, name string, addrs ...netip.Addr) (api.Endpoint, error) {
	m.kernel.AddNamespace("/run/netns/" + m.name + name)
	return m.engine.PutEndpoint(m.Context(), api.Endpoint{Network: network, Name: name, Addresses: addrs,
		Sandbox: api.Sandbox{Netns: "/run/netns/" + m.name + name}}, 0)
}

// until waits for something that another machine's change brings about.
func (m *machine) until(what string, ok func() bool) {
	m.Helper()
	m.untilIn(20*time.Second, what, ok)
}

func (m *machine) untilIn(limit time.Duration, what string, ok func() bool) {
	m.Helper()
	for limit := time.Now().Add(limit); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(limit) {
			m.Fatalf("%s: %s does not come about", m.name, what)
		}
	}
}

func (m *machine) has(network string) bool {
	_, ok := m.state.Network(network)
	return ok
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestAgreedNetworks: a network that one machine makes is there on all; definitions go by compare-and-swap; it ends
// everywhere.
func TestAgreedNetworks(t *testing.T) {
	store := agreed.NewMem()
	a, b := newMachine(t, "a", store), newMachine(t, "b", store)
	n := must(a.engine.PutNetwork(t.Context(), api.Network{Name: "shop"}, 0))(t)
	if !n.Shared() || n.ID == "" || n.VNI < api.MinVNI || len(n.Subnets) != 2 {
		t.Errorf("the network is %+v", n)
	}
	b.until("the network", func() bool { return b.has("shop") })
	if dump := b.kernel.Dump(); dump != fake.New().Dump() {
		t.Errorf("a machine without endpoints has in its kernel\n%s", dump)
	}
	got, _ := b.state.Network("shop")
	if got.ID != n.ID || got.VNI != n.VNI || got.Subnets[0].Prefix != n.Subnets[0].Prefix {
		t.Errorf("the other machine has %+v, want %+v", got, n)
	}
	off := false
	must(b.engine.PutNetwork(t.Context(), api.Network{Name: "shop", ICC: &off}, 0))(t)
	a.until("the change", func() bool { n, _ := a.state.Network("shop"); return !n.ICCOn() })

	if _, err := b.engine.PutNetwork(t.Context(), api.Network{Name: "other", Subnets: n.Subnets[:1]}, 0); api.CodeOf(err) != api.Conflict {
		t.Errorf("a network that overlaps one of the cluster: %v", err)
	}
	if _, err := b.engine.PutNetwork(t.Context(), api.Network{Name: "shop", Broadcast: true}, 0); api.CodeOf(err) != api.Conflict {
		t.Errorf("a change of what can't be changed: %v", err)
	}
	local := must(a.engine.PutNetwork(t.Context(), api.Network{Name: "mine", Scope: api.NodeScope}, 0))(t)
	if _, err := b.engine.PutNetwork(t.Context(), api.Network{Name: "mine", Subnets: local.Subnets}, 0); err != nil {
		t.Errorf("a network that overlaps another machine's own: %v", err)
	}
	a.until("the reason", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.problems) == 1 })
	if n, _ := a.state.Network("mine"); n.Shared() && n.ID == "" {
		t.Errorf("the machine's own network is %+v", n)
	}
	if err := a.engine.DeleteNetwork(t.Context(), "shop", 0); err != nil {
		t.Fatal(err)
	}
	b.until("the end of the network", func() bool { return !b.has("shop") })
	if kvs, _, _ := store.Get(t.Context(), ""); len(kvs) != 2 { // "mine" and its number
		t.Errorf("left in the store: %v", kvs)
	}
}

// TestBlocks: machines give out addresses of their own blocks, with the store away too; blocks come and go.
func TestBlocks(t *testing.T) {
	store := agreed.NewMem()
	a, b := newMachine(t, "a", store), newMachine(t, "b", store)
	n := must(a.engine.PutNetwork(t.Context(), api.Network{Name: "shop"}, 0))(t)
	b.until("the network", func() bool { return b.has("shop") })
	seen := map[netip.Addr]string{}
	attach := func(m *machine, name string) error {
		ep, err := m.attach("shop", name)
		if err != nil {
			return err
		}
		if len(ep.Addresses) != 2 {
			t.Errorf("%s/%s has %v", m.name, name, ep.Addresses)
		}
		for _, x := range ep.Addresses {
			if by := seen[x]; by != "" {
				t.Fatalf("%s/%s has %s, and so has %s", m.name, name, x, by)
			}
			seen[x] = m.name + "/" + name
		}
		return nil
	}
	for i := range 7 { // a block has eight
		if err := errors.Join(attach(a, fmt.Sprint("c", i)), attach(b, fmt.Sprint("c", i))); err != nil {
			t.Fatal(err)
		}
	}
	store.SetDown(true)
	full := 0
	for i := range 8 {
		if err := attach(a, fmt.Sprint("d", i)); api.CodeOf(err) == api.Unavailable {
			full++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if full == 0 { // how many there are room for depends on the first block
		t.Error("with the store away there are addresses without end")
	}
	if err := a.engine.DeleteEndpoint(t.Context(), "shop", "c0", 0); err != nil {
		t.Errorf("a detach with the store away: %v", err)
	}
	a.restart()
	if _, err := a.attach("shop", "c0"); err != nil {
		t.Errorf("an attach after a restart, with the store away: %v", err)
	}
	store.SetDown(false)
	free := n.Subnets[0].Prefix.Addr()
	for range 40 {
		free = free.Next()
	}
	held := func(m *machine) int { return len(m.engine.Blocks()["shop"]) }
	before := held(b)
	taken := 0
	for ; seen[free] == "" && n.Subnets[0].Prefix.Contains(free); free = free.Next() {
		_, err := b.attach("shop", "wish", free)
		if err == nil {
			break
		}
		taken++ // of a's block
		if api.CodeOf(err) != api.Conflict {
			t.Fatal(err)
		}
	}
	if held(b) < before {
		t.Errorf("%d blocks after an address was asked for, %d before", held(b), before)
	}
	for _, ep := range a.state.Endpoints() {
		if err := a.engine.DeleteEndpoint(t.Context(), "shop", ep.Name, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(a.engine.ReturnBlocks(t.Context()), b.engine.ReturnBlocks(t.Context())); err != nil {
		t.Fatal(err)
	}
	if held(a) != 0 || held(b) == 0 {
		t.Errorf("a has %d blocks without an endpoint, b %d with some", held(a), held(b))
	}
}

// TestShare: a machine's networks become the cluster's, with what is attached to them.
func TestShare(t *testing.T) {
	store := agreed.NewMem()
	a := newMachine(t, "a", nil)
	must(a.engine.PutNetwork(t.Context(), api.Network{Name: "shop"}, 0))(t)
	share := func() (api.Network, error) {
		return a.engine.PutNetwork(t.Context(), api.Network{Name: "shop", Scope: api.ClusterScope}, 0)
	}
	first := must(a.attach("shop", "c0"))(t)
	if _, err := a.engine.PutNetwork(t.Context(), api.Network{Name: "x", Scope: api.ClusterScope}, 0); api.CodeOf(err) != api.Invalid {
		t.Errorf("a network of a cluster without one: %v", err)
	}
	if _, err := share(); api.CodeOf(err) != api.Invalid {
		t.Errorf("sharing without a cluster: %v", err)
	}
	a.store = store
	a.restart()
	before := a.kernel.Dump()
	n := must(share())(t)
	if again := must(share())(t); !n.Shared() || again.ID != n.ID {
		t.Errorf("shared as %+v, then as %+v", n, again)
	}
	after := a.kernel.Dump()
	for line := range strings.Lines(before) {
		if kind, _, _ := strings.Cut(line, " "); kind != "sysctl" && kind != "table" && !strings.Contains(after, line) {
			t.Errorf("sharing lost %q of\n%s", line, after)
		}
	}
	b := newMachine(t, "b", store)
	b.until("the network", func() bool { return b.has("shop") })
	second := must(b.attach("shop", "c0"))(t)
	if first.Addresses[0] == second.Addresses[0] {
		t.Errorf("both have %s", first.Addresses[0])
	}
	a.restart()
	if got := must(a.engine.Endpoint(t.Context(), "shop", "c0"))(t); got.Status.State != api.Attached || got.Addresses[0] != first.Addresses[0] {
		t.Errorf("after a restart the endpoint is %+v", got)
	}
}

// TestGrants: three machines attach and detach at random while the store comes and goes, answers are lost and daemons are
// killed. Every grant and release of all machines is written down; no address is ever with two.
func TestGrants(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	store := agreed.NewMem()
	machines := []*machine{newMachine(t, "a", store), newMachine(t, "b", store), newMachine(t, "c", store)}
	must(machines[0].engine.PutNetwork(t.Context(), api.Network{Name: "shop", Family: api.IPv4}, 0))(t)
	for _, m := range machines {
		m.until("the network", func() bool { return m.has("shop") })
	}
	steps := 600
	if testing.Short() {
		steps = 150
	}
	holder, grants := map[netip.Addr]string{}, 0
	names := map[string][]string{}
	for i := range steps {
		m := machines[rnd.IntN(len(machines))]
		store.SetDown(rnd.IntN(6) == 0)
		store.SetLose(func() bool { return rnd.IntN(6) == 0 })
		switch rnd.IntN(10) {
		case 0:
			m.restart()
		case 1:
			_ = m.engine.ReturnBlocks(t.Context()) // it may find the store away
		case 2, 3, 4:
			if all := names[m.name]; len(all) > 0 {
				k := rnd.IntN(len(all))
				ep, _ := m.state.Endpoint("shop/" + all[k])
				if err := m.engine.DeleteEndpoint(t.Context(), "shop", all[k], 0); err != nil {
					t.Fatal(err)
				}
				delete(holder, ep.Addresses[0])
				names[m.name] = append(all[:k:k], all[k+1:]...)
			}
		default:
			name := fmt.Sprint("e", i)
			ep, err := m.attach("shop", name)
			if err != nil {
				if c := api.CodeOf(err); c != api.Unavailable && c != api.Exhausted {
					t.Fatal(err)
				}
				continue
			}
			a := ep.Addresses[0]
			if by := holder[a]; by != "" {
				t.Fatalf("step %d: %s is given to %s on %s while %s has it", i, a, name, m.name, by)
			}
			holder[a] = name + " on " + m.name
			names[m.name] = append(names[m.name], name)
			grants++
		}
	}
	if grants < steps/6 {
		t.Errorf("only %d of %d steps gave an address out: the test shows little", grants, steps)
	}
}
