package cni

import (
	"context"

	"github.com/seine-net/seine/internal/kernel"
)

// vlan is the plugin "vlan": an interface that has the frames of one tag on another one's wire.
type vlan struct {
	upper
	id int
}

func newVLAN(r *request) (maker, error) {
	var c struct {
		upperConf
		VLANID int `json:"vlanId"`
	}
	if err := decode(r.stdin, &c); err != nil {
		return nil, err
	}
	v := &vlan{upper: upper{upperConf: c.upperConf}, id: c.VLANID}
	if v.Master == "" {
		return nil, invalid("master", "", "is missing", "the name of the interface that the tagged frames are on")
	}
	if v.id < 0 || v.id > 4094 {
		return nil, invalid("vlanId", v.id, "is no VLAN", "0 to 4094")
	}
	return v, v.validate()
}

func (v *vlan) needsIPAM() bool { return true }

func (v *vlan) resolve(ctx context.Context, r *request) error {
	if err := v.upper.resolve(ctx, r); err != nil {
		return err
	}
	if v.on != nil && !v.up {
		return invalid("master", v.on.Name, "is down, and the kernel sets no VLAN of it up", "an interface that is up")
	}
	return v.fits()
}

func (v *vlan) plan(a *attaching, _ *seen) (*plan, error) {
	p := &plan{link: v.link(a, kernel.VLAN)}
	p.link.VLAN = v.id
	if !a.check {
		a.mac = v.on.MAC
	}
	return p, a.planInner(p, false)
}
