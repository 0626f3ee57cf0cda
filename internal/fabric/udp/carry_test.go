package udp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
	"github.com/seine-net/seine/internal/testkit"
)

// end is a machine of a test: a namespace with a Runner, and a container behind a veth.
//
//	container ── eth0 ═ host ── sx-udp ── Runner ── eth0 ═ other machine's
type end struct {
	ns, container *testkit.NS
	fab           Fabric
	runner        *Runner
	node          api.Node
	inner         []netip.Addr // the container's
	objects       []kernel.Object
}

// pair makes two machines whose containers reach each other by the fabric, over an underlay of IPv4 or IPv6.
func pair(tb testing.TB, v6 bool) [2]*end {
	tb.Helper()
	testkit.Need(tb, "root", "ipv6", "tun", "veth")
	var ends [2]*end
	for i := range ends {
		e := &end{fab: New([]byte{byte(i)}, 0), ns: namespace(tb, fmt.Sprint("h", i)), container: namespace(tb, fmt.Sprint("c", i))}
		e.node = api.Node{ID: fmt.Sprint("id", i), Name: fmt.Sprint("h", i)}
		e.node.Addresses = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1))}
		if v6 {
			e.node.Addresses = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))}
		}
		told, err := e.fab.Announce(e.node, kernel.Facts{})
		must(tb, err)
		e.node.Fabrics = map[string]json.RawMessage{Name: told}
		e.runner = NewRunner(e.fab, slog.New(slog.NewTextHandler(tb.Output(), nil)))
		for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			must(tb, e.ns.Sysctl(s, "1"))
		}
		ends[i] = e
	}
	plug(tb, ends[0].ns, "eth0", ends[1].ns, "eth0")
	for i, e := range ends {
		bits := e.node.Addresses[0].BitLen() - 8
		must(tb, e.ns.AddAddr("eth0", netip.PrefixFrom(e.node.Addresses[0], bits)))
		plug(tb, e.ns, "in", e.container, "eth0")
		for _, a := range []string{fmt.Sprintf("10.%d.0.1/24", i+1), fmt.Sprintf("fd00:%d::1/64", i+1)} {
			p := netip.MustParsePrefix(a)
			must(tb, e.ns.AddAddr("in", p))
			mine := p.Addr().Next()
			e.inner = append(e.inner, mine)
			must(tb, e.container.AddAddr("eth0", netip.PrefixFrom(mine, p.Bits())))
			must(tb, e.container.AddRoute(netip.PrefixFrom(anyOf(mine), 0), p.Addr()))
		}
		l, err := e.container.Netlink().LinkByName("eth0")
		must(tb, err)
		must(tb, e.container.Netlink().LinkSetMTU(l, Fabric{}.Traits().MTU(1500, v6)))
	}
	return ends
}

func anyOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func namespace(tb testing.TB, name string) *testkit.NS {
	tb.Helper()
	n, err := testkit.NewNS(name)
	must(tb, err)
	tb.Cleanup(n.Close)
	return n
}

func plug(tb testing.TB, a *testkit.NS, an string, b *testkit.NS, bn string) {
	tb.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = an
	must(tb, a.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bn, PeerNamespace: netlink.NsFd(b.Fd())}))
	for _, x := range []struct {
		ns   *testkit.NS
		name string
	}{{a, an}, {b, bn}} {
		l, err := x.ns.Netlink().LinkByName(x.name)
		must(tb, err)
		must(tb, x.ns.Netlink().LinkSetUp(l))
	}
}

// start has both machines run the fabric, and waits until packets pass.
func start(tb testing.TB, ends [2]*end) {
	tb.Helper()
	for i, e := range ends {
		other := ends[1-i]
		net := fabric.Network{Network: api.Network{Name: "n"}, Link: "in", Hop4: 1<<31 + 1, Hop6: 1<<31 + 2}
		for _, a := range other.inner {
			p, err := a.Prefix(map[bool]int{true: 24, false: 64}[a.Is4()])
			must(tb, err)
			net.Blocks = append(net.Blocks, p)
		}
		p, err := e.fab.PeerOf(e.node, other.node, []fabric.Network{net})
		must(tb, err)
		must(tb, e.runner.SetPeer(other.node.ID, p))
		e.run(tb)
		objects, err := e.fab.Objects(e.node, other.node, []fabric.Network{net}, kernel.Facts{Links: []kernel.LinkFact{{Name: "eth0", MTU: 1500,
			Addrs: []netip.Prefix{netip.PrefixFrom(e.node.Addresses[0], 24)}}}})
		must(tb, err)
		for _, o := range objects { // the rules are for a table that the daemon makes
			switch o.(type) {
			case *kernel.Link, *kernel.LinkUp, *kernel.Nexthop, *kernel.Route, *kernel.Sysctl:
				e.objects = append(e.objects, o)
			}
		}
		e.apply(tb)
	}
	ends[0].answers(tb, ends[1])
}

// run starts the Runner; it ends with the test.
func (e *end) run(tb testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.ns.Do(func() error { return e.runner.Run(ctx) }) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
}

// apply makes the objects, as the daemon's loop does: again until the Runner has the device.
func (e *end) apply(tb testing.TB) {
	tb.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := e.ns.Do(func() error {
			k := linux.New(linux.Options{})
			defer k.Close()
			ctx := context.Background()
			actual, err := k.List(ctx, kernel.Scope{Objects: e.objects})
			if err != nil {
				return err
			}
			return errors.Join(k.Apply(ctx, kernel.Diff(e.objects, actual))...)
		})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// answers waits until the other container answers by both families.
func (e *end) answers(tb testing.TB, other *end) {
	tb.Helper()
	for _, a := range other.inner {
		at, err := other.container.Echo("udp", netip.AddrPortFrom(a, 0).String())
		must(tb, err)
		deadline := time.Now().Add(10 * time.Second)
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			_, err := e.container.Ask(ctx, "udp", at, "hello")
			cancel()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				tb.Fatalf("%s: %v; %+v and %+v", a, err, e.runner.Stats(), other.runner.Stats())
			}
		}
	}
}

// TestCarries: what containers send each other arrives, over both kinds of underlay.
func TestCarries(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "ipv4", true: "ipv6"}[v6], func(t *testing.T) {
			ends := pair(t, v6)
			start(t, ends)
			for _, to := range ends[1].inner {
				bulk(t, ends[0], ends[1], to, 64<<20)
				bulk(t, ends[1], ends[0], ends[0].inner[map[bool]int{true: 0, false: 1}[to.Is4()]], 8<<20)
				datagrams(t, ends[0], ends[1], to)
				pings(t, ends[0], ends[1], to)
			}
			for _, e := range ends {
				s := e.runner.Stats()
				if s.Refused+s.Strangers+s.Unsent+s.Unwritten > 0 {
					t.Errorf("%s: %+v", e.node.Name, s)
				}
			}
		})
	}
}

// bulk sends a stream and compares what came.
func bulk(t *testing.T, from, to *end, at netip.Addr, size int) {
	t.Helper()
	l, err := to.container.Listen("tcp", netip.AddrPortFrom(at, 0).String())
	must(t, err)
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- err.Error()
			return
		}
		defer c.Close()
		h := sha256.New()
		if _, err := io.Copy(h, c); err != nil {
			got <- err.Error()
			return
		}
		got <- fmt.Sprintf("%x", h.Sum(nil))
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := from.container.Dial(ctx, "tcp", l.Addr().String())
	must(t, err)
	must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	h := sha256.New()
	chunk := make([]byte, 1<<20)
	for i := 0; i < size; i += len(chunk) {
		for j := range chunk {
			chunk[j] = byte(j*7 + j>>8 + i>>20)
		}
		h.Write(chunk)
		_, err := c.Write(chunk)
		must(t, err)
	}
	must(t, c.Close())
	if want := fmt.Sprintf("%x", h.Sum(nil)); want != <-got {
		t.Errorf("%d bytes to %s came as something else", size, at)
	}
}

// datagrams sends UDP of every size of interest, and looks that it comes back: fragments are what exceeds the MTU.
func datagrams(t *testing.T, from, to *end, at netip.Addr) {
	t.Helper()
	s, err := to.container.ListenPacket("udp", netip.AddrPortFrom(at, 0).String())
	must(t, err)
	defer s.Close()
	go func() {
		b := make([]byte, 65536)
		for {
			n, a, err := s.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = s.WriteTo(b[:n], a)
		}
	}()
	c, err := from.container.Dial(context.Background(), "udp", s.LocalAddr().String())
	must(t, err)
	defer c.Close()
	max := Fabric{}.Traits().MTU(1500, !from.node.Addresses[0].Is4()) - 28
	if at.Is6() {
		max -= 20
	}
	for _, n := range []int{0, 1, 64, max - 1, max, max + 1, 3000, 20000, 60000} {
		b := bytes.Repeat([]byte{byte(n)}, n)
		must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		_, err := c.Write(b)
		must(t, err)
		back := make([]byte, 65536)
		got, err := c.Read(back)
		if err != nil || !bytes.Equal(back[:got], b) {
			t.Errorf("a datagram of %d bytes to %s: %d came back, %v", n, at, got, err)
		}
	}
}

// pings sends ICMP that is as large as can be, larger, and too large to go in one piece.
func pings(t *testing.T, from, to *end, at netip.Addr) {
	t.Helper()
	testkit.Need(t, "program:ping")
	max := Fabric{}.Traits().MTU(1500, !from.node.Addresses[0].Is4()) - 28
	if at.Is6() {
		max -= 20
	}
	for _, n := range []int{56, max, max + 1, 9000} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if out, err := from.container.Exec(ctx, "ping", "-c1", "-W5", "-s", fmt.Sprint(n), at.String()); err != nil {
			t.Errorf("%d bytes: %v: %s", n, err, out)
		}
		cancel()
	}
}

// TestDeviceDeleted: what deletes the device stops packets until it is there again, and no longer.
func TestDeviceDeleted(t *testing.T) {
	ends := pair(t, false)
	start(t, ends)
	for range 2 {
		l, err := ends[0].ns.Netlink().LinkByName(LinkName)
		must(t, err)
		must(t, ends[0].ns.Netlink().LinkDel(l))
		ends[0].apply(t)
		ends[0].answers(t, ends[1])
	}
}

// TestStrangers: datagrams from elsewhere, and from the peer for another node, come to nothing.
func TestStrangers(t *testing.T) {
	ends := pair(t, false)
	start(t, ends)
	must(t, ends[1].ns.AddAddr("eth0", netip.MustParsePrefix("192.0.2.99/24")))
	at := netip.AddrPortFrom(ends[0].node.Addresses[0], DefaultPort).String()
	forged := func(secret byte) []byte {
		b, _ := made{proto: protoUDP, payload: []byte("x"), src: ends[1].inner[0], dst: ends[0].inner[0]}.build()
		b = append(make([]byte, headerLen), b...)
		putHeader(b, flagPartial, New([]byte{secret}, 0).tag)
		return b
	}
	before := ends[0].runner.Stats()
	// From an address that is no peer's, and from the peer's at another port, with the right tag.
	for _, from := range []string{"192.0.2.99:8286", "192.0.2.2:8287"} {
		a, err := net.ResolveUDPAddr("udp", from)
		must(t, err)
		ctx := context.Background()
		c, err := ends[1].ns.DialWith(ctx, net.Dialer{LocalAddr: a}, "udp", at)
		if err != nil && strings.Contains(err.Error(), "in use") { // the Runner has it; SO_REUSEADDR is not for us
			continue
		}
		must(t, err)
		_, err = c.Write(forged(0))
		must(t, err)
		c.Close()
	}
	ends[1].runner.mu.Lock()
	p := ends[1].runner.peers[ends[0].node.ID].Peer
	ends[1].runner.mu.Unlock()
	p.Tag = "AAECAwQF"
	must(t, ends[1].runner.SetPeer(ends[0].node.ID, p)) // it has been told another node's tag
	c, err := ends[1].container.Dial(context.Background(), "udp", netip.AddrPortFrom(ends[0].inner[0], 9).String())
	must(t, err)
	defer c.Close()
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, _ = c.Write([]byte("x"))
		s := ends[0].runner.Stats()
		if s.Strangers > before.Strangers && s.Refused > before.Refused {
			if s.Received > before.Received {
				t.Errorf("%d packets passed", s.Received-before.Received)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, was %+v", s, before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestSomebodyElses: a device of the name that is not ours is left alone.
func TestSomebodyElses(t *testing.T) {
	testkit.Need(t, "root", "tun")
	n := namespace(t, "h")
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("skip: needs the program ip")
	}
	must(t, n.Do(func() error {
		if _, err := openDevice(); err != errAbsent {
			return fmt.Errorf("no device: %v", err)
		}
		return nil
	}))
	_, err := n.Exec(context.Background(), "ip", "tuntap", "add", LinkName, "mode", "tun")
	must(t, err)
	must(t, n.Do(func() error {
		if _, err := openDevice(); err == nil || !strings.Contains(err.Error(), "somebody else's") {
			return fmt.Errorf("somebody else's device: %v", err)
		}
		return nil
	}))
}
