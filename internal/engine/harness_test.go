package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/builtin"
	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/engine"
	"github.com/seine-net/seine/internal/ipam/pool"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/fake"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a daemon's inner parts on a kernel in memory, that can be killed and started again.
type rig struct {
	t       testing.TB
	kernel  *fake.Kernel
	path    string
	facts   kernel.Facts
	fixed   []netip.Addr
	cookies map[string]uint64
	procs   *processes
	guests  atomic.Pointer[[]netip.Prefix]
	boot    string
	// foreign is the program behind driver and IPAM "theirs", lie changes what it gives.
	foreign *program
	lie     func(*api.Endpoint)

	*engine.Engine
	store *state.Store
	want  *desired.Set
	stop  func()
}

func newRig(t testing.TB) *rig {
	// The tests write thousands of transactions: not to a disk, where there is a choice.
	dir, err := os.MkdirTemp("/dev/shm", "seine-test-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, kernel: fake.New(), path: filepath.Join(dir, "state.db"), boot: "boot", procs: &processes{gone: map[int][]func(){}}}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

// start makes the parts anew, on the kernel and the file as they are.
func (r *rig) start() {
	r.t.Helper()
	var err error
	if r.store, err = state.Open(r.path); err != nil {
		r.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	r.want = desired.New()
	loop := reconcile.New(r.kernel, r.want, log)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { loop.Run(ctx) })
	r.stop = func() {
		cancel()
		running.Wait()
		r.store.Close()
	}
	drivers, ipams := builtin.Drivers(), builtin.IPAMs()
	if r.foreign != nil {
		drivers["theirs"], ipams["theirs"] = &liar{&plugin{r.foreign, false}, r}, &plugin{r.foreign, true}
	}
	r.Engine = engine.New(engine.Config{Store: r.store, Want: r.want, Loop: loop, Drivers: drivers, IPAMs: ipams, Addons: builtin.Addons(),
		Machine: machine{r}, Log: log, DNSPort: 5380, DNSFixed: r.fixed, Names: guestList{r}, Node: "n1", Version: "test", Boot: r.boot,
		Pools: pool.Subnets{{Prefix: netip.MustParsePrefix("10.200.0.0/14"), Bits: 24}, {Prefix: netip.MustParsePrefix("fd00:5e::/48"), Bits: 64}},
	}, r.facts)
	if err := r.Load(ctx); err != nil {
		r.t.Fatal(err)
	}
}

// guestList notes who may ask the name server as a guest.
type guestList struct{ r *rig }

func (guestList) Set(string, engine.NameRecord)   {}
func (guestList) Drop(string)                     {}
func (g guestList) SetGuests(from []netip.Prefix) { g.r.guests.Store(&from) }

// restart is what SIGKILL and a new start are: nothing but the file and the kernel outlives it.
func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	r.kernel.Restart()
	r.start()
}

// settled checks that the kernel holds exactly what a fresh application of the stored intent gives, that every address
// of the store is held once, and that nothing else is left.
func (r *rig) settled() {
	r.t.Helper()
	fresh := fake.New()
	for _, l := range r.facts.Links {
		if l.Name == "lo" { // every kernel has it
			continue
		}
		fresh.AddForeign(&kernel.Link{Name: l.Name, Type: kernel.Bridge})
		fresh.AddForeign(&kernel.LinkUp{Link: l.Name})
		for _, a := range l.Addrs {
			fresh.AddForeign(&kernel.Addr{Link: l.Name, Prefix: a})
		}
	}
	seen := map[string]bool{}
	addrs := map[netip.Addr]string{}
	for _, ep := range r.store.Endpoints() {
		if !seen[ep.Sandbox.Netns] && ep.Sandbox.Netns != "" {
			fresh.AddNamespace(ep.Sandbox.Netns)
			seen[ep.Sandbox.Netns] = true
		}
		for _, a := range ep.Addresses {
			if by := addrs[a]; by != "" {
				r.t.Fatalf("address %s is with %s and with %s", a, by, ep.Key())
			}
			addrs[a] = ep.Key()
		}
	}
	objects := r.want.Objects(r.want.Keys(""))
	if err := reconcile.Apply(context.Background(), fresh, objects, nil); err != nil {
		r.t.Fatalf("fresh application: %v", err)
	}
	have, err := r.kernel.List(context.Background(), kernel.Scope{All: true, Objects: objects})
	if err != nil {
		r.t.Fatal(err)
	}
	want, err := fresh.List(context.Background(), kernel.Scope{All: true, Objects: objects})
	if err != nil {
		r.t.Fatal(err)
	}
	if diff := kernel.Diff(want, have); len(diff) > 0 {
		for _, c := range diff {
			r.t.Errorf("kernel differs from a fresh application: %s", c)
		}
		r.t.FailNow()
	}
	if ch := kernel.Diff(objects, have); len(ch) > 0 {
		r.t.Fatalf("kernel differs from the desired set: %v", ch)
	}
}

func (r *rig) netns(name string) string {
	path := "/run/netns/" + name
	r.kernel.AddNamespace(path)
	return path
}

func (r *rig) network(n api.Network) api.Network {
	r.t.Helper()
	n, err := r.PutNetwork(context.Background(), n, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

func (r *rig) attach(network, name string, ports ...api.Port) api.Endpoint {
	r.t.Helper()
	ep, err := r.tryAttach(network, name, ports...)
	if err != nil {
		r.t.Fatal(err)
	}
	return ep
}

func (r *rig) tryAttach(network, name string, ports ...api.Port) (api.Endpoint, error) {
	return r.PutEndpoint(context.Background(), api.Endpoint{Network: network, Name: name, Ports: ports,
		Sandbox: api.Sandbox{Netns: r.netns(name)}}, 0)
}

// code fails the test unless err is an api.Error of that code whose text has all of parts.
func code(t testing.TB, err error, want api.Code, field string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != want || e.Field != field {
		t.Fatalf("error is %v (%#v), want code %s and field %q", err, e, want, field)
	}
}

// machine stands for the machine beyond the kernel's network state.
type machine struct{ r *rig }

func (m machine) CheckNetns(path string) (uint64, error) {
	objs, err := m.r.kernel.List(context.Background(), kernel.Scope{Objects: []kernel.Object{&kernel.Link{NS: path, Name: "lo"}}})
	if err == nil && len(objs) == 0 {
		return 0, errors.New("is no network namespace")
	}
	return m.r.cookies[path], err
}

func (m machine) ProcessStart(pid int) (uint64, error) {
	if pid > 1000 {
		return 0, fmt.Errorf("no process %d", pid)
	}
	return uint64(pid) * 10, nil
}

func (m machine) CheckMovable(link string) error {
	objs, err := m.r.kernel.List(context.Background(), kernel.Scope{Objects: []kernel.Object{&kernel.Link{Name: link}}})
	if err == nil && len(objs) == 0 {
		return errors.New("is not there")
	}
	return err
}

func (m machine) WatchProcess(pid int, _ uint64, gone func()) { m.r.procs.watch(pid, gone) }

type processes struct {
	mu   sync.Mutex
	gone map[int][]func()
}

func (p *processes) watch(pid int, f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone[pid] = append(p.gone[pid], f)
}

func (p *processes) end(pid int) {
	p.mu.Lock()
	calls := slices.Clone(p.gone[pid])
	delete(p.gone, pid)
	p.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// keys tells endpoints apart by what a verb may change.
func keys(eps []api.Endpoint) (out []string) {
	for _, e := range eps {
		out = append(out, e.Key(), fmt.Sprint(e.Ports), fmt.Sprint(e.Addresses))
	}
	return out
}
