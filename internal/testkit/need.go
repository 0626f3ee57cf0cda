package testkit

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Lacks says why this machine does not have an ability; nil if it has it. Each is tried once per process, by using it in
// a namespace of its own. The abilities:
//
//	root                 to be root with CAP_NET_ADMIN and CAP_SYS_ADMIN
//	ipv6                 IPv6 in the kernel
//	bridge veth vxlan macvlan ipvlan vlan dummy vrf wireguard geneve ifb tun  links of that kind
//	bridge-vlan-filtering  bridges that keep VLANs apart
//	nft                  nftables with nat
//	nft-ingress          nftables on what comes in by a link
//	netem                the queueing discipline
//	bridge-netfilter     frames on a bridge can be made to pass the IP hooks
//	sctp                 SCTP sockets
//	program:NAME         a program in PATH
func Lacks(ability string) error {
	probed.Lock()
	defer probed.Unlock()
	if err, ok := probed.results[ability]; ok {
		return err
	}
	err := probe(ability)
	probed.results[ability] = err
	return err
}

var probed = struct {
	sync.Mutex
	results map[string]error
}{results: map[string]error{}}

func probe(ability string) error {
	if program, ok := strings.CutPrefix(ability, "program:"); ok {
		_, err := exec.LookPath(program)
		return err
	}
	f := probes[ability]
	if f == nil {
		return fmt.Errorf("ability %q: is not known; want one of %q or program:NAME", ability, slices.Sorted(maps.Keys(probes)))
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("user %d is not root", os.Geteuid())
	}
	n, err := NewNS("probe")
	if err != nil {
		return err
	}
	defer n.Close()
	return f(n)
}

// lo is the index of the loopback interface, which every namespace has.
const lo = 1

var probes = map[string]func(*NS) error{
	"root": func(*NS) error { return nil },
	"ipv6": func(*NS) error {
		if !hasIPv6() {
			return fmt.Errorf("the kernel has none")
		}
		return nil
	},
	"bridge": link(func(a netlink.LinkAttrs) netlink.Link { return &netlink.Bridge{LinkAttrs: a} }),
	"bridge-vlan-filtering": func(n *NS) error {
		a, on := netlink.NewLinkAttrs(), true
		a.Name = "probe0"
		if err := n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: a, VlanFiltering: &on}); err != nil {
			return err
		}
		l, err := n.nl.LinkByName(a.Name)
		if b, ok := l.(*netlink.Bridge); err == nil && (!ok || b.VlanFiltering == nil || !*b.VlanFiltering) {
			return fmt.Errorf("a bridge does not keep the setting")
		}
		return err
	},
	"veth":      link(func(a netlink.LinkAttrs) netlink.Link { return &netlink.Veth{LinkAttrs: a, PeerName: "probe1"} }),
	"dummy":     link(func(a netlink.LinkAttrs) netlink.Link { return &netlink.Dummy{LinkAttrs: a} }),
	"ifb":       link(func(a netlink.LinkAttrs) netlink.Link { return &netlink.Ifb{LinkAttrs: a} }),
	"vrf":       link(func(a netlink.LinkAttrs) netlink.Link { return &netlink.Vrf{LinkAttrs: a, Table: 10} }),
	"wireguard": link(func(a netlink.LinkAttrs) netlink.Link { return &netlink.Wireguard{LinkAttrs: a} }),
	"vxlan":     link(func(a netlink.LinkAttrs) netlink.Link { return &netlink.Vxlan{LinkAttrs: a, VxlanId: 7, Port: 4789} }),
	"geneve":    link(func(a netlink.LinkAttrs) netlink.Link { return &netlink.Geneve{LinkAttrs: a, ID: 7, Dport: 6081} }),
	"macvlan": child(func(a netlink.LinkAttrs) netlink.Link {
		return &netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}
	}),
	"ipvlan": child(func(a netlink.LinkAttrs) netlink.Link {
		return &netlink.IPVlan{LinkAttrs: a, Mode: netlink.IPVLAN_MODE_L2}
	}),
	"vlan": child(func(a netlink.LinkAttrs) netlink.Link { return &netlink.Vlan{LinkAttrs: a, VlanId: 7} }),
	"tun": func(n *NS) error {
		return n.Do(func() error {
			f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
			if err == nil {
				err = f.Close()
			}
			return err
		})
	},
	"nft": func(n *NS) error {
		c, err := nftables.New(nftables.WithNetNSFd(n.Fd()))
		if err != nil {
			return err
		}
		t := c.AddTable(&nftables.Table{Name: "probe", Family: nftables.TableFamilyIPv4})
		ch := c.AddChain(&nftables.Chain{Name: "nat", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{&expr.Masq{}}})
		return c.Flush()
	},
	"nft-ingress": func(n *NS) error {
		return ingress(n, "lo", [][]expr.Any{append(chance(10), drop)})
	},
	"netem": func(n *NS) error {
		return n.nl.QdiscAdd(netlink.NewNetem(netlink.QdiscAttrs{LinkIndex: lo, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			netlink.NetemQdiscAttrs{Latency: 1000}))
	},
	"bridge-netfilter": func(n *NS) error {
		_, err := n.ReadSysctl("net/bridge/bridge-nf-call-iptables")
		return err
	},
	"sctp": func(n *NS) error {
		return n.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
			if err == nil {
				err = unix.Close(fd)
			}
			return err
		})
	},
}

func link(kind func(netlink.LinkAttrs) netlink.Link) func(*NS) error {
	return func(n *NS) error {
		a := netlink.NewLinkAttrs()
		a.Name = "probe0"
		return n.nl.LinkAdd(kind(a))
	}
}

// child is a link that needs another one, for which a veth does.
func child(kind func(netlink.LinkAttrs) netlink.Link) func(*NS) error {
	return func(n *NS) error {
		a := netlink.NewLinkAttrs()
		a.Name = "parent"
		if err := n.nl.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "other"}); err != nil {
			return err
		}
		p, err := n.nl.LinkByName("parent")
		if err != nil {
			return err
		}
		b := netlink.NewLinkAttrs()
		b.Name, b.ParentIndex = "probe0", p.Attrs().Index
		return n.nl.LinkAdd(kind(b))
	}
}
