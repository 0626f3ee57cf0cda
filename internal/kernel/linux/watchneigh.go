package linux

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// more has a socket tell about neighbours, forwarding entries and nexthops as well. Neighbours change their state all the
// time, so what is not about a permanent one is kept back in the kernel, by a filter (socket(7), SO_ATTACH_FILTER).
func (w *watcher) more(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = c.Control(func(fd uintptr) {
		if serr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, neighFilter()); serr != nil {
			serr = fmt.Errorf("filter for notifications: %w", serr)
			return
		}
		// A kernel without nexthop objects (before 5.3) has no such group.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_NEXTHOP)
		if serr = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_NEIGH); serr != nil {
			serr = fmt.Errorf("netlink group %d: %w", unix.RTNLGRP_NEIGH, serr)
		}
	})
	if err != nil {
		return err
	}
	return serr
}

// neighFilter passes all but RTM_NEWNEIGH about an entry that is neither permanent nor static. BPF reads numbers as if they
// were big-endian; those of netlink are the machine's.
func neighFilter() *unix.SockFprog {
	swapped := func(v uint16) uint32 { return uint32(be16(native.AppendUint16(nil, v))) }
	const typeAt, stateAt = 4, unix.NLMSG_HDRLEN + 8
	f := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: typeAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: swapped(unix.RTM_NEWNEIGH), Jt: 0, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: stateAt},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: swapped(unix.NUD_PERMANENT | unix.NUD_NOARP), Jt: 1, Jf: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
	}
	return &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
}

func be16(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

// neigh understands news about a neighbour or a forwarding entry: one of ours that went, or was changed.
func (w *watcher) neigh(m *notice) Event {
	n := parseNeigh(reply{unix.RTM_NEWNEIGH, m.data})
	if n == nil || m.own {
		return Event{}
	}
	l := w.links[n.index]
	if l == nil {
		return Event{}
	}
	if n.fam != unix.AF_BRIDGE {
		if n.proto != kernel.RouteProtocol {
			return Event{}
		}
		return Event{Keys: []kernel.Key{(&kernel.Neigh{Link: l.name, Addr: n.dst}).Key()}}
	}
	if !l.ours() {
		return Event{}
	}
	// Who changes a forwarding entry the kernel does not tell; only what goes is news, or what leads elsewhere now.
	f := &kernel.FDB{Link: l.name, MAC: n.mac, Dst: n.dst}
	if m.typ == unix.RTM_DELNEIGH {
		return Event{Keys: []kernel.Key{f.Key()}}
	}
	return Event{}
}

// nexthop understands news about a nexthop object of ours.
func (w *watcher) nexthop(m *notice) Event {
	n := parseNexthop(reply{unix.RTM_NEWNEXTHOP, m.data})
	if n == nil || n.proto != kernel.RouteProtocol {
		return Event{}
	}
	w.hops[n.index] = true
	if m.own {
		return Event{}
	}
	ev := Event{Keys: []kernel.Key{n.Nexthop.Key()}}
	if m.typ == unix.RTM_DELNEXTHOP {
		ev.Down = ev.Keys
	}
	return ev
}
