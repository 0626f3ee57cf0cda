// Package testkit is the lab: network namespaces that stand for machines on one network, with cuts, loss and delay
// between them, and what tests, benches and demos do in them. Its core needs no test: Build, BuildSandbox and NewNS
// return errors. In a test, NewLab, NewSandbox and Namespace do the same and clean up.
//
// Nothing of it has a name in the file system or an interface in the machine's own namespace: when the process ends, for
// whatever reason, everything is gone.
package testkit

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// MaxHosts is how many hosts a Lab can have.
const MaxHosts = 254

// Lab is a number of hosts on one Ethernet:
//
//	h1 eth0     h2 eth0     h3 eth0      192.0.2.N/24, 2001:db8::N/64, 02:00:00:00:00:N
//	   │           │           │         faults are here, on the way in
//	  p1          p2          p3         the delaying wire takes frames off here and puts them in there
//	   └───── bridge wire ─────┘         in a namespace of its own
//
// The methods may be called from several goroutines.
type Lab struct {
	// Hosts are h1, h2, … : Hosts[0] has the number 1.
	Hosts []*Host

	wire   *NS
	mu     sync.Mutex
	paths  map[path]*fault
	delays map[path]*delay
}

// path is one direction between two hosts, by their places in Hosts.
type path struct{ from, to int }

// fault is what happens to the frames of a path on their way into the receiver.
type fault struct {
	cut  bool
	loss float64 // percent
}

// Build makes a lab of n hosts. The caller closes it.
func Build(n int) (*Lab, error) {
	if n < 1 || n > MaxHosts {
		return nil, fmt.Errorf("lab of %d hosts: want 1 to %d", n, MaxHosts)
	}
	wire, err := NewNS("wire")
	if err != nil {
		return nil, err
	}
	l := &Lab{wire: wire, paths: map[path]*fault{}, delays: map[path]*delay{}}
	err = l.bridge()
	for i := 1; err == nil && i <= n; i++ {
		err = l.add(i)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Lab) bridge() error {
	// The bridge is a wire, no machine: it filters nothing and keeps no multicast back.
	for _, s := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables", "net/bridge/bridge-nf-call-arptables"} {
		_ = l.wire.Sysctl(s, "0") // not there where the kernel has no bridge netfilter
	}
	// Its ports say nothing of their own.
	_ = l.wire.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	off := false
	a := netlink.NewLinkAttrs()
	a.Name = "wire"
	if err := l.wire.nl.LinkAdd(&netlink.Bridge{LinkAttrs: a, MulticastSnooping: &off}); err != nil {
		return fmt.Errorf("lab: bridge: %w", err)
	}
	return l.wire.up("wire")
}

func (l *Lab) add(i int) error {
	h, err := newHost(fmt.Sprintf("h%d", i), i, l.wire, port(i))
	if err != nil {
		return err
	}
	l.Hosts = append(l.Hosts, h)
	p, err := l.wire.nl.LinkByName(port(i))
	if err != nil {
		return fmt.Errorf("lab: port %q: %w", port(i), err)
	}
	br, err := l.wire.nl.LinkByName("wire")
	if err == nil {
		err = l.wire.nl.LinkSetMaster(p, br)
	}
	if err != nil {
		return fmt.Errorf("lab: port %q: %w", port(i), err)
	}
	return nil
}

// port is the name of the wire's end of host number i.
func port(i int) string { return fmt.Sprintf("p%d", i) }

// Close ends every fault and gives all hosts up.
func (l *Lab) Close() {
	l.mu.Lock()
	for p, d := range l.delays {
		d.close()
		delete(l.delays, p)
	}
	l.mu.Unlock()
	for _, h := range l.Hosts {
		h.Close()
	}
	l.wire.Close()
}

// Cut lets nothing pass between a and b in either direction: no ARP, no neighbour discovery, nothing that is routed by
// way of the other one. Both still reach everybody else. It stays until Heal.
func (l *Lab) Cut(a, b *Host) error {
	return l.change(a, b, func(f *fault) { f.cut = true })
}

// Loss drops frames between a and b at random, percent (0 to 100) of them in each direction, so that of questions with
// answers more are lost. What the kernel carries as one large segment is lost as one. 0 ends it.
func (l *Lab) Loss(a, b *Host, percent float64) error {
	if percent < 0 || percent > 100 {
		return fmt.Errorf("loss of %v percent: want 0 to 100", percent)
	}
	return l.change(a, b, func(f *fault) { f.loss = percent })
}

// Delay keeps every unicast frame between a and b for d on its way, in each direction and in order, so that the round
// trip takes twice that. What goes to all (ARP questions, neighbour solicitations) is not kept. 0 ends it.
func (l *Lab) Delay(a, b *Host, d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("delay of %v: want 0 or more", d)
	}
	i, j, err := l.places(a, b)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.delayLocked(path{i, j}, d), l.delayLocked(path{j, i}, d))
}

// Heal ends whatever is between a and b: cut, loss and delay.
func (l *Lab) Heal(a, b *Host) error {
	return errors.Join(l.change(a, b, func(f *fault) { *f = fault{} }), l.Delay(a, b, 0))
}

// Partition cuts every host of group off from every host that is not in it.
func (l *Lab) Partition(group ...*Host) error {
	in := map[*Host]bool{}
	for _, h := range group {
		in[h] = true
	}
	var errs []error
	for _, a := range group {
		for _, b := range l.Hosts {
			if !in[b] {
				errs = append(errs, l.Cut(a, b))
			}
		}
	}
	return errors.Join(errs...)
}

// HealAll ends whatever is between any two hosts.
func (l *Lab) HealAll() error {
	var errs []error
	for i, a := range l.Hosts {
		for _, b := range l.Hosts[:i] {
			errs = append(errs, l.Heal(a, b))
		}
	}
	return errors.Join(errs...)
}

func (l *Lab) places(a, b *Host) (i, j int, err error) {
	i, j = -1, -1
	for k, h := range l.Hosts {
		if h == a {
			i = k
		}
		if h == b {
			j = k
		}
	}
	if i < 0 || j < 0 || i == j {
		return 0, 0, errors.New("lab: want two different hosts of this lab")
	}
	return i, j, nil
}

func (l *Lab) change(a, b *Host, f func(*fault)) error {
	i, j, err := l.places(a, b)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	touched := false
	for _, p := range []path{{i, j}, {j, i}} {
		now := l.paths[p]
		if now == nil {
			now = new(fault)
		}
		was := *now
		f(now)
		touched = touched || was != *now
		if l.paths[p] = now; *now == (fault{}) {
			delete(l.paths, p)
		}
	}
	if !touched {
		return nil
	}
	return errors.Join(l.dropLocked(i), l.dropLocked(j))
}

// Unplug pulls h's cable: its interface loses the carrier. Plug puts it back.
func (l *Lab) Unplug(h *Host) error { return l.cable(h, l.wire.nl.LinkSetDown) }

// Plug takes Unplug back.
func (l *Lab) Plug(h *Host) error { return l.cable(h, l.wire.nl.LinkSetUp) }

func (l *Lab) cable(h *Host, set func(netlink.Link) error) error {
	for i, o := range l.Hosts {
		if o != h {
			continue
		}
		p, err := l.wire.nl.LinkByName(port(i + 1))
		if err == nil {
			err = set(p)
		}
		if err != nil {
			return fmt.Errorf("lab: cable of %s: %w", h.Name, err)
		}
		return nil
	}
	return errors.New("lab: want a host of this lab")
}

// Peers are all hosts but h.
func (l *Lab) Peers(h *Host) []*Host {
	var out []*Host
	for _, o := range l.Hosts {
		if o != h {
			out = append(out, o)
		}
	}
	return out
}

// Underlay gives the prefixes that the hosts' addresses are in.
func Underlay() (v4, v6 netip.Prefix) { return under4, under6 }
