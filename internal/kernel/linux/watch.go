package linux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// Event says that somebody else changed what may concern us, in the base namespace.
type Event struct {
	// Keys are objects that went away or were changed, wanted or not.
	Keys []kernel.Key
	// Down are links of ours that went down, or that IPv6 left or came back to for their MTU, by the keys of their up
	// state, and nexthops of ours that went away. If one was wanted, more than Keys changed: the kernel drops routes and
	// IPv6 addresses along with it and does not tell about them all.
	Down []kernel.Key
	// All says that more than can be named changed, that a link that nexthops of ours are on lost its carrier or has it
	// again, or that notifications were lost: only a full listing tells.
	All bool
	// Facts says that what Facts gives may have changed.
	Facts bool
}

func (e *Event) empty() bool { return len(e.Keys) == 0 && len(e.Down) == 0 && !e.All && !e.Facts }

func (e *Event) merge(o Event) {
	e.Keys = append(e.Keys, o.Keys...)
	e.Down = append(e.Down, o.Down...)
	e.All = e.All || o.All
	e.Facts = e.Facts || o.Facts
	if len(e.Keys) > 4096 { // nobody reads: naming them is no use any more
		e.Keys, e.Down, e.All = nil, nil, true
	}
}

// ipv6MTU is the least MTU of a link that IPv6 uses (RFC 8200 section 5).
const ipv6MTU = 1280

var routeGroups = []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
	unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE}

// Watch tells about changes in the base namespace that this Kernel did not make itself. Events that nobody has read yet
// are put together into one. The channel is closed when ctx ends or when notifications can't be had any more.
func (k *Kernel) Watch(ctx context.Context) (<-chan Event, error) {
	w := &watcher{k: k, links: map[int]*linkInfo{}, hops: map[int]bool{}, in: make(chan Event)}
	s := k.session()
	defer s.close()
	sp, err := s.space("")
	if err != nil {
		return nil, err
	}
	rt, err := listen(sp, unix.NETLINK_ROUTE, routeGroups...)
	if err != nil {
		return nil, err
	}
	if err := w.more(rt); err != nil {
		rt.Close()
		return nil, err
	}
	files := []*os.File{rt}
	readers := []func(*notice) Event{w.route}
	// A kernel without nftables has nothing to tell about it.
	if nf, err := listen(sp, unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES); err == nil {
		files = append(files, nf)
		readers = append(readers, w.nft)
	} else if !noNft(err) {
		rt.Close()
		return nil, err
	}
	links, err := sp.links() // after listening, so that nothing falls in between
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	for _, l := range links {
		w.links[l.index] = l
	}
	hops, err := sp.nexthops()
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	for _, n := range hops {
		w.hops[n.index] = w.hops[n.index] || n.proto == kernel.RouteProtocol
	}
	out := make(chan Event)
	go w.run(ctx, files, readers, out)
	return out, nil
}

// listen opens a socket for notifications that waits in the runtime's poller.
func listen(sp *space, proto int, groups ...int) (*os.File, error) {
	var so *sock
	err := sp.do(func() (err error) {
		so, err = openSock(proto, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	force(so.fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, 2<<20)
	for _, g := range groups {
		if err := unix.SetsockoptInt(so.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			so.close()
			return nil, fmt.Errorf("netlink group %d: %w", g, err)
		}
	}
	if err := unix.SetNonblock(so.fd, true); err != nil {
		so.close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return os.NewFile(uintptr(so.fd), "netlink"), nil
}

// watcher turns notifications into events.
type watcher struct {
	k  *Kernel
	in chan Event
	// links is what is known of the links, by number; only the reader of the routing socket uses it, and hops.
	links map[int]*linkInfo
	// hops are the numbers of links that nexthops of ours are on, or were. With the carrier the kernel drops nexthops, and
	// their routes, without a word.
	hops map[int]bool
	// sets and changed belong to the reader of the nftables socket, see watchnft.go.
	sets    map[string][]*kernel.Set
	changed map[elemPlace][]elem
}

// notice is one notification.
type notice struct {
	reply
	own bool // this Kernel caused it
}

// run owns the readers, puts their events together and hands them on.
func (w *watcher) run(ctx context.Context, files []*os.File, readers []func(*notice) Event, out chan<- Event) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i, f := range files {
		wg.Go(func() {
			defer cancel() // without one of the sockets the rest is no use
			w.read(ctx, f, readers[i])
		})
	}
	defer close(out)
	defer wg.Wait()
	defer func() {
		cancel()
		for _, f := range files {
			f.SetReadDeadline(time.Unix(1, 0))
		}
	}()
	var pending Event
	for {
		var to chan<- Event
		if !pending.empty() {
			to = out
		}
		select {
		case <-ctx.Done():
			return
		case ev := <-w.in:
			pending.merge(ev)
		case to <- pending:
			pending = Event{}
		}
	}
}

// read reads notifications until ctx ends or the socket fails.
func (w *watcher) read(ctx context.Context, f *os.File, understand func(*notice) Event) {
	defer f.Close()
	c, err := f.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	for {
		var n int
		var rerr error
		err := c.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN && rerr != unix.EINTR
		})
		ev := Event{}
		switch {
		case err != nil:
			return
		case errors.Is(rerr, unix.ENOBUFS):
			ev.All, ev.Facts = true, true
		case rerr != nil:
			return
		default:
			w.each(buf[:n], func(m *notice) { ev.merge(understand(m)) })
		}
		if ev.empty() {
			continue
		}
		select {
		case w.in <- ev:
		case <-ctx.Done():
			return
		}
	}
}

func (w *watcher) each(b []byte, f func(*notice)) {
	for len(b) >= unix.NLMSG_HDRLEN {
		l := int(native.Uint32(b))
		if l < unix.NLMSG_HDRLEN || l > len(b) {
			return
		}
		f(&notice{reply{native.Uint16(b[4:]), append([]byte(nil), b[unix.NLMSG_HDRLEN:l]...)}, w.k.ownPort(native.Uint32(b[12:]))})
		b = b[min((l+3)&^3, len(b)):]
	}
}

// route understands a notification of rtnetlink.
func (w *watcher) route(m *notice) Event {
	switch m.typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.link(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return w.addr(m)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return w.routes(m)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return w.neigh(m)
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return w.nexthop(m)
	case unix.RTM_DELRULE:
		r, proto := parseRule(reply{unix.RTM_NEWRULE, m.data})
		if r != nil && proto == kernel.RouteProtocol && !m.own {
			return Event{Keys: []kernel.Key{r.Key()}}
		}
	}
	return Event{}
}

// link understands news about a link. The kernel repeats itself a lot (carrier, statistics): only what Link, LinkUp or
// LinkFact have in them counts.
func (w *watcher) link(m *notice) Event {
	if len(m.data) > 0 && m.data[0] == unix.AF_BRIDGE { // about the port, without most of the link
		return Event{}
	}
	l := parseLink(reply{unix.RTM_NEWLINK, m.data})
	if l == nil {
		return Event{}
	}
	old := w.links[l.index]
	if m.typ == unix.RTM_DELLINK {
		delete(w.links, l.index)
	} else {
		w.links[l.index] = l
	}
	ours := l.ours() || old != nil && old.ours()
	if w.hops[l.index] && !ours && old != nil && (old.flags^l.flags)&unix.IFF_RUNNING != 0 {
		return Event{All: true, Facts: true}
	}
	if m.own || m.typ == unix.RTM_NEWLINK && quiet(old, l, ours) {
		return Event{}
	}
	keys := func(l *linkInfo) []kernel.Key {
		return []kernel.Key{(&kernel.Link{Name: l.name}).Key(), (&kernel.LinkUp{Link: l.name}).Key()}
	}
	// What is there for somebody to take is no link of the machine's: he brings it up and gives it addresses elsewhere.
	handedOver := strings.HasPrefix(l.name, kernel.HandoffPrefix) || old != nil && strings.HasPrefix(old.name, kernel.HandoffPrefix)
	ev := Event{Keys: keys(l), Facts: !ours && !handedOver}
	if old == nil {
		return ev
	}
	if old.name != l.name {
		ev.Keys = append(ev.Keys, keys(old)...)
	}
	// Below its least MTU IPv6 leaves a link with all that it has there, sysctls included, and comes back as on a new one.
	six := (old.mtu < ipv6MTU) != (l.mtu < ipv6MTU)
	if ours && m.typ == unix.RTM_NEWLINK && (six || old.flags&^l.flags&unix.IFF_UP != 0) {
		ev.Down = []kernel.Key{(&kernel.LinkUp{Link: l.name}).Key()}
	}
	return ev
}

// quiet reports whether a change of a link is none that anybody has to look at. The kernel does not say who changed a
// link, only who made it; so for one of ours, what we do ourselves is left out: it is dressed, and comes up.
func quiet(old, now *linkInfo, ours bool) bool {
	if made := cmp.Or(old, now); made.alias == "" && made.group == halfMade {
		return true
	}
	if old == nil {
		return false
	}
	if ours {
		c := *old
		c.flags |= now.flags & unix.IFF_UP
		old = &c
	}
	return sameLink(old, now)
}

func sameLink(a, b *linkInfo) bool {
	port := a.port == nil && b.port == nil || a.port != nil && b.port != nil && *a.port == *b.port
	tunnel := a.tunnel == nil && b.tunnel == nil || a.tunnel != nil && b.tunnel != nil && *a.tunnel == *b.tunnel && a.under == b.under
	return port && tunnel && a.name == b.name && a.alias == b.alias && a.mac == b.mac && a.mtu == b.mtu && a.group == b.group && a.master == b.master &&
		(a.flags^b.flags)&(unix.IFF_UP|unix.IFF_PROMISC) == 0
}

func (w *watcher) addr(m *notice) Event {
	a, ok := parseAddr(reply{unix.RTM_NEWADDR, m.data})
	l := w.links[a.index]
	if !ok || l == nil || m.own {
		return Event{}
	}
	ev := Event{Facts: !l.ours()}
	if m.typ == unix.RTM_DELADDR {
		ev.Keys = []kernel.Key{(&kernel.Addr{Link: l.name, Prefix: a.prefix}).Key()}
	}
	return ev
}

func (w *watcher) routes(m *notice) Event {
	r, ok := parseRoute(reply{unix.RTM_NEWROUTE, m.data})
	if !ok || r.cache || m.own {
		return Event{}
	}
	l := w.links[r.index]
	if l != nil && r.proto == kernel.RouteProtocol {
		r.Link = l.name
	}
	switch {
	case m.typ == unix.RTM_DELROUTE && r.proto == kernel.RouteProtocol:
		return Event{Keys: []kernel.Key{r.Route.Key()}}
	case r.proto == kernel.RouteProtocol || r.Table == kernel.TableLocal || l != nil && l.ours():
		return Event{}
	}
	return Event{Facts: true}
}
