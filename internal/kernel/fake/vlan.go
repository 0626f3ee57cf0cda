package fake

import (
	"fmt"
	"maps"
	"slices"

	"github.com/seine-net/seine/internal/kernel"
)

// defaultVLAN is what a bridge and its ports begin with.
func defaultVLAN() map[int]kernel.VLANRange {
	return map[int]kernel.VLANRange{1: {First: 1, Last: 1, PVID: true, Untagged: true}}
}

func (k *Kernel) putVLANs(s *space, o *kernel.PortVLANs) error {
	l := s.links[o.Link]
	if l == nil || l.vlans == nil {
		return fmt.Errorf("bridge port %q: %w", o.Link, kernel.ErrAbsent)
	}
	pvid := 0
	for _, v := range o.VLANs {
		switch {
		case v.First < 1 || v.Last > 4094 || v.First > v.Last:
			return fmt.Errorf("%d to %d are no VLANs", v.First, v.Last)
		case v.PVID && (pvid != 0 || v.First != v.Last):
			return fmt.Errorf("VLAN %d: a port has one PVID", v.First)
		case v.PVID:
			pvid = v.First
		}
	}
	want := o.Each()
	if o.Keep {
		all := maps.Clone(l.vlans)
		for id, v := range all {
			v.PVID = v.PVID && pvid == 0
			all[id] = v
		}
		maps.Copy(all, want)
		want = all
	}
	l.vlans = want
	return nil
}

// listedVLANs gives the VLANs of a port or bridge, runs of the same kind as one; nil for none.
func (l *link) listedVLANs() *kernel.PortVLANs {
	o := &kernel.PortVLANs{NS: l.ns, Link: l.name, Bridge: l.master}
	for _, id := range slices.Sorted(maps.Keys(l.vlans)) {
		v := l.vlans[id]
		if n := len(o.VLANs) - 1; n >= 0 && o.VLANs[n].Last == id-1 && !v.PVID && !o.VLANs[n].PVID && o.VLANs[n].Untagged == v.Untagged {
			o.VLANs[n].Last = id
			continue
		}
		o.VLANs = append(o.VLANs, v)
	}
	if len(o.VLANs) == 0 {
		return nil
	}
	return o
}
