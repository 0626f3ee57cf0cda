package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Messages of DHCPv6 (RFC 8415 section 7.3).
const (
	msg6Solicit   = 1
	msg6Advertise = 2
	msg6Request   = 3
	msg6Renew     = 5
	msg6Rebind    = 6
	msg6Reply     = 7
	msg6Release   = 8
)

// Options of DHCPv6 (RFC 8415 section 21; 23, 24: RFC 3646, 56: RFC 5908).
const (
	opt6Client  = 1
	opt6Server  = 2
	opt6IANA    = 3
	opt6Addr    = 5
	opt6Wanted  = 6
	opt6Elapsed = 8
	opt6Status  = 13
	opt6DNS     = 23
	opt6Search  = 24
	opt6NTP     = 56
)

// Status codes of DHCPv6 (RFC 8415 section 21.13).
const (
	status6OK        = 0
	status6NoBinding = 3
)

// packet6 is a message of DHCPv6 between client and server.
type packet6 struct {
	kind    byte
	xid     uint32 // 24 bits
	options []option6
}

type option6 struct {
	code  uint16
	value []byte
}

func find6(options []option6, code uint16) ([]byte, bool) {
	i := slices.IndexFunc(options, func(o option6) bool { return o.code == code })
	if i < 0 {
		return nil, false
	}
	return options[i].value, true
}

func append6(b []byte, code uint16, value []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, code)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(value))), value...)
}

func (p *packet6) marshal() []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(p.kind)<<24|p.xid&0xffffff)
	for _, o := range p.options {
		b = append6(b, o.code, o.value)
	}
	return b
}

func parse6(b []byte) (*packet6, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("message: has %d bytes; want 4 or more", len(b))
	}
	first := binary.BigEndian.Uint32(b)
	p := &packet6{kind: byte(first >> 24), xid: first & 0xffffff}
	var err error
	p.options, err = options6(b[4:])
	return p, err
}

func options6(b []byte) ([]option6, error) {
	var out []option6
	for len(b) > 0 {
		if len(b) < 4 || len(b) < 4+int(binary.BigEndian.Uint16(b[2:])) {
			return nil, errors.New("message: an option is cut off")
		}
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		out = append(out, option6{binary.BigEndian.Uint16(b), b[4:n]})
		b = b[n:]
	}
	return out, nil
}

// status6 gives what options say of success; none is success.
func status6(options []option6) (code uint16, text string) {
	v, ok := find6(options, opt6Status)
	if !ok || len(v) < 2 {
		return status6OK, ""
	}
	return binary.BigEndian.Uint16(v), string(v[2:min(len(v), 102)])
}

func statusError6(code uint16, text string) error {
	err := fmt.Errorf("the server answers with status %d %q", code, text)
	if code == status6NoBinding {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return err
}

// ia6 is an address in an identity association (IA_NA), with its times in seconds.
type ia6 struct {
	addr             netip.Addr
	valid, preferred uint32
	renew, rebind    uint32
}

func (a ia6) marshal(iaid uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, iaid)
	b = append(b, make([]byte, 8)...) // the times are the server's to say
	if a.addr.IsValid() {
		b = append6(b, opt6Addr, append(a.addr.AsSlice(), make([]byte, 8)...))
	}
	return b
}

// assigned finds the first address that a server gives in the association iaid.
func (p *packet6) assigned(iaid uint32) (ia6, error) {
	if code, text := status6(p.options); code != status6OK {
		return ia6{}, statusError6(code, text)
	}
	for _, o := range p.options {
		if o.code != opt6IANA || len(o.value) < 12 || binary.BigEndian.Uint32(o.value) != iaid {
			continue
		}
		inner, err := options6(o.value[12:])
		if err != nil {
			return ia6{}, err
		}
		if code, text := status6(inner); code != status6OK {
			return ia6{}, statusError6(code, text)
		}
		for _, i := range inner {
			if a, ok := parseAddr6(i); ok {
				a.renew, a.rebind = binary.BigEndian.Uint32(o.value[4:]), binary.BigEndian.Uint32(o.value[8:])
				return a, nil
			}
		}
	}
	return ia6{}, fmt.Errorf("%w: the server gives no address", errRefused)
}

func parseAddr6(o option6) (ia6, bool) {
	if o.code != opt6Addr || len(o.value) < 24 {
		return ia6{}, false
	}
	a := ia6{addr: netip.AddrFrom16([16]byte(o.value)), preferred: binary.BigEndian.Uint32(o.value[16:]), valid: binary.BigEndian.Uint32(o.value[20:])}
	inner, err := options6(o.value[24:])
	code, _ := status6(inner)
	return a, err == nil && code == status6OK && a.valid > 0 && usable6(a.addr)
}

// usable6 reports whether a container can have the address.
func usable6(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

// addrs6 reads a list of addresses and leaves out what can't be a server's.
func addrs6(v []byte) []netip.Addr {
	var out []netip.Addr
	for ; len(v) >= 16; v = v[16:] {
		if a := netip.AddrFrom16([16]byte(v)); usable6(a) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// ntp6 reads the addresses of option 56.
func ntp6(v []byte) []netip.Addr {
	options, err := options6(v)
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, o := range options {
		if o.code == 1 && len(o.value) == 16 {
			out = append(out, addrs6(o.value)...)
		}
	}
	return out
}

// bind6 turns what a server gave into a binding, without what routers say.
func (p *packet6) bind6(a ia6, since time.Time) *binding {
	b := &binding{Addr: netip.PrefixFrom(a.addr, 128)}
	b.ServerID, _ = find6(p.options, opt6Server)
	if v, ok := find6(p.options, opt6DNS); ok {
		b.DNS = addrs6(v)
	}
	if v, ok := find6(p.options, opt6Search); ok {
		b.Search = searchList(v)
	}
	if v, ok := find6(p.options, opt6NTP); ok {
		b.NTP = ntp6(v)
	}
	if a.renew == 0 && a.preferred > 0 && a.preferred < a.valid { // T1 and T2 are ours to choose (RFC 8415 section 21.4)
		a.renew, a.rebind = a.preferred/2, a.preferred/5*4
	}
	b.last(since, a.valid, a.renew, a.rebind)
	return b
}
