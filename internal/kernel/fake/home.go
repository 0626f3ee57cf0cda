package fake

import (
	"errors"
	"fmt"

	"github.com/seine-net/seine/internal/kernel"
)

func checkHome(o *kernel.Link) error {
	rest := *o
	rest.NS, rest.Name, rest.Home = "", "", ""
	if rest != (kernel.Link{}) || o.NS == "" {
		return errors.New("a link that is moved goes to another namespace as it is")
	}
	return checkBasics(o.Name, 0, "", o.Home)
}

// moveIn moves a link from the machine's own namespace.
func (k *Kernel) moveIn(s *space, o *kernel.Link) error {
	l := k.spaces[""].links[o.Home]
	switch {
	case l == nil:
		return fmt.Errorf("link %q: %w", o.Home, kernel.ErrAbsent)
	case l.typ == kernel.Bridge || l.typ == kernel.Loopback:
		return fmt.Errorf("a link of type %s stays where it is", l.typ)
	}
	k.move(l, s.path, o.Name)
	l.alias = o.Home
	return nil
}

// giveBack undoes moveIn.
func (k *Kernel) giveBack(l *link, home string) {
	if k.spaces[""].links[home] != nil {
		k.move(l, "", freeName(k.spaces[""]))
		return
	}
	k.move(l, "", home)
	l.alias = ""
}

func freeName(s *space) string {
	for i := 0; ; i++ {
		if name := fmt.Sprintf("dev%d", i); s.links[name] == nil {
			return name
		}
	}
}

// move puts a link into a namespace under a name, or as the kernel calls one whose name is taken. It comes there down
// and without what it had where it was.
func (k *Kernel) move(l *link, ns, name string) {
	k.setDown(l)
	k.takeOut(l)
	k.leaveMaster(l)
	to := k.spaces[ns]
	if to.links[name] != nil {
		name = freeName(to)
	}
	l.ns, l.name, l.addrs, l.redirect = ns, name, nil, nil
	clear(l.neighs)
	clear(l.qdiscs)
	to.links[name] = l
	to.inherit(name)
}

// addDevice adds a link that is no software.
func (k *Kernel) addDevice(s *space, o *kernel.Link) error {
	if s.links[o.Name] != nil {
		return kernel.ErrExists
	}
	if err := checkBasics(o.Name, o.MTU, o.MAC, o.Alias); err != nil {
		return err
	}
	l := newLink(o.NS, o.Name, "")
	l.setBasics(o.MTU, o.MAC)
	l.alias = o.Alias
	s.links[l.name] = l
	s.inherit(l.name)
	return nil
}
