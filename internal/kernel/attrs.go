package kernel

import (
	"strconv"
	"strings"
)

// Attrs are attributes of a link that somebody else made, such as a container's interface: a plugin that is told to
// change them can't want the Link. A link has all of them at all times, so Create sets what is asked for whatever it was
// before, and Delete puts back Before.
type Attrs struct {
	NS   string
	Link string
	// MAC is the hardware address as "02:…"; "" leaves it alone.
	MAC string
	// MTU in bytes; 0 leaves it alone.
	MTU int
	// TxQLen is the length of the transmit queue in packets (ip-link(8), txqueuelen); nil leaves it alone.
	TxQLen *int
	// Promisc and AllMulti turn promiscuous and all-multicast mode on or off (ip-link(8)); nil leaves them alone.
	Promisc, AllMulti *bool
	// Master is the bridge or VRF in the same namespace that the link is a port of, "" for none; nil leaves it alone. A
	// link that joins or leaves a VRF is set down and up by the kernel: its IPv6 addresses and its routes go.
	Master *string
	// Before is what Delete puts back, in its own fields; it is not compared. nil leaves all as it is.
	Before *Attrs
}

// Key is the link's name.
func (a *Attrs) Key() Key { return Key{KindAttrs, a.NS, a.Link} }

// Holds implements Object.
func (a *Attrs) Holds(actual Object) bool {
	h, ok := actual.(*Attrs)
	return ok && (a.MAC == "" || a.MAC == h.MAC) && (a.MTU == 0 || a.MTU == h.MTU) && same(a.TxQLen, h.TxQLen) &&
		same(a.Promisc, h.Promisc) && same(a.AllMulti, h.AllMulti) && same(a.Master, h.Master)
}

func same[T comparable](want, actual *T) bool {
	return want == nil || actual != nil && *want == *actual
}

// String implements Object.
func (a *Attrs) String() string {
	var b strings.Builder
	b.WriteString("link " + a.Link)
	if a.MTU != 0 {
		b.WriteString(" mtu " + strconv.Itoa(a.MTU))
	}
	if a.MAC != "" {
		b.WriteString(" address " + a.MAC)
	}
	if a.TxQLen != nil {
		b.WriteString(" txqueuelen " + strconv.Itoa(*a.TxQLen))
	}
	onOff := map[bool]string{true: "on", false: "off"}
	if a.Promisc != nil {
		b.WriteString(" promisc " + onOff[*a.Promisc])
	}
	if a.AllMulti != nil {
		b.WriteString(" allmulticast " + onOff[*a.AllMulti])
	}
	if a.Master != nil && *a.Master == "" {
		b.WriteString(" nomaster")
	} else if a.Master != nil {
		b.WriteString(" master " + *a.Master)
	}
	return b.String() + in(a.NS)
}
