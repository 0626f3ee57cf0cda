package linux

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// takenHome is what a link becomes whose name was given to another one meanwhile, as with the kernel's own devices
// without a home.
const takenHome = "dev%d"

// moveIn moves a link from the base namespace into sp. The kernel takes namespace, name and alias in one message, so
// that nobody sees the link there under a name that is neither.
func (s *session) moveIn(sp *space, want *kernel.Link) error {
	if sp.path == "" || want.Type != "" || want.MTU != 0 || want.MAC != "" || want.Alias != "" || want.Master != "" ||
		want.Group != 0 || want.Peer != nil || want.Port != nil || want.Promisc || want.Access != nil {
		return errors.New("a link that is moved goes to another namespace as it is")
	}
	if _, err := sp.link(want.Name); err == nil {
		return unix.EEXIST
	} else if !gone(err) {
		return err
	}
	base, err := s.space("")
	if err != nil {
		return err
	}
	l, err := base.link(want.Home)
	if err != nil {
		return fmt.Errorf("link %q: %w", want.Home, err)
	}
	so, err := base.route()
	if err != nil {
		return err
	}
	err = so.exec1(transfer(l, sp, want.Name, want.Home))
	delete(base.index, want.Home)
	delete(sp.index, want.Name)
	if err == nil {
		return nil
	}
	// Moved, but refused under the new name; or not moved.
	if half, herr := sp.link(want.Home); herr == nil && half.mac == l.mac && half.kind == l.kind {
		if _, herr := base.link(want.Home); gone(herr) {
			err = errors.Join(err, s.sendHome(sp, half, want.Home, l.alias))
		}
	}
	if l.flags&unix.IFF_UP != 0 {
		if b, berr := base.link(want.Home); berr == nil {
			err = errors.Join(err, so.exec1(newMsg(unix.RTM_NEWLINK, 0, ifinfo(b.index, unix.IFF_UP, unix.IFF_UP))))
		}
	}
	return err
}

// transfer is the message that moves a link and names it.
func transfer(l *linkInfo, to *space, name, alias string) *msg {
	m := newMsg(unix.RTM_NEWLINK, 0, ifinfo(l.index, 0, 0))
	m.u32(unix.IFLA_NET_NS_FD, uint32(to.fd))
	m.str(unix.IFLA_IFNAME, name)
	m.attr(unix.IFLA_IFALIAS, []byte(alias)) // of no length: none
	return m
}

// giveBack undoes moveIn.
func (s *session) giveBack(sp *space, old *kernel.Link) error {
	l, err := sp.link(old.Name)
	if err != nil || l.alias != old.Home {
		if gone(err) {
			err = nil
		}
		return err
	}
	base, err := s.space("")
	if err != nil {
		return err
	}
	if _, err := base.link(old.Home); err == nil {
		return s.sendHome(sp, l, takenHome, old.Home)
	} else if !gone(err) {
		return err
	}
	return s.sendHome(sp, l, old.Home, "")
}

// sendHome moves a link of sp to the base namespace, down. It is renamed before it leaves, if that name is free in sp:
// programs that name the machine's devices by rules (udev) then see one name only.
func (s *session) sendHome(sp *space, l *linkInfo, name, alias string) error {
	base, err := s.space("")
	if err != nil {
		return err
	}
	so, err := sp.route()
	if err != nil {
		return err
	}
	msgs := []*msg{newMsg(unix.RTM_NEWLINK, 0, ifinfo(l.index, 0, unix.IFF_UP))}
	if name != takenHome {
		rename := newMsg(unix.RTM_NEWLINK, 0, ifinfo(l.index, 0, 0))
		rename.str(unix.IFLA_IFNAME, name)
		msgs = append(msgs, rename)
	}
	errs := so.exec(append(msgs, transfer(l, base, name, alias))...)
	for _, n := range []string{l.name, name} {
		delete(sp.index, n)
		delete(base.index, n)
	}
	err = errs[len(errs)-1]
	if err == nil {
		return nil
	}
	back := newMsg(unix.RTM_NEWLINK, 0, ifinfo(l.index, l.flags&unix.IFF_UP, unix.IFF_UP))
	back.str(unix.IFLA_IFNAME, l.name)
	return errors.Join(err, so.exec1(back))
}
