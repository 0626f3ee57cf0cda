package fabric_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/fabric/hostgw"
	"github.com/seine-net/seine/internal/fabric/vxlan"
	"github.com/seine-net/seine/internal/fabric/wireguard"
	"github.com/seine-net/seine/internal/testkit"
)

// TestReach: containers of one network reach each other from host to host by every fabric over every underlay that it is
// for, with full and with fragmented packets; those of another network don't.
func TestReach(t *testing.T) {
	for _, name := range []string{hostgw.Name, vxlan.Name, wireguard.Name} {
		for _, u := range underlays {
			if u.routed && name == hostgw.Name {
				continue
			}
			t.Run(name+"-"+u.name, func(t *testing.T) {
				needs(t, name)
				r := newRig(t, u, cluster(1), cluster(2))
				var one []*container
				for _, h := range r.hosts {
					one = append(one, h.attach(1, 2))
				}
				two := r.hosts[1].attach(2, 2)
				r.meetAll(name)
				for _, from := range one {
					for _, to := range one {
						if from != to {
							r.reach(from, to)
							r.full(from, to, 1400, !u.filter)
						}
					}
				}
				for _, a := range two.addrs() {
					testkit.CantReach(t, one[0].NS, "udp", netip.AddrPortFrom(a, 7), 100*time.Millisecond)
					testkit.CantReach(t, one[1].NS, "tcp", netip.AddrPortFrom(a, 7), 100*time.Millisecond)
				}
				r.gone(name, one)
			})
		}
	}
}

// TestHostgwNeedsALink: where a router is between two nodes, hostgw says so.
func TestHostgwNeedsALink(t *testing.T) {
	r := newRig(t, routed, cluster(1))
	_, err := r.hosts[0].objects(r.hosts[1], hostgw.Name)
	if err == nil || !strings.Contains(err.Error(), `node "h2"`) || !strings.Contains(err.Error(), "on one link") {
		t.Errorf("hostgw over a router: %v", err)
	}
}

// gone: a peer that is dropped leaves nothing, and nothing of what was for it leaks out of the hosts' own interfaces.
func (r *rig) gone(name string, c []*container) {
	r.Helper()
	h := r.hosts[0]
	for _, peer := range r.hosts[1:] {
		h.set("peer/" + peer.node.ID)
	}
	for _, s := range []string{"nexthop", "link"} {
		if out := r.run(h.NS, "ip", s, "show"); strings.Contains(out, "proto 83") || strings.Contains(out, " sx") {
			r.Errorf("%s left on %s:\n%s", name, h.Name, out)
		}
	}
	for _, f := range []string{"-4", "-6"} {
		if out := r.run(h.NS, "ip", f, "route", "show", "proto", "83"); out != "" {
			r.Errorf("routes left on %s: %s", h.Name, out)
		}
	}
	if out := r.run(h.NS, "ip", "-6", "neigh", "show", "proxy"); out != "" {
		r.Errorf("proxies left on %s: %s", h.Name, out)
	}
	for _, a := range c[1].addrs() {
		testkit.CantReach(r, c[0].NS, "udp", netip.AddrPortFrom(a, 7), 100*time.Millisecond)
	}
}

// full sends a packet of exactly the MTU that may not be fragmented, and one of several MTUs that is. What comes back is
// some bytes more. With bridge netfilter the kernel puts the fragments of that together and forgets how large they were, so
// that a packet of IPv6 which is a little larger than the MTU is lost where the way between hosts takes it as a whole.
func (r *rig) full(from, to *container, mtu int, little bool) {
	r.Helper()
	for _, a := range to.addrs() {
		head := 28
		if a.Is6() {
			head = 48
		}
		for _, c := range []struct {
			what  string
			size  int
			whole bool
		}{{"of the MTU", mtu - head, true}, {"in fragments", 5 * mtu, false}} {
			if c.whole && a.Is6() && !little {
				continue
			}
			if err := r.ask(from, netip.AddrPortFrom(a, 7), c.size, c.whole); err != nil {
				r.Errorf("%s to %s, a packet %s: %v", from.Name, a, c.what, err)
			}
		}
	}
}

func (r *rig) ask(from *container, to netip.AddrPort, size int, whole bool) error {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if !whole {
			return nil
		}
		level, opt := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
		if to.Addr().Is6() {
			level, opt = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
		}
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, unix.IP_PMTUDISC_DO) })
		if err == nil {
			err = cerr
		}
		return err
	}}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	c, err := from.DialWith(ctx, d, "udp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte(strings.Repeat("x", size))); err != nil {
		return fmt.Errorf("%d bytes: %w", size, err)
	}
	buf := make([]byte, 65535)
	n, err := c.Read(buf)
	if err != nil {
		return fmt.Errorf("%d bytes: %w", size, err)
	}
	if got := strings.Count(string(buf[:n]), "x"); got != size {
		return fmt.Errorf("of %d bytes %d came back", size, got)
	}
	return nil
}
