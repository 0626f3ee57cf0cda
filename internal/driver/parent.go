package driver

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

// OptParent is the option that names the link of the machine that a network's interfaces are made on: eth0, or eth0.50
// for VLAN 50 on it.
const OptParent = "parent"

// ParentHelp says what OptParent is.
const ParentHelp = "the machine's interface that the network is on, or one of its VLANs as eth0.50"

// Parent is what OptParent names.
type Parent struct {
	// Link is the link that interfaces are made on; "" where the network has none.
	Link string
	// Base and VLAN are set where the name is that of a VLAN: the link that carries its frames, and its tag
	// (IEEE 802.1Q), 1 to 4094.
	Base string
	VLAN int
}

// ParentOf reads a network's OptParent.
func ParentOf(n api.Network) Parent {
	p := Parent{Link: n.Options[OptParent]}
	if i := strings.LastIndexByte(p.Link, '.'); i > 0 {
		if id, err := strconv.Atoi(p.Link[i+1:]); err == nil && id > 0 && id < 4095 && p.Link[i+1] != '0' {
			p.Base, p.VLAN = p.Link[:i], id
		}
	}
	return p
}

// Links names the links of the machine that the parent needs, the one that interfaces are made on first.
func (p Parent) Links() []string {
	return slices.DeleteFunc([]string{p.Link, p.Base}, func(s string) bool { return s == "" })
}

// Objects gives the VLAN that the parent is, where it is not there or is ours: every network on it wants the same, so it
// goes with the last of them. One that somebody else made is taken as it is.
func (p Parent) Objects(f kernel.Facts) []kernel.Object {
	if l := f.Link(p.Link); p.Base == "" || l != nil && !l.Ours {
		return nil
	}
	out := []kernel.Object{&kernel.Link{Name: p.Link, Type: kernel.VLAN, VLAN: p.VLAN, Parent: &kernel.Parent{Name: p.Base},
		Alias: Alias("vlan/" + p.Link)}}
	if !f.NoIPv6 {
		// It is the containers', not the machine's: the machine is to have no address there, nor to believe its routers.
		out = append(out, &kernel.Sysctl{Name: "net/ipv6/conf/" + p.Link + "/disable_ipv6", Value: "1"})
	}
	if l := f.Link(p.Base); l == nil || l.Up { // the kernel sets no VLAN up on a link that is down
		out = append(out, &kernel.LinkUp{Link: p.Link})
	}
	return out
}

// check refuses a parent that can't be one, and what does not go with what other networks make of it. wide are the
// options that the kernel keeps per parent: all networks on one have to agree.
func (p Parent) check(n *api.Network, env Env, wide ...string) error {
	noun := api.NetworkNoun(n.Name)
	bad := func(msg, want string) error {
		return api.FieldError(noun, "options."+OptParent, p.Link, msg, want)
	}
	if !isIfname(p.Link) {
		return bad("is no interface name", "1 to 15 bytes without '/', ':' and white space")
	}
	if env.New && !p.exists(env.Facts) {
		var names []string
		for _, l := range env.Facts.Links {
			if !l.Ours && l.Name != "lo" {
				names = append(names, l.Name)
			}
		}
		return bad("is no interface of the machine", cmp.Or(strings.Join(names, ", "), "the name of one")+", or a VLAN of one as eth0.50")
	}
	if p.Link == "lo" {
		return bad("can't carry containers", "an interface to a wire")
	}
	if l := env.Facts.Link(cmp.Or(p.Base, p.Link)); env.New && l != nil && n.MTU > l.MTU && n.MTU != 0 {
		return api.FieldError(noun, "mtu", n.MTU, fmt.Sprintf("is more than the %d of %s", l.MTU, l.Name), fmt.Sprintf("at most %d, or 0 for that", l.MTU))
	}
	for _, o := range env.Others {
		if ParentOf(o).Link != p.Link || !parented[o.Driver] {
			continue
		}
		conflict := func(field string, value any, msg, want string) error {
			err := api.FieldError(noun, field, value, fmt.Sprintf("%s network %q, which is on %s too", msg, o.Name, p.Link), want)
			err.Code = api.Conflict
			return err
		}
		if o.Driver != n.Driver {
			return conflict("driver", n.Driver, "does not go with that of", o.Driver+", or another parent: the kernel hands an interface's frames to one of them")
		}
		for _, key := range wide {
			if o.Options[key] != n.Options[key] {
				return conflict("options."+key, n.Options[key], "does not go with that of", o.Options[key]+", or another parent: the kernel keeps one for all")
			}
		}
	}
	return nil
}

// parented are the drivers whose interfaces take a parent's frames.
var parented = map[string]bool{"macvlan": true, "ipvlan": true, "vlan": true}

func (p Parent) exists(f kernel.Facts) bool {
	return f.Link(p.Link) != nil || p.Base != "" && f.Link(p.Base) != nil
}

// Trouble says why the parents of a network carry nothing now; "" where they do.
func Trouble(parents []string, f kernel.Facts) string {
	if len(parents) == 0 {
		return ""
	}
	last := parents[len(parents)-1] // the one that is not ours to make
	switch l := f.Link(last); {
	case l == nil && f.Link(parents[0]) == nil:
		return fmt.Sprintf("parent %q is no interface of the machine now", last)
	case l != nil && !l.Up:
		return fmt.Sprintf("parent %q is down", last)
	}
	return ""
}
