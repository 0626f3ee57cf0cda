package linux

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// Numbers of if_bridge.h and rtnetlink.h that golang.org/x/sys/unix does not name.
const (
	bridgeFlagsAttr = 0 // IFLA_BRIDGE_FLAGS
	bridgeVLANInfo  = 2 // IFLA_BRIDGE_VLAN_INFO
	bridgeSelf      = 2 // BRIDGE_FLAGS_SELF

	vlanPVID, vlanUntagged       = 1 << 1, 1 << 2 // BRIDGE_VLAN_INFO_…
	vlanRangeBegin, vlanRangeEnd = 1 << 3, 1 << 4

	rtmNewVLAN, rtmGetVLAN = 112, 114 // kernel 5.6
	brVLANMsgLen           = 8        // struct br_vlan_msg
	vlanDBEntry            = 1        // BRIDGE_VLANDB_ENTRY
	vlanEntryInfo          = 1        // BRIDGE_VLANDB_ENTRY_INFO
	vlanEntryRange         = 2        // BRIDGE_VLANDB_ENTRY_RANGE

	vlansCompressed = 1 << 2 // RTEXT_FILTER_BRVLAN_COMPRESSED
)

// filters makes sure that a bridge filters by VLAN: a kernel that can't passes over the request without a word.
func (p *space) filters(bridge string) error {
	l, err := p.link(bridge)
	if err == nil && !l.filtering {
		err = fmt.Errorf("%w: VLAN filtering on a bridge (CONFIG_BRIDGE_VLAN_FILTERING)", kernel.ErrUnsupported)
	}
	return err
}

// vlanInfo is struct bridge_vlan_info.
func vlanInfo(flags uint16, id int) []byte {
	return native.AppendUint16(native.AppendUint16(nil, flags), uint16(id))
}

func vlanFlags(v kernel.VLANRange) (flags uint16) {
	if v.PVID {
		flags |= vlanPVID
	}
	if v.Untagged {
		flags |= vlanUntagged
	}
	return flags
}

func asVLAN(flags uint16, first, last int) kernel.VLANRange {
	return kernel.VLANRange{First: first, Last: last, PVID: flags&vlanPVID != 0, Untagged: flags&vlanUntagged != 0}
}

// vlanMsg puts a port into VLANs (RTM_SETLINK) or takes it out (RTM_DELLINK).
func vlanMsg(typ uint16, l *linkInfo, vlans []kernel.VLANRange) *msg {
	fixed := ifinfo(l.index, 0, 0)
	fixed[0] = unix.AF_BRIDGE
	m := newMsg(typ, 0, fixed)
	m.nested(unix.IFLA_AF_SPEC, func() {
		if l.kind == string(kernel.Bridge) {
			m.attr(bridgeFlagsAttr, native.AppendUint16(nil, bridgeSelf))
		}
		for _, v := range vlans {
			if v.First == v.Last {
				m.attr(bridgeVLANInfo, vlanInfo(vlanFlags(v), v.First))
				continue
			}
			m.attr(bridgeVLANInfo, vlanInfo(vlanFlags(v)|vlanRangeBegin, v.First))
			m.attr(bridgeVLANInfo, vlanInfo(vlanFlags(v)|vlanRangeEnd, v.Last))
		}
	})
	return m
}

// vlanMsgs gives the messages that put a port into its VLANs and, if it is to be in no others, take it out of those.
func (p *space) vlanMsgs(c kernel.Change) ([]*msg, error) {
	want, ok := c.New.(*kernel.PortVLANs)
	if !ok {
		return nil, nil // they go with the port
	}
	l, err := p.link(want.Link)
	if err != nil {
		return nil, err
	}
	if l.master == 0 && l.kind != string(kernel.Bridge) {
		return nil, fmt.Errorf("%w: link %q is no port of a bridge", kernel.ErrAbsent, want.Link)
	}
	out := []*msg{vlanMsg(unix.RTM_SETLINK, l, want.VLANs)}
	have, err := p.portVLANs(l.index)
	if err != nil || want.Keep {
		return out, err
	}
	var stale []kernel.VLANRange
	wanted := want.Each()
	for _, v := range have {
		for id := v.First; id <= v.Last; id++ {
			if _, ok := wanted[id]; !ok {
				stale = append(stale, kernel.VLANRange{First: id, Last: id})
			}
		}
	}
	if len(stale) > 0 {
		out = append(out, vlanMsg(unix.RTM_DELLINK, l, stale))
	}
	return out, nil
}

// portVLANs gives the VLANs of a port or a bridge; none where the link is neither or the kernel knows no such thing.
func (p *space) portVLANs(index int) ([]kernel.VLANRange, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	fixed := make([]byte, brVLANMsgLen)
	fixed[0] = unix.AF_BRIDGE
	native.PutUint32(fixed[4:], uint32(index))
	rs, err := so.dump(newMsg(rtmGetVLAN, 0, fixed))
	if isErrno(err, unix.EINVAL, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []kernel.VLANRange
	for _, r := range rs {
		if r.typ != rtmNewVLAN || len(r.data) < brVLANMsgLen || native.Uint32(r.data[4:]) != uint32(index) {
			continue
		}
		for t, entry := range attrs(r.rest(brVLANMsgLen)) {
			info := attrOf(entry, vlanEntryInfo)
			if t != vlanDBEntry || len(info) < 4 {
				continue
			}
			first := int(native.Uint16(info[2:]))
			last := first
			if end := attrOf(entry, vlanEntryRange); len(end) >= 2 {
				last = int(native.Uint16(end))
			}
			out = append(out, asVLAN(native.Uint16(info), first, last))
		}
	}
	return out, nil
}

// bridgeVLANs gives the VLANs of all ports of a bridge.
func (p *space) bridgeVLANs(bridge string) ([]*kernel.PortVLANs, error) {
	so, err := p.route()
	if err != nil {
		return nil, err
	}
	index, err := p.ifindex(bridge)
	if err != nil {
		return nil, err
	}
	fixed := ifinfo(0, 0, 0)
	fixed[0] = unix.AF_BRIDGE
	m := newMsg(unix.RTM_GETLINK, 0, fixed)
	m.u32(unix.IFLA_EXT_MASK, vlansCompressed)
	rs, err := so.dump(m)
	if err != nil {
		return nil, err
	}
	var out []*kernel.PortVLANs
	for _, r := range rs {
		rest := r.rest(ifinfoLen)
		if r.typ != unix.RTM_NEWLINK || num32(attrOf(rest, unix.IFLA_MASTER)) != uint32(index) || native.Uint32(r.data[4:]) == uint32(index) {
			continue
		}
		o := &kernel.PortVLANs{NS: p.path, Link: cstr(attrOf(rest, unix.IFLA_IFNAME)), Bridge: bridge}
		first := 0
		for t, v := range attrs(attrOf(rest, unix.IFLA_AF_SPEC)) {
			if t != bridgeVLANInfo || len(v) < 4 {
				continue
			}
			flags, id := native.Uint16(v), int(native.Uint16(v[2:]))
			switch {
			case flags&vlanRangeBegin != 0:
				first = id
			case flags&vlanRangeEnd != 0:
				o.VLANs = append(o.VLANs, asVLAN(flags, first, id))
			default:
				o.VLANs = append(o.VLANs, asVLAN(flags, id, id))
			}
		}
		if len(o.VLANs) > 0 {
			out = append(out, o)
		}
	}
	return out, nil
}

func (s *session) listVLANs(sp *space, want []kernel.Object, f *found) error {
	for _, o := range want {
		w := o.(*kernel.PortVLANs)
		if w.Link == "" {
			all, err := sp.bridgeVLANs(w.Bridge)
			if err != nil && !gone(err) {
				return err
			}
			for _, o := range all {
				f.add(o)
			}
			continue
		}
		l, err := sp.link(w.Link)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		have, err := sp.portVLANs(l.index)
		if err != nil && !gone(err) {
			return err
		}
		if len(have) > 0 {
			f.add(&kernel.PortVLANs{NS: sp.path, Link: w.Link, Bridge: w.Bridge, VLANs: have})
		}
	}
	return nil
}
