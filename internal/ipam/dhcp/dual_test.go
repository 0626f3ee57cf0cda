package dhcp

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/ipam/dhcprpc"
)

const (
	confDual = `{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "dhcp", "families": ["4", "6"], "priority": 300}}`
	conf6    = `{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "dhcp", "families": ["6"]}}`
)

// Both families at once, with what the router says beside DHCPv6.
func TestDual(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dnsmasq")
	r.dnsmasq(120, "--dhcp-authoritative", "--dhcp-range=fd66::100,fd66::200,64,120", "--enable-ra", "--dhcp-option=option6:dns-server,[fd66::53]",
		"--dhcp-option=option6:domain-search,v6.example", "--dhcp-option=option:dns-server,10.66.0.1")
	if err := r.c.Sysctl("net/ipv6/conf/eth0/disable_ipv6", "1"); err != nil {
		t.Fatal(err)
	}
	r.run()
	res := r.take(confDual, "c", r.c)
	if len(res.IPs) != 2 || !netip.MustParsePrefix("fd66::/64").Contains(res.IPs[1].Address.Addr()) || res.IPs[1].Address.Bits() != 64 ||
		!res.IPs[1].Gateway.IsLinkLocalUnicast() {
		t.Fatalf("addresses %+v", res.IPs)
	}
	if len(res.Routes) != 2 || res.Routes[1].Dst != netip.MustParsePrefix("::/0") || res.Routes[1].GW != res.IPs[1].Gateway || res.Routes[1].Priority != 300 {
		t.Errorf("routes %+v", res.Routes)
	}
	if want := []string{"10.66.0.1", "fd66::53"}; !slices.Equal(res.DNS.Nameservers, want) || !slices.Equal(res.DNS.Search, []string{"v6.example"}) {
		t.Errorf("dns %+v, want %v", res.DNS, want)
	}
	r.run() // taken up again
	if got := r.must(dhcprpc.Check, confDual, "c", r.c); text(got) != text(res) {
		t.Errorf("after a restart %s, want %s", text(got), text(res))
	}
	r.must(dhcprpc.Release, confDual, "c", r.c)
	for _, want := range []string{"DHCPRELEASE(br0) " + res.IPs[0].Address.Addr().String(), "DHCPRELEASE(br0) 00:04"} {
		r.eventually(want, func() bool { return strings.Contains(r.heard(), want) })
	}
	if n := strings.Count(r.heard(), "DHCPSOLICIT"); n != 1 {
		t.Errorf("%d SOLICITs, want 1", n)
	}
}

// kea serves leases of 8 seconds that are renewed after 2 and rebound after 5.
func (r *rig) kea(v6 bool) func() {
	r.Helper()
	n, subnet, pools := 4, "10.66.0.0/24", "10.66.0.100 - 10.66.0.120"
	more := `"dhcp-socket-type": "raw", `
	data := `{"name": "routers", "data": "10.66.0.1"}, {"name": "domain-name-servers", "data": "10.66.0.1"}`
	if v6 {
		n, subnet, pools, more, data = 6, "fd66::/64", "fd66::100 - fd66::200", "", `{"name": "dns-servers", "data": "fd66::1"}`
	}
	iface := ""
	if v6 {
		iface = `"interface": "br0", `
	}
	conf := fmt.Sprintf(`{"Dhcp%[1]d": {"interfaces-config": {%[4]s"interfaces": ["br0"]}, "lease-database": {"type": "memfile", "persist": false},
		"valid-lifetime": 8, "renew-timer": 2, "rebind-timer": 5, %[7]s
		"subnet%[1]d": [{%[6]s"subnet": %[2]q, "pools": [{"pool": %[3]q}], "option-data": [%[5]s]}],
		"loggers": [{"name": "kea-dhcp%[1]d", "output_options": [{"output": "stdout"}], "severity": "DEBUG", "debuglevel": 40}]}}`,
		n, subnet, pools, more, data, iface, map[bool]string{true: `"preferred-lifetime": 6, "server-id": {"type": "EN", "enterprise-id": 32473, "identifier": "00ff", "persist": false}, `}[v6])
	path := filepath.Join(r.dir, "kea.json")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		r.Fatal(err)
	}
	return r.start(fmt.Sprintf("kea-dhcp%d", n), []string{"KEA_PIDFILE_DIR=" + r.dir, "KEA_LOCKFILE_DIR=none"}, "-c", path)
}

// Short leases of Kea are renewed, live through its absence, and end.
func TestKea(t *testing.T) {
	for name, v6 := range map[string]bool{"4": false, "6": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "kea-dhcp"+name)
			conf, of := conf4, func(l *lease) *binding { return l.V4 }
			if v6 {
				conf, of = conf6, func(l *lease) *binding { return l.V6 }
			}
			r.opts.ResendTimeout = 20 * time.Second // Kea takes its time to start
			stop := r.kea(v6)
			r.run()
			res := r.take(conf, "c", r.c)
			now := func() *binding { return of(r.svc.lease(r.svc.slots["c/net/eth0"].held)) }
			first := now()
			r.eventually("a renewal", func() bool { return now().Since.After(first.Since) })
			stop()
			r.eventually("a renewal that fails", func() bool { return strings.Contains(r.log.String(), "can't be extended yet") })
			stop = r.kea(v6) // it has forgotten
			second := now()
			r.eventually("a lease again", func() bool { return now().Since.After(second.Since) })
			if got := r.must(dhcprpc.Check, conf, "c", r.c); got.IPs[0] != res.IPs[0] || !r.up(r.c) {
				t.Errorf("after the server's absence %v, want %v", got.IPs, res.IPs)
			}
			stop()
			r.eventually("the end", func() bool { return !r.up(r.c) })
			if _, err := r.call(dhcprpc.Check, conf, "c", r.c); err == nil || !strings.Contains(err.Error(), "was lost") {
				t.Errorf("CHECK: %v", err)
			}
			r.must(dhcprpc.Release, conf, "c", r.c)
		})
	}
}
