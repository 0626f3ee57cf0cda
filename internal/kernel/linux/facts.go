package linux

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// Facts reads what the pure functions need to know about the machine, in the base namespace.
func (k *Kernel) Facts(ctx context.Context) (kernel.Facts, error) {
	var f kernel.Facts
	if err := ctx.Err(); err != nil {
		return f, err
	}
	s := k.session()
	defer s.close()
	sp, err := s.space("")
	if err != nil {
		return f, err
	}
	links, err := sp.links()
	if err != nil {
		return f, err
	}
	addrs, err := sp.addrs(0)
	if err != nil {
		return f, err
	}
	byIndex, at := map[int]*linkInfo{}, map[int]int{}
	for i, l := range links {
		byIndex[l.index], at[l.index] = l, i
		f.Links = append(f.Links, kernel.LinkFact{Name: l.name, Index: l.index, MTU: l.mtu, MAC: l.mac,
			Up: l.flags&unix.IFF_UP != 0, Ours: l.ours()})
	}
	for _, l := range links {
		f.Links[at[l.index]].Inner = l.kind == "bridge" && !l.ours() && inner(l, byIndex)
	}
	for _, a := range addrs {
		if i, ok := at[a.index]; ok {
			f.Links[i].Addrs = append(f.Links[i].Addrs, a.prefix)
		}
	}
	if err := sp.routeFacts(&f, byIndex); err != nil {
		return f, err
	}
	if err := sp.do(func() error { k.switches(&f); return nil }); err != nil {
		return f, err
	}
	chains, err := sp.foreignChains()
	if err != nil && !noNft(err) {
		return f, err
	}
	f.Chains = slices.DeleteFunc(chains, func(c kernel.ForeignChain) bool { return c.Why == "" })
	f.MachineID = machineID()
	return f, nil
}

// inner reports whether all ports of a bridge lead to containers or virtual machines. A veth whose other end is a port, too,
// leads on to another bridge, and who knows where from there.
func inner(bridge *linkInfo, links map[int]*linkInfo) bool {
	for _, l := range links {
		if l.master != bridge.index {
			continue
		}
		far := links[l.peer]
		leadsOn := l.netnsid == sameNetns && far != nil && far.master != 0
		if l.kind != tunKind && l.kind != string(kernel.Tap) && (l.kind != string(kernel.Veth) || leadsOn) {
			return false
		}
	}
	return true
}

// routeFacts fills in where the machine has routes to.
func (p *space) routeFacts(f *kernel.Facts, links map[int]*linkInfo) error {
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		routes, err := p.routes(fam, 0, 0)
		if isErrno(err, unix.EOPNOTSUPP, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return err
		}
		metric, via := -1, &f.Default4
		if fam == unix.AF_INET6 {
			via = &f.Default6
		}
		for _, r := range routes {
			l := links[r.index]
			switch dst := r.Dst; {
			case r.proto == kernel.RouteProtocol || r.Table == kernel.TableLocal || l != nil && l.ours():
			case dst.Addr().IsMulticast() || dst.Addr().IsLinkLocalUnicast() && fam == unix.AF_INET6:
			case dst.Bits() > 0:
				f.Routes = append(f.Routes, dst)
			case r.typ == unix.RTN_UNICAST && r.Table == kernel.TableMain && l != nil && (metric < 0 || r.Metric < metric):
				metric, *via = r.Metric, l.name
			}
		}
	}
	slices.SortFunc(f.Routes, netip.Prefix.Compare)
	f.Routes = slices.Compact(f.Routes)
	return nil
}

// switches reads sysctls on a thread in the base namespace. What can't be read is off.
func (k *Kernel) switches(f *kernel.Facts) {
	on := func(name string) bool { v, err := k.readSysctl(name); return err == nil && v != "0" }
	before := func(name string) bool {
		k.mu.Lock()
		v, ok := k.before[name]
		k.mu.Unlock()
		if ok {
			return v != "0"
		}
		return on(name)
	}
	f.BridgeFilter4 = on("net/bridge/bridge-nf-call-iptables")
	f.BridgeFilter6 = on("net/bridge/bridge-nf-call-ip6tables")
	f.Forward4, f.Forward6 = before(forward4), before(forward6)
	_, err := os.Stat("/proc/thread-self/net/if_inet6")
	f.NoIPv6 = err != nil || on("net/ipv6/conf/all/disable_ipv6")
	for i := range f.Links {
		if f.Links[i].Ours { // there may be thousands, and what they have is what we gave them
			continue
		}
		if v, err := k.readSysctl("net/ipv6/conf/" + f.Links[i].Name + "/accept_ra"); err == nil {
			f.Links[i].AcceptRA, _ = strconv.Atoi(v)
		}
	}
	for family, file := range map[string]string{"ip": "ip_tables_names", "ip6": "ip6_tables_names"} {
		if b, err := os.ReadFile("/proc/thread-self/net/" + file); err == nil && slices.Contains(strings.Fields(string(b)), "filter") {
			f.LegacyFilter = append(f.LegacyFilter, family)
		}
	}
	slices.Sort(f.LegacyFilter)
}

// ForeignChains lists the base chains of others, those too that let everything pass. It is cheap beside Facts.
func (k *Kernel) ForeignChains(ctx context.Context) ([]kernel.ForeignChain, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := k.session()
	defer s.close()
	sp, err := s.space("")
	if err != nil {
		return nil, err
	}
	return sp.foreignChains()
}

// foreignChains lists the base chains of others and says which drop what they don't know.
func (p *space) foreignChains() ([]kernel.ForeignChain, error) {
	chains, err := p.baseChains()
	if err != nil {
		return nil, err
	}
	var out []kernel.ForeignChain
	for _, c := range chains {
		rules, err := p.ruleInfos(c.family, c.table, c.Name)
		if err != nil {
			return nil, err
		}
		why := ""
		switch n := len(rules); {
		case n > 0 && rules[n-1].endsAll():
			why = "last rule rejects"
		case c.policy != nfAccept:
			why = "policy drop"
		}
		out = append(out, kernel.ForeignChain{Family: familyName(c.family), Table: c.table, Chain: c.Name, Hook: c.Hook, Why: why, Locked: c.locked,
			Owner: chainOwner(c, rules)})
	}
	return out, nil
}

// chainOwner guesses whose a chain is, by the names that the well-known programs use.
func chainOwner(c *rawChain, rules []*ruleInfo) string {
	switch {
	case c.table == "firewalld":
		return "firewalld"
	case c.table == "filter" && c.family != unix.NFPROTO_INET && c.Name == strings.ToUpper(c.Hook):
		for _, r := range rules {
			for target, owner := range map[string]string{"ufw": "ufw", "DOCKER": "Docker", "KUBE-": "Kubernetes", "LIBVIRT": "libvirt"} {
				if strings.HasPrefix(r.jumpsTo(), target) {
					return "iptables (" + owner + ")"
				}
			}
		}
		return "iptables (Docker, ufw)"
	}
	return "nftables table " + familyName(c.family) + " " + c.table
}

// jumpsTo gives the chain that the rule goes on in; "" for none.
func (r *ruleInfo) jumpsTo() string {
	for _, e := range attrs(r.exprs) {
		if cstr(attrOf(e, unix.NFTA_EXPR_NAME)) != "immediate" {
			continue
		}
		v := attrOf(attrOf(attrOf(e, unix.NFTA_EXPR_DATA), unix.NFTA_IMMEDIATE_DATA), unix.NFTA_DATA_VERDICT)
		if c := attrOf(v, unix.NFTA_VERDICT_CHAIN); c != nil {
			return cstr(c)
		}
	}
	return ""
}

func machineID() string {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
