package kernel

import (
	"fmt"
	"strings"
)

// VLANRange is one VLAN, or a range of them, that a port of a bridge is in.
type VLANRange struct {
	// First and Last are VLAN identifiers, 1 to 4094; they are equal for a single one.
	First, Last int
	// PVID says that frames that come in without a tag belong to the VLAN: for a single one, and one of a port.
	PVID bool
	// Untagged says that frames leave without a tag.
	Untagged bool
}

// PortVLANs are the VLANs that a port of a bridge, or a bridge itself as one of its own ports, is in (bridge(8),
// "bridge vlan"); they count where the bridge filters (Link.VLANFiltering). A new port is in the bridge's default VLAN,
// which is 1 untagged if nobody changed it. They go with the port: to delete them does nothing.
type PortVLANs struct {
	NS string
	// Link is the port. In a Scope a PortVLANs without Link stands for those of all ports of Bridge.
	Link   string
	Bridge string // not compared
	// VLANs are all VLANs, at least one, and each in one entry only.
	VLANs []VLANRange
	// Keep leaves further VLANs that the port is in, such as the default, where they are.
	Keep bool
}

// Key is the port's name.
func (p *PortVLANs) Key() Key { return Key{KindVLANs, p.NS, p.Link} }

// Holds implements Object.
func (p *PortVLANs) Holds(actual Object) bool {
	a, ok := actual.(*PortVLANs)
	if !ok {
		return false
	}
	want, have := p.Each(), a.Each()
	for id, v := range want {
		if have[id] != v {
			return false
		}
	}
	return p.Keep || len(want) == len(have)
}

// Each gives the single VLANs by their identifiers.
func (p *PortVLANs) Each() map[int]VLANRange {
	out := map[int]VLANRange{}
	for _, v := range p.VLANs {
		for id := v.First; id <= v.Last; id++ {
			out[id] = VLANRange{id, id, v.PVID, v.Untagged}
		}
	}
	return out
}

// String implements Object.
func (p *PortVLANs) String() string {
	var words []string
	for _, v := range p.VLANs {
		w := fmt.Sprint(v.First)
		if v.Last != v.First {
			w += fmt.Sprintf("-%d", v.Last)
		}
		if v.PVID {
			w += " pvid"
		}
		if v.Untagged {
			w += " untagged"
		}
		words = append(words, w)
	}
	if p.Keep {
		words = append(words, "and others")
	}
	return "vlan dev " + p.Link + " vid " + strings.Join(words, ", ") + in(p.NS)
}
