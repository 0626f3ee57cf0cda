package cni

import (
	"context"
	"slices"

	"github.com/seine-net/seine/internal/kernel"
)

// macvlanConf is the configuration of the plugin "macvlan".
type macvlanConf struct {
	upperConf
	Mode       string `json:"mode"`
	MAC        string `json:"mac"`
	BCQueueLen uint32 `json:"bcqueuelen"`
}

// macvlan is the plugin "macvlan": an interface with a hardware address of its own on another one's wire.
type macvlan struct {
	upper
	mode       string
	mac        string
	bcQueueLen uint32
}

const passthru = "passthru"

func newMacvlan(r *request) (maker, error) {
	var c macvlanConf
	if err := decode(r.stdin, &c); err != nil {
		return nil, err
	}
	if r.argsErr != nil && r.verb == verbAdd {
		return nil, r.argsErr
	}
	m := &macvlan{upper: upper{upperConf: c.upperConf}, mode: c.Mode, mac: r.askedMAC(c.MAC), bcQueueLen: c.BCQueueLen}
	if m.mode == "" {
		m.mode = "bridge"
	}
	if !slices.Contains(kernel.Modes[kernel.Macvlan], m.mode) {
		return nil, invalid("mode", m.mode, "is no mode of a macvlan", "bridge, private, vepa or passthru")
	}
	var err error
	if m.mac, err = validMAC(m.mac); err != nil {
		return nil, err
	}
	if m.mac != "" && m.mode == passthru {
		return nil, invalid("mac", m.mac, "excludes mode passthru, in which the interface has its master's address", "no mac, or another mode")
	}
	return m, m.validate()
}

func (m *macvlan) needsIPAM() bool { return false }

func (m *macvlan) resolve(ctx context.Context, r *request) error {
	if err := m.upper.resolve(ctx, r); err != nil {
		return err
	}
	if err := m.fits(); err != nil {
		return err
	}
	return m.free()
}

func (m *macvlan) plan(a *attaching, _ *seen) (*plan, error) {
	p := &plan{link: m.link(a, kernel.Macvlan)}
	p.link.Mode = m.mode
	if !a.check {
		if m.mac != "" {
			a.mac = m.mac
		}
		if m.mode == passthru {
			a.mac = m.on.MAC
		} else {
			p.link.MAC = a.mac
		}
		p.link.BCQueueLen = m.bcQueueLen
	}
	return p, a.planInner(p, true)
}
