package fake

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// The sysctls that are known, with the values of a fresh network namespace; what is not here does not exist, so that a
// slip of the pen in a name is found.
var (
	globalSysctls = fields(`net/ipv4/ip_forward=0 net/ipv4/ip_nonlocal_bind=0 net/ipv4/ip_unprivileged_port_start=1024
		net/ipv4/ip_default_ttl=64 net/ipv4/tcp_mtu_probing=0 net/ipv4/icmp_echo_ignore_all=0 net/ipv4/tcp_syncookies=1
		net/ipv4/fib_multipath_hash_policy=0 net/ipv4/ping_group_range=1:0 net/ipv4/raw_l3mdev_accept=1
		net/ipv4/tcp_l3mdev_accept=0 net/ipv4/udp_l3mdev_accept=0
		net/ipv6/bindv6only=0 net/ipv6/ip_nonlocal_bind=0 net/ipv6/fib_multipath_hash_policy=0
		net/bridge/bridge-nf-call-arptables=1 net/bridge/bridge-nf-call-iptables=1 net/bridge/bridge-nf-call-ip6tables=1
		net/core/somaxconn=4096
		net/netfilter/nf_conntrack_max=262144 net/netfilter/nf_conntrack_tcp_be_liberal=0
		net/netfilter/nf_conntrack_tcp_loose=1 net/netfilter/nf_conntrack_acct=0`)
	confSysctls = map[string]map[string]string{
		"ipv4": fields(`accept_local=0 accept_redirects=1 accept_source_route=1 arp_accept=0 arp_announce=0 arp_filter=0
			arp_ignore=0 arp_notify=0 bc_forwarding=0 disable_policy=0 disable_xfrm=0 drop_gratuitous_arp=0
			drop_unicast_in_l2_multicast=0 forwarding=0 ignore_routes_with_linkdown=0 log_martians=0 medium_id=0
			promote_secondaries=0 proxy_arp=0 proxy_arp_pvlan=0 route_localnet=0 rp_filter=0 secure_redirects=1
			send_redirects=1 shared_media=1 src_valid_mark=0`),
		"ipv6": fields(`accept_dad=1 accept_ra=1 accept_ra_defrtr=1 accept_ra_pinfo=1 accept_redirects=1
			accept_source_route=1 addr_gen_mode=0 autoconf=1 dad_transmits=1 disable_ipv6=0 disable_policy=0
			drop_unicast_in_l2_multicast=0 drop_unsolicited_na=0 enhanced_dad=1 forwarding=0 hop_limit=64
			ignore_routes_with_linkdown=0 keep_addr_on_down=0 mtu=1500 ndisc_notify=0 optimistic_dad=0 proxy_ndp=0
			router_solicitations=-1 seg6_enabled=0 use_oif_addrs_only=0 use_optimistic=0 use_tempaddr=0`),
	}
	neighSysctls = fields(`app_solicit=0 base_reachable_time_ms=30000 delay_first_probe_time=5 gc_stale_time=60
		locktime=100 mcast_solicit=3 proxy_delay=80 proxy_qlen=64 retrans_time_ms=1000 ucast_solicit=3 unres_qlen_bytes=212992`)
)

func fields(s string) map[string]string {
	m := map[string]string{}
	for _, f := range strings.Fields(s) {
		k, v, _ := strings.Cut(f, "=")
		m[k] = strings.ReplaceAll(v, ":", "\t")
	}
	return m
}

// splitSysctl takes net/FAMILY/conf/LINK/LEAF (or neigh for conf) apart: family/conf, LINK, LEAF.
func splitSysctl(name string) (dir, dev, leaf string, ok bool) {
	p := strings.Split(name, "/")
	if len(p) != 5 || p[0] != "net" || p[1] != "ipv4" && p[1] != "ipv6" || p[2] != "conf" && p[2] != "neigh" {
		return "", "", "", false
	}
	return p[1] + "/" + p[2], p[3], p[4], true
}

// sysctlDefault gives the value of a sysctl that nobody wrote; "" for one that is not there.
func (s *space) sysctlDefault(name string) string {
	dir, dev, leaf, ok := splitSysctl(name)
	if !ok {
		return globalSysctls[name]
	}
	if dev != "all" && dev != "default" && s.links[dev] == nil {
		return ""
	}
	family, kind, _ := strings.Cut(dir, "/")
	if kind == "neigh" {
		return neighSysctls[leaf]
	}
	return confSysctls[family][leaf]
}

// sysctl gives the value; "" where it is not there.
func (s *space) sysctl(name string) string {
	if v, ok := s.sysctls[name]; ok {
		return v
	}
	return s.sysctlDefault(name)
}

// sysctlGone reports whether the sysctl's link is gone, so that there is nothing to put back.
func (s *space) sysctlGone(name string) bool { return s.sysctl(name) == "" }

// noIPv6 reports whether a link has IPv6 turned off. What is written to "all" was copied to the link then.
func (s *space) noIPv6(dev string) bool { return s.sysctl("net/ipv6/conf/"+dev+"/disable_ipv6") == "1" }

// promotes reports whether a secondary address takes the place of a primary one that is removed.
func (s *space) promotes(dev string) bool {
	return s.sysctl("net/ipv4/conf/all/promote_secondaries") == "1" ||
		s.sysctl("net/ipv4/conf/"+dev+"/promote_secondaries") == "1"
}

func (s *space) keepsAddrs(dev string) bool {
	all := s.sysctl("net/ipv6/conf/all/keep_addr_on_down")
	return all == "1" || all == "0" && s.sysctl("net/ipv6/conf/"+dev+"/keep_addr_on_down") == "1"
}

func (k *Kernel) putSysctl(s *space, o *kernel.Sysctl) error {
	if s.sysctl(o.Name) == "" {
		if _, dev, leaf, ok := splitSysctl(o.Name); ok && s.links[dev] == nil && leaf != "" {
			return fmt.Errorf("link %q: %w", dev, kernel.ErrAbsent)
		}
		return fmt.Errorf("no such sysctl: %w", kernel.ErrUnsupported)
	}
	if o.Value == "" || strings.TrimSpace(o.Value) != o.Value {
		return fmt.Errorf("value %q is empty or has blanks around it", o.Value)
	}
	s.setSysctl(o.Name, o.Value)
	dir, dev, leaf, _ := splitSysctl(o.Name)
	if o.Name == "net/ipv4/ip_forward" {
		dir, dev, leaf = "ipv4/conf", "all", "forwarding"
		s.setSysctl("net/ipv4/conf/all/forwarding", o.Value)
	}
	switch {
	case dir == "ipv4/conf" && leaf == "forwarding" && dev == "all":
		s.setSysctl("net/ipv4/ip_forward", o.Value)
		s.spread(dir, leaf, o.Value)
	case dir == "ipv6/conf" && leaf == "forwarding" && dev == "all":
		s.spread(dir, leaf, o.Value)
	case dir == "ipv6/conf" && leaf == "disable_ipv6":
		if dev == "all" {
			s.spread(dir, leaf, o.Value)
		}
		for _, l := range s.links {
			if s.noIPv6(l.name) {
				k.dropIPv6(s, l)
				maps.DeleteFunc(s.routes, func(_ kernel.Key, r *route) bool { return r.Link == l.name && r.Dst.Addr().Is6() })
			}
		}
	}
	return nil
}

// setSysctl keeps only values that differ from the default, so that a value that was put back leaves no trace.
func (s *space) setSysctl(name, value string) {
	if value == s.sysctlDefault(name) {
		delete(s.sysctls, name)
		return
	}
	s.sysctls[name] = value
}

// spread writes a value to "default" and to every link, as the kernel does when "all" is written.
func (s *space) spread(dir, leaf, value string) {
	for _, dev := range append(slices.Collect(maps.Keys(s.links)), "default") {
		s.setSysctl("net/"+dir+"/"+dev+"/"+leaf, value)
	}
}

// inherit gives a new link the values of net/*/conf/default and net/*/neigh/default.
func (s *space) inherit(dev string) {
	for name, v := range s.sysctls {
		if dir, d, leaf, ok := splitSysctl(name); ok && d == "default" {
			s.setSysctl("net/"+dir+"/"+dev+"/"+leaf, v)
		}
	}
}
