package docker

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
)

var updateImports = flag.Bool("update", false, "write what equals Docker's networks into testdata")

// TestParseImport: networks as dockerd 20.10.24 and a dockerd of 2026 (29) tell about them, all made by the same commands:
//
//	network create --subnet 10.10.0.0/24 --gateway 10.10.0.254 --ip-range 10.10.0.128/25 --aux-address printer=10.10.0.5
//	    --aux-address router=10.10.0.6 --ipv6 --subnet fd00:10::/64 --label team=web --label com.docker.compose.project=shop
//	    -o com.docker.network.{driver.mtu=1400,bridge.name=br-shop,bridge.enable_icc=false,…} shop
//	network create --internal --subnet 10.11.0.0/24 db; network create plain; -d macvlan … lan; -d ipvlan … l3
//	network create --config-only --subnet 10.12.0.0/24 conf; network create --config-from conf from
func TestParseImport(t *testing.T) {
	for _, v := range []string{"20.10", "29"} {
		text, err := os.ReadFile(filepath.Join("testdata", "networks-"+v+".json"))
		if err != nil {
			t.Fatal(err)
		}
		all, err := ParseImport(text)
		if err != nil {
			t.Fatal(err)
		}
		for i := range all {
			if len(all[i].ID) != 64 {
				t.Errorf("%s: %s has the identity %q", v, all[i].Name, all[i].ID)
			}
			all[i].ID = "" // chance
		}
		var got bytes.Buffer
		enc := json.NewEncoder(&got)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(all); err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", "networks-"+v+".golden")
		if *updateImports {
			if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(golden); err != nil || !bytes.Equal(want, got.Bytes()) {
			t.Errorf("%s: (%v) got\n%s", v, err, got.Bytes())
		}
	}
}

func TestImportLimits(t *testing.T) {
	network := func(s string) string { return `[{"Name": "n", "Id": "1", "Scope": "local", ` + s + `}]` }
	subnet := `"IPAM": {"Config": [{"Subnet": "10.1.0.0/24"}]}`
	for _, c := range []struct{ in, reason, note string }{
		{network(`"Driver": "overlay"`), "overlay", ""},
		{network(`"Driver": "weave", ` + subnet), `"weave"`, ""},
		{strings.Replace(network(`"Driver": "bridge", `+subnet), "local", "swarm", 1), "swarm", ""},
		{network(`"Driver": "bridge"`), "no subnet", ""},
		{network(`"Driver": "bridge", "IPAM": {"Config": [{"Subnet": "10.1.0.0/99"}]}`), "10.1.0.0/99", ""},
		{network(`"Driver": "bridge", "IPAM": {"Config": [{"Subnet": "10.1.0.0/24", "Gateway": "x"}]}`), "gateway", ""},
		{network(`"Driver": "bridge", "IPAM": {"Config": [{"Subnet": "10.1.0.0/24", "IPRange": "x"}]}`), "range", ""},
		{network(`"Driver": "bridge", "IPAM": {"Config": [{"Subnet": "10.1.0.0/24", "AuxiliaryAddresses": {"a": "x"}}]}`), "auxiliary", ""},
		{network(`"Driver": "macvlan", "IPAM": {"Config": [{"Subnet": "10.1.0.0/24"}, {"Subnet": "10.2.0.0/24"}]}`), "second subnet", ""},
		{network(`"Driver": "bridge", "IPAM": {"Config": [{"Subnet": "10.1.0.0/31"}]}`), "too small", ""},
		{strings.Replace(network(`"Driver": "bridge", `+subnet), `"n"`, `"`+strings.Repeat("n", 64)+`"`, 1), "too long", ""},
		{network(`"Driver": "bridge", "IPAM": {"Driver": "dhcp", "Config": [{"Subnet": "10.1.0.0/24"}]}`), "", `"dhcp"`},
		{network(`"Driver": "bridge", "Options": {"com.docker.network.driver.mtu": "x"}, ` + subnet), "", "has no equal"},
		{network(`"Driver": "bridge", "Options": {"com.docker.network.bridge.enable_icc": "x"}, ` + subnet), "", "has no equal"},
		{network(`"Driver": "bridge", "Options": {"parent": "eth0"}, ` + subnet), "", "has no equal"},
	} {
		all, err := ParseImport([]byte(c.in))
		if err != nil || len(all) != 1 {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		got := all[0]
		notes := strings.Join(got.Notes, "; ")
		if (got.Network == nil) != (c.reason != "") || !strings.Contains(got.Reason, c.reason) || !strings.Contains(notes, c.note) || (c.note == "") != (notes == "") {
			t.Errorf("%s: %+v", c.in, got)
		}
	}
	for _, in := range []string{"", "{}", "[{}]", `[{"Name": "x"}]`, `[1]`} {
		if all, err := ParseImport([]byte(in)); err == nil {
			t.Errorf("%q gave %v", in, all)
		}
	}
}

// TestImportOptions: what Docker's drivers are told, ours are told by their own names.
func TestImportOptions(t *testing.T) {
	const bridge, other = "com.docker.network.bridge.", "com.docker.network."
	for _, c := range []struct{ driver, key, value, ours string }{
		{"bridge", bridge + "inhibit_ipv4", "true", api.OptInhibit4},
		{"bridge", bridge + "gateway_mode_ipv4", "isolated", api.OptGatewayMode4},
		{"bridge", bridge + "gateway_mode_ipv4", "routed", api.OptGatewayMode4},
		{"bridge", bridge + "gateway_mode_ipv6", "nat-unprotected", api.OptGatewayMode6},
		{"bridge", bridge + "gateway_mode_ipv6", "", ""},
		{"bridge", bridge + "host_binding_ipv4", "127.0.0.1", api.OptHostBinding},
		{"bridge", bridge + "host_binding_ipv4", "0.0.0.0", ""},
		{"bridge", bridge + "trusted_host_interfaces", "eth1:eth2", api.OptTrusted},
		{"bridge", other + "host_ipv4", "192.0.2.1", api.OptHostIPv4},
		{"bridge", other + "host_ipv6", "2001:db8::1", api.OptHostIPv6},
		{"bridge", other + "container_iface_prefix", "net", api.OptIfacePrefix},
		{"macvlan", "parent", "eth0", "parent"},
		{"macvlan", "macvlan_mode", "vepa", "mode"},
		{"ipvlan", "ipvlan_mode", "l3", "mode"},
		{"ipvlan", "ipvlan_flag", "private", "flag"},
	} {
		all, err := ParseImport(fmt.Appendf(nil, `[{"Name": "n", "Id": "1", "Scope": "local", "Driver": %q, "Options": {%q: %q},
			"IPAM": {"Config": [{"Subnet": "10.1.0.0/24"}]}}]`, c.driver, c.key, c.value))
		if err != nil || len(all) != 1 || all[0].Network == nil || len(all[0].Notes) > 0 {
			t.Errorf("%s=%s: %+v %v", c.key, c.value, all, err)
			continue
		}
		want := map[string]string{}
		if c.ours != "" {
			want[c.ours] = c.value
		}
		if got := all[0].Network.Options; !maps.Equal(got, want) {
			t.Errorf("%s=%s: options %v, want %v", c.key, c.value, got, want)
		}
	}
}
