package remote_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/builtin"
	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/engine"
	"github.com/seine-net/seine/internal/frontdoor/docker"
	"github.com/seine-net/seine/internal/ipam/pool"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/state"
	"github.com/seine-net/seine/internal/testkit"
)

// other is a second Seine in the machine's namespace, that serves as somebody else's Docker plugin: its links and its
// table have other names, so the first one takes nothing of it for its own.
type other struct {
	*engine.Engine
	name   string
	store  *state.Store
	server *http.Server
	door   http.Handler
	rig    *rig

	mu    sync.Mutex
	calls []string
	// deny has calls fail, by their method.
	deny map[string]bool
}

// renamed is a kernel that keeps what is the other's under other names.
type renamed struct{ *linux.Kernel }

const (
	otherAlias, otherTable = "other:", "other"
	otherRoutes            = 84
)

func rename(o kernel.Object, alias, newAlias, table, newTable string) kernel.Object {
	swap := func(s string) string {
		if strings.HasPrefix(s, alias) {
			return newAlias + s[len(alias):]
		}
		return s
	}
	switch x := o.(type) {
	case *kernel.Link:
		c := *x
		if c.Alias = swap(c.Alias); c.Peer != nil {
			p := *c.Peer
			p.Alias = swap(p.Alias)
			c.Peer = &p
		}
		return &c
	case *kernel.Route: // by its protocol number it would count as the first one's
		c := *x
		if c.Proto = 0; newTable == otherTable {
			c.Proto = otherRoutes
		}
		return &c
	case *kernel.Table:
		c := *x
		if c.Name == table {
			c.Name = newTable
		}
		return &c
	case *kernel.Element:
		c := *x
		if c.Table == table {
			c.Table = newTable
		}
		return &c
	}
	return o
}

func out(o kernel.Object) kernel.Object {
	if o == nil {
		return nil
	}
	return rename(o, kernel.AliasPrefix, otherAlias, "seine", otherTable)
}

func (k renamed) List(ctx context.Context, s kernel.Scope) ([]kernel.Object, error) {
	asked := s
	asked.All, asked.Objects = false, nil
	for _, o := range s.Objects {
		asked.Objects = append(asked.Objects, out(o))
	}
	found, err := k.Kernel.List(ctx, asked)
	for i, o := range found {
		found[i] = rename(o, otherAlias, kernel.AliasPrefix, otherTable, "seine")
	}
	return found, err
}

func (k renamed) Apply(ctx context.Context, changes []kernel.Change) []error {
	mine := make([]kernel.Change, len(changes))
	for i, c := range changes {
		mine[i] = kernel.Change{Op: c.Op, Old: out(c.Old), New: out(c.New)}
	}
	return k.Kernel.Apply(ctx, mine)
}

// nobody is a machine of which nothing is asked: the other hands its interfaces over.
type nobody struct{}

func (nobody) CheckNetns(string) (uint64, error) { return 0, nil }
func (nobody) ProcessStart(int) (uint64, error)  { return 0, errors.New("no such process") }
func (nobody) CheckMovable(string) error         { return errors.New("is not asked for") }
func (nobody) WatchProcess(int, uint64, func())  {}

func newOther(r *rig) *other {
	r.Helper()
	o := &other{rig: r, name: fmt.Sprintf("seineother%d", os.Getpid()), deny: map[string]bool{}}
	var err error
	if o.store, err = state.Open(filepath.Join(r.dir, "other.db")); err != nil {
		r.Fatal(err)
	}
	k := linux.New(linux.Options{Netns: r.machine.Path()})
	facts, err := k.Facts(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	want := desired.New()
	loop := reconcile.New(renamed{k}, want, log)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { loop.Run(ctx) })
	o.Engine = engine.New(engine.Config{Store: o.store, Want: want, Loop: loop, Drivers: builtin.Drivers(), Addons: builtin.Addons(),
		Machine: nobody{}, Log: log, DNSPort: 5399, Boot: "b", Pools: pool.Subnets{{Prefix: netip.MustParsePrefix("10.230.0.0/16"), Bits: 24}}}, facts)
	if err := o.Load(ctx); err != nil {
		r.Fatal(err)
	}
	o.door = docker.New(o.Engine, o.store, log)
	o.listen()
	r.Cleanup(func() {
		o.server.Close()
		cancel()
		running.Wait()
		o.store.Close()
		k.Close()
		os.Remove(o.socket())
	})
	return o
}

func (o *other) socket() string { return "/run/docker/plugins/" + o.name + ".sock" }

func (o *other) listen() {
	o.rig.Helper()
	os.Remove(o.socket())
	if err := os.MkdirAll(filepath.Dir(o.socket()), 0o755); err != nil {
		o.rig.Fatal(err)
	}
	l, err := net.Listen("unix", o.socket())
	if err != nil {
		o.rig.Fatal(err)
	}
	o.server = &http.Server{Handler: o}
	go func() { _ = o.server.Serve(l) }()
}

// ServeHTTP answers as the door does, and writes down what it was asked.
func (o *other) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, method, _ := strings.Cut(r.URL.Path, ".")
	o.mu.Lock()
	o.calls = append(o.calls, method)
	deny := o.deny[method]
	o.mu.Unlock()
	if deny {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, `{"Err": "denied"}`)
		return
	}
	o.door.ServeHTTP(w, r)
}

func (o *other) refuse(method string, deny bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deny[method] = deny
}

// empty fails unless the other has nothing left of anybody.
func (o *other) empty() error {
	eps, _ := o.Endpoints(context.Background())
	nets, _ := o.Networks(context.Background())
	held := o.store.Values("docker/")
	if len(eps)+len(nets)+len(held) > 0 {
		return fmt.Errorf("the plugin has endpoints %v, networks %v, and holds %v", eps, nets, held)
	}
	return nil
}

func TestDockerPlugin(t *testing.T) {
	for _, ipam := range []bool{false, true} {
		t.Run(fmt.Sprintf("ipam=%v", ipam), func(t *testing.T) {
			r := newRig(t)
			o := newOther(r)
			before := r.links(r.machine.NS)
			n := api.Network{Name: "net", Driver: "docker:" + o.name}
			if ipam {
				n.IPAM = n.Driver
			}
			n = r.network(n)
			if ipam != (len(n.Subnets) == 1 && n.Subnets[0].Prefix.Addr().String() == "10.230.0.0") {
				t.Errorf("subnets are %+v", n.Subnets)
			}
			a := r.attach("net", "a")
			b := r.attach("net", "b", api.Port{HostPort: 8080, ContainerPort: 8000})
			if a.Sandbox.Interface != "eth0" || len(a.Addresses) != len(n.Subnets) || len(a.Status.Gateways) != len(n.Subnets) || a.MAC == "" {
				t.Errorf("a is %+v, status %+v", a, a.Status)
			}
			r.serve("b", 8000)
			for _, to := range b.Addresses {
				r.talk(r.container("a"), to, 8000)
			}
			testkit.Reach(t, r.outside.NS, "tcp", netip.AddrPortFrom(r.machine.V4, 8080))
			testkit.Serve(t, r.outside.NS, "tcp", "[::]:7000")
			testkit.Reach(t, r.container("a"), "tcp", netip.AddrPortFrom(testkit.Far4, 7000))
			r.calm()

			r.kill(syscall.SIGKILL)
			r.start()
			r.talk(r.container("a"), b.Addresses[0], 8000)
			r.calm()

			r.detach("net", "a")
			if now := r.links(r.container("a")); !slices.Equal(now, []string{"lo"}) {
				t.Errorf("a detached container has %v", now)
			}
			r.containers["b"].Close()
			r.detach("net", "b")
			if err := r.client.DeleteNetwork(t.Context(), "net", 0); err != nil {
				t.Error(err)
			}
			if err := o.empty(); err != nil {
				t.Error(err)
			}
			r.calm()
			r.eventually(5*time.Second, r.asBefore(before))
		})
	}
}

// TestIPAMPlugin has one of Seine's own drivers use somebody else's addresses.
func TestIPAMPlugin(t *testing.T) {
	r := newRig(t)
	o := newOther(r)
	r.network(api.Network{Name: "net", Driver: "bridge", IPAM: "docker:" + o.name})
	r.attach("net", "a")
	b := r.attach("net", "b")
	r.serve("b", 8000)
	r.talk(r.container("a"), b.Addresses[0], 8000)
	if held := o.store.Values("docker/ipam"); len(held) == 0 {
		t.Error("the plugin holds nothing")
	}
	o.refuse("ReleaseAddress", true)
	if err := r.client.DeleteEndpoint(t.Context(), "net", "b", 0); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("an address that was not released: %v", err)
	}
	if node, err := r.client.Node(t.Context()); err != nil || len(node.Problems) == 0 {
		t.Errorf("the node tells of no problem: %v", err)
	}
	o.refuse("ReleaseAddress", false)
	r.eventually(10*time.Second, func() error {
		node, err := r.client.Node(t.Context())
		if err == nil && len(node.Problems) > 0 {
			err = errors.New(strings.Join(node.Problems, "; "))
		}
		return err
	})
	r.detach("net", "a")
	if err := r.client.DeleteNetwork(t.Context(), "net", 0); err != nil {
		t.Error(err)
	}
	if err := o.empty(); err != nil {
		t.Error(err)
	}
	r.calm()
}

// TestDockerPluginAway has the plugin go away, and the daemon end, in the midst of things.
func TestDockerPluginAway(t *testing.T) {
	r := newRig(t)
	o := newOther(r)
	name := "docker:" + o.name
	r.network(api.Network{Name: "net", Driver: name, IPAM: name})
	a := r.attach("net", "a")
	r.attach("net", "b")
	o.server.Close()
	os.Remove(o.socket())
	if err := r.client.DeleteEndpoint(t.Context(), "net", "b", 0); err == nil {
		t.Error("detached by a plugin that is away")
	}
	r.kill(syscall.SIGKILL)
	start := time.Now()
	r.start()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("with a plugin that is away the start took %s", took)
	}
	if ep, err := r.client.Endpoint(t.Context(), "net", "a"); err != nil || ep.Status.State != api.Attached || ep.Plugin.ID != a.Plugin.ID {
		t.Errorf("a is %+v, %v", ep.Status, err)
	}
	if _, err := r.try("net", "c"); api.CodeOf(err) != api.Unavailable {
		t.Errorf("attached by a plugin that is away: %v", err)
	}
	if _, err := r.client.Endpoint(t.Context(), "net", "c"); api.CodeOf(err) != api.NotFound {
		t.Errorf("c is left: %v", err)
	}
	o.listen()
	r.eventually(30*time.Second, func() error {
		eps, err := o.Endpoints(t.Context())
		if err == nil && len(eps) != 1 {
			err = fmt.Errorf("the plugin has %d endpoints", len(eps))
		}
		return err
	})
	r.detach("net", "a")
	if err := r.client.DeleteNetwork(t.Context(), "net", 0); err != nil {
		t.Error(err)
	}
	r.eventually(30*time.Second, o.empty)
	r.calm()
}

// TestDockerPluginGivesTheMachinesInterface has a plugin lie about what is its own.
func TestDockerPluginGivesTheMachinesInterface(t *testing.T) {
	r := newRig(t)
	o := newOther(r)
	r.network(api.Network{Name: "own"})
	r.attach("own", "x")
	links := r.links(r.machine.NS)
	door := o.door
	for _, lie := range []string{"eth0", "lo", "nosuch0", "sn-own", links[len(links)-1]} {
		o.door = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if strings.HasSuffix(q.URL.Path, ".Join") {
				fmt.Fprintf(w, `{"InterfaceName": {"SrcName": %q, "DstPrefix": "eth"}}`, lie)
				return
			}
			door.ServeHTTP(w, q)
		})
		n := r.network(api.Network{Name: "net", Driver: "docker:" + o.name})
		if _, err := r.try("net", "a"); err == nil || !strings.Contains(err.Error(), lie) {
			t.Errorf("%q was taken: %v", lie, err)
		}
		if now := r.links(r.container("a")); !slices.Equal(now, []string{"lo"}) {
			t.Errorf("the container has %v", now)
		}
		if err := r.client.DeleteNetwork(t.Context(), n.Name, 0); err != nil {
			t.Error(err)
		}
		r.eventually(10*time.Second, o.empty)
	}
	r.eventually(5*time.Second, r.asBefore(links))
	r.calm()
}

// TestDaemonEndsAtEveryCall ends the daemon while each call of a life is with the plugin, before and after it is done.
func TestDaemonEndsAtEveryCall(t *testing.T) {
	for _, method := range []string{"RequestPool", "CreateNetwork", "RequestAddress", "CreateEndpoint", "Join", "ProgramExternalConnectivity",
		"RevokeExternalConnectivity", "Leave", "DeleteEndpoint", "ReleaseAddress", "DeleteNetwork", "ReleasePool"} {
		t.Run(method, func(t *testing.T) {
			r := newRig(t)
			o := newOther(r)
			name := "docker:" + o.name
			r.network(api.Network{Name: "keep"}) // the machine's table is there before and after
			door, reached, once := o.door, make(chan struct{}), sync.Once{}
			o.door = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				door.ServeHTTP(w, q.WithContext(context.WithoutCancel(q.Context())))
				if strings.HasSuffix(q.URL.Path, "."+method) {
					first := false
					once.Do(func() { first = true })
					if first {
						close(reached)
						<-q.Context().Done()
					}
				}
			})
			ns := r.container("a").Path()
			life := func() {
				ctx := context.WithoutCancel(t.Context())
				_, _ = r.client.PutNetwork(ctx, api.Network{Name: "net", Driver: name, IPAM: name}, 0)
				_, _ = r.client.PutEndpoint(ctx, api.Endpoint{Network: "net", Name: "a", Sandbox: api.Sandbox{Netns: ns}}, 0)
				_ = r.client.DeleteEndpoint(ctx, "net", "a", 0)
				_ = r.client.DeleteNetwork(ctx, "net", 0)
			}
			done := make(chan struct{})
			go func() { life(); close(done) }()
			select {
			case <-reached:
			case <-time.After(20 * time.Second):
				t.Fatal("it was not called")
			}
			r.kill(syscall.SIGKILL)
			<-done
			r.start()
			r.eventually(20*time.Second, func() error {
				node, err := r.client.Node(t.Context())
				if err == nil && len(node.Problems) > 0 {
					err = errors.New(strings.Join(node.Problems, "; "))
				}
				if nets, _ := r.client.Networks(t.Context()); err == nil && slices.ContainsFunc(nets, func(n api.Network) bool { return n.Status.Error != "" }) {
					err = errors.New("the network is not made yet")
				}
				if eps, _ := r.client.Endpoints(t.Context()); err == nil && slices.ContainsFunc(eps, func(e api.Endpoint) bool { return e.Status.State != api.Attached }) {
					err = fmt.Errorf("endpoints are %+v", eps)
				}
				return err
			})
			life()
			r.eventually(20*time.Second, o.leftover(method))
			if now := r.links(r.container("a")); !slices.Equal(now, []string{"lo"}) {
				t.Errorf("the container has %v", now)
			}
			r.calm()
		})
	}
}

// leftover fails unless the other has nothing left. An address or a pool whose request was answered to nobody is lost: the
// protocol has no name for it, and an address goes with its pool.
func (o *other) leftover(method string) func() error {
	return func() error {
		err := o.empty()
		if err == nil || method != "RequestPool" {
			return err
		}
		eps, _ := o.Endpoints(context.Background())
		nets, _ := o.Networks(context.Background())
		if held := o.store.Values("docker/"); len(eps)+len(nets) == 0 && len(held) == 1 {
			return nil
		}
		return err
	}
}
