package linux

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// tunnelData puts what a vxlan is made with into IFLA_INFO_DATA.
func (p *space) tunnelData(m *msg, l *kernel.Link) error {
	t := l.Tunnel
	under := 0
	if t.Under != "" {
		var err error
		if under, err = p.ifindex(t.Under); err != nil {
			return err
		}
	}
	m.nested(unix.IFLA_INFO_DATA, func() {
		m.u32(unix.IFLA_VXLAN_ID, t.VNI)
		m.attr(unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, t.Port))
		m.u8(unix.IFLA_VXLAN_LEARNING, 0)
		switch {
		case t.Local.Is4():
			m.attr(unix.IFLA_VXLAN_LOCAL, t.Local.AsSlice())
		case t.Local.Is6():
			m.attr(unix.IFLA_VXLAN_LOCAL6, t.Local.AsSlice())
		}
		if under != 0 {
			m.u32(unix.IFLA_VXLAN_LINK, uint32(under))
		}
	})
	return nil
}

// parseTunnel reads what tunnelData writes.
func (l *linkInfo) parseTunnel(b []byte) {
	t := &kernel.Tunnel{}
	for typ, v := range attrs(b) {
		switch typ {
		case unix.IFLA_VXLAN_ID:
			t.VNI = num32(v)
		case unix.IFLA_VXLAN_PORT:
			if len(v) >= 2 {
				t.Port = binary.BigEndian.Uint16(v)
			}
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			t.Local, _ = netip.AddrFromSlice(v)
		case unix.IFLA_VXLAN_LINK:
			l.under = int(num32(v))
		}
	}
	l.tunnel = t
}
