package cases_test

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/testkit"
)

// world is what is seen of a machine at one moment: one thing per line, with names that are the same in every run. The
// machine's end of a veth is "veth(c1/eth0)", and a hardware address that nobody chose is MAC.
//
// It leaves out what is not the plugins' to say: link-local and multicast addresses and their routes, the kernel's local
// tables, counters, timers, and the protocol of a route, which says who made it.
type world struct {
	*run
	links map[*testkit.NS][]netlink.Link
	names map[string]string // of the machine's ends of veths
	lines []string
}

// world finds the links that there are.
func (r *run) world() (*world, error) {
	w := &world{run: r, links: map[*testkit.NS][]netlink.Link{}, names: map[string]string{}}
	for _, n := range r.machine.all() {
		links, err := n.Netlink().LinkList()
		if err != nil {
			return nil, fmt.Errorf("links of %s: %w", n.Name, err)
		}
		w.links[n] = links
	}
	w.nameVeths()
	return w, nil
}

// state looks at the machine and its containers.
func (r *run) state() ([]string, error) {
	w, err := r.world()
	if err != nil {
		return nil, err
	}
	for _, n := range r.machine.all() {
		for _, look := range []func(*testkit.NS) error{w.linksOf, w.addrsOf, w.routesOf, w.rulesOf, w.queuesOf, w.sysctlsOf} {
			if err := look(n); err != nil {
				return nil, fmt.Errorf("state of %s: %w", n.Name, err)
			}
		}
	}
	err = errors.Join(r.machine.do(w.files), w.filter())
	slices.Sort(w.lines)
	return slices.Compact(w.lines), err
}

// settled gives the state when it has stopped changing.
func (r *run) settled() (last []string, err error) {
	for range 30 {
		now, err := r.state()
		if err == nil && slices.Equal(now, last) {
			return now, nil
		}
		last = now
		time.Sleep(200 * time.Millisecond)
	}
	return nil, fmt.Errorf("the state does not stop changing: %w", err)
}

// look adds what differs from the state to begin with. Some of what the kernel reports follows later: it waits for what
// is wanted.
func (r *run) look(after string) error {
	var now, lines []string
	var err error
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if r.want == nil {
			now, err = r.settled()
		} else {
			now, err = r.state()
		}
		lines = r.changes(after, now)
		if r.want == nil || err == nil && r.want.met("after "+after+": ", lines) || time.Now().After(end) {
			r.lines = append(r.lines, lines...)
			return err
		}
	}
}

// changes gives the state's lines that were not there in the beginning (+), and those that are not there any more (-).
// The packet filter is the plugins' own affair until they should be gone, and a container that ended takes its lines along.
func (r *run) changes(after string, now []string) (lines []string) {
	alive := map[string]bool{}
	for _, n := range r.machine.all() {
		alive[n.Name] = true
	}
	add := func(sign string, these, those []string) {
		for _, line := range these {
			f := strings.SplitN(line, " ", 4)
			if _, found := slices.BinarySearch(those, line); found || !alive[f[0]] || after == "ADD" && f[1] == "nft" {
				continue
			}
			// A sysctl's new value says that it is not the old one.
			i, _ := slices.BinarySearch(those, strings.Join(f[:3], " ")+" ")
			if f[1] == "sysctl" && sign == "-" && i < len(those) && strings.HasPrefix(those[i], strings.Join(f[:3], " ")+" ") {
				continue
			}
			lines = append(lines, fmt.Sprintf("after %s: %s %s", after, sign, line))
		}
	}
	add("-", r.before, now)
	add("+", now, r.before)
	return lines
}

// add adds a line, in which words are what is so and "" is nothing.
func (w *world) add(n *testkit.NS, what, of string, words ...string) {
	line := n.Name + " " + what + " " + w.stable(of)
	for _, word := range words {
		if word != "" {
			line += " " + w.stable(word)
		}
	}
	w.lines = append(w.lines, line)
}

// word is a property for add: nothing where is is not.
func word(is bool, format string, args ...any) string {
	if !is {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

var (
	macPattern  = regexp.MustCompile(`\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b`)
	markPattern = regexp.MustCompile(`seine-cni:[0-9a-f]+:[0-9a-f]+`)
	ifbPattern  = regexp.MustCompile(`\bbwp[0-9a-f]{12}\b`) // bandwidth's
	vethPattern = regexp.MustCompile(`\bveth[0-9a-f]{4,}\b`)
)

// stable puts what is random into words that are the same in every run.
func (w *world) stable(s string) string {
	s = vethPattern.ReplaceAllStringFunc(s, func(name string) string {
		if known := w.names[name]; known != "" {
			return known
		}
		return "veth(?)"
	})
	s = ifbPattern.ReplaceAllString(markPattern.ReplaceAllString(s, "MARK"), "bwpHASH")
	return macPattern.ReplaceAllStringFunc(s, func(mac string) string {
		if strings.Contains(w.fixed, mac) || mac == hostMAC.String() || mac == extMAC.String() {
			return mac
		}
		return "MAC"
	})
}

// nameVeths names the machine's ends of veths by the other ends.
func (w *world) nameVeths() {
	ends := map[[2]int]string{} // by both indices
	for _, n := range w.machine.all()[1:] {
		for _, l := range w.links[n] {
			if l.Type() == "veth" {
				ends[[2]int{l.Attrs().ParentIndex, l.Attrs().Index}] = fmt.Sprintf("veth(%s/%s)", n.Name, l.Attrs().Name)
			}
		}
	}
	for _, l := range w.links[w.machine.host] {
		a := l.Attrs()
		if l.Type() != "veth" {
			continue
		}
		if name := ends[[2]int{a.Index, a.ParentIndex}]; name != "" {
			w.names[a.Name] = name
		} else if a.NetNsID < 0 {
			w.names[a.Name] = fmt.Sprintf("veth(HOST/%s)", w.link(w.machine.host, a.ParentIndex))
		}
	}
}

// link gives a link's name by its index.
func (w *world) link(n *testkit.NS, index int) string {
	for _, l := range w.links[n] {
		if l.Attrs().Index == index {
			return l.Attrs().Name
		}
	}
	return "?"
}

func (w *world) linksOf(n *testkit.NS) error {
	filtering := false
	for _, l := range w.links[n] {
		a := l.Attrs()
		parent := ""
		if a.ParentIndex != 0 && l.Type() != "veth" {
			parent = "on " + w.link(n, a.ParentIndex)
			if a.NetNsID >= 0 {
				parent = "on HOST " + w.link(w.machine.host, a.ParentIndex)
			}
		}
		w.add(n, "link", a.Name, l.Type(), fmt.Sprintf("mtu %d", a.MTU),
			word(a.RawFlags&unix.IFF_UP != 0, "up"), word(a.RawFlags&unix.IFF_PROMISC != 0, "promisc"),
			word(a.RawFlags&unix.IFF_ALLMULTI != 0, "allmulti"), word(a.RawFlags&unix.IFF_NOARP != 0, "noarp"),
			parent, word(a.MasterIndex != 0, "master %s", w.link(n, a.MasterIndex)), kind(l))
		w.add(n, "link", a.Name, word(a.HardwareAddr != nil, "mac %s", a.HardwareAddr), word(a.HardwareAddr == nil, "no mac"))
		w.add(n, "link", a.Name, fmt.Sprintf("txqlen %d", a.TxQLen))
		if a.Alias != "" {
			w.add(n, "link", a.Name, "alias "+a.Alias)
		}
		if b, ok := l.(*netlink.Bridge); ok {
			filtering = filtering || b.VlanFiltering != nil && *b.VlanFiltering
		}
		if a.Slave == nil || a.Slave.SlaveType() != "bridge" {
			continue
		}
		p, err := n.Netlink().LinkGetProtinfo(l)
		if err != nil {
			return err
		}
		w.add(n, "port", a.Name, p.String(), word(p.Isolated, "isolated"))
	}
	if filtering {
		return w.vlansOf(n)
	}
	return nil
}

// kind gives what only links of a kind have.
func kind(l netlink.Link) string {
	switch l := l.(type) {
	case *netlink.Bridge:
		return word(l.VlanFiltering != nil && *l.VlanFiltering, "vlan_filtering")
	case *netlink.Macvlan:
		return fmt.Sprintf("mode %d bcqueuelen %d", l.Mode, l.UsedBCQueueLen)
	case *netlink.IPVlan:
		return fmt.Sprintf("mode %d flag %d", l.Mode, l.Flag)
	case *netlink.Vlan:
		return fmt.Sprintf("id %d %s", l.VlanId, l.VlanProtocol)
	case *netlink.Vrf:
		return fmt.Sprintf("table %d", l.Table)
	case *netlink.Tuntap:
		return fmt.Sprintf("mode %d flags %#x owner %d group %d", l.Mode, uint16(l.Flags), int32(l.Owner), int32(l.Group))
	}
	return ""
}

func (w *world) vlansOf(n *testkit.NS) error {
	all, err := n.Netlink().BridgeVlanList()
	for index, vlans := range all {
		for _, v := range vlans {
			w.add(n, "vlan", w.link(n, int(index)), fmt.Sprint(v.Vid), word(v.PortVID(), "pvid"), word(v.EngressUntag(), "untagged"))
		}
	}
	return err
}

func (w *world) addrsOf(n *testkit.NS) error {
	for _, l := range w.links[n] {
		addrs, err := n.Netlink().AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() && a.IP.To4() == nil {
				continue
			}
			w.add(n, "addr", l.Attrs().Name, a.IPNet.String(), word(a.Peer != nil && a.Peer.String() != a.IPNet.String(), "peer %v", a.Peer),
				word(a.Broadcast != nil, "brd %s", a.Broadcast), "scope "+netlink.Scope(a.Scope).String(),
				word(a.Flags&unix.IFA_F_NOPREFIXROUTE != 0, "noprefixroute"), word(a.ValidLft != 0 && uint32(a.ValidLft) != 1<<32-1, "limited"))
		}
	}
	return nil
}

func (w *world) routesOf(n *testkit.NS) error {
	for family, any := range map[int]string{netlink.FAMILY_V4: "0.0.0.0/0", netlink.FAMILY_V6: "::/0"} {
		routes, err := n.Netlink().RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			to := any
			if r.Dst != nil {
				to = r.Dst.String()
			}
			if r.Table == unix.RT_TABLE_LOCAL || strings.HasPrefix(to, "fe80:") || strings.HasPrefix(to, "ff00:") {
				continue
			}
			hops := word(r.LinkIndex != 0, "dev %s", w.link(n, r.LinkIndex))
			for _, h := range r.MultiPath {
				hops += fmt.Sprintf(" nexthop %s dev %s", h.Gw, w.link(n, h.LinkIndex))
			}
			w.add(n, "route", to, word(r.Type != unix.RTN_UNICAST, "type %d", r.Type), word(r.Gw != nil, "via %s", r.Gw), hops,
				word(r.Src != nil, "src %s", r.Src), word(family == netlink.FAMILY_V4, "scope %s", r.Scope), fmt.Sprintf("metric %d", r.Priority),
				word(r.Table != unix.RT_TABLE_MAIN, "table %d", r.Table), word(r.MTU != 0, "mtu %d", r.MTU), word(r.AdvMSS != 0, "advmss %d", r.AdvMSS),
				word(r.Flags&unix.RTNH_F_ONLINK != 0, "onlink"))
		}
	}
	return nil
}

func (w *world) rulesOf(n *testkit.NS) error {
	for family, name := range map[int]string{netlink.FAMILY_V4: "4", netlink.FAMILY_V6: "6"} {
		rules, err := n.Netlink().RuleList(family)
		if err != nil {
			return err
		}
		for _, r := range rules {
			w.add(n, "rule", name, r.String())
		}
	}
	return nil
}

// unshaped are the queueing disciplines that the kernel gives to links by itself.
var unshaped = []string{"noqueue", "pfifo_fast", "mq", "fq_codel", "pfifo"}

func (w *world) queuesOf(n *testkit.NS) error {
	for _, l := range w.links[n] {
		queues, err := n.Netlink().QdiscList(l)
		if err != nil {
			return err
		}
		for _, q := range queues {
			if q.Attrs().LinkIndex != l.Attrs().Index || slices.Contains(unshaped, q.Type()) {
				continue
			}
			what := q.Type()
			if tbf, ok := q.(*netlink.Tbf); ok {
				what = fmt.Sprintf("tbf rate %d buffer %d limit %d", tbf.Rate, tbf.Buffer, tbf.Limit)
			}
			w.add(n, "qdisc", l.Attrs().Name, what)
			if q.Type() != "ingress" && q.Type() != "clsact" {
				continue
			}
			filters, err := n.Netlink().FilterList(l, netlink.HANDLE_MIN_INGRESS)
			if err != nil {
				return err
			}
			for _, f := range filters {
				if u, ok := f.(*netlink.U32); ok && u.RedirIndex == 0 && len(u.Actions) == 0 {
					continue // the table that the filter is in
				}
				w.add(n, "filter", l.Attrs().Name, f.Type(), fmt.Sprintf("priority %d", f.Attrs().Priority))
			}
		}
	}
	return nil
}
