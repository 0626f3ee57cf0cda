package fabric_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/fabric/hostgw"
	"github.com/seine-net/seine/internal/fabric/vxlan"
	"github.com/seine-net/seine/internal/fabric/wireguard"
	"github.com/seine-net/seine/internal/kernel"
)

// TestMended: whatever somebody does by hand to what leads to peers is mended within a second, all of it.
func TestMended(t *testing.T) {
	damages := map[string][][]string{
		vxlan.Name: {
			{"ip", "link", "del", "sx-net1"}, {"ip", "link", "set", "sx-net1", "down"}, {"ip", "nexthop", "flush"},
			{"every", "route"}, {"every", "route6"},
			{"every", "neigh"}, {"ip", "link", "set", "sx-net1", "mtu", "1000"},
			{"every", "fdb"}, {"nft", "delete", "table", "inet", "seine"}, {"nft", "flush", "set", "inet", "seine", "vtep4"},
		},
		hostgw.Name: {
			{"ip", "nexthop", "flush"}, {"every", "route"}, {"every", "route6"},
			{"nft", "flush", "map", "inet", "seine", "far4"}, {"nft", "flush", "map", "inet", "seine", "far6"}, {"ip", "link", "del", "sn-net1"},
		},
		wireguard.Name: {
			{"ip", "link", "del", "sx-wg"}, {"ip", "link", "set", "sx-wg", "down"}, {"ip", "nexthop", "flush"}, {"every", "route"},
		},
	}
	for name, list := range damages {
		t.Run(name, func(t *testing.T) {
			needs(t, name)
			r := newRig(t, dual, cluster(1))
			one, two := r.hosts[0].attach(1, 2), r.hosts[1].attach(1, 2)
			r.hosts[2].attach(1, 2)
			r.meetAll(name)
			r.reach(one, two)
			h := r.hosts[0]
			for _, cmd := range list {
				r.damage(h, cmd)
				took := r.soon(fmt.Sprintf("all is back after %q", cmd), func() bool {
					have, err := h.kernel.List(r.Context(), kernel.Scope{Objects: h.want.Objects(h.want.Keys(""))})
					return err == nil && len(kernel.Diff(h.want.Objects(h.want.Keys("")), have)) == 0
				})
				start := time.Now()
				r.reach(one, two)
				r.reach(two, one)
				t.Logf("%v: mended in %v, asked in %v", cmd, took.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
			}
		})
	}
}

// damage runs a program on a host, or deletes everything of a sort that is ours one by one: what the flush of ip(8) can't do
// with routes that refer to a nexthop, and does not manage with neighbours, which come back sooner.
func (r *rig) damage(h *host, cmd []string) {
	r.Helper()
	if cmd[0] != "every" {
		r.run(h.NS, cmd...)
		return
	}
	of := func(show, del string, fields ...int) {
		for line := range strings.Lines(r.run(h.NS, strings.Fields(show)...)) {
			f, args := strings.Fields(line), []any{}
			for _, i := range fields {
				args = append(args, f[i])
			}
			r.run(h.NS, strings.Fields(fmt.Sprintf(del, args...))...)
		}
	}
	switch cmd[1] {
	case "route":
		of("ip -4 route show proto 83", "ip -4 route del %s", 0)
	case "route6":
		of("ip -6 route show proto 83", "ip -6 route del %s", 0)
	case "neigh":
		of("ip neigh show dev sx-net1 nud permanent", "ip neigh del %s dev sx-net1", 0)
	case "fdb":
		of("bridge fdb show dev sx-net1", "bridge fdb del %s dev sx-net1 dst %s", 0, 2)
	}
}

// TestHostgwCable: when the underlay's carrier is lost, the kernel drops what leads out by it; it is there again when the
// carrier is.
func TestHostgwCable(t *testing.T) {
	r := newRig(t, dual, cluster(1))
	one, two := r.hosts[0].attach(1, 2), r.hosts[1].attach(1, 2)
	r.meetAll(hostgw.Name)
	r.reach(one, two)
	r.ok(r.lab.Unplug(r.hosts[0].Host))
	time.Sleep(1500 * time.Millisecond)
	r.ok(r.lab.Plug(r.hosts[0].Host))
	start := time.Now()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := one.Ask(ctx, "udp", netip.AddrPortFrom(two.v4, 7), "x")
		cancel()
		if err == nil {
			break
		}
		if time.Since(start) > slow*3*time.Second { // the kernel takes up to one to say that there is a carrier
			h := r.hosts[0]
			have, err := h.kernel.List(r.Context(), kernel.Scope{Objects: h.want.Objects(h.want.Keys(""))})
			t.Fatalf("3 s later they don't reach each other; missing on %s: %v, %v", h.Name, kernel.Diff(h.want.Objects(h.want.Keys("")), have), err)
		}
	}
	t.Logf("after %v they reach each other again", time.Since(start).Round(time.Millisecond))
	r.reach(one, two)
}

// stream is a TCP connection on which a line goes there and back all the time.
type stream struct {
	lines atomic.Int64
	gap   atomic.Int64 // the longest time between two, in ns
	err   chan error
	stop  context.CancelFunc
}

func (r *rig) stream(from *container, to netip.Addr) *stream {
	r.Helper()
	c, err := from.Dial(r.Context(), "tcp", netip.AddrPortFrom(to, 7).String())
	r.ok(err)
	ctx, stop := context.WithCancel(r.Context())
	s := &stream{err: make(chan error, 1), stop: stop}
	go func() {
		defer c.Close()
		in := bufio.NewReader(c)
		last := time.Now()
		for ctx.Err() == nil {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, err := io.WriteString(c, "line\n")
			if err == nil {
				_, err = in.ReadString('\n')
			}
			if err != nil {
				s.err <- err
				return
			}
			s.lines.Add(1)
			if d := int64(time.Since(last)); d > s.gap.Load() {
				s.gap.Store(d)
			}
			last = time.Now()
		}
		s.err <- nil
	}()
	return s
}

// flows waits until lines went there and back.
func (r *rig) flows(s *stream, what string) {
	r.Helper()
	at := s.lines.Load()
	r.soon("the connection goes on "+what, func() bool {
		select {
		case err := <-s.err:
			r.Fatalf("%s: %v", what, err)
		default:
		}
		return s.lines.Load() >= at+20
	})
}

// TestChange: the way between two hosts is changed, on one of them after the other, under open connections.
func TestChange(t *testing.T) {
	ways := []string{hostgw.Name, vxlan.Name, hostgw.Name, vxlan.Name}
	for _, u := range []underlay{dual, {name: "ipv6", v6: true}} {
		t.Run(u.name, func(t *testing.T) { change(t, u, ways) })
	}
	t.Run("wireguard", func(t *testing.T) {
		needs(t, wireguard.Name)
		change(t, dual, []string{wireguard.Name, vxlan.Name, wireguard.Name, hostgw.Name})
	})
}

func change(t *testing.T, u underlay, ways []string) {
	r := newRig(t, u, cluster(1))
	one, two := r.hosts[0].attach(1, 2), r.hosts[1].attach(1, 2)
	r.meetAll(vxlan.Name)
	var streams []*stream
	for _, a := range two.addrs() {
		streams = append(streams, r.stream(one, a))
	}
	for i, name := range ways {
		r.meet(r.hosts[0], r.hosts[1], name)
		for _, s := range streams {
			r.flows(s, fmt.Sprintf("after change %d, to %s", i, name))
		}
		r.full(one, two, 1400, true)
	}
	for _, s := range streams {
		s.stop()
		if err := <-s.err; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
			t.Errorf("a connection broke: %v", err)
		}
		gap := time.Duration(s.gap.Load())
		t.Logf("%d lines, the longest gap %v", s.lines.Load(), gap.Round(time.Millisecond))
		if gap > slow*700*time.Millisecond {
			t.Errorf("for %v nothing came through", gap)
		}
	}
}
