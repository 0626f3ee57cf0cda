package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
)

// Spec is what a lab is. It does not change while the lab lives, but for the number of hosts, which grows.
type Spec struct {
	// Name tells labs of one machine apart; see DefaultName.
	Name string `json:"name"`
	// Hosts is how many there are: h1, h2 …
	Hosts int `json:"hosts"`
	// IPv4 and IPv6 are the families of the underlay; one at least.
	IPv4 bool `json:"ipv4"`
	IPv6 bool `json:"ipv6"`
	// Routed puts each host in a subnet of its own, with a router between them; otherwise all are on one Ethernet.
	Routed bool `json:"routed"`
	// Cluster makes one cluster of the hosts.
	Cluster bool `json:"cluster"`
}

const (
	// DefaultName is the name of the lab where none is named.
	DefaultName = "lab"
	// MaxHosts is how many hosts a lab can have.
	MaxHosts = 100

	maxName  = 24 // with the socket's path it must fit into 107 bytes (unix(7))
	underlay = "underlay"
)

// checkName holds the name of a lab to what can stand in the names of files and namespaces.
func checkName(name string) error {
	ok := name != "" && len(name) <= maxName && name[0] != '-'
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	}
	if !ok {
		return api.FieldError("", "--name", name, "is no name of a lab", fmt.Sprintf("at most %d small letters, digits and '-', the first a letter or digit", maxName))
	}
	return nil
}

func (s *Spec) noun() string { return fmt.Sprintf("lab %q", s.Name) }

// Validate reports the first thing that is wrong.
func (s *Spec) Validate() error {
	if err := checkName(s.Name); err != nil {
		return err
	}
	if s.Hosts < 1 || s.Hosts > MaxHosts {
		return api.FieldError(s.noun(), "--hosts", s.Hosts, "is no number of hosts for a lab", fmt.Sprintf("1 to %d", MaxHosts))
	}
	if !s.IPv4 && !s.IPv6 {
		return api.Errorf(api.Invalid, s.noun(), "has neither IPv4 nor IPv6; want one of them or both")
	}
	return nil
}

// grow gives what a lab becomes that is there already and is asked for again: more hosts are added, fewer remove none, and
// anything else can't be changed.
func (s *Spec) grow(want Spec) (Spec, error) {
	for _, f := range []struct {
		what     string
		is, want bool
	}{{"IPv4", s.IPv4, want.IPv4}, {"IPv6", s.IPv6, want.IPv6}, {"--routed", s.Routed, want.Routed}, {"a cluster", s.Cluster, want.Cluster}} {
		if f.is != f.want {
			return *s, api.Errorf(api.Conflict, s.noun(), "is there %s %s; want the same, another --name, or `seine lab down` first", map[bool]string{true: "with", false: "without"}[f.is], f.what)
		}
	}
	out := *s
	out.Hosts = max(s.Hosts, want.Hosts)
	return out, nil
}

// hostName is the name of host number n, from 1.
func hostName(n int) string { return "h" + strconv.Itoa(n) }

// host gives the number of a host of the lab by its name.
func (s *Spec) host(name string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(name, "h"))
	if err != nil || name != hostName(n) || n < 1 || n > s.Hosts {
		return 0, api.Errorf(api.NotFound, fmt.Sprintf("host %q", name), "is not in lab %q; want h1 to %s", s.Name, hostName(s.Hosts))
	}
	return n, nil
}

// netns is the name of the network namespace of a host, or of the underlay.
func (s *Spec) netns(host string) string { return namePrefix + s.Name + "-" + host }

// port is the underlay's end of a host's link.
func port(n int) string { return "p" + strconv.Itoa(n) }

// link is an address of a host with the router that it reaches all others by.
type link struct {
	host    netip.Prefix
	gateway netip.Addr
}

// links gives the addresses of host number n: of the ranges for measuring (RFC 2544) and for documentation (RFC 3849), which
// no machine uses elsewhere.
func (s *Spec) links(n int) []link {
	var out []link
	add := func(on bool, host, gateway string) {
		if on {
			out = append(out, link{netip.MustParsePrefix(host), netip.MustParseAddr(gateway)})
		}
	}
	if s.Routed {
		add(s.IPv4, fmt.Sprintf("198.18.%d.2/24", n), fmt.Sprintf("198.18.%d.1", n))
		add(s.IPv6, fmt.Sprintf("2001:db8:0:%d::2/64", n), fmt.Sprintf("2001:db8:0:%d::1", n))
	} else {
		add(s.IPv4, fmt.Sprintf("198.18.0.%d/24", n), "198.18.0.254")
		add(s.IPv6, fmt.Sprintf("2001:db8::%d/64", n), "2001:db8::fe")
	}
	return out
}

// Addresses are those of host number n, IPv4 first.
func (s *Spec) Addresses(n int) []netip.Addr {
	var out []netip.Addr
	for _, l := range s.links(n) {
		out = append(out, l.host.Addr())
	}
	return out
}

// underlayScript makes what is between the hosts, in the words of `ip -batch`.
func (s *Spec) underlayScript() string {
	if s.Routed {
		return "link set lo up\n"
	}
	b := "link set lo up\nlink add br0 type bridge stp_state 0 mcast_snooping 0\n"
	for _, l := range s.links(1) {
		b += addrLine(netip.PrefixFrom(l.gateway, l.host.Bits()), "br0")
	}
	return b + "link set br0 up\n"
}

// addrLine gives a link an address, an IPv6 one without a second in which it is tried out.
func addrLine(p netip.Prefix, dev string) string {
	if p.Addr().Is6() {
		return fmt.Sprintf("addr add %s dev %s nodad\n", p, dev)
	}
	return fmt.Sprintf("addr add %s dev %s\n", p, dev)
}

// cutRules drop what passes between hosts that are cut off from each other, in the words of nft(8). The names of links are
// those of a bridge's ports or of a router's interfaces.
func (s *Spec) cutRules() string {
	return fmt.Sprintf(`table %s {
	set cut { type ifname . ifname; }
	chain between {
		type filter hook forward priority 0; policy accept;
		iifname . oifname @cut drop
	}
}
`, s.table())
}

// table is the family and the name of the table that cuts.
func (s *Spec) table() string {
	if s.Routed {
		return "inet seine_lab"
	}
	return "bridge seine_lab"
}

// cable lays a link to host number n; it is run in the underlay.
func (s *Spec) cable(n int) string {
	b := fmt.Sprintf("link add %s type veth peer name eth0 netns %s\n", port(n), s.netns(hostName(n)))
	if !s.Routed {
		return b + fmt.Sprintf("link set %s master br0 up\n", port(n))
	}
	for _, l := range s.links(n) {
		b += addrLine(netip.PrefixFrom(l.gateway, l.host.Bits()), port(n))
	}
	return b + fmt.Sprintf("link set %s up\n", port(n))
}

// hostScript sets the network of host number n up; it is run in the host.
func (s *Spec) hostScript(n int) string {
	b := "link set lo up\n"
	for _, l := range s.links(n) {
		b += addrLine(l.host, "eth0")
	}
	b += "link set eth0 up\n"
	for _, l := range s.links(n) {
		b += fmt.Sprintf("route add default via %s\n", l.gateway)
	}
	return b
}

// pairs gives the numbers of the hosts that are meant: those of two names; a host and every other one; or, with no name,
// every two.
func (s *Spec) pairs(names []string) ([][2]int, error) {
	var named []int
	for _, name := range names {
		n, err := s.host(name)
		if err != nil {
			return nil, err
		}
		if slices.Contains(named, n) {
			return nil, api.Errorf(api.Invalid, fmt.Sprintf("host %q", name), "is named twice; want two hosts")
		}
		named = append(named, n)
	}
	var out [][2]int
	for a := 1; a <= s.Hosts; a++ {
		for b := a + 1; b <= s.Hosts; b++ {
			wanted := func(n int) bool { return n == a || n == b }
			if !slices.ContainsFunc(named, func(n int) bool { return !wanted(n) }) {
				out = append(out, [2]int{a, b})
			}
		}
	}
	return out, nil
}

// setPairs cuts pairs, or heals them, in the words of nft(8). Those that are in that state already stay in it.
func (s *Spec) setPairs(pairs [][2]int, cut bool) string {
	if len(pairs) == 0 {
		return ""
	}
	var all []string
	for _, p := range pairs {
		all = append(all, port(p[0])+" . "+port(p[1]), port(p[1])+" . "+port(p[0]))
	}
	elements := fmt.Sprintf("element %s cut { %s }\n", s.table(), strings.Join(all, ", "))
	b := "add " + elements // what is not there can't be deleted
	if !cut {
		b += "delete " + elements
	}
	return b
}
