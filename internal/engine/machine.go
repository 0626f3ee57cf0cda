package engine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// forwarding has the machine forward packets, and go on listening to its routers.
func (e *Engine) forwarding(f kernel.Facts) ([]kernel.Object, error) {
	var out []kernel.Object
	sysctl := func(name, value, now string) error {
		before, err := e.baseline(name, now)
		if err != nil {
			return err
		}
		out = append(out, &kernel.Sysctl{Name: name, Value: value, Before: before})
		return nil
	}
	// A machine that forwards stops to listen to router advertisements, and would lose its own default route with the
	// next lifetime, unless it is told to go on (accept_ra 2).
	for _, l := range f.Links {
		name := "net/ipv6/conf/" + l.Name + "/accept_ra"
		uplink := l.AcceptRA == 1 && l.Name == f.Default6 || l.AcceptRA == 2 && e.Store.Value("before/"+name) != ""
		if uplink && !f.NoIPv6 {
			if err := sysctl(name, "2", "1"); err != nil {
				return nil, err
			}
		}
	}
	if err := sysctl("net/ipv4/ip_forward", "1", digit(f.Forward4)); err != nil {
		return nil, err
	}
	if !f.NoIPv6 {
		if err := sysctl("net/ipv6/conf/all/forwarding", "1", digit(f.Forward6)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// apart has our containers reach those of Docker's own networks by published ports only.
func apart(f kernel.Facts) (out []kernel.Object) {
	for _, l := range f.Links {
		if dockerBridge(l.Name) && !l.Ours {
			out = append(out, ruleset.Element(ruleset.Apart, l.Name, "", MachineOwner))
		}
	}
	return out
}

// dockerBridge tells the bridges of Docker's own networks by the names that Docker gives them: docker0, or br- and twelve
// digits of an identity. Docker keeps its networks apart from each other, but before version 28 leaves what comes from
// elsewhere to the policy of FORWARD, before which our accepts stand.
func dockerBridge(name string) bool {
	digits, ok := strings.CutPrefix(name, "br-")
	return name == "docker0" || ok && len(digits) == 12 && strings.Trim(digits, "0123456789abcdef") == ""
}

func digit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// baseline gives the value that a sysctl had before it was first changed, and keeps it for a reset.
func (e *Engine) baseline(name, now string) (string, error) {
	if v := e.Store.Value("before/" + name); v != "" {
		return v, nil
	}
	return now, e.Store.SetValue("before/"+name, now)
}

// patterns gives the interface name patterns that cover all hosts: one wildcard for those with our prefix.
func patterns(hosts []string) []string {
	out := []string{kernel.HostPrefix + "*"}
	for _, h := range hosts {
		if !strings.HasPrefix(h, kernel.HostPrefix) && !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	return out
}

// standsFirst tells chains in which an accept before the last rule comes too late: firewalld's zones reject by themselves.
func standsFirst(c kernel.ForeignChain) bool { return c.Table == "firewalld" }

// accepts gives the rules that let our packets pass a chain that ends in a drop. Our own chain decides about them. Guests
// reach the name server only.
func (e *Engine) accepts(c kernel.ForeignChain, ifnames []string, guests []kernel.LinkFact) []kernel.Object {
	if c.Locked {
		return nil
	}
	var out []kernel.Object
	add := func(format string, args ...any) {
		out = append(out, &kernel.Accept{Family: c.Family, Table: c.Table, Chain: c.Chain, Rule: fmt.Sprintf(format, args...), First: standsFirst(c)})
	}
	question := func(from string) {
		add("iifname %q udp dport %d", from, e.DNSPort)
		add("iifname %q tcp dport %d", from, e.DNSPort)
	}
	for _, g := range guests {
		if c.Hook == "input" {
			question(g.Name)
		}
	}
	for _, name := range ifnames {
		switch c.Hook {
		case "forward":
			add("iifname %q", name)
			add("oifname %q", name)
		case "input":
			question(name)
			if c.Family != "ip" {
				add("iifname %q meta l4proto ipv6-icmp", name) // neighbour discovery
			}
		}
	}
	return out
}
