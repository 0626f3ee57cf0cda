package cni

import "github.com/seine-net/seine/internal/kernel"

// dummy is the plugin "dummy": an interface that leads nowhere, for addresses that are the container's own.
type dummy struct{}

func newDummy(*request) (maker, error) { return dummy{}, nil }

func (dummy) needsIPAM() bool   { return true }
func (dummy) masquerades() bool { return false }

func (dummy) plan(a *attaching, _ *seen) (*plan, error) {
	p := &plan{link: a.innerLink(kernel.Dummy)}
	if !a.check {
		p.link.MAC = a.mac
	}
	return p, a.planInner(p, false)
}
