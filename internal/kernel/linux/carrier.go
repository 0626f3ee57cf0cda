package linux

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// How long the kernel may take until it uses an interface or an address that was made: that is work for its queues.
const (
	settleFirst = 100 * time.Microsecond // the first wait; each further one is twice as long
	settleLimit = time.Second            // the kernel's own limit for news of carriers when there are many
)

// until asks done until it says so, or the limit is reached; what is late then is left to the reconciler.
func until(done func() bool) {
	for wait, waited := settleFirst, time.Duration(0); !done() && waited < settleLimit; wait *= 2 {
		<-time.After(wait)
		waited += wait
	}
}

// awaitCarrier waits until the kernel uses the links that were set up. It learns that a veth has a carrier from a work
// queue; before that has run, IPv6 has no routes over the link, not even its subnet's, so that a route by a gateway is
// refused, and a bridge does not forward to it. Since kernel 6.8 asking for the link (RTM_GETLINK) does that work at
// once; older ones are asked again. The end of a veth that is set up first has no carrier yet: it is remembered, and
// waited for before routes are made in its namespace, and when the call ends.
func (s *session) awaitCarrier(sp *space, run []kernel.Change, errs []error) {
	for i, c := range run {
		if up, ok := c.New.(*kernel.LinkUp); ok && errs[i] == nil && up.Link != "lo" && !s.carrier(sp, up.Link) {
			s.dark = append(s.dark, up)
		}
	}
}

// awaitDark waits for the links of a namespace that had no carrier when they were set up and have one now.
func (s *session) awaitDark(sp *space, ns string) {
	s.dark = slices.DeleteFunc(s.dark, func(up *kernel.LinkUp) bool { return up.NS == ns && s.carrier(sp, up.Link) })
}

// awaitUse waits, when a call ends, for what the kernel does later than it says: the links that had no carrier when they
// were set up, and the IPv6 addresses, which it takes packets for once their local route is there.
func (s *session) awaitUse() {
	for len(s.dark) > 0 {
		ns := s.dark[0].NS
		if sp, err := s.space(ns); err == nil {
			s.awaitDark(sp, ns)
		}
		s.dark = slices.DeleteFunc(s.dark, func(up *kernel.LinkUp) bool { return up.NS == ns })
	}
	for _, a := range s.fresh {
		if sp, err := s.space(a.NS); err == nil {
			until(func() bool {
				if sp.takes(a) {
					return true
				}
				_ = sp.changeAddr(kernel.Create, a) // it may have been dropped, see restore
				return false
			})
		}
	}
	s.fresh = nil
}

// restore makes the IPv6 addresses that were just added in a namespace once more, and reports whether there are any. When
// a link is set up, the kernel makes the routes of its addresses with what memory it has at hand, and where there is
// none it drops the address, or its subnet's route, without a word (addrconf_permanent_addr); asked now, it waits for
// memory. With thousands of namespaces made in a row that happens once in some thousand times.
func (s *session) restore(sp *space) bool {
	any := false
	for _, a := range s.fresh {
		if a.NS == sp.path {
			any = true
			_ = sp.changeAddr(kernel.Delete, a)
			_ = sp.changeAddr(kernel.Create, a) // what the kernel still refuses, it says of the route
		}
	}
	return any
}

// carrier waits until a link that has a carrier is in use; it reports whether it has one.
func (s *session) carrier(sp *space, name string) (has bool) {
	until(func() bool {
		l, err := sp.link(name)
		has = err == nil && l != nil && l.flags&unix.IFF_LOWER_UP != 0
		return !has || l.flags&unix.IFF_RUNNING != 0
	})
	return has
}

// takes reports whether packets to an IPv6 address are taken, or won't be for a reason that waiting does not mend.
func (p *space) takes(a *kernel.Addr) bool {
	so, err := p.route()
	if err != nil {
		return true
	}
	b := make([]byte, rtmsgLen)
	b[0], b[1] = unix.AF_INET6, 128
	m := newMsg(unix.RTM_GETROUTE, 0, b)
	m.attr(unix.RTA_DST, a.Prefix.Addr().AsSlice())
	answer, err := so.get(m)
	if err == nil && len(answer.data) >= rtmsgLen && answer.data[7] == unix.RTN_LOCAL {
		return true
	}
	l, err := p.link(a.Link)
	return err != nil || l == nil || l.flags&unix.IFF_RUNNING == 0
}
