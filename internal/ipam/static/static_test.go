package static

import (
	"fmt"
	"strings"
	"testing"
)

func TestAddresses(t *testing.T) {
	conf := []AddressConfig{{"10.1.0.2/24", "10.1.0.1"}, {"fd00::2/64", ""}}
	for _, c := range []struct {
		what string
		in   Input
		want string
	}{
		{"configured", Input{Addresses: conf}, "[{10.1.0.2/24 10.1.0.1} {fd00::2/64 invalid IP}]"},
		{"CNI_ARGS adds", Input{Addresses: conf, EnvIP: "10.2.0.2/24, fd00:2::2/64", EnvGateway: "10.2.0.1,fd00::1"},
			"[{10.1.0.2/24 10.1.0.1} {fd00::2/64 fd00::1} {10.2.0.2/24 10.2.0.1} {fd00:2::2/64 invalid IP}]"},
		{"args replaces and keeps the subnet's gateway", Input{Addresses: conf, Args: []string{"10.1.0.7/24"}}, "[{10.1.0.7/24 10.1.0.1}]"},
		{"the capability wins", Input{Addresses: conf, Args: []string{"10.1.0.7/24"}, Capability: []string{"10.1.0.8/24"}}, "[{10.1.0.8/24 10.1.0.1}]"},
		{"nothing", Input{}, "[]"},
	} {
		got, err := Addresses(c.in)
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s: got %v (%v), want %s", c.what, got, err, c.want)
		}
	}
}

func TestAddressesRefuses(t *testing.T) {
	for _, c := range []struct {
		in    Input
		names []string
	}{
		{Input{Addresses: []AddressConfig{{"10.1.0.2", ""}}}, []string{"ipam.addresses[0].address", `"10.1.0.2"`}},
		{Input{Addresses: []AddressConfig{{"10.1.0.2/24", "x"}}}, []string{"ipam.addresses[0].gateway", `"x"`}},
		{Input{Addresses: []AddressConfig{{"10.1.0.2/24", "fd00::1"}}}, []string{"ipam.addresses[0].gateway", "family"}},
		{Input{EnvIP: "10.1.0.2"}, []string{"CNI_ARGS IP"}},
		{Input{EnvGateway: "x"}, []string{"CNI_ARGS GATEWAY"}},
		{Input{Args: []string{"x"}}, []string{"args.cni.ips"}},
		{Input{Capability: []string{"::ffff:10.0.0.1/120"}}, []string{"runtimeConfig.ips"}},
	} {
		_, err := Addresses(c.in)
		for _, n := range c.names {
			if err == nil || !strings.Contains(err.Error(), n) {
				t.Errorf("%+v: got %v, want an error that names %s", c.in, err, n)
			}
		}
	}
}
