package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/seine-net/seine/internal/kernel"
)

// upperConf are the keys that the plugins "macvlan", "ipvlan" and "vlan" share.
type upperConf struct {
	Master          string `json:"master"`
	MTU             int    `json:"mtu"`
	LinkInContainer bool   `json:"linkInContainer"`
}

// upper is an interface in the container that is made on another one, the master.
type upper struct {
	upperConf
	// on is the master as the kernel has it, up says whether it is; nil before resolve, and on CHECK.
	on *kernel.Link
	up bool
}

func (u *upper) validate() error {
	if u.Master != "" {
		if err := validIfname("master", u.Master); err != nil {
			return err
		}
	}
	return validMTU(u.MTU)
}

func (u *upper) masquerades() bool { return false }

// masterNS is the namespace that the master is in, and what messages call it.
func (u *upper) masterNS(netns string) (ns, place string) {
	if u.LinkInContainer {
		return netns, "container"
	}
	return "", "machine"
}

// resolve finds the master: the one that the configuration names or else that of the default route.
func (u *upper) resolve(ctx context.Context, r *request) error {
	ns, place := u.masterNS(r.netns)
	if u.LinkInContainer && r.verb == verbStatus {
		return nil // which container?
	}
	name := u.Master
	if name == "" {
		k, ok := r.kernel.(interface {
			DefaultLink(ctx context.Context, ns string) (string, error)
		})
		if !ok {
			return errors.New("this kernel does not tell its default route")
		}
		var err error
		if name, err = k.DefaultLink(ctx, ns); err != nil {
			return err
		}
		if name == "" {
			return invalid("master", "", "is missing, and the "+place+" has no default route whose interface it would be", "the name of an interface of the "+place)
		}
	}
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{&kernel.Link{NS: ns, Name: name}, &kernel.LinkUp{NS: ns, Link: name}}})
	if err != nil {
		return err
	}
	for _, o := range objs {
		switch o := o.(type) {
		case *kernel.Link:
			u.on = o
		case *kernel.LinkUp:
			u.up = true
		}
	}
	if u.on == nil {
		return invalid("master", name, "is no interface of the "+place, "the name of one that is there")
	}
	return nil
}

// fits holds the MTU to the master's: the kernel refuses a larger one.
func (u *upper) fits() error {
	if u.on != nil && u.MTU > u.on.MTU {
		return invalid("mtu", u.MTU, fmt.Sprintf("is larger than that of the master %q", u.on.Name), fmt.Sprintf("at most %d, or 0 for that", u.on.MTU))
	}
	return nil
}

// free holds the master to one that is no port: the kernel hands a link's frames to one taker.
func (u *upper) free() error {
	if u.on != nil && u.on.Port != nil {
		return invalid("master", u.on.Name, fmt.Sprintf("is a port of the bridge %q", u.on.Master), "the bridge, or an interface that is no port")
	}
	return nil
}

// link is the interface on its master. A CHECK compares the master only where the configuration names it: the default
// route may be another by now.
func (u *upper) link(a *attaching, typ kernel.LinkType) *kernel.Link {
	l := a.innerLink(typ)
	ns, _ := u.masterNS(a.netns)
	switch {
	case a.check && u.Master != "":
		l.Parent = &kernel.Parent{NS: ns, Name: u.Master}
	case !a.check:
		l.Parent = &kernel.Parent{NS: ns, Name: u.on.Name}
		l.MTU = u.MTU
	}
	return l
}
