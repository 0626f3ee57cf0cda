package gossip

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"

	"github.com/seine-net/seine/internal/cluster/gossip/table"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// three makes three nodes that know each other, each with a record in "net".
func three(t testing.TB, conf ...func(*Config)) *cluster {
	c := newCluster(t)
	for _, f := range conf {
		c.conf = f
	}
	for range 3 {
		n := c.add("net")
		n.put(t, "net", "web", n.name)
	}
	for _, n := range c.nodes {
		c.start(n)
	}
	c.await("all know all", 10*time.Second, c.agree)
	return c
}

// agree reports whether all running nodes are up for each other and have the same records in "net".
func (c *cluster) agree() bool {
	first, running := "", 0
	for _, n := range c.nodes {
		if n.cancel != nil {
			running++
		}
	}
	for _, n := range c.nodes {
		if n.cancel == nil {
			continue
		}
		n.Gossip.mu.Lock()
		up := len(n.up)
		n.Gossip.mu.Unlock()
		now := n.content("net")
		if first == "" {
			first = now
		}
		if now != first || up != running-1 {
			return false
		}
	}
	return true
}

// A node that is cut off keeps what it knew, as the others do of it. Each is told that the other is down. What changed
// meanwhile on each side is known soon after.
func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := three(t)
		defer c.stop()
		a, b, d := c.nodes[0], c.nodes[1], c.nodes[2]
		c.split(2)
		c.await("both sides notice", 30*time.Second, func() bool {
			return a.saw("n002") == "down" && b.saw("n002") == "down" && d.saw("n000") == "down" && d.saw("n001") == "down"
		})
		if a.saw("net/n002/web") != "n002" || d.saw("net/n001/web") != "n001" {
			t.Error("records of a node that is down are gone")
		}
		a.put(t, "net", "new", "1")
		b.Delete("net", "web")
		d.put(t, "net", "web", "changed")
		time.Sleep(12 * time.Minute) // long enough for memberlist to forget the node, and for deletes to be forgotten
		c.net.Cut(nil)
		took := c.await("all know all after the cut", 5*time.Second, c.agree)
		t.Logf("after %v", took)
		if want := "n000/new=1 n000/web=n000 n002/web=changed"; d.content("net") != want {
			t.Errorf("%s has %q, want %q", d.name, d.content("net"), want)
		}
		if in := d.saw("net/n001/web") != ""; in || d.saw("n001") != "up" || a.saw("n002") != "up" {
			t.Errorf("n002 was told %v", d.all())
		}
	})
}

// A restart is no leave: what the node says again stays, what it does not is gone, and peers see no more than that.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := three(t)
		defer c.stop()
		a, b := c.nodes[0], c.nodes[1]
		b.put(t, "net", "old", "1")
		c.await("all know", time.Second, c.agree)
		b.stop()
		time.Sleep(time.Second)
		c.renew(b, nil, "net")
		b.put(t, "net", "web", "n001")
		flaps := 0
		c.start(b)
		c.await("all know all after the restart", 5*time.Second, func() bool {
			if a.saw("net/n001/web") == "" {
				flaps++
			}
			in := a.saw("net/n001/old") != ""
			return c.agree() && !in
		})
		if flaps > 0 {
			t.Error("a record that is there before and after was gone meanwhile")
		}
	})
}

// A node that lost its disk starts with an epoch that was used before. It hears of it, keeps a later one, and wins.
func TestLostDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := three(t)
		defer c.stop()
		b := c.nodes[1]
		b.stop()
		kept := make(chan uint64, 10)
		c.renew(b, func(cf *Config) {
			cf.Epoch = 1
			cf.Persist = func(e uint64) error { kept <- e; return errors.New("the disk is full") }
		}, "net")
		b.put(t, "net", "web", "reborn")
		c.start(b)
		c.await("what it says now counts", 10*time.Second, func() bool {
			return c.nodes[0].saw("net/n001/web") == "reborn" && c.nodes[2].saw("net/n001/web") == "reborn"
		})
		if e := <-kept; e < 3 {
			t.Errorf("epoch %d was to be kept, want one that is later than 3", e)
		}
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := three(t, func(cf *Config) { cf.Forget = 30 * time.Minute })
		defer c.stop()
		a, b, d := c.nodes[0], c.nodes[1], c.nodes[2]
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := b.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		b.stop()
		c.await("its records are gone, and it is no loss", 5*time.Second, func() bool {
			return a.content("net") == "n000/web=n000 n002/web=n002" && a.saw("n001") == "left" && d.saw("n001") == "left"
		})
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		if a.saw("n001") != "gone" || len(a.Members()) != 1 {
			t.Errorf("after half an hour it is %q, members %v", a.saw("n001"), a.Members())
		}
		if err := b.Leave(ctx); err == nil {
			t.Error("a second Leave after the end gives no error")
		}
	})
}

// What a node said is dropped when it was down for long, and is there again when it comes back.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := three(t, func(cf *Config) { cf.Forget = 10 * time.Minute })
		defer c.stop()
		a, d := c.nodes[0], c.nodes[2]
		c.split(2)
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		if in := a.saw("net/n002/web") != ""; !in || a.saw("n002") != "down" {
			t.Errorf("before its time n000 was told %v", a.all())
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if in := a.saw("net/n002/web") != ""; in || a.saw("n002") != "gone" || a.content("net") != "n000/web=n000 n001/web=n001" {
			t.Errorf("n000 was told %v and has %q", a.all(), a.content("net"))
		}
		if d.saw("n000") != "gone" {
			t.Errorf("n002 was told %v", d.all())
		}
		c.net.Cut(nil)
		// Nobody remembers where the other is: the caller joins again, as it does after a restart.
		if err := d.Join(context.Background(), []string{a.addr.String()}); err != nil {
			t.Fatal(err)
		}
		c.await("all know all", 10*time.Second, c.agree)
		if a.saw("net/n002/web") != "n002" || a.saw("n002") != "up" {
			t.Errorf("n000 was told %v", a.all())
		}
	})
}

func TestKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := three(t)
		defer c.stop()
		next := bytes.Repeat([]byte("k"), 32)
		step := func(what string, f func(*node) error) {
			for i, n := range c.nodes {
				if err := f(n); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				n.put(t, "net", "web", fmt.Sprint(what, i)) // in the middle of it all goes on
				c.await(what, 2*time.Second, c.agree)
			}
		}
		step("install", func(n *node) error { return n.InstallKey(next) })
		a := c.nodes[0]
		if a.InstallKey(bytes.Repeat([]byte("l"), 32)) == nil {
			t.Error("a third key was installed")
		}
		if a.RemoveKey(testKey) == nil {
			t.Error("the key that encrypts was removed")
		}
		if a.UseKey(bytes.Repeat([]byte("l"), 32)) == nil || a.InstallKey([]byte("short")) == nil {
			t.Error("a key that is not there, or of no length, was taken")
		}
		step("use", func(n *node) error { return n.UseKey(next) })
		step("remove", func(n *node) error { return n.RemoveKey(testKey) })
		if err := a.RemoveKey(testKey); err != nil {
			t.Errorf("removing a key again: %v", err)
		}
		// Who has only the old one is out.
		x := c.add("net")
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- x.Run(ctx) }()
		if err := x.Join(ctx, []string{a.addr.String()}); err == nil {
			t.Error("a node with a removed key has joined")
		}
		cancel()
		<-done
		for range x.Watch() {
		}
		if len(a.Members()) != 2 {
			t.Errorf("members are %v", a.Members())
		}
	})
}

// ca signs with real keys.
type ca struct {
	name string
	key  ed25519.PrivateKey
	pub  map[string]ed25519.PublicKey
}

func (c ca) Sign(m []byte) []byte { return ed25519.Sign(c.key, m) }
func (c ca) Verify(origin string, m, sig []byte) bool {
	return c.pub[origin] != nil && ed25519.Verify(c.pub[origin], m, sig)
}

// spy gives a host its packets after others have seen them.
type spy struct {
	Transport
	got chan *memberlist.Packet
}

func (s spy) PacketCh() <-chan *memberlist.Packet { return s.got }

// TestStrangers shows that who is not in the cluster, replays, or speaks in another's name changes nothing.
func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.stop()
		keys := map[string]ed25519.PublicKey{}
		sign := func(name string) ca {
			pub, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			keys[name] = pub
			return ca{name, key, keys}
		}
		var recorded [][]byte
		var mu sync.Mutex
		tap := make(chan *memberlist.Packet, 1000)
		stop := make(chan struct{})
		for range 3 {
			n := c.add()
			c.renew(n, func(cf *Config) {
				cf.Signer = sign(n.name)
				cf.Admit = func(node string) bool { return strings.HasPrefix(node, "n00") }
				if n.name == "n001" {
					inner := cf.Transport
					cf.Transport = spy{inner, tap}
					go func() {
						for {
							select {
							case p := <-inner.PacketCh():
								mu.Lock()
								recorded = append(recorded, bytes.Clone(p.Buf))
								mu.Unlock()
								tap <- p
							case <-stop:
								return
							}
						}
					}()
				}
			}, "net")
			n.put(t, "net", "web", n.name)
		}
		defer close(stop)
		for _, n := range c.nodes {
			c.start(n)
		}
		a, b, d := c.nodes[0], c.nodes[1], c.nodes[2]
		c.await("all know all", 10*time.Second, c.agree)
		a.put(t, "net", "web", "first")
		c.await("a change is known", 2*time.Second, c.agree)
		a.put(t, "net", "web", "second")
		a.Delete("net", "other")
		c.await("a change is known", 2*time.Second, c.agree)
		before := b.content("net")

		mu.Lock()
		replay := slices.Clone(recorded)
		mu.Unlock()
		if len(replay) < 20 {
			t.Fatalf("only %d packets to replay", len(replay))
		}
		stranger := c.net.Host(netip.MustParseAddrPort("10.9.9.9:7946"))
		// Replays of all that was sent to b, to b and to another.
		for range 3 {
			for _, p := range replay {
				stranger.WriteTo(p, b.addr.String())
				stranger.WriteTo(p, d.addr.String())
			}
			time.Sleep(time.Second)
		}
		// Plain messages, and noise.
		push := (&table.Message{Type: table.Push, From: "n002", Chunks: []table.Chunk{{Network: "net", Origin: "n000", Epoch: 9, Last: 1,
			Records: []table.Record{{Origin: "n000", Network: "net", Key: "\x00", Version: Version{Epoch: 9, Count: 1}}}}}}).Encode([]byte{8})
		for _, p := range [][]byte{push, nil, {0}, bytes.Repeat([]byte{1}, 2000), []byte("GET / HTTP/1.1\r\n\r\n")} {
			stranger.WriteTo(p, b.addr.String())
			conn, err := stranger.DialTimeout(b.addr.String(), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			_, _ = conn.Write(p)
			_ = conn.Close()
		}
		// A member that speaks for another: it has the cluster's key and a signature of its own.
		evil := d.conf.Signer.(ca)
		forged := table.Record{Origin: "n000", Network: "net", Key: "web", Version: Version{Epoch: a.table.Epoch(), Count: 99}, Data: []byte("evil")}
		forged.Sig = evil.Sign(forged.Message())
		b.receive((&table.Message{Type: table.Push, From: "n002", Chunks: []table.Chunk{{Network: "net", Origin: "n000", Epoch: forged.Version.Epoch, From: 3, Seen: 99, Last: 99, Records: []table.Record{forged}}}}).Encode(nil))
		// A member in the name of a node that there is not, and one that was thrown out but has the key.
		b.receive((&table.Message{Type: table.Roots, From: "x"}).Encode(nil))
		b.receive([]byte("garbage"))
		b.Gossip.mu.Lock()
		if b.refused != 3 {
			t.Errorf("%d messages were refused, the last for %v; want 3", b.refused, b.why)
		}
		b.Gossip.mu.Unlock()
		x := c.add()
		x.name = "x"
		c.renew(x, func(cf *Config) { cf.Signer = sign("x") }, "net")
		x.put(t, "net", "web", "x")
		c.start(x)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for _, n := range []*node{a, b, d} {
			if n.content("net") != before {
				t.Errorf("%s has %q, want %q", n.name, n.content("net"), before)
			}
			for _, m := range n.Members() {
				if !strings.HasPrefix(m.Node, "n00") {
					t.Errorf("%s has a member %v", n.name, m)
				}
			}
		}
	})
}

// TestSockets runs over the loopback interface as it does in a daemon.
func TestSockets(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		if l, err := net.Listen("tcp", net.JoinHostPort(ip, "0")); err != nil {
			t.Logf("skip %s: needs an address of this family on the loopback interface: %v", ip, err)
			continue
		} else {
			_ = l.Close()
		}
		var nodes []*Gossip
		var addrs []netip.AddrPort
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 2)
		for i := range 2 {
			l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
			if err != nil {
				t.Fatal(err)
			}
			addr := netip.MustParseAddrPort(l.Addr().String())
			_ = l.Close()
			g, err := New(Config{Node: fmt.Sprint("h", i), Epoch: 1, Bind: addr, Keys: [][]byte{testKey}})
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Put("", "big", bytes.Repeat([]byte("x"), MaxData)); err != nil {
				t.Fatal(err)
			}
			nodes, addrs = append(nodes, g), append(addrs, addr)
			go func() { done <- g.Run(ctx) }()
		}
		if err := nodes[1].Join(ctx, []string{addrs[0].String()}); err != nil {
			t.Fatal(err)
		}
		for i, g := range nodes {
			for c := range g.Watch() {
				if c.Kind == Put && c.Node == fmt.Sprint("h", 1-i) && len(c.Record.Data) == MaxData {
					break
				}
			}
		}
		if m := nodes[0].Members(); len(m) != 1 || m[0].Addr != addrs[1] {
			t.Errorf("members are %v, want one at %v", m, addrs[1])
		}
		cancel()
		for range nodes {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		// The address is free again, and an address that is not is refused.
		l, err := net.Listen("tcp", addrs[0].String())
		if err != nil {
			t.Fatal(err)
		}
		g, err := New(Config{Node: "h0", Epoch: 2, Bind: addrs[0], Keys: [][]byte{testKey}})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Run(context.Background()); err == nil {
			t.Error("Run on an address that is taken gives no error")
		}
		if err := g.Join(context.Background(), []string{"127.0.0.1"}); err == nil {
			t.Error("Join after Run has ended gives no error")
		}
		_ = l.Close()
	}
}

func TestConfig(t *testing.T) {
	good := Config{Node: "n", Epoch: 1, Bind: netip.MustParseAddrPort("127.0.0.1:0"), Keys: [][]byte{testKey}}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for want, f := range map[string]func(*Config){
		"node":      func(c *Config) { c.Node = "" },
		"epoch":     func(c *Config) { c.Epoch = 0 },
		"keys":      func(c *Config) { c.Keys = nil },
		"keys[1]":   func(c *Config) { c.Keys = [][]byte{testKey, {1}} },
		"cluster":   func(c *Config) { c.Cluster = strings.Repeat("x", 65) },
		"bind":      func(c *Config) { c.Bind = netip.AddrPort{} },
		"advertise": func(c *Config) { c.Bind = netip.MustParseAddrPort("[::]:0") },
		"forget":    func(c *Config) { c.Forget = -1 },
	} {
		c := good
		f(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// A reader that does not read holds nobody up, and finds the last state of each record in the end.
func TestSlowReader(t *testing.T) {
	q := newQueue()
	for i := range 1000 {
		q.add(Change{Kind: Put, Node: "a", Record: Record{Key: fmt.Sprint(i % 10), Data: fmt.Append(nil, i)}})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { q.run(ctx); close(done) }()
	for i := range 10 {
		if c := <-q.out; c.Record.Key != fmt.Sprint(i) || string(c.Record.Data) != fmt.Sprint(990+i) {
			t.Errorf("change %d is %v", i, c)
		}
	}
	cancel()
	<-done
}
