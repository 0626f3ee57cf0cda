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
func files(hostname, name string, endpoints []api.Endpoint) map[string]string {
	out := map[string]string{"/etc/resolv.conf": resolvConf(endpoints), "/etc/hosts": hosts(hostname, name, endpoints)}
	if _, err := os.Stat("/etc/hostname"); err == nil { // not every system has it
		out["/etc/hostname"] = hostname + "\n"
	}
	return out
}

// resolvConf names the name servers of the endpoints. There is no search list: the name server knows the short names,
// and a search list would send every one that it does not know abroad.
func resolvConf(endpoints []api.Endpoint) string {
	var servers []netip.Addr
	for _, e := range endpoints {
		if e.Status == nil {
			continue
		}
		for _, a := range e.Status.DNS {
			if !slices.Contains(servers, a) && len(servers) < maxNameServers {
				servers = append(servers, a)
			}
		}
	}
	var b strings.Builder
	b.WriteString("# by seine run\n")
	for _, a := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	return b.String()
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
