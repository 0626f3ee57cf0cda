package cni

import (
	"context"
	"errors"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// bridgeFilters are the sysctls that have bridged frames pass the machine's IP hooks.
var bridgeFilters = []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"}

// hairpin lets the container reach its own published ports where bridged frames pass the IP hooks: the bridge then hands
// a packet that is led back to the container straight to the port that it came from, which takes it only in hairpin
// mode. It is the attachment's own port and goes with it, so that there is nothing to take back. A promiscuous bridge
// excludes the mode.
func (p *ports) hairpin(ctx context.Context) error {
	if p.conf.SNAT != nil && !*p.conf.SNAT {
		return nil // without a new source the container would not take the packet for an answer anyway
	}
	scope := kernel.Scope{}
	port := ""
	for _, l := range p.r.prev.Interfaces {
		if l.Sandbox == "" {
			scope.Objects = append(scope.Objects, &kernel.Link{Name: l.Name})
			if port == "" && strings.HasPrefix(l.Name, vethPrefix) {
				port = l.Name
			}
		}
	}
	if port == "" || len(scope.Objects) < 2 { // no bridge
		return nil
	}
	for _, name := range bridgeFilters {
		scope.Objects = append(scope.Objects, &kernel.Sysctl{Name: name})
	}
	objs, err := p.r.kernel.List(ctx, scope)
	if err != nil {
		return err
	}
	s, filtered := newSeen(objs), false
	for _, o := range objs {
		c, ok := o.(*kernel.Sysctl)
		filtered = filtered || ok && c.Value == "1"
	}
	l := s.link(port)
	if !filtered || l == nil || l.Port == nil || l.Port.Hairpin {
		return nil
	}
	if br := s.link(l.Master); br == nil || br.Promisc {
		return nil
	}
	want := &kernel.Link{Name: l.Name, Type: l.Type, Master: l.Master, Port: &kernel.Port{Hairpin: true, Isolated: l.Port.Isolated}}
	return errors.Join(applyAll(ctx, p.r.kernel, []kernel.Change{{Op: kernel.Update, Old: l, New: want}})...)
}
