package cni

import (
	"context"

	"github.com/seine-net/seine/internal/kernel"
)

// tapConf is the configuration of the plugin "tap".
type tapConf struct {
	MultiQueue     bool    `json:"multiQueue"`
	MTU            int     `json:"mtu"`
	MAC            string  `json:"mac"`
	Owner          *uint32 `json:"owner"`
	Group          *uint32 `json:"group"`
	SELinuxContext string  `json:"selinuxContext"`
	Bridge         string  `json:"bridge"`
}

// tap is the plugin "tap": a TAP device in the container, for a program there that carries its frames, such as a virtual
// machine. It stays when no program has it open.
type tap struct {
	tapConf
	mac string
}

func newTap(r *request) (maker, error) {
	t := &tap{}
	if err := decode(r.stdin, &t.tapConf); err != nil {
		return nil, err
	}
	if r.argsErr != nil && r.verb == verbAdd {
		return nil, r.argsErr
	}
	if t.Bridge != "" {
		if err := validIfname("bridge", t.Bridge); err != nil {
			return nil, err
		}
	}
	for _, id := range []struct {
		key   string
		value *uint32
	}{{"owner", t.Owner}, {"group", t.Group}} {
		if id.value != nil && *id.value == 1<<32-1 {
			return nil, invalid(id.key, *id.value, "stands for nobody (chown(2))", "the number of a user or group, or none")
		}
	}
	var err error
	if t.mac, err = validMAC(r.askedMAC(t.MAC)); err != nil {
		return nil, err
	}
	return t, validMTU(t.MTU)
}

func (t *tap) needsIPAM() bool   { return false }
func (t *tap) masquerades() bool { return false }

// resolve sees to it that the machine has what is asked for.
func (t *tap) resolve(ctx context.Context, r *request) error {
	if t.SELinuxContext != "" && !r.host.SELinux() {
		return unsupported("selinuxContext", t.SELinuxContext, "the kernel runs no SELinux; want none")
	}
	if t.Bridge == "" || r.verb == verbStatus { // which container's bridge?
		return nil
	}
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{&kernel.Link{NS: r.netns, Name: t.Bridge}}})
	if err != nil {
		return err
	}
	if len(objs) == 0 {
		return invalid("bridge", t.Bridge, "is no interface of the container", "the name of a bridge in the container")
	}
	if l := objs[0].(*kernel.Link); l.Type != kernel.Bridge {
		return invalid("bridge", t.Bridge, "is an interface of type "+typeName(l), "the name of a bridge in the container")
	}
	return nil
}

// typeName is what messages call a link's type.
func typeName(l *kernel.Link) string {
	if l.Type == "" {
		return "physical"
	}
	return string(l.Type)
}

func (t *tap) plan(a *attaching, s *seen) (*plan, error) {
	p := &plan{link: a.innerLink(kernel.Tap)}
	p.link.Master = t.Bridge
	if a.check {
		p.look = []kernel.Object{&kernel.Link{NS: a.netns, Name: a.ifname}}
		// Who starts the virtual machine may have bridged the device.
		if l, ok := s.byKey[p.link.Key()].(*kernel.Link); ok && t.Bridge == "" {
			p.link.Master = l.Master
		}
	} else {
		if t.mac != "" {
			a.mac = t.mac
		}
		p.link.MTU, p.link.MAC = t.MTU, a.mac
		p.link.Access = &kernel.Access{Owner: t.Owner, Group: t.Group, MultiQueue: t.MultiQueue, Context: t.SELinuxContext}
	}
	if a.ips != nil {
		p.own = []kernel.Object{a.sysctl("net/ipv4/conf/"+a.ifname+"/arp_notify", "1")}
	}
	return p, a.planInner(p, false)
}
