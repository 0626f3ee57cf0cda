package linux

import (
	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// attrsChange is the message that sets attributes of a link, or puts back those of before.
func (p *space) attrsChange(op kernel.Op, a *kernel.Attrs) (*msg, error) {
	set := a
	if op == kernel.Delete {
		set = a.Before // not nil: there would be nothing to do
	}
	i, err := p.ifindex(a.Link)
	if err != nil {
		return nil, err
	}
	var flags, change uint32
	for _, f := range []struct {
		on   *bool
		flag uint32
	}{{set.Promisc, unix.IFF_PROMISC}, {set.AllMulti, unix.IFF_ALLMULTI}} {
		if f.on == nil {
			continue
		}
		change |= f.flag
		if *f.on {
			flags |= f.flag
		}
	}
	m := newMsg(unix.RTM_NEWLINK, 0, ifinfo(i, flags, change))
	if err := shape(m, set.MTU, set.MAC); err != nil {
		return nil, err
	}
	if set.TxQLen != nil {
		m.u32(unix.IFLA_TXQLEN, uint32(*set.TxQLen))
	}
	if set.Master == nil {
		return m, nil
	}
	master := 0
	if *set.Master != "" {
		if master, err = p.ifindex(*set.Master); err != nil {
			return nil, err
		}
	}
	m.u32(unix.IFLA_MASTER, uint32(master))
	return m, nil
}

func (s *session) listAttrs(sp *space, want []kernel.Object, f *found) error {
	names := map[int]string{}
	for _, o := range want {
		l, err := sp.link(o.(*kernel.Attrs).Link)
		if gone(err) || isErrno(err, unix.EINVAL, unix.ERANGE) {
			continue
		}
		if err != nil {
			return err
		}
		promisc, allMulti := l.flags&unix.IFF_PROMISC != 0, l.flags&unix.IFF_ALLMULTI != 0
		master := sp.linkName(l.master, names)
		f.add(&kernel.Attrs{NS: sp.path, Link: l.name, MAC: l.mac, MTU: l.mtu, TxQLen: &l.txqlen,
			Promisc: &promisc, AllMulti: &allMulti, Master: &master})
	}
	return nil
}

// everyLink lists all links of a namespace.
func (s *session) everyLink(sp *space, f *found) error {
	links, err := sp.links()
	if err != nil {
		return err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.index] = l.name
	}
	for _, l := range links {
		o, err := s.asLink(sp, l, nil, names)
		if err != nil {
			return err
		}
		f.add(o)
	}
	return nil
}
