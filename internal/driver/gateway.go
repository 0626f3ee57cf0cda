package driver

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// GatewayOptions are the options of drivers whose gateway is the machine, with what they mean.
func GatewayOptions() map[string]string {
	return map[string]string{
		api.OptGatewayMode4: "nat, routed (IPv4 is not translated; published ports are reached at containers' own addresses), nat-unprotected (every port is)",
		api.OptGatewayMode6: "the same for IPv6",
		api.OptHostBinding:  "the machine's IPv4 address for published ports that name none",
		api.OptHostIPv4:     "the machine's IPv4 address that containers' are hidden behind on the way out",
		api.OptHostIPv6:     "the same for IPv6",
		api.OptTrusted:      "interfaces of the machine, separated by colons, from which containers are reached at their own addresses",
		api.OptIfacePrefix:  "the beginning of the interface's name in a container (eth)",
	}
}

// CompleteGateway checks GatewayOptions. modes are the gateway modes beside those that every such driver has.
func CompleteGateway(n *api.Network, env Env, modes ...api.GatewayMode) error {
	for _, v4 := range []bool{true, false} {
		if err := checkFamily(n, env, v4, append([]api.GatewayMode{api.GatewayNAT, api.GatewayRouted, api.GatewayUnprotected}, modes...)); err != nil {
			return err
		}
	}
	bad := func(key, msg, want string) error {
		return api.FieldError(api.NetworkNoun(n.Name), "options."+key, n.Options[key], msg, want)
	}
	if s := n.Options[api.OptHostBinding]; s != "" {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			return bad(api.OptHostBinding, "is no IPv4 address", "one of the machine's, or 0.0.0.0 for all of both families")
		}
	}
	if s, ok := n.Options[api.OptTrusted]; ok {
		for name := range strings.SplitSeq(s, ":") {
			if !isIfname(name) {
				return bad(api.OptTrusted, "names no interface", "names of interfaces, separated by colons")
			}
		}
		if n.Internal {
			return bad(api.OptTrusted, "does not go with an internal network", "none, or a network that is not internal")
		}
	}
	if s, ok := n.Options[api.OptIfacePrefix]; ok && (!isIfname(s) || len(s) > 11) {
		return bad(api.OptIfacePrefix, "can't begin an interface's name", "1 to 11 bytes without '/', ':' and white space")
	}
	return nil
}

// checkFamily checks the options that there are once for each family.
func checkFamily(n *api.Network, env Env, v4 bool, modes []api.GatewayMode) error {
	modeKey, hostKey, family, has := api.OptGatewayMode6, api.OptHostIPv6, "IPv6", n.Subnet6() != nil
	if v4 {
		modeKey, hostKey, family, has = api.OptGatewayMode4, api.OptHostIPv4, "IPv4", n.Subnet4() != nil
	}
	bad := func(key, msg, want string) error {
		return api.FieldError(api.NetworkNoun(n.Name), "options."+key, n.Options[key], msg, want)
	}
	for _, key := range []string{modeKey, hostKey} {
		if _, ok := n.Options[key]; ok && !has {
			return bad(key, "has no meaning: the network has no "+family+" subnet", "none, or such a subnet")
		}
	}
	mode := n.GatewayMode(v4)
	if !slices.Contains(modes, mode) {
		return bad(modeKey, "is no gateway mode of driver \""+n.Driver+"\"", fmt.Sprint(modes))
	}
	if mode == api.GatewayIsolated && !n.Internal {
		return bad(modeKey, "goes with internal networks only", "an internal network, or another mode")
	}
	s, ok := n.Options[hostKey]
	if !ok {
		return nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Is4() != v4 {
		return bad(hostKey, "is no "+family+" address", "one of the machine's")
	}
	if !n.MasqueradeOn() || mode == api.GatewayRouted {
		return bad(hostKey, "has no meaning where addresses are not translated", "none, or a network with masquerade and mode nat")
	}
	if env.New && !ownAddress(env.Facts, a) {
		return bad(hostKey, "is no address of the machine", "one that an interface has: answers would not come back")
	}
	return nil
}

func ownAddress(f kernel.Facts, a netip.Addr) bool {
	return slices.ContainsFunc(f.Links, func(l kernel.LinkFact) bool {
		return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
	})
}

func isIfname(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n\v\f\r\x00%")
}

// gatewayElements tells the nftables table how packets of a network's families pass.
func gatewayElements(n api.Network, add func(s *kernel.Set, item, data string) kernel.Object) []kernel.Object {
	var out []kernel.Object
	g := strconv.FormatUint(uint64(ruleset.Group(n.Name)), 10)
	for _, s := range n.Subnets {
		a := s.Prefix.Addr()
		mode := n.GatewayMode(a.Is4())
		host := n.Options[api.OptHostIPv6]
		if a.Is4() {
			host = n.Options[api.OptHostIPv4]
		}
		switch {
		case !n.MasqueradeOn() || mode == api.GatewayRouted:
		case host != "":
			out = append(out, add(ruleset.ByFamily(a, ruleset.Snat4, ruleset.Snat6), g, host))
		default:
			out = append(out, add(ruleset.ByFamily(a, ruleset.Masq4, ruleset.Masq6), s.Prefix.String(), ""))
		}
		switch {
		case n.Internal:
		case mode == api.GatewayUnprotected:
			out = append(out, add(ruleset.ByFamily(a, ruleset.Direct4, ruleset.Direct6), g, ""))
		case mode == api.GatewayRouted:
			out = append(out, add(ruleset.ByFamily(a, ruleset.Routed4, ruleset.Routed6), g, ""))
		}
	}
	if trusted := n.Options[api.OptTrusted]; trusted != "" {
		names := strings.Split(trusted, ":")
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			out = append(out, add(ruleset.Trusted, name+" . "+g, ""))
		}
	}
	return out
}

// IfacePrefix is what the names of interfaces in the containers of a network begin with.
func IfacePrefix(n api.Network) string { return cmp.Or(n.Options[api.OptIfacePrefix], "eth") }
