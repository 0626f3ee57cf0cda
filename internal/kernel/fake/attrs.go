package fake

import (
	"errors"
	"fmt"
	"maps"

	"github.com/seine-net/seine/internal/kernel"
)

// txQLen is the length of the transmit queue that the kernel gives a link.
const txQLen = 1000

// putAttrs gives a link what o asks for: all of it, or nothing where it gives an error.
func (k *Kernel) putAttrs(s *space, o *kernel.Attrs) error {
	l := s.links[o.Link]
	if l == nil {
		return kernel.ErrAbsent
	}
	if err := checkBasics(o.Link, o.MTU, o.MAC, ""); err != nil {
		return err
	}
	if o.TxQLen != nil && *o.TxQLen < 0 {
		return fmt.Errorf("txqueuelen %d is out of range", *o.TxQLen)
	}
	if o.Master != nil {
		if err := s.checkMaster(l.typ, *o.Master); err != nil {
			return err
		}
		k.setMaster(s, l, *o.Master)
	}
	l.tuned.mtu = l.tuned.mtu || o.MTU != 0 && !l.asked.mtu
	l.tuned.mac = l.tuned.mac || o.MAC != "" && !l.asked.mac
	l.setBasics(o.MTU, o.MAC)
	for _, v := range []struct{ to, from *bool }{{&l.promisc, o.Promisc}, {&l.allMulti, o.AllMulti}} {
		if v.from != nil {
			*v.to = *v.from
		}
	}
	if o.TxQLen != nil {
		l.txQLen = *o.TxQLen
	}
	return nil
}

// deleteAttrs puts back what was before.
func (k *Kernel) deleteAttrs(s *space, o *kernel.Attrs) error {
	l := s.links[o.Link]
	if l == nil || o.Before == nil {
		return nil
	}
	before := *o.Before
	before.NS, before.Link = o.NS, o.Link
	if err := k.putAttrs(s, &before); err != nil {
		return err
	}
	if before.MTU != 0 && l.tuned.mtu {
		l.asked.mtu, l.tuned.mtu = false, false
	}
	if before.MAC != "" && l.tuned.mac {
		l.asked.mac, l.tuned.mac = false, false
	}
	return nil
}

func (l *link) attrs() *kernel.Attrs {
	promisc, allMulti, qlen, master := l.promisc, l.allMulti, l.txQLen, l.master
	return &kernel.Attrs{NS: l.ns, Link: l.name, MAC: l.mac, MTU: l.mtu, TxQLen: &qlen, Promisc: &promisc, AllMulti: &allMulti,
		Master: &master}
}

// checkMaster reports whether a link of a type can be a port of another.
func (s *space) checkMaster(typ kernel.LinkType, master string) error {
	if master == "" {
		return nil
	}
	m := s.links[master]
	switch {
	case m == nil:
		return fmt.Errorf("master %q: %w", master, kernel.ErrAbsent)
	case m.typ != kernel.Bridge && m.typ != kernel.VRF:
		return fmt.Errorf("master %q is no bridge and no VRF", master)
	case typ == kernel.Bridge && m.typ == kernel.Bridge || typ == kernel.Loopback || typ == kernel.VRF:
		return fmt.Errorf("a link of type %s can't be a port", typ)
	}
	return nil
}

// setMaster lets a link join or leave a bridge or VRF.
func (k *Kernel) setMaster(s *space, l *link, master string) {
	if l.master == master {
		return
	}
	k.leaveMaster(l)
	l.master = master
	switch m := s.links[master]; {
	case master == "":
	case m.typ == kernel.VRF:
		l.vrf = m
		k.cycle(l)
	default:
		l.vlans = defaultVLAN()
	}
}

// leaveMaster takes a port out of its bridge or VRF: its flags and forwarding entries are the bridge's.
func (k *Kernel) leaveMaster(l *link) {
	l.master, l.port, l.vlans = "", kernel.Port{}, nil
	maps.DeleteFunc(l.fdb, func(_ kernel.Key, f *kernel.FDB) bool { return !f.Dst.IsValid() }) // what the bridge knew
	if l.vrf != nil {
		l.vrf = nil
		k.cycle(l)
	}
}

// cycle sets a link down and up as the kernel does when its VRF changes, so that its addresses move to another table.
func (k *Kernel) cycle(l *link) {
	if l.up {
		k.setDown(l)
		l.up = true
	}
}

// table is the routing table that the routes of a link's subnets are in.
func (l *link) table() int {
	if l.vrf != nil {
		return l.vrf.vrfTable
	}
	return 0
}

func checkVRF(o *kernel.Link) error {
	if (o.Type == kernel.VRF) != (o.Table > 0) {
		return errors.New("a VRF, and nothing else, has a table")
	}
	return nil
}

// unusual gives those attributes that no other object tells of and that are not the kernel's default; nil for none.
func (l *link) unusual() *kernel.Attrs {
	if l.txQLen == txQLen && !l.allMulti {
		return nil
	}
	all := l.attrs()
	return &kernel.Attrs{NS: l.ns, Link: l.name, TxQLen: all.TxQLen, AllMulti: all.AllMulti}
}
