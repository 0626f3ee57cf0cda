package cluster_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/app"
	"github.com/seine-net/seine/internal/cluster/node"
)

// TestMain is also the process of a member of the store.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == app.MemberCommand {
		if err := app.RunMember(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// host is a machine with its part in a cluster: engine and kernel in memory, the store, gossip and HTTPS as they are, on
// this machine's loopback.
type host struct {
	*machine
	node *node.Node
	port uint16
	dir  string
	end  func()
}

func newHost(t *testing.T, name string) *host {
	h := &host{machine: newMachine(t, name, nil), dir: filepath.Join(t.TempDir(), "cluster"), port: freePorts(t)}
	h.live()
	t.Cleanup(func() { h.end() })
	return h
}

// freePorts finds four free ports in a row.
func freePorts(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		first := netip.MustParseAddrPort(l.Addr().String()).Port()
		open := []net.Listener{l}
		for i := range uint16(3) {
			if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+1+i)); err == nil {
				open = append(open, l)
			}
		}
		for _, l := range open {
			l.Close()
		}
		if len(open) == 4 {
			return first
		}
	}
	t.Fatal("no four free ports in a row")
	return 0
}

func (h *host) live() {
	h.Helper()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SEINE_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("host", h.name)
	}
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	h.node = node.New(node.Config{Dir: h.dir, Program: self, Name: h.name, Version: "test", Engine: app.ClusterEngine(h.engine), Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	ready := make(chan struct{})
	running.Go(func() { _ = h.node.Run(ctx, func() { close(ready) }) }) // it has no error but those that it logs
	<-ready
	h.end = sync.OnceFunc(func() { cancel(); running.Wait() })
}

// kill ends the host's daemon and starts it again.
func (h *host) kill() {
	h.Helper()
	h.end()
	h.restart()
	h.live()
}

var loopback = netip.MustParseAddr("127.0.0.1")

func found(t *testing.T, names ...string) []*host {
	t.Helper()
	var out []*host
	for i, name := range names {
		h := newHost(t, name)
		out = append(out, h)
		if i == 0 {
			must(h.node.Init(t.Context(), api.ClusterInit{Name: "test", Address: loopback, Port: h.port}))(t)
			continue
		}
		tok := must(out[0].node.Token(t.Context(), false))(t)
		must(h.node.Join(t.Context(), api.ClusterJoin{Address: fmt.Sprintf("127.0.0.1:%d", out[0].port), Token: tok.Token, Self: loopback, Port: h.port}))(t)
	}
	return out
}

// sees reports whether a host's engine knows an endpoint of another host.
func (h *host) sees(node, network, endpoint string) bool {
	n, ok := h.state.Network(network)
	for _, p := range h.engine.Peers() {
		for _, ep := range p.Networks[n.ID].Endpoints {
			if ok && p.Node.Name == node && ep.Name == endpoint {
				return true
			}
		}
	}
	return false
}

func (h *host) alive() int {
	n := 0
	nodes, _ := h.node.Nodes(context.Background())
	for _, x := range nodes {
		if x.Health == api.Alive {
			n++
		}
	}
	return n
}

// TestHosts: three machines become a cluster, share networks and tell each other of endpoints; the members of the store
// become three; a machine is killed, the store's leader ends, a machine leaves and one is removed.
func TestHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("skip: needs half a minute; run without -short")
	}
	hosts := found(t, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	for _, h := range hosts {
		h.until("the others", func() bool { return h.alive() == 3 })
	}
	must(a.engine.PutNetwork(t.Context(), api.Network{Name: "shop"}, 0))(t)
	for _, h := range hosts {
		h.until("the network", func() bool { return h.has("shop") })
		must(h.attach("shop", "web-"+h.name))(t)
	}
	began := time.Now()
	for _, h := range hosts {
		for _, o := range hosts {
			if h != o {
				h.until("the endpoint of "+o.name, func() bool { return h.sees(o.name, "shop", "web-"+o.name) })
			}
		}
	}
	t.Logf("all endpoints are known everywhere after %v", time.Since(began))
	for _, h := range hosts {
		h.untilIn(time.Minute, "three members of the store", func() bool { c, _ := h.node.Cluster(t.Context()); return len(c.Members) == 3 && len(c.Endpoints) == 3 })
	}
	a.kill() // it led the store most likely
	must(b.attach("shop", "second"))(t)
	a.until("what was made meanwhile", func() bool { return a.sees("b", "shop", "second") })
	a.untilIn(time.Minute, "the store", func() bool { c, _ := a.node.Cluster(t.Context()); return c.StoreError == "" })
	must(c.engine.PutNetwork(t.Context(), api.Network{Name: "later"}, 0))(t)
	a.until("a network made on another machine", func() bool { return a.has("later") })

	a.end() // and does not come back
	b.untilIn(time.Minute, "the end of a machine", func() bool { return b.alive() == 2 && !b.sees("a", "shop", "web-a") })
	if err := b.node.Remove(t.Context(), "c", false); api.CodeOf(err) != api.InUse {
		t.Errorf("a machine that answers was removed: %v", err)
	}
	if err := b.node.Remove(t.Context(), "a", false); err != nil {
		t.Error(err)
	}
	c.until("the removal", func() bool { n, _ := c.node.Nodes(t.Context()); return len(n) == 2 })
	if err := c.node.Leave(t.Context(), false); err != nil {
		t.Error(err)
	}
	if ep := must(c.engine.Endpoint(t.Context(), "shop", "web-c"))(t); ep.Status.State != api.Attached {
		t.Errorf("after its machine left an endpoint is %+v", ep.Status)
	}
	b.untilIn(time.Minute, "being alone, with the store", func() bool {
		x, err := b.node.Cluster(t.Context())
		n, _ := b.node.Nodes(t.Context())
		return err == nil && x.StoreError == "" && len(x.Members) == 1 && len(n) == 1
	})
	must(b.engine.PutNetwork(t.Context(), api.Network{Name: "last"}, 0))(t)
}

// TestStrangers: a token of another cluster, one that is over, a second machine of one name: nobody gets in.
func TestStrangers(t *testing.T) {
	hosts := found(t, "a")
	a := hosts[0]
	x := newHost(t, "x")
	join := func(tok string) error {
		_, err := x.node.Join(t.Context(), api.ClusterJoin{Address: fmt.Sprintf("127.0.0.1:%d", a.port), Token: tok, Self: loopback, Port: x.port})
		return err
	}
	other := found(t, "o")[0]
	wrong := must(other.node.Token(t.Context(), false))(t)
	old := must(a.node.Token(t.Context(), false))(t)
	must(a.node.Token(t.Context(), true))(t)
	for name, tok := range map[string]string{"none": "", "another cluster's": wrong.Token, "rotated": old.Token} {
		if err := join(tok); err == nil {
			t.Errorf("a token that is %s let a machine in", name)
		}
	}
	if n, _ := a.node.Nodes(t.Context()); len(n) != 1 {
		t.Errorf("the cluster has %d machines", len(n))
	}
	if _, err := os.Stat(x.dir); err == nil {
		t.Error("a machine that was not let in keeps something of the cluster")
	}
	if _, err := x.node.Cluster(t.Context()); api.CodeOf(err) != api.Conflict {
		t.Errorf("a machine in no cluster says %v", err)
	}
	good := must(a.node.Token(t.Context(), false))(t)
	twin := newHost(t, "a")
	if _, err := twin.node.Join(t.Context(), api.ClusterJoin{Address: fmt.Sprintf("127.0.0.1:%d", a.port), Token: good.Token, Self: loopback, Port: twin.port}); api.CodeOf(err) != api.Conflict {
		t.Errorf("a second machine of one name: %v", err)
	}
	if err := join(good.Token); err != nil {
		t.Error(err)
	}
	if err := join(good.Token); api.CodeOf(err) != api.Conflict {
		t.Errorf("joining twice: %v", err)
	}
}
