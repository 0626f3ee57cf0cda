package docker_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

const noPool = `{"AddressSpace":"seine","Pool":"","SubPool":"","Options":null,"V6":false}`

func (d *desk) refused(want, name, body string, args ...any) {
	d.Helper()
	before := d.state()
	if _, err := d.ask(name, fmt.Sprintf(body, args...)); err == nil || !strings.Contains(err.Error(), want) {
		d.Errorf("%s %s: error %v, want %q", name, fmt.Sprintf(body, args...), err, want)
	}
	if now := d.state(); now != before {
		d.Errorf("%s was refused and changed:\n%s\nwas:\n%s", name, now, before)
	}
}

// TestPools: ranges by name, by size and by choice, and what may be had beside what.
func TestPools(t *testing.T) {
	d := newDesk(t)
	pool := func(space, whole, part string, v6 bool) string {
		return fmt.Sprintf(`{"AddressSpace":%q,"Pool":%q,"SubPool":%q,"Options":{},"V6":%v}`, space, whole, part, v6)
	}
	for _, c := range []struct{ ask, want string }{
		{pool("seine", "", "", false), "10.200.0.0/24"},
		{pool("", "", "", false), "10.200.1.0/24"},
		{pool("seine", "0.0.0.0/28", "", false), "10.200.2.0/28"},
		{pool("seine", "0.0.0.0/20", "", false), "10.200.16.0/20"},
		{pool("seine", "", "", true), "fd00:5e::/64"},
		{pool("seine", "::/80", "", true), "fd00:5e:0:1::/80"},
		{pool("seine", "fd00:9::/64", "", true), "fd00:9::/64"},
		{pool("seine", "10.9.3.4/24", "", false), "10.9.3.0/24"},
	} {
		if got := d.ok("IpamDriver.RequestPool", "%s", c.ask)["Pool"]; got != c.want {
			t.Errorf("%s gives %v, want %s", c.ask, got, c.want)
		}
	}
	for ask, want := range map[string]string{
		pool("other", "", "", false):                           `address space "other": is not known; want "seine"`,
		pool("seine", "10.0.0.0/24", "", true):                 "of the family that is asked for",
		pool("seine", "::ffff:10.0.0.0/120", "", true):         "of the family that is asked for",
		pool("seine", "0.0.0.0/0", "", false):                  "or a size such as 0.0.0.0/24",
		pool("seine", "0.0.0.0/31", "", false):                 "or a size such as 0.0.0.0/24",
		pool("seine", "0.0.0.0/9", "", false):                  "no range of the default pools is free for a subnet of length /9",
		pool("seine", "::/0", "", true):                        "or a size such as ::/120",
		pool("seine", "0.0.0.0/24", "10.0.0.0/25", false):      "is no part of the pool",
		pool("seine", "10.1.0.0/24", "10.2.0.0/25", false):     "is no part of the pool",
		pool("seine", "", "10.2.0.0/25", false):                "is no part of the pool",
		pool("seine", "10.1.0.0/24", "10.1.0.0/23", false):     "is no part of the pool",
		`{"Pool":"10.1.0.0/24","Options":{"a":"b"}}`:           `--ipam-opt "a": is not known`,
		`{"Pool":"10.1.0.0/33"}`:                               "can't be used",
		`{"AddressSpace":"` + strings.Repeat("x", 5000) + `"}`: "is not known",
	} {
		d.refused(want, "IpamDriver.RequestPool", "%s", ask)
	}
}

// TestSharedPools: one range for two networks is as with Docker's own IPAM driver. A pool of which no address was asked
// for is in nobody's way: the answer may not have reached Docker.
func TestSharedPools(t *testing.T) {
	d := newDesk(t)
	ask := func(whole, part string) string { return fmt.Sprintf(`{"Pool":%q,"SubPool":%q}`, whole, part) }
	d.ok("IpamDriver.RequestPool", "%s", ask("10.8.0.0/24", "")) // lost on its way
	one := d.ok("IpamDriver.RequestPool", "%s", ask("10.8.0.0/24", "10.8.0.0/26"))["PoolID"]
	gateway := `{"PoolID":%q,"Address":%q,"Options":{"RequestAddressType":"com.docker.network.gateway"}}`
	d.ok("IpamDriver.RequestAddress", gateway, one, "10.8.0.254")
	for _, c := range []struct{ ask, want string }{
		{ask("10.8.0.0/24", ""), "Docker has it already, with the range 10.8.0.0/26"},
		{ask("10.8.0.0/24", "10.8.0.32/27"), "Docker has it already"},
		{ask("10.8.0.0/16", ""), "overlaps pool 10.8.0.0/24, which Docker has already"},
		{ask("10.8.0.128/25", ""), "overlaps pool 10.8.0.0/24"},
	} {
		d.refused(c.want, "IpamDriver.RequestPool", "%s", c.ask)
	}
	d.restart()
	two := d.ok("IpamDriver.RequestPool", "%s", ask("10.8.0.0/24", "10.8.0.64/26"))["PoolID"]
	d.refused("address 10.8.0.254 of pool 10.8.0.0/24: is in use by Docker (gateway)", "IpamDriver.RequestAddress", gateway, two, "10.8.0.254")
	d.is(d.ok("IpamDriver.RequestAddress", gateway, two, "10.8.0.253"), `{"Address":"10.8.0.253/24","Data":{}}`)
	d.is(d.ok("IpamDriver.RequestAddress", `{"PoolID":%q}`, two), `{"Address":"10.8.0.64/24","Data":{}}`)
	d.is(d.ok("IpamDriver.RequestAddress", `{"PoolID":%q}`, one), `{"Address":"10.8.0.1/24","Data":{}}`)
	// An auxiliary address need not be of the part that is given out from.
	d.is(d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Address":"10.8.0.200"}`, two), `{"Address":"10.8.0.200/24","Data":{}}`)
	d.refused("is in use by Docker (endpoint)", "IpamDriver.RequestAddress", `{"PoolID":%q,"Address":"10.8.0.200"}`, one)
}

// TestPoolKnowsItself: what is not in the book, as it was dropped or the state was lost, is taken up from its identity.
func TestPoolKnowsItself(t *testing.T) {
	d := newDesk(t)
	p := d.ok("IpamDriver.RequestPool", `{"Pool":"10.8.0.0/24","SubPool":"10.8.0.128/25"}`)["PoolID"]
	d.ok("IpamDriver.ReleasePool", `{"PoolID":%q}`, p)
	if left := d.store.Values("docker/"); len(left) > 0 {
		t.Errorf("left in the book: %v", left)
	}
	d.is(d.ok("IpamDriver.RequestAddress", `{"PoolID":%q}`, p), `{"Address":"10.8.0.128/24","Data":{}}`)
	d.is(d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Options":{"com.docker.network.endpoint.macaddress":"02:00:00:00:00:01"}}`, p), `{"Address":"10.8.0.129/24","Data":{}}`)
	for _, id := range []string{"", "10.8.0.0/24", "10.8.0.0/24,,x", "10.8.0.0/24,,0123456789ABCDEF", "0.0.0.0/0,,0123456789abcdef", "10.8.0.1/24,,0123456789abcdef",
		"10.8.0.0/24,10.9.0.0/25,0123456789abcdef", "10.8.0.0/24,10.8.0.0/23,0123456789abcdef", "10.8.0.0/24,x,0123456789abcdef"} {
		d.refused("is no pool of this driver", "IpamDriver.RequestAddress", `{"PoolID":%q}`, id)
		d.ok("IpamDriver.ReleaseAddress", `{"PoolID":%q,"Address":"10.8.0.1"}`, id)
		d.ok("IpamDriver.ReleasePool", `{"PoolID":%q}`, id)
	}
	if err := d.store.ForgetValues(); err != nil { // as `seine reset` does
		t.Fatal(err)
	}
	d.is(d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Address":"10.8.0.128"}`, p), `{"Address":"10.8.0.128/24","Data":{}}`)
}

// TestExhaustion: who finds a pool full is told which one, and by whom.
func TestExhaustion(t *testing.T) {
	d := newDesk(t)
	p := d.ok("IpamDriver.RequestPool", `{"Pool":"10.8.0.0/30"}`)["PoolID"]
	for _, want := range []string{"10.8.0.1/30", "10.8.0.2/30"} {
		if got := d.ok("IpamDriver.RequestAddress", `{"PoolID":%q}`, p)["Address"]; got != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
	d.refused("pool 10.8.0.0/30: no address of 10.8.0.0/30 is left: 2 are with Docker", "IpamDriver.RequestAddress", `{"PoolID":%q}`, p)
	for _, a := range []string{"10.8.0.0", "10.8.0.3", "10.8.0.4", "fd00::1", "x"} {
		d.refused("is no address to give out of pool 10.8.0.0/30", "IpamDriver.RequestAddress", `{"PoolID":%q,"Address":%q}`, p, a)
	}
	two := d.ok("IpamDriver.RequestPool", `{"Pool":"10.8.1.0/31"}`)["PoolID"] // RFC 3021; other drivers than ours take it
	for _, want := range []string{"10.8.1.0/31", "10.8.1.1/31"} {
		if got := d.ok("IpamDriver.RequestAddress", `{"PoolID":%q}`, two)["Address"]; got != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
	six := d.ok("IpamDriver.RequestPool", `{"Pool":"fd00:8::/64","V6":true}`)["PoolID"]
	d.is(d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Options":{"RequestAddressType":"com.docker.network.gateway"}}`, six), `{"Address":"fd00:8::1/64","Data":{}}`)
	d.is(d.ok("IpamDriver.RequestAddress", `{"PoolID":%q}`, six), `{"Address":"fd00:8::2/64","Data":{}}`)
}

// TestSticky: an endpoint that Docker names gets the address that it had before, unless somebody needed it.
func TestSticky(t *testing.T) {
	d := newDesk(t)
	p := d.ok("IpamDriver.RequestPool", `{"Pool":"10.8.0.0/29"}`)["PoolID"]
	named := func(name string) string {
		t.Helper()
		return d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Options":{"com.docker.network.endpoint.name":%q}}`, p, name)["Address"].(string)
	}
	back := func(a string) {
		d.ok("IpamDriver.ReleaseAddress", `{"PoolID":%q,"Address":%q}`, p, strings.TrimSuffix(a, "/29"))
	}
	web, db := named("web"), named("db of a space")
	back(web)
	back(web)
	back(db)
	d.restart()
	if other := named("other"); other == web || other == db {
		t.Errorf("another one got %s while others were free", other)
	}
	if again := named("db of a space"); again != db {
		t.Errorf("db has %s, had %s", again, db)
	}
	if again := named("web"); again != web {
		t.Errorf("web has %s, had %s", again, web)
	}
	back(web)
	for range 4 { // the last one has to take it
		d.ok("IpamDriver.RequestAddress", `{"PoolID":%q}`, p)
	}
	d.refused("no address of 10.8.0.0/29 is left", "IpamDriver.RequestAddress", `{"PoolID":%q,"Options":{"com.docker.network.endpoint.name":"web"}}`, p)
	d.ok("IpamDriver.ReleasePool", `{"PoolID":%q}`, p)
	if left := d.store.Values("docker/"); len(left) > 0 {
		t.Errorf("left in the book: %v", left)
	}
	big := d.ok("IpamDriver.RequestPool", `{"Pool":"10.9.0.0/16"}`)["PoolID"]
	for i := range 300 {
		a := d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Options":{"com.docker.network.endpoint.name":"c%d"}}`, big, i)["Address"].(string)
		d.ok("IpamDriver.ReleaseAddress", `{"PoolID":%q,"Address":%q}`, big, strings.TrimSuffix(a, "/16"))
	}
	if n := len(d.store.Values("docker/")); n != 257 {
		t.Errorf("%d records, want the pool's and 256 addresses'", n)
	}
}

// TestDriverAddresses: with Docker's IPAM driver null, all addresses are ours.
func TestDriverAddresses(t *testing.T) {
	for name, c := range map[string]struct{ options, four, six string }{
		"IPv4":        {`"com.docker.network.enable_ipv6":false`, "10.200.0.2/24", ""},
		"both":        {`"com.docker.network.enable_ipv6":true`, "10.200.0.2/24", "fd00:5e::2/64"},
		"IPv6":        {`"com.docker.network.enable_ipv4":false,"com.docker.network.enable_ipv6":true`, "", "fd00:5e::2/64"},
		"old Docker":  {`"com.docker.network.generic":{}`, "10.200.0.2/24", ""},
		"both pools":  {`"com.docker.network.enable_ipv4":"true","com.docker.network.enable_ipv6":"true"`, "10.200.0.2/24", "fd00:5e::2/64"},
		"as internal": {`"com.docker.network.internal":true`, "10.200.0.2/24", ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			before := d.state()
			for range 2 {
				d.ok("NetworkDriver.CreateNetwork", `{"NetworkID":%q,"Options":{%s},"IPv4Data":[{"AddressSpace":"LocalDefault","Pool":"0.0.0.0/0"}],"IPv6Data":[]}`, netID, c.options)
			}
			for range 2 {
				got, _ := d.ok("NetworkDriver.CreateEndpoint", `{`+ids+`,"Interface":{"Address":"","AddressIPv6":"","MacAddress":""},"Options":{}}`)["Interface"].(map[string]any)
				four, _ := got["Address"].(string)
				six, _ := got["AddressIPv6"].(string)
				if four != c.four || six != c.six || got["MacAddress"] == "" {
					t.Errorf("interface is %v", got)
				}
			}
			join := d.ok("NetworkDriver.Join", `{`+ids+`,"SandboxKey":"/var/run/docker/netns/1"}`)
			_, four := join["Gateway"]
			_, six := join["GatewayIPv6"]
			if out := !strings.Contains(c.options, "internal"); four != (c.four != "" && out) || six != (c.six != "" && out) {
				t.Errorf("Join answers %v", join)
			}
			d.ok("NetworkDriver.Leave", `{`+ids+`}`)
			d.ok("NetworkDriver.DeleteEndpoint", `{`+ids+`}`)
			d.ok("NetworkDriver.DeleteNetwork", `{"NetworkID":%q}`, netID)
			if now := d.state(); now != before {
				t.Errorf("left:\n%s\nwas:\n%s", now, before)
			}
		})
	}
}

// TestRangeOfNobody: what Docker could not give back goes with the network.
func TestRangeOfNobody(t *testing.T) {
	d := newDesk(t)
	before := d.state()
	p := d.ok("IpamDriver.RequestPool", `{"Pool":"10.8.0.0/24"}`)["PoolID"]
	d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Options":{"RequestAddressType":"com.docker.network.gateway"}}`, p)
	d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Address":"10.8.0.9"}`, p)
	d.ok("NetworkDriver.CreateNetwork", `{"NetworkID":%q,"IPv4Data":[{"AddressSpace":"seine","Pool":"10.8.0.0/24","Gateway":"10.8.0.1/24","AuxAddresses":{"x":"10.8.0.9/24"}}]}`, netID)
	d.ok("NetworkDriver.DeleteNetwork", `{"NetworkID":%q}`, netID)
	if now := d.state(); now != before {
		t.Errorf("left:\n%s\nwas:\n%s", now, before)
	}
}

// TestOptions: what Docker's drivers have is honoured, or refused with what there is instead.
func TestOptions(t *testing.T) {
	d := newDesk(t)
	create := func(i int, options string) (api.Network, error) {
		id := fmt.Sprintf("%064x", 0xabc0000000+i)
		_, err := d.ask("NetworkDriver.CreateNetwork", fmt.Sprintf(`{"NetworkID":"%s%s","Options":{"com.docker.network.generic":{%s}},"IPv4Data":[{"Pool":"10.7.%d.0/24","Gateway":"10.7.%d.1/24"}],"IPv6Data":[]}`,
			fmt.Sprintf("%012d", i), id[12:], options, i, i))
		if err != nil {
			return api.Network{}, err
		}
		return d.engine.Network(t.Context(), fmt.Sprintf("docker-%012d", i))
	}
	n, err := create(1, `"com.docker.network.driver.mtu":"1400","com.docker.network.bridge.enable_icc":"false","com.docker.network.bridge.enable_ip_masquerade":"false",
		"com.docker.network.bridge.name":"br7","com.docker.network.container_iface_prefix":"net","com.docker.network.bridge.gateway_mode_ipv4":"nat","seine.driver":"bridge"`)
	if err != nil || n.MTU != 1400 || n.ICCOn() || n.MasqueradeOn() || n.Interface != "br7" || n.Driver != "bridge" {
		t.Errorf("network is %+v, %v", n, err)
	}
	net1 := n.Labels["docker.network"]
	d.ok("NetworkDriver.CreateEndpoint", `{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":"10.7.1.5/24"}}`, net1, epID)
	join := d.ok("NetworkDriver.Join", `{"NetworkID":%q,"EndpointID":%q,"SandboxKey":"/x"}`, net1, epID)
	if name, _ := join["InterfaceName"].(map[string]any); name["DstPrefix"] != "net" {
		t.Errorf("Join answers %v", join)
	}
	d.kernel.AddForeign(&kernel.Link{Name: "eth9", Type: kernel.Dummy})
	d.kernel.AddForeign(&kernel.LinkUp{Link: "eth9"})
	if err := d.engine.SetFacts(t.Context(), kernel.Facts{Links: []kernel.LinkFact{{Name: "eth9", MTU: 1500, Up: true, Index: 9}}}); err != nil {
		t.Fatal(err)
	}
	n, err = create(200, `"seine.driver":"ipvlan","parent":"eth9","ipvlan_mode":"l3"`)
	if err != nil {
		t.Fatal(err)
	}
	net2, ep2 := n.Labels["docker.network"], strings.Replace(epID, "a", "b", 1)
	d.ok("NetworkDriver.CreateEndpoint", `{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":"10.7.200.5/24"}}`, net2, ep2)
	join = d.ok("NetworkDriver.Join", `{"NetworkID":%q,"EndpointID":%q,"SandboxKey":"/x"}`, net2, ep2)
	if routes := fmt.Sprint(join["StaticRoutes"]); routes != "[map[Destination:0.0.0.0/0 RouteType:1]]" || join["DisableGatewayService"] != nil {
		t.Errorf("Join on an ipvlan of mode l3 answers %v", join)
	}
	before := d.state()
	for options, want := range map[string]string{
		`"com.docker.network.driver.mtu":"0"`:                              "is no MTU",
		`"com.docker.network.driver.mtu":1400`:                             "is no text",
		`"com.docker.network.bridge.enable_icc":"maybe"`:                   "neither true nor false",
		`"com.docker.network.container_iface_prefix":"a/b"`:                "can't begin an interface's name",
		`"com.docker.network.container_iface_prefix":"0123456789abc"`:      "can't begin an interface's name",
		`"com.docker.network.bridge.gateway_mode_ipv4":"route"`:            "nat routed nat-unprotected isolated",
		`"com.docker.network.bridge.gateway_mode_ipv6":"isolated"`:         "no IPv6 subnet",
		`"com.docker.network.bridge.host_binding_ipv4":"::1"`:              "is no IPv4 address",
		`"com.docker.network.bridge.inhibit_ipv4":"yes"`:                   "want one of the two",
		`"com.docker.network.bridge.trusted_host_interfaces":"a/b"`:        "names no interface",
		`"com.docker.network.host_ipv4":"198.51.100.1"`:                    "is no address of the machine",
		`"com.docker.network.enable_ipv6":"true"`:                          "docker network create --ipv6",
		`"com.docker.network.new":"x"`:                                     "is not known; want one of com.docker.network.bridge.enable_icc",
		`"seine.new":"x"`:                                                  "is not known; want one of",
		`"seine.driver":"nosuch"`:                                          `networks of driver "nosuch" can't be Docker's`,
		`"seine.driver":"null"`:                                            `networks of driver "null" can't be Docker's`,
		`"seine.driver":"ptp"`:                                             `networks of driver "ptp" can't be Docker's`,
		`"parent":"eth0"`:                                                  `is no option of driver "bridge"`,
		`"seine.name":"a","seine.network":"default"`:                       "does not go with",
		`"com.docker.network.driver.mtu":"1400","seine.network":"default"`: "takes a network as it is",
	} {
		if _, err := create(2, options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", options, err, want)
		}
	}
	for _, c := range []struct{ options, want string }{
		{`"com.docker.network.generic":[]`, "is no list of options"},
		{`"com.docker.network.internal":"maybe"`, "neither true nor false"},
		{`"com.docker.network.enable_ipv4":{}`, "neither true nor false"},
	} {
		d.refused(c.want, "NetworkDriver.CreateNetwork", `{"NetworkID":%q,"Options":{%s},"IPv4Data":[{"Pool":"10.7.2.0/24"}]}`, netID, c.options)
	}
	for options, want := range map[string]string{
		`"com.docker.network.endpoint.ifname":"web0"`: "container_iface_prefix",
		`"mine":"x"`: `--driver-opt "mine": is not known`,
	} {
		d.refused(want, "NetworkDriver.CreateEndpoint", `{"NetworkID":%q,"EndpointID":%q,"Options":{%s}}`, net1, strings.Repeat("c", 64), options)
	}
	if now := d.state(); now != before {
		t.Errorf("what was refused changed:\n%s\nwas:\n%s", now, before)
	}
	d.ok("NetworkDriver.CreateEndpoint", `{"NetworkID":%q,"EndpointID":%q,"Interface":{"MacAddress":"02:aa:bb:cc:dd:ee"},"Options":{"com.docker.network.endpoint.macaddress":"Aqq7zN3u",
		"com.docker.network.endpoint.exposedports":[{"Proto":6,"Port":80}],"com.docker.network.endpoint.dnsservers":["1.2.3.4"],"com.docker.network.endpoint.sysctls":"x","com.docker.network.new":{}}}`,
		net1, strings.Repeat("c", 64))
	d.is(d.ok("NetworkDriver.GwAllocCheck", `{"Options":{"com.docker.network.generic":{"seine.driver":"macvlan"}}}`), `{"SkipIPv4":true,"SkipIPv6":true}`)
	d.is(d.ok("NetworkDriver.GwAllocCheck", `{"Options":{}}`), `{"SkipIPv4":false,"SkipIPv6":false}`)
}
