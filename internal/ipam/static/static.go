// Package static puts together the addresses of CNI's static IPAM from the places that they can be written in: the
// configuration, CNI_ARGS, the configuration's args and the runtime's capability. It keeps nothing and changes nothing.
package static

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/seine-net/seine/api"
)

// AddressConfig is one address as configurations write it.
type AddressConfig struct {
	// Address has the length of its subnet: "10.1.0.2/24".
	Address string `json:"address"`
	// Gateway is "" for none.
	Gateway string `json:"gateway,omitempty"`
}

// Address is one address for an interface.
type Address struct {
	Prefix netip.Prefix
	// Gateway is the zero Addr for none.
	Gateway netip.Addr
}

// Input is everything that says which addresses an interface gets.
type Input struct {
	// Addresses is ipam.addresses.
	Addresses []AddressConfig
	// EnvIP and EnvGateway are IP and GATEWAY of CNI_ARGS: lists with commas. They add to Addresses.
	EnvIP, EnvGateway string
	// Args is args.cni.ips and Capability runtimeConfig.ips. Either replaces all others, Capability first. They carry
	// no gateways; one that is configured for the same subnet stays in force.
	Args, Capability []string
}

const wantCIDR = "an address with the length of its subnet, such as 10.1.0.2/24"

// Addresses gives the addresses that follow from in. The error is an *api.Error that names the field.
func Addresses(in Input) ([]Address, error) {
	var out []Address
	for i, c := range in.Addresses {
		a, err := parse(fmt.Sprintf("ipam.addresses[%d].address", i), c.Address)
		if err != nil {
			return nil, err
		}
		if c.Gateway != "" {
			if a.Gateway, err = gateway(fmt.Sprintf("ipam.addresses[%d].gateway", i), c.Gateway); err != nil {
				return nil, err
			}
			if a.Gateway.Is4() != a.Prefix.Addr().Is4() {
				return nil, api.FieldError("", fmt.Sprintf("ipam.addresses[%d].gateway", i), c.Gateway,
					"is of another family than the address", "an address of "+a.Prefix.Masked().String())
			}
		}
		out = append(out, a)
	}
	configured := out
	more, err := parseList("CNI_ARGS IP", split(in.EnvIP))
	if err != nil {
		return nil, err
	}
	out = append(out, more...)
	for _, f := range []struct {
		field string
		list  []string
	}{{"args.cni.ips", in.Args}, {"runtimeConfig.ips", in.Capability}} {
		if len(f.list) == 0 {
			continue
		}
		if out, err = parseList(f.field, f.list); err != nil {
			return nil, err
		}
		inherit(out, configured)
	}
	for _, g := range split(in.EnvGateway) {
		gw, err := gateway("CNI_ARGS GATEWAY", g)
		if err != nil {
			return nil, err
		}
		for i := range out {
			if out[i].Prefix.Contains(gw) {
				out[i].Gateway = gw
			}
		}
	}
	return out, nil
}

// inherit gives addresses the gateway that is configured for their subnet.
func inherit(out, configured []Address) {
	for i := range out {
		for _, c := range configured {
			if c.Prefix.Masked() == out[i].Prefix.Masked() && c.Gateway.IsValid() {
				out[i].Gateway = c.Gateway
			}
		}
	}
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	out := strings.Split(list, ",")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}

func parseList(field string, list []string) ([]Address, error) {
	var out []Address
	for _, s := range list {
		a, err := parse(field, s)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func parse(field, s string) (Address, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return Address{}, api.FieldError("", field, s, "is no address in CIDR notation", wantCIDR)
	}
	if a := p.Addr(); a.IsUnspecified() || a.IsMulticast() {
		return Address{}, api.FieldError("", field, s, "is no address of an interface", wantCIDR)
	}
	return Address{Prefix: p}, nil
}

func gateway(field, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return a, api.FieldError("", field, s, "is no address", "an address such as 10.1.0.1")
	}
	return a.Unmap(), nil
}
