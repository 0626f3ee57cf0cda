package linux

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	genlLen = 4 // struct genlmsghdr
	genCtrl = unix.GENL_ID_CTRL
)

func (p *space) generic() (*sock, error) { return p.sock(unix.NETLINK_GENERIC) }

func genlMsg(family, flags uint16, cmd uint8) *msg {
	return newMsg(family, flags, []byte{cmd, 1, 0, 0})
}

// genlFamily gives the number of a generic netlink family. A kernel without it gives ErrUnsupported. The numbers stay
// as long as the machine is up, unless a module goes and comes back; so they are asked for each time.
func (p *space) genlFamily(name string) (uint16, error) {
	so, err := p.generic()
	if err != nil {
		return 0, err
	}
	m := genlMsg(genCtrl, 0, unix.CTRL_CMD_GETFAMILY)
	m.str(unix.CTRL_ATTR_FAMILY_NAME, name)
	r, err := so.get(m)
	if isErrno(err, unix.ENOENT) {
		return 0, fmt.Errorf("generic netlink family %q: %w", name, kernel.ErrUnsupported)
	}
	if err != nil {
		return 0, err
	}
	id := attrOf(r.rest(genlLen), unix.CTRL_ATTR_FAMILY_ID)
	if len(id) < 2 {
		return 0, errNoAnswer
	}
	return native.Uint16(id), nil
}

// applyGeneric carries out a run of changes of features and of WireGuard.
func (s *session) applyGeneric(sp *space, run []kernel.Change, errs []error) {
	wg := &wgRun{p: sp}
	for i, c := range run {
		var err error
		switch o := subject(c).(type) {
		case *kernel.Feature:
			err = sp.applyFeature(c.Op, o)
		case *kernel.WireGuard:
			err = wg.configure(c.Op, o)
		case *kernel.WGPeer:
			err = wg.peer(c, o)
		}
		if c.Op == kernel.Delete && (gone(err) || errors.Is(err, kernel.ErrUnsupported)) {
			err = nil // nothing of the kind can be there
		}
		errs[i] = fail(subject(c), err)
	}
}

const ethtoolFamily = "ethtool" // kernel 5.6

func (p *space) applyFeature(op kernel.Op, f *kernel.Feature) error {
	i, err := p.ifindex(f.Link)
	if err != nil {
		return err
	}
	id, err := p.genlFamily(ethtoolFamily)
	if err != nil {
		return err
	}
	m := genlMsg(id, 0, unix.ETHTOOL_MSG_FEATURES_SET)
	m.nested(unix.ETHTOOL_A_FEATURES_HEADER, func() {
		m.u32(unix.ETHTOOL_A_HEADER_DEV_INDEX, uint32(i))
		m.u32(unix.ETHTOOL_A_HEADER_FLAGS, unix.ETHTOOL_FLAG_OMIT_REPLY)
	})
	m.nested(unix.ETHTOOL_A_FEATURES_WANTED, func() {
		m.nested(unix.ETHTOOL_A_BITSET_BITS, func() {
			m.nested(unix.ETHTOOL_A_BITSET_BITS_BIT, func() {
				m.str(unix.ETHTOOL_A_BITSET_BIT_NAME, f.Name)
				if f.On != (op == kernel.Delete) {
					m.attr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
				}
			})
		})
	})
	so, err := p.generic()
	if err != nil {
		return err
	}
	if err = so.exec1(m); isErrno(err, unix.EOPNOTSUPP, unix.EINVAL) {
		return fmt.Errorf("%w: %w", kernel.ErrUnsupported, err)
	}
	return err
}

func (s *session) listFeatures(sp *space, want []kernel.Object, f *found) error {
	active := map[string]map[string]bool{}
	for _, o := range want {
		w := o.(*kernel.Feature)
		on, asked := active[w.Link]
		if !asked {
			var err error
			on, err = sp.features(w.Link)
			if err != nil && !gone(err) && !errors.Is(err, kernel.ErrUnsupported) {
				return err
			}
			active[w.Link] = on
		}
		if on != nil {
			f.add(&kernel.Feature{NS: sp.path, Link: w.Link, Name: w.Name, On: on[w.Name]})
		}
	}
	return nil
}

// features gives the names of a link's features that are on.
func (p *space) features(link string) (map[string]bool, error) {
	i, err := p.ifindex(link)
	if err != nil {
		return nil, err
	}
	id, err := p.genlFamily(ethtoolFamily)
	if err != nil {
		return nil, err
	}
	so, err := p.generic()
	if err != nil {
		return nil, err
	}
	m := genlMsg(id, 0, unix.ETHTOOL_MSG_FEATURES_GET)
	m.nested(unix.ETHTOOL_A_FEATURES_HEADER, func() { m.u32(unix.ETHTOOL_A_HEADER_DEV_INDEX, uint32(i)) })
	r, err := so.get(m)
	if err != nil {
		return nil, err
	}
	on := map[string]bool{}
	bits := attrOf(attrOf(r.rest(genlLen), unix.ETHTOOL_A_FEATURES_ACTIVE), unix.ETHTOOL_A_BITSET_BITS)
	for _, bit := range attrs(bits) {
		on[cstr(attrOf(bit, unix.ETHTOOL_A_BITSET_BIT_NAME))] = true
	}
	return on, nil
}
