package cni

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// trunkConf is an entry of vlanTrunk: one VLAN, a range of them, or both.
type trunkConf struct {
	ID    *int `json:"id"`
	MinID *int `json:"minID"`
	MaxID *int `json:"maxID"`
}

const maxVLAN = 4094

// defaultVLAN is the native VLAN of a port that has vlanTrunk without vlan, as with the reference.
const defaultVLAN = 1

func (b *bridge) validateVLANs() error {
	if b.Vlan < 0 || b.Vlan > maxVLAN {
		return invalid("vlan", b.Vlan, "is no VLAN", "1 to 4094, or 0 for none")
	}
	if b.Vlan != 0 && b.IsGateway && b.hasIPAM {
		if name := b.vlanGateway(b.Vlan); len(name) > 15 {
			return invalid("bridge", b.Bridge, fmt.Sprintf("is too long: the gateway of VLAN %d would be %q", b.Vlan, name), "a name so short that it has at most 15 bytes with a point and the VLAN")
		}
	}
	for i, t := range b.VlanTrunk {
		at := fmt.Sprintf("vlanTrunk[%d].", i)
		for _, n := range []struct {
			key string
			id  *int
		}{{"minID", t.MinID}, {"maxID", t.MaxID}, {"id", t.ID}} {
			if n.id != nil && (*n.id < 1 || *n.id > maxVLAN) {
				return invalid(at+n.key, *n.id, "is no VLAN", "1 to 4094")
			}
		}
		switch {
		case t.MinID == nil && t.MaxID != nil:
			return invalid(at+"minID", "", "is missing beside maxID", "both or neither")
		case t.MinID != nil && t.MaxID == nil:
			return invalid(at+"maxID", "", "is missing beside minID", "both or neither")
		case t.MinID != nil && *t.MinID > *t.MaxID:
			return invalid(at+"minID", *t.MinID, "is greater than maxID", fmt.Sprintf("at most %d", *t.MaxID))
		case t.MinID != nil:
			b.trunk = append(b.trunk, kernel.VLANRange{First: *t.MinID, Last: *t.MaxID})
		}
		if t.ID != nil {
			b.trunk = append(b.trunk, kernel.VLANRange{First: *t.ID, Last: *t.ID})
		}
	}
	return nil
}

// filters reports whether the bridge has to keep VLANs apart.
func (b *bridge) filters() bool { return b.Vlan != 0 || b.VlanTrunk != nil }

// portVLANs gives the VLANs of an attachment's port: the native one, untagged, and those of the trunk, tagged.
func (b *bridge) portVLANs() []kernel.VLANRange {
	native := b.Vlan
	if native == 0 {
		native = defaultVLAN
	}
	var in [maxVLAN + 2]bool
	for _, v := range b.trunk {
		for id := v.First; id <= v.Last; id++ {
			in[id] = true
		}
	}
	in[native] = false
	out := []kernel.VLANRange{{First: native, Last: native, PVID: true, Untagged: true}}
	for id := 1; id <= maxVLAN; id++ {
		if first := id; in[id] {
			for in[id+1] {
				id++
			}
			out = append(out, kernel.VLANRange{First: first, Last: id})
		}
	}
	return out
}

// planVLANs puts the attachment's port into its VLANs.
func (b *bridge) planVLANs(p *plan, port string) {
	if b.Vlan != 0 || len(b.trunk) > 0 {
		p.own = append(p.own, &kernel.PortVLANs{Link: port, VLANs: b.portVLANs(), Keep: b.PreserveDefaultVlan})
	}
}

// vlanGateway is the name of the interface that has a VLAN's gateway addresses, as with the reference.
func (b *bridge) vlanGateway(vlan int) string { return b.Bridge + "." + strconv.Itoa(vlan) }

// gatewayMark is the alias of the port of a VLAN's gateway, but for the VLAN. It belongs to no network, as several may
// have the same bridge and VLAN.
func (b *bridge) gatewayMark() string { return markPrefix + "gateway " + b.Bridge + " " }

// planVLANGateway adds the interface that stands for the machine in the VLAN, and gives its name:
//
//	BRIDGE ── port veth… (VLAN untagged) ═ BRIDGE.VLAN with the gateway's addresses
//
// One of this name that is there, the reference's or a VLAN device of the administrator's, is taken as it is. Ours goes
// with the last port in the VLAN, see sweep.
func (b *bridge) planVLANGateway(p *plan, a *attaching, s *seen) string {
	name := b.vlanGateway(b.Vlan)
	port := vethPrefix + short(10, "gateway", b.Bridge, strconv.Itoa(b.Vlan))
	p.look = append(p.look, &kernel.Link{Name: name})
	p.shared = append(p.shared, &kernel.LinkUp{Link: name})
	have := s.link(name)
	mac := a.gatewayMAC
	if have != nil {
		mac = have.MAC
	}
	p.result.Interfaces = append(p.result.Interfaces, Interface{Name: name, MAC: mac})
	if have != nil && s.link(port) == nil {
		return name
	}
	l := &kernel.Link{Name: port, Type: kernel.Veth, Master: b.Bridge, Alias: b.gatewayMark() + strconv.Itoa(b.Vlan), Peer: &kernel.Peer{Name: name}}
	p.shared = append(p.shared, l, &kernel.LinkUp{Link: port},
		&kernel.PortVLANs{Link: port, VLANs: []kernel.VLANRange{{First: b.Vlan, Last: b.Vlan, PVID: true, Untagged: true}}})
	if have != nil || a.check {
		return name
	}
	l.MTU, l.MAC = b.MTU, a.gatewayMAC
	l.Peer.MTU, l.Peer.MAC = b.MTU, a.gatewayMAC
	if a.ipv6 {
		p.shared = append(p.shared, &kernel.Sysctl{Name: "net/ipv6/conf/" + port + "/disable_ipv6", Value: "1"},
			&kernel.Sysctl{Name: "net/ipv6/conf/" + name + "/accept_ra", Value: "0"},
			&kernel.Sysctl{Name: "net/ipv6/conf/" + name + "/accept_dad", Value: "0"})
	}
	if len(l.MAC) > 2 {
		l.MAC = "fe" + l.MAC[2:] // the port's is not the interface's
	}
	return name
}

// sweep removes the gateways of the bridge's VLANs that no other port is in any more. A network without isGateway may
// have been the last user of one that another network made.
func (b *bridge) sweep(ctx context.Context, r *request) error {
	if !b.filters() {
		return nil
	}
	unlock, err := r.host.Lock(true) // no ADD may be about to rely on it
	if err != nil {
		return err
	}
	defer unlock()
	mark := b.gatewayMark()
	objs, err := r.kernel.List(ctx, kernel.Scope{Mark: mark, Objects: []kernel.Object{&kernel.PortVLANs{Bridge: b.Bridge}}})
	if err != nil {
		return err
	}
	gateways := map[string]*kernel.Link{}
	used := map[int]bool{}
	for _, o := range objs {
		if l, ok := o.(*kernel.Link); ok {
			gateways[l.Name] = l
		}
	}
	for _, o := range objs {
		if v, ok := o.(*kernel.PortVLANs); ok && gateways[v.Link] == nil {
			for id := range v.Each() {
				used[id] = true
			}
		}
	}
	var changes []kernel.Change
	for _, l := range gateways {
		if id, err := strconv.Atoi(strings.TrimPrefix(l.Alias, mark)); err == nil && !used[id] {
			changes = append(changes, kernel.Change{Op: kernel.Delete, Old: l})
		}
	}
	return errors.Join(applyAll(ctx, r.kernel, changes)...)
}
