package cli

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
)

const (
	// maxHostname is the kernel's __NEW_UTS_LEN.
	maxHostname = 64
	// maxNameServers is how many a C library asks (resolv.conf(5), MAXNS).
	maxNameServers = 3
)

// hostnameOf makes a host name of a container's name, which may be longer.
func hostnameOf(name string) string { return name[:min(len(name), maxHostname)] }

// files gives the files of name resolution inside a sandbox.
func files(hostname, name, resolv string, endpoints []api.Endpoint) map[string]string {
	out := map[string]string{"/etc/resolv.conf": resolv, "/etc/hosts": hosts(hostname, name, endpoints)}
	if _, err := os.Stat("/etc/hostname"); err == nil { // not every system has it
		out["/etc/hostname"] = hostname + "\n"
	}
	return out
}

// machineResolvConf gives the machine's own resolv.conf(5); "" where it can't be read.
func machineResolvConf() string {
	b, _ := os.ReadFile("/etc/resolv.conf")
	return string(b)
}

// resolvConf is the resolv.conf(5) of a sandbox. It names the fixed address of the name server first, where the default
// route leads to it: that one goes on working when the sandbox leaves the network that its gateway is of.
//
// The search list is what the networks ask for, or else the machine's, so that short names of the machine's own domain
// work as they do there. Names are looked for as they are before it is used (ndots:0): the name server knows the short
// names, and those are not to be told abroad first. A sandbox that has no way out has no use for the machine's list.
//
// On networks that this machine is not on, such as macvlan's, there is no name server of ours: there, the machine's own
// are named.
func resolvConf(machine string, fixed []netip.Addr, endpoints []api.Endpoint) string {
	var servers []netip.Addr
	var search, options []string
	routed := false
	for _, e := range endpoints {
		if e.Status == nil {
			continue
		}
		if gws := e.Status.Gateways; !routed && len(gws) > 0 {
			routed = true
			if i := slices.IndexFunc(fixed, func(a netip.Addr) bool { return a.Is4() == gws[0].Is4() }); i >= 0 && slices.Contains(e.Status.DNS, gws[0]) {
				servers = append([]netip.Addr{fixed[i]}, servers...)
			}
		}
		servers = append(servers, e.Status.DNS...)
		search, options = append(search, e.Status.Search...), append(options, e.Status.DNSOptions...)
	}
	ours := len(servers) > 0
	if !ours && slices.ContainsFunc(endpoints, func(e api.Endpoint) bool { return len(e.Addresses) > 0 }) {
		servers = machineServers(machine)
	}
	if len(search) == 0 && routed {
		search = machineSearch(machine)
	}
	search = slices.DeleteFunc(search, func(s string) bool { return s == "." })
	var b strings.Builder
	b.WriteString("# by seine run\n")
	for i, a := range unique(servers) {
		if i < maxNameServers {
			fmt.Fprintf(&b, "nameserver %s\n", a)
		}
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(unique(search), " "))
	}
	if ours && !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		options = append(options, "ndots:0")
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(unique(options), " "))
	}
	return b.String()
}

// machineSearch gives the search list of a resolv.conf(5): of the lines "search" and "domain" the last one counts.
func machineSearch(text string) (search []string) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "search" || f[0] == "domain") {
			search = f[1:]
		}
	}
	return search
}

// machineServers gives the name servers of a resolv.conf(5) that a sandbox may reach, too: not those on the loopback. A
// network that the machine is not on has no others.
func machineServers(text string) (servers []netip.Addr) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil && !a.IsLoopback() && a.Zone() == "" {
				servers = append(servers, a)
			}
		}
	}
	return servers
}

// unique keeps the first of equal ones.
func unique[T comparable](all []T) []T {
	var out []T
	for _, x := range all {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// hosts names the sandbox itself: the name server would too, but programs expect it to work without one.
func hosts(hostname, name string, endpoints []api.Endpoint) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n")
	names := hostname
	if name != hostname {
		names += " " + name
	}
	for _, e := range endpoints {
		for _, a := range e.Addresses {
			fmt.Fprintf(&b, "%s %s\n", a, names)
		}
	}
	return b.String()
}

// describe says how a container is reached.
func describe(name string, endpoints []api.Endpoint) string {
	var b strings.Builder
	for _, e := range endpoints {
		if len(e.Addresses) == 0 {
			fmt.Fprintf(&b, "seine: %s is on %s\n", name, e.Network)
			continue
		}
		fmt.Fprintf(&b, "seine: %s is on %s at %s; containers there reach it as %s\n", name, e.Network, list(e.Addresses),
			strings.Join(append([]string{name}, e.Aliases...), ", "))
		for _, p := range e.Ports {
			fmt.Fprintf(&b, "seine: its port %d/%s is at %s\n", p.ContainerPort, p.ProtocolOrTCP(), reachedAt(p))
		}
	}
	return b.String()
}

// reachedAt lists where a published port is reached.
func reachedAt(p api.Port) string {
	v4, v6 := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.HostPort).String(), netip.AddrPortFrom(netip.IPv6Loopback(), p.HostPort).String()
	switch {
	case !p.HostIP.IsValid():
		return v4 + ", " + v6 + " and the machine's other addresses"
	case p.HostIP == netip.IPv4Unspecified():
		return v4 + " and the machine's other IPv4 addresses"
	case p.HostIP == netip.IPv6Unspecified():
		return v6 + " and the machine's other IPv6 addresses"
	}
	return netip.AddrPortFrom(p.HostIP, p.HostPort).String()
}
