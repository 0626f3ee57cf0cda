package floor

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Table is the name of the nftables table (family inet) that Machine makes.
const Table = "floor"

// The sets of Table.
const (
	// MasqueradeSet has the addresses that are masqueraded.
	MasqueradeSet = "masq"
	// PortsMap leads from protocol and port to address and port.
	PortsMap = "ports"
	// FirewallSet has the addresses that may be reached.
	FirewallSet = "wall"
)

// Element is an element of a set or map.
type Element struct {
	Set       string
	Key, Data []byte
}

// Address is the element of an IPv4 address in MasqueradeSet or FirewallSet.
func Address(set string, a netip.Addr) Element { return Element{Set: set, Key: a.AsSlice()} }

// Port is the element of a published port; protocol is a number such as IPPROTO_TCP.
func Port(protocol uint8, port uint16, to netip.AddrPort) Element {
	return Element{Set: PortsMap, Key: append([]byte{protocol, 0, 0, 0}, part(port)...), Data: append(to.Addr().AsSlice(), part(to.Port())...)}
}

// part is a port in a concatenation, whose parts are of four bytes each.
func part(port uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, port), 0, 0) }

const nftables = unix.NFNL_SUBSYS_NFTABLES << 8

func nfgen(family byte, id uint16) []byte {
	return append([]byte{family, unix.NFNETLINK_V0}, binary.BigEndian.AppendUint16(nil, id)...)
}

// nft carries messages out as one transaction; the last of them is acknowledged.
func (h *Host) nft(what string, f func(r *request)) error {
	fd, err := h.socket(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	var r request
	r.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, nfgen(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)...)
	f(&r)
	r.ack()
	r.begin(unix.NFNL_MSG_BATCH_END, 0, nfgen(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)...)
	return r.send(fd, what)
}

func (r *request) nft(typ, flags uint16) {
	r.begin(nftables|typ, flags, nfgen(unix.NFPROTO_INET, 0)...)
}

// batch adds or deletes all elements at once.
func (h *Host) batch(typ uint16, elements []Element) error {
	if len(elements) == 0 {
		return nil
	}
	return h.nft("elements", func(r *request) {
		for _, e := range elements {
			var flags uint16
			if typ == unix.NFT_MSG_NEWSETELEM {
				flags = newObject
			}
			r.nft(typ, flags)
			r.str(unix.NFTA_SET_ELEM_LIST_TABLE, Table)
			r.str(unix.NFTA_SET_ELEM_LIST_SET, e.Set)
			r.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
				r.nest(unix.NFTA_LIST_ELEM, func() {
					value := func(typ uint16, b []byte) { r.nest(typ, func() { r.attr(unix.NFTA_DATA_VALUE, b) }) }
					value(unix.NFTA_SET_ELEM_KEY, e.Key)
					if e.Data != nil && typ == unix.NFT_MSG_NEWSETELEM {
						value(unix.NFTA_SET_ELEM_DATA, e.Data)
					}
				})
			})
		}
	})
}

// Machine makes what attachments count on, in the namespace of the calling thread: Table and its sets and, unless it is
// "", a bridge that is up and has an address.
func Machine(bridge string, gateway netip.Prefix) error {
	h := &Host{}
	defer h.Close()
	err := h.nft("table", func(r *request) {
		r.nft(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
		r.str(unix.NFTA_TABLE_NAME, Table)
		for i, s := range []struct {
			name      string
			key, data uint32 // bytes
		}{{MasqueradeSet, 4, 0}, {FirewallSet, 4, 0}, {PortsMap, 8, 8}} {
			r.nft(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
			r.str(unix.NFTA_SET_TABLE, Table)
			r.str(unix.NFTA_SET_NAME, s.name)
			r.be32(unix.NFTA_SET_ID, uint32(i+1))
			r.be32(unix.NFTA_SET_KEY_TYPE, 7)
			r.be32(unix.NFTA_SET_KEY_LEN, s.key)
			if s.data != 0 {
				r.be32(unix.NFTA_SET_FLAGS, unix.NFT_SET_MAP)
				r.be32(unix.NFTA_SET_DATA_TYPE, 7)
				r.be32(unix.NFTA_SET_DATA_LEN, s.data)
			}
		}
	})
	if err != nil || bridge == "" {
		return err
	}
	fd, err := h.socket(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	var r request
	r.begin(unix.RTM_NEWLINK, newObject, ifinfo(0, unix.IFF_UP, unix.IFF_UP)...)
	r.str(unix.IFLA_IFNAME, bridge)
	r.nest(unix.IFLA_LINKINFO, func() { r.str(unix.IFLA_INFO_KIND, "bridge") })
	if err := r.do(fd, "bridge"); err != nil {
		return err
	}
	i, err := index(fd, bridge)
	if err != nil {
		return err
	}
	r = request{}
	r.address(i, gateway)
	return r.do(fd, "bridge's address")
}
