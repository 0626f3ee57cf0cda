package vm

import (
	"errors"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inLab says that this is the VM lab, where everything here has to work.
var inLab = os.Getenv("SEINE_VM") == "1"

// namespace moves the test into a network namespace of its own, which goes when the test's thread does: the thread
// is never unlocked.
func namespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skip: needs root: it makes a network namespace")
	}
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
}

// need ends the test if err says that the kernel lacks ability: with a failure in the lab, else with a skip.
func need(t *testing.T, ability string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	lacks := errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) ||
		errors.Is(err, unix.ENODEV)
	if !inLab && lacks {
		t.Skipf("skip: this kernel lacks %s (the VM lab has it: make vm): %v", ability, err)
	}
	t.Fatalf("%s: %v", ability, err)
}

func attrs(name string, parent netlink.Link) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	if parent != nil {
		a.ParentIndex = parent.Attrs().Index
	}
	return a
}

// veth makes a pair, as a parent that every kernel has, and gives its first end.
func veth(t *testing.T) netlink.Link {
	t.Helper()
	l := &netlink.Veth{LinkAttrs: attrs("v0", nil), PeerName: "v1"}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatalf("veth: %v", err)
	}
	for _, name := range []string{"v0", "v1"} {
		end, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(end); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func TestLinks(t *testing.T) {
	vlan := func(proto netlink.VlanProtocol) func(netlink.Link) netlink.Link {
		return func(p netlink.Link) netlink.Link {
			return &netlink.Vlan{LinkAttrs: attrs("x0", p), VlanId: 5, VlanProtocol: proto}
		}
	}
	remote := net.ParseIP("192.0.2.1")
	for _, tt := range []struct {
		name string
		make func(parent netlink.Link) netlink.Link
	}{
		{"dummy", func(netlink.Link) netlink.Link { return &netlink.Dummy{LinkAttrs: attrs("x0", nil)} }},
		{"bridge", func(netlink.Link) netlink.Link { return &netlink.Bridge{LinkAttrs: attrs("x0", nil)} }},
		{"ipvlan-l2", func(p netlink.Link) netlink.Link {
			return &netlink.IPVlan{LinkAttrs: attrs("x0", p), Mode: netlink.IPVLAN_MODE_L2}
		}},
		{"ipvlan-l3s", func(p netlink.Link) netlink.Link {
			return &netlink.IPVlan{LinkAttrs: attrs("x0", p), Mode: netlink.IPVLAN_MODE_L3S}
		}},
		{"macvlan", func(p netlink.Link) netlink.Link {
			return &netlink.Macvlan{LinkAttrs: attrs("x0", p), Mode: netlink.MACVLAN_MODE_BRIDGE}
		}},
		{"vlan-8021q", vlan(netlink.VLAN_PROTOCOL_8021Q)},
		{"vlan-8021ad", vlan(netlink.VLAN_PROTOCOL_8021AD)},
		{"vrf", func(netlink.Link) netlink.Link { return &netlink.Vrf{LinkAttrs: attrs("x0", nil), Table: 100} }},
		{"vxlan", func(netlink.Link) netlink.Link {
			return &netlink.Vxlan{LinkAttrs: attrs("x0", nil), VxlanId: 9, Port: 4789}
		}},
		{"geneve", func(netlink.Link) netlink.Link {
			return &netlink.Geneve{LinkAttrs: attrs("x0", nil), ID: 9, Remote: remote, Dport: 6081}
		}},
		{"wireguard", func(netlink.Link) netlink.Link { return &netlink.Wireguard{LinkAttrs: attrs("x0", nil)} }},
		{"bond", func(netlink.Link) netlink.Link { return netlink.NewLinkBond(attrs("x0", nil)) }},
		{"ifb", func(netlink.Link) netlink.Link { return &netlink.Ifb{LinkAttrs: attrs("x0", nil)} }},
		{"gretap", func(netlink.Link) netlink.Link {
			return &netlink.Gretap{LinkAttrs: attrs("x0", nil), Remote: remote, Local: net.ParseIP("192.0.2.2")}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			namespace(t)
			want := tt.make(veth(t))
			need(t, "links of type "+want.Type(), netlink.LinkAdd(want))
			got, err := netlink.LinkByName("x0")
			if err != nil {
				t.Fatal(err)
			}
			if got.Type() != want.Type() {
				t.Errorf("type %q, want %q", got.Type(), want.Type())
			}
			if err := netlink.LinkSetUp(got); err != nil && tt.name != "gretap" { // gretap comes up with a route only
				t.Errorf("up: %v", err)
			}
		})
	}
}

func TestBridgeVLANFiltering(t *testing.T) {
	namespace(t)
	on := true
	need(t, "VLAN filtering of bridges",
		netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("x0", nil), VlanFiltering: &on}))
	port := veth(t)
	br, err := netlink.LinkByName("x0")
	if err != nil {
		t.Fatal(err)
	}
	if b := br.(*netlink.Bridge); b.VlanFiltering == nil || !*b.VlanFiltering {
		need(t, "VLAN filtering of bridges", unix.EOPNOTSUPP)
	}
	if err := netlink.LinkSetMaster(port, br); err != nil {
		t.Fatal(err)
	}
	need(t, "VLAN filtering of bridges", netlink.BridgeVlanAdd(port, 7, true, true, false, true))
	vlans, err := netlink.BridgeVlanList()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vlans[int32(port.Attrs().Index)] {
		if v.Vid == 7 && v.PortVID() && v.EngressUntag() {
			return
		}
	}
	t.Errorf("VLANs of the port: %v, want 7 as an untagged port VLAN", vlans[int32(port.Attrs().Index)])
}

func TestNetem(t *testing.T) {
	namespace(t)
	l := veth(t)
	want := netlink.NewNetem(
		netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)},
		netlink.NetemQdiscAttrs{Latency: 50_000, Loss: 10})
	need(t, "the queueing discipline netem", netlink.QdiscAdd(want))
	all, err := netlink.QdiscList(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range all {
		if n, ok := q.(*netlink.Netem); ok && n.Latency == want.Latency && n.Loss == want.Loss {
			return
		}
	}
	t.Errorf("queueing disciplines: %v, want %v", all, want)
}

func TestFlowTable(t *testing.T) {
	namespace(t)
	veth(t)
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "t"})
	c.AddFlowtable(&nftables.Flowtable{Table: table, Name: "f", Hooknum: nftables.FlowtableHookIngress,
		Priority: nftables.FlowtablePriorityRef(0), Devices: []string{"v0", "v1"}})
	need(t, "flow tables (nf_flow_table)", c.Flush())
	got, err := c.ListFlowtables(table)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Name != "f" {
		t.Errorf("flow tables: %v, want one named f", got)
	}
}

// Commands and attributes of generic netlink, from linux/openvswitch.h and linux/ip_vs.h.
const (
	ovsVersion       = 2
	ovsDPCmdNew      = 1
	ovsDPCmdGet      = 3
	ovsDPAttrName    = 1
	ovsDPAttrUpcall  = 2
	ipvsVersion      = 1
	ipvsCmdNew       = 1
	ipvsCmdGet       = 4
	ipvsCmdAttrSvc   = 1
	ipvsSvcAF        = 1
	ipvsSvcProto     = 2
	ipvsSvcAddr      = 3
	ipvsSvcPort      = 4
	ipvsSvcScheduler = 6
	ipvsSvcFlags     = 7
	ipvsSvcTimeout   = 8
	ipvsSvcNetmask   = 9
)

// generic sends one generic netlink request and gives the answers.
func generic(family *netlink.GenlFamily, cmd, version uint8, flags int, payload ...nl.NetlinkRequestData) ([][]byte, error) {
	req := nl.NewNetlinkRequest(int(family.ID), flags)
	req.AddData(&nl.Genlmsg{Command: cmd, Version: version})
	for _, p := range payload {
		req.AddData(p)
	}
	return req.Execute(unix.NETLINK_GENERIC, 0)
}

// ovsHeader is the index of a datapath, which precedes the attributes of every message about Open vSwitch.
type ovsHeader struct{}

func (ovsHeader) Len() int          { return 4 }
func (ovsHeader) Serialize() []byte { return make([]byte, 4) }

func TestOpenVSwitch(t *testing.T) {
	namespace(t)
	family, err := netlink.GenlFamilyGet("ovs_datapath")
	need(t, "Open vSwitch", err)
	_, err = generic(family, ovsDPCmdNew, ovsVersion, unix.NLM_F_ACK, ovsHeader{},
		nl.NewRtAttr(ovsDPAttrName, nl.ZeroTerminated("x0")), nl.NewRtAttr(ovsDPAttrUpcall, nl.Uint32Attr(0)))
	need(t, "Open vSwitch datapaths", err)
	if _, err := generic(family, ovsDPCmdGet, ovsVersion, 0, ovsHeader{},
		nl.NewRtAttr(ovsDPAttrName, nl.ZeroTerminated("x0"))); err != nil {
		t.Errorf("datapath x0: %v", err)
	}
	if l, err := netlink.LinkByName("x0"); err != nil || l.Type() != "openvswitch" {
		t.Errorf("link of the datapath: %v, %v; want one of type openvswitch", l, err)
	}
}

func TestIPVS(t *testing.T) {
	namespace(t)
	family, err := netlink.GenlFamilyGet("IPVS")
	need(t, "IPVS", err)
	svc := nl.NewRtAttr(ipvsCmdAttrSvc|unix.NLA_F_NESTED, nil)
	svc.AddRtAttr(ipvsSvcAF, nl.Uint16Attr(unix.AF_INET))
	svc.AddRtAttr(ipvsSvcProto, nl.Uint16Attr(unix.IPPROTO_TCP))
	svc.AddRtAttr(ipvsSvcAddr, append(net.IPv4(192, 0, 2, 1).To4(), make([]byte, 12)...))
	svc.AddRtAttr(ipvsSvcPort, []byte{0, 80}) // network byte order
	svc.AddRtAttr(ipvsSvcScheduler, nl.ZeroTerminated("rr"))
	svc.AddRtAttr(ipvsSvcFlags, append(nl.Uint32Attr(0), nl.Uint32Attr(^uint32(0))...))
	svc.AddRtAttr(ipvsSvcTimeout, nl.Uint32Attr(0))
	svc.AddRtAttr(ipvsSvcNetmask, nl.Uint32Attr(^uint32(0)))
	_, err = generic(family, ipvsCmdNew, ipvsVersion, unix.NLM_F_ACK, svc)
	need(t, "IPVS services", err)
	got, err := generic(family, ipvsCmdGet, ipvsVersion, unix.NLM_F_DUMP)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 {
		t.Errorf("IPVS has %d services, want 1", len(got))
	}
}
