package gossip

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seine-net/seine/internal/cluster/gossip/gossiptest"
)

var testKey = []byte("0123456789abcdef0123456789abcdef")

// cluster is some nodes on a network in memory. It lives in a bubble of virtual time.
type cluster struct {
	t     testing.TB
	net   *gossiptest.Network
	nodes []*node
	epoch uint64
	conf  func(*Config) // changes every node's
}

type node struct {
	*Gossip
	name   string
	addr   netip.AddrPort
	cancel context.CancelFunc
	done   chan struct{}
	mu     *sync.Mutex
	seen   map[string]string // what Watch told: network/node/key → data, or node → state
}

func (n *node) saw(k string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[k]
}

func (n *node) all() map[string]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.seen)
}

func newCluster(t testing.TB) *cluster {
	return &cluster{t: t, net: &gossiptest.Network{Latency: time.Millisecond, Jitter: time.Millisecond}, epoch: 1}
}

// add makes a node that does not run yet.
func (c *cluster) add(networks ...string) *node {
	i := len(c.nodes)
	n := &node{name: fmt.Sprintf("n%03d", i), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 7946)}
	c.nodes = append(c.nodes, n)
	c.renew(n, nil, networks...)
	return n
}

// renew makes a node anew, as a restart does.
func (c *cluster) renew(n *node, conf func(*Config), networks ...string) {
	c.t.Helper()
	c.epoch++
	cf := Config{Node: n.name, Epoch: c.epoch, Cluster: "test", Keys: [][]byte{testKey}, Transport: c.net.Host(n.addr)}
	for _, f := range []func(*Config){c.conf, conf} {
		if f != nil {
			f(&cf)
		}
	}
	g, err := New(cf)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := g.Subscribe(networks); err != nil {
		c.t.Fatal(err)
	}
	n.Gossip, n.mu, n.seen = g, new(sync.Mutex), map[string]string{}
}

// start runs a node and has it join the first.
func (c *cluster) start(n *node) {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan struct{})
	watched := make(chan struct{})
	g, mu, seen := n.Gossip, n.mu, n.seen
	go func() {
		defer close(watched)
		for ch := range g.Watch() {
			mu.Lock()
			k := ch.Record.Network + "/" + ch.Node + "/" + ch.Record.Key
			switch ch.Kind {
			case Put:
				seen[k] = string(ch.Record.Data)
			case Delete:
				delete(seen, k)
			default:
				seen[ch.Node] = ch.Kind.String()
			}
			mu.Unlock()
		}
	}()
	go func() {
		defer close(n.done)
		if err := g.Run(ctx); err != nil {
			c.t.Errorf("%s: %v", n.name, err)
		}
		<-watched
	}()
	<-g.ready
	first := c.nodes[0]
	if first == n && len(c.nodes) > 1 && c.nodes[1].cancel != nil {
		first = c.nodes[1] // a restart
	}
	if first != n {
		if err := n.Join(ctx, []string{first.addr.String()}); err != nil {
			c.t.Errorf("%s: %v", n.name, err)
		}
	}
}

func (n *node) stop() {
	if n.cancel != nil {
		n.cancel()
		<-n.done
		n.cancel = nil
	}
}

func (c *cluster) stop() {
	for _, n := range c.nodes {
		n.stop()
	}
	time.Sleep(time.Minute) // memberlist does not wait for what it has started
}

// split cuts the nodes with these numbers off from the others.
func (c *cluster) split(off ...int) {
	c.net.Cut(func(a netip.AddrPort) int {
		b := a.Addr().As4()
		if slices.Contains(off, int(b[2])<<8|int(b[3])) {
			return 1
		}
		return 0
	})
}

func (n *node) put(t testing.TB, network, key, data string) {
	t.Helper()
	if err := n.Put(network, key, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func (n *node) content(network string) string {
	var all []string
	for _, r := range n.Records(network) {
		all = append(all, r.Origin+"/"+r.Key+"="+string(r.Data))
	}
	return strings.Join(all, " ")
}

// await waits in virtual time, in steps, until f holds, and gives how long that took.
func (c *cluster) await(what string, most time.Duration, f func() bool) time.Duration {
	c.t.Helper()
	start := time.Now()
	for !f() {
		if time.Since(start) > most {
			c.t.Errorf("%s: not after %v", what, most)
			break
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
	}
	return time.Since(start)
}

func TestThreeNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.stop()
		for range 3 {
			n := c.add("net")
			n.put(t, "net", "web", n.name)
			n.put(t, "", "addr", n.addr.String())
		}
		a, b, d := c.nodes[0], c.nodes[1], c.nodes[2]
		for _, n := range c.nodes {
			c.start(n)
		}
		all := "n000/web=n000 n001/web=n001 n002/web=n002"
		c.await("all know all", 3*time.Second, func() bool {
			return a.content("net") == all && b.content("net") == all && d.content("net") == all
		})
		b.put(t, "net", "web", "new")
		took := c.await("a change is told", time.Second, func() bool {
			return a.saw("net/n001/web") == "new" && d.saw("net/n001/web") == "new"
		})
		if took > 50*time.Millisecond {
			t.Errorf("a change took %v from one node to two others, want at most 50ms", took)
		}
		b.Delete("net", "web")
		c.await("a delete is told", time.Second, func() bool {
			in := a.saw("net/n001/web") != ""
			in2 := d.saw("net/n001/web") != ""
			return !in && !in2
		})
		if a.saw("n002") != "up" {
			t.Errorf("n000 was told of n002 that it is %q", a.saw("n002"))
		}
	})
}
