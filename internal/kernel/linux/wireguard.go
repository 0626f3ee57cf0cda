package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

const (
	wgFamily = "wireguard"
	// wgAllowedMost is how many prefixes go into one message: an attribute holds 64 KiB, and each takes 44 bytes at most.
	wgAllowedMost = 1000
)

// wgDevice is a link of type wireguard as the kernel tells it.
type wgDevice struct {
	config kernel.WireGuard
	peers  []*kernel.WGPeer
}

func (d *wgDevice) find(k kernel.WGKey) *kernel.WGPeer {
	i := slices.IndexFunc(d.peers, func(p *kernel.WGPeer) bool { return p.PublicKey == k })
	if i < 0 {
		return nil
	}
	return d.peers[i]
}

// wgRun is a run of changes; it asks once what a link holds.
type wgRun struct {
	p    *space
	link string
	dev  *wgDevice
}

// device gives what a link holds, as it was when it was asked for first.
func (w *wgRun) device(link string) (*wgDevice, error) {
	if w.dev == nil || w.link != link {
		dev, err := w.p.wgDevice(link)
		if err != nil {
			return nil, err
		}
		w.dev, w.link = dev, link
	}
	return w.dev, nil
}

// wgDevice asks for the configuration of a link and its peers.
func (p *space) wgDevice(link string) (*wgDevice, error) {
	i, err := p.ifindex(link)
	if err != nil {
		return nil, err
	}
	id, err := p.genlFamily(wgFamily)
	if err != nil {
		return nil, err
	}
	so, err := p.generic()
	if err != nil {
		return nil, err
	}
	m := genlMsg(id, 0, unix.WG_CMD_GET_DEVICE)
	m.u32(unix.WGDEVICE_A_IFINDEX, uint32(i))
	rs, err := so.dump(m)
	if isErrno(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("link %q: is no wireguard link: %w", link, kernel.ErrAbsent)
	}
	if err != nil {
		return nil, err
	}
	d := &wgDevice{config: kernel.WireGuard{NS: p.path, Link: link}}
	for _, r := range rs {
		d.parse(r.rest(genlLen))
	}
	for _, peer := range d.peers {
		peer.NS, peer.Link = p.path, link
		peer.AllowedIPs = kernel.SortPrefixes(peer.AllowedIPs)
	}
	return d, nil
}

// parse reads one message; a peer with many prefixes goes on in the next.
func (d *wgDevice) parse(b []byte) {
	for t, v := range attrs(b) {
		switch t {
		case unix.WGDEVICE_A_PRIVATE_KEY:
			d.config.PrivateKey = kernel.NewSecret(wgKey(v), false)
		case unix.WGDEVICE_A_LISTEN_PORT:
			if len(v) >= 2 {
				d.config.Port = native.Uint16(v)
			}
		case unix.WGDEVICE_A_FWMARK:
			d.config.Mark = num32(v)
		case unix.WGDEVICE_A_PEERS:
			for _, p := range attrs(v) {
				d.parsePeer(p)
			}
		}
	}
}

func (d *wgDevice) parsePeer(b []byte) {
	p := &kernel.WGPeer{PublicKey: wgKey(attrOf(b, unix.WGPEER_A_PUBLIC_KEY))}
	if n := len(d.peers); n > 0 && d.peers[n-1].PublicKey == p.PublicKey {
		p = d.peers[n-1]
	} else {
		d.peers = append(d.peers, p)
	}
	for t, v := range attrs(b) {
		switch t {
		case unix.WGPEER_A_PRESHARED_KEY:
			p.PresharedKey = kernel.NewSecret(wgKey(v), false)
		case unix.WGPEER_A_ENDPOINT:
			p.Endpoint = parseSockaddr(v)
		case unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL:
			if len(v) >= 2 {
				p.Keepalive = native.Uint16(v)
			}
		case unix.WGPEER_A_ALLOWEDIPS:
			for _, a := range attrs(v) {
				ip, ok := netip.AddrFromSlice(attrOf(a, unix.WGALLOWEDIP_A_IPADDR))
				if mask := attrOf(a, unix.WGALLOWEDIP_A_CIDR_MASK); ok && len(mask) > 0 {
					p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(ip, int(mask[0])))
				}
			}
		}
	}
}

func wgKey(b []byte) (k kernel.WGKey) {
	copy(k[:], b)
	return k
}

// parseSockaddr reads a struct sockaddr_in or sockaddr_in6.
func parseSockaddr(b []byte) netip.AddrPort {
	if len(b) < 8 {
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch native.Uint16(b) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
	case unix.AF_INET6:
		if len(b) >= 24 {
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port)
		}
	}
	return netip.AddrPort{}
}

func sockaddr(a netip.AddrPort) []byte {
	b := native.AppendUint16(nil, uint16(family(a.Addr())))
	b = binary.BigEndian.AppendUint16(b, a.Port())
	if a.Addr().Is4() {
		return append(append(b, a.Addr().AsSlice()...), make([]byte, 8)...)
	}
	b = append(b, 0, 0, 0, 0) // flow label
	return append(append(b, a.Addr().AsSlice()...), 0, 0, 0, 0)
}

// set sends one WG_CMD_SET_DEVICE.
func (w *wgRun) set(link string, f func(*msg)) error {
	i, err := w.p.ifindex(link)
	if err != nil {
		return err
	}
	id, err := w.p.genlFamily(wgFamily)
	if err != nil {
		return err
	}
	so, err := w.p.generic()
	if err != nil {
		return err
	}
	m := genlMsg(id, 0, unix.WG_CMD_SET_DEVICE)
	m.u32(unix.WGDEVICE_A_IFINDEX, uint32(i))
	f(m)
	if err := so.exec1(m); !isErrno(err, unix.EOPNOTSUPP) {
		return err
	}
	return fmt.Errorf("link %q: is no wireguard link: %w", link, kernel.ErrAbsent)
}

// configure gives a link its key and port; deleting takes both away.
func (w *wgRun) configure(op kernel.Op, c *kernel.WireGuard) error {
	if op == kernel.Create { // a link that has a configuration has another than is wanted
		dev, err := w.device(c.Link)
		if err != nil {
			return err
		}
		if !dev.config.PrivateKey.IsZero() {
			if c.Holds(&dev.config) {
				return nil
			}
			return kernel.ErrExists
		}
	}
	w.dev = nil
	return w.set(c.Link, func(m *msg) {
		key, port, mark := c.PrivateKey.Reveal(), c.Port, c.Mark
		if op == kernel.Delete {
			key, port, mark = kernel.WGKey{}, 0, 0
		}
		if op == kernel.Delete || !c.PrivateKey.IsZero() {
			m.attr(unix.WGDEVICE_A_PRIVATE_KEY, key[:])
		}
		m.attr(unix.WGDEVICE_A_LISTEN_PORT, native.AppendUint16(nil, port))
		m.u32(unix.WGDEVICE_A_FWMARK, mark)
	})
}

// peer makes, changes or removes a peer.
func (w *wgRun) peer(c kernel.Change, p *kernel.WGPeer) error {
	if c.Op == kernel.Delete {
		return w.set(p.Link, func(m *msg) { wgPeers(m, p, unix.WGPEER_F_REMOVE_ME|unix.WGPEER_F_UPDATE_ONLY, nil) })
	}
	flags, add := uint32(0), p.AllowedIPs
	switch old, _ := c.Old.(*kernel.WGPeer); {
	case c.Op == kernel.Create:
		dev, err := w.device(p.Link)
		if err != nil {
			return err
		}
		if have := dev.find(p.PublicKey); have != nil {
			if p.Holds(have) {
				return nil
			}
			return kernel.ErrExists
		}
	case old != nil && containsAll(p.AllowedIPs, old.AllowedIPs):
		// Nothing is taken away, so that packets on their way find what was there all the time.
		flags = unix.WGPEER_F_UPDATE_ONLY
	default:
		flags = unix.WGPEER_F_UPDATE_ONLY | unix.WGPEER_F_REPLACE_ALLOWEDIPS
	}
	for first := true; first || len(add) > 0; first = false {
		part := add[:min(len(add), wgAllowedMost)]
		add = add[len(part):]
		if err := w.set(p.Link, func(m *msg) { wgPeers(m, p, flags, part) }); err != nil {
			return err
		}
		flags = unix.WGPEER_F_UPDATE_ONLY
	}
	if c.Op == kernel.Update { // the kernel says nothing where there is no such peer
		dev, err := w.p.wgDevice(p.Link)
		if err != nil {
			return err
		}
		if dev.find(p.PublicKey) == nil {
			return kernel.ErrAbsent
		}
	}
	return nil
}

func containsAll(all, some []netip.Prefix) bool {
	for _, p := range some {
		if _, ok := slices.BinarySearchFunc(all, p, netip.Prefix.Compare); !ok {
			return false
		}
	}
	return true
}

func wgPeers(m *msg, p *kernel.WGPeer, flags uint32, allowed []netip.Prefix) {
	m.nested(unix.WGDEVICE_A_PEERS, func() {
		m.nested(0, func() {
			m.attr(unix.WGPEER_A_PUBLIC_KEY, p.PublicKey[:])
			m.u32(unix.WGPEER_A_FLAGS, flags)
			if flags&unix.WGPEER_F_REMOVE_ME != 0 {
				return
			}
			psk := p.PresharedKey.Reveal()
			m.attr(unix.WGPEER_A_PRESHARED_KEY, psk[:])
			if p.Endpoint.IsValid() {
				m.attr(unix.WGPEER_A_ENDPOINT, sockaddr(p.Endpoint))
			}
			m.attr(unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, native.AppendUint16(nil, p.Keepalive))
			m.nested(unix.WGPEER_A_ALLOWEDIPS, func() {
				for _, a := range allowed {
					m.nested(0, func() {
						m.attr(unix.WGALLOWEDIP_A_FAMILY, native.AppendUint16(nil, uint16(family(a.Addr()))))
						m.attr(unix.WGALLOWEDIP_A_IPADDR, a.Addr().AsSlice())
						m.u8(unix.WGALLOWEDIP_A_CIDR_MASK, uint8(a.Bits()))
					})
				}
			})
		})
	})
}

func (s *session) listWireGuard(sp *space, want []kernel.Object, f *found) error {
	devices := map[string]*wgDevice{}
	for _, o := range want {
		_, link := kernel.HangsOn(o)
		dev, asked := devices[link]
		if !asked {
			var err error
			if dev, err = sp.wgDevice(link); noWireGuard(err) {
				dev = nil
			} else if err != nil {
				return err
			}
			devices[link] = dev
		}
		if dev == nil {
			continue
		}
		switch o := o.(type) {
		case *kernel.WireGuard:
			if !dev.config.PrivateKey.IsZero() {
				f.add(&dev.config)
			}
		case *kernel.WGPeer:
			if p := dev.find(o.PublicKey); p != nil {
				f.add(p)
			}
		}
	}
	return nil
}

// allWireGuard lists the configuration and the peers of our links.
func (p *space) allWireGuard(owned map[int]*linkInfo, f *found) error {
	for _, l := range owned {
		if l.kind != string(kernel.WG) {
			continue
		}
		dev, err := p.wgDevice(l.name)
		if noWireGuard(err) {
			continue
		}
		if err != nil {
			return err
		}
		if !dev.config.PrivateKey.IsZero() {
			f.add(&dev.config)
		}
		for _, peer := range dev.peers {
			f.add(peer)
		}
	}
	return nil
}

// noWireGuard says that a link, or the kernel, has nothing of the kind.
func noWireGuard(err error) bool {
	return gone(err) || errors.Is(err, kernel.ErrAbsent) || errors.Is(err, kernel.ErrUnsupported)
}
