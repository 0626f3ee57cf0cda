package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/dns"
	"github.com/seine-net/seine/internal/engine"
	doors "github.com/seine-net/seine/internal/frontdoor/http"
	"github.com/seine-net/seine/internal/loopback"
	"github.com/seine-net/seine/internal/state"
)

// nameServer makes the name server on its sockets.
func nameServer(o Options, on *dns.Sockets, table *dns.Table, log *slog.Logger) *dns.Server {
	fixed := o.fixed()
	up := dns.NewForwarder(dns.ForwarderConfig{Servers: o.DNSUpstreams, Log: log, Own: func(a netip.Addr) bool { return slices.Contains(fixed, a) }})
	return dns.New(dns.Config{Zone: table, On: on, Forwarder: up, Log: log})
}

// parseUpstream reads a resolver's address, with port 53 where none is given.
func parseUpstream(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 53), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return ap, errors.New("want an address, or an address and a port such as 192.0.2.1:53 or [2001:db8::1]:53")
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// names is the engine's view of the name server.
type names struct{ table *dns.Table }

func (n names) Set(key string, r engine.NameRecord) { n.table.Set(key, dns.Record(r)) }

func (n names) Drop(key string) { n.table.Drop(key) }

func (n names) SetGuests(from []netip.Prefix) { n.table.SetGuests(from) }

// fixedAddr reads an address for the name server: "" for none.
func fixedAddr(into *netip.Addr, v4 bool) func(string) error {
	return func(s string) error {
		if s == "" {
			*into = netip.Addr{}
			return nil
		}
		a, err := netip.ParseAddr(s)
		private := err == nil && (a.IsLinkLocalUnicast() && a.Is4() || a.IsPrivate())
		switch {
		case err != nil || a.Is4() != v4 || !private:
			return fmt.Errorf("want %s, or \"\" for none", map[bool]string{true: "a link-local or private IPv4 address", false: "a unique local IPv6 address"}[v4])
		case reservedAddrs[a] != "":
			return fmt.Errorf("is %s; want another address", reservedAddrs[a])
		}
		*into = a
		return nil
	}
}

// The fixed addresses of the name server, unless others are asked for. The last 256 of 169.254.0.0/16 are kept from hosts
// that give themselves one (RFC 3927 section 2.1); the unique local one has a prefix that was drawn by chance (RFC 4193).
var (
	defaultFixed4 = netip.MustParseAddr("169.254.255.53")
	defaultFixed6 = netip.MustParseAddr("fd5c:8d41:e7b6::53")
)

// reservedAddrs are well-known addresses that containers need to reach somebody else at.
var reservedAddrs = map[netip.Addr]string{
	netip.MustParseAddr("169.254.169.254"): "the metadata service of clouds",
	netip.MustParseAddr("169.254.169.253"): "the resolver of Amazon's cloud",
	netip.MustParseAddr("169.254.169.123"): "the time service of Amazon's cloud",
	netip.MustParseAddr("169.254.170.2"):   "the metadata service of Amazon ECS",
	netip.MustParseAddr("169.254.170.23"):  "the credentials' service of Amazon EKS",
	netip.MustParseAddr("169.254.20.10"):   "Kubernetes' node-local DNS cache",
	netip.MustParseAddr("169.254.25.10"):   "Kubespray's node-local DNS cache",
	netip.MustParseAddr("169.254.1.1"):     "Calico's gateway",
	netip.MustParseAddr("fd00:ec2::254"):   "the metadata service of Amazon's cloud",
	netip.MustParseAddr("fd00:ec2::253"):   "the resolver of Amazon's cloud",
	netip.MustParseAddr("fd00:ec2::23"):    "the credentials' service of Amazon EKS",
	netip.MustParseAddr("fd20:ce::254"):    "the metadata service of Google's cloud",
}

// fixed gives the addresses that are set.
func (o *Options) fixed() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{o.DNSFixed4, o.DNSFixed6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// relays is the engine's view of the loopback proxy.
type relays struct{ proxy *loopback.Proxy }

func (r relays) Set(key string, in []engine.Relay) error {
	out := make([]loopback.Listener, len(in))
	for i, x := range in {
		out[i] = loopback.Listener{Protocol: x.Protocol, Listen: x.Listen, Target: x.To}
	}
	return r.proxy.Set(key, out)
}

func (r relays) Drop(key string) { r.proxy.Drop(key) }

// leases is where the DHCP service keeps what it has.
type leases struct{ store *state.Store }

func (l leases) Values(prefix string) map[string]string {
	out := map[string]string{}
	for name, v := range l.store.Values(state.Lasting + prefix) {
		out[strings.TrimPrefix(name, state.Lasting)] = v
	}
	return out
}

func (l leases) SetValue(name, value string) error {
	return l.store.SetValue(state.Lasting+name, value)
}

// dhcpSocketMode lets root ask, and nobody else: what is asked names a namespace to enter.
const dhcpSocketMode = 0o600

// keepLeases runs the DHCP service. Where another daemon has its socket, or it can't be made, leases that are there are
// kept all the same.
func (d *daemon) keepLeases(ctx context.Context) error {
	var door net.Listener
	if path := d.opts.DHCPSocket; path != "" {
		var err error
		if door, err = doors.Listen(d.opts.DHCP.HostPrefix+path, dhcpSocketMode); errors.Is(err, doors.ErrAnswered) {
			d.log.Info("another daemon serves the CNI plugin dhcp", "socket", path)
		} else if err != nil {
			d.log.Warn("the CNI plugin dhcp is not served", "err", err)
		}
	}
	return d.leases.Run(ctx, door)
}

// firstOf gives the first command whose program the machine has, the last one where it has none.
func firstOf(commands ...string) string {
	for _, c := range commands {
		program, _, _ := strings.Cut(c, " ")
		if _, err := exec.LookPath(program); err == nil {
			return c
		}
	}
	return commands[len(commands)-1]
}
