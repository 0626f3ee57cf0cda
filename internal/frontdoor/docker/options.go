package docker

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
)

// What Docker says beside the options of `docker network create -o`.
const (
	optGeneric  = "com.docker.network.generic" // the map that has those
	optInternal = "com.docker.network.internal"
	optIPv4     = "com.docker.network.enable_ipv4" // since Docker 28
	optIPv6     = "com.docker.network.enable_ipv6"
)

// The options of ours.
const (
	optName     = "seine.name"    // the name of the new network; default docker- and 12 digits of Docker's identity
	optExisting = "seine.network" // the name of a network that is there already, with the same subnets
	optDriver   = "seine.driver"  // the driver of the new network; default bridge
)

// The options of Docker's bridge driver that are not only a field of a network.
const (
	optPrefix = "com.docker.network.container_iface_prefix" // how interfaces in containers are called, before their number
)

// flags are the options that are true or false, with the field that they set.
var flags = map[string]func(*api.Network) **bool{
	"com.docker.network.bridge.enable_icc":           func(n *api.Network) **bool { return &n.ICC },
	"com.docker.network.bridge.enable_ip_masquerade": func(n *api.Network) **bool { return &n.Masquerade },
}

// texts are the options that set a text.
var texts = map[string]func(*api.Network) *string{
	optName:                          func(n *api.Network) *string { return &n.Name },
	optExisting:                      func(n *api.Network) *string { return &n.Name },
	optDriver:                        func(n *api.Network) *string { return &n.Driver },
	"com.docker.network.bridge.name": func(n *api.Network) *string { return &n.Interface },
}

// driverOptions are options of Docker's drivers that are those of ours by another name.
var driverOptions = map[string]string{
	"macvlan_mode": "mode",
	"ipvlan_mode":  "mode",
	"ipvlan_flag":  "flag",
	"com.docker.network.bridge.gateway_mode_ipv4":       api.OptGatewayMode4,
	"com.docker.network.bridge.gateway_mode_ipv6":       api.OptGatewayMode6,
	"com.docker.network.bridge.host_binding_ipv4":       api.OptHostBinding,
	"com.docker.network.bridge.inhibit_ipv4":            api.OptInhibit4,
	"com.docker.network.bridge.trusted_host_interfaces": api.OptTrusted,
	"com.docker.network.host_ipv4":                      api.OptHostIPv4,
	"com.docker.network.host_ipv6":                      api.OptHostIPv6,
}

// instead says, of options that Docker's drivers have and that are not honoured, what there is.
var instead = map[string]string{
	"com.docker.network.bridge.default_bridge": "none: it is Docker's own to say",
	"com.docker.network.endpoint.ifname":       optPrefix + " on the network: Docker takes no interface's name from a driver of others",
	optIPv4:                                    "docker network create --ipv4=false",
	optIPv6:                                    "docker network create --ipv6",
	optInternal:                                "docker network create --internal",
}

// boolean reads an option that Docker writes by itself; one that is not there is missing.
func boolean(options map[string]any, key string, missing bool) (bool, error) {
	switch v := options[key].(type) {
	case nil:
		return missing, nil
	case bool:
		return v, nil
	case string:
		if b, err := strconv.ParseBool(v); err == nil {
			return b, nil
		}
	}
	return false, fmt.Errorf("option %q: %v is neither true nor false", key, options[key])
}

// generic gives the options that the user wrote.
func generic(options map[string]any) (map[string]string, error) {
	out := map[string]string{}
	switch all := options[optGeneric].(type) {
	case nil:
	case map[string]any:
		for key, v := range all {
			value, ok := v.(string)
			if !ok {
				return nil, fmt.Errorf("option %q: is no text", key)
			}
			out[key] = value
		}
	default:
		return nil, fmt.Errorf("option %q: is no list of options", optGeneric)
	}
	return out, nil
}

// applyOptions writes what the user asked for into a network.
func applyOptions(n *api.Network, options map[string]string) error {
	if options[optExisting] != "" {
		for key := range options {
			if key != optExisting && key != optPrefix {
				return fmt.Errorf("option %q: does not go with option %q, which takes a network as it is; want one of the two", key, optExisting)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(options)) {
		if err := applyOption(n, key, options[key]); err != nil {
			return err
		}
	}
	if n.Driver == "" {
		n.Driver = "bridge"
	}
	return nil
}

func applyOption(n *api.Network, key, value string) error {
	if at := texts[key]; at != nil {
		*at(n) = value
		return nil
	}
	if at := flags[key]; at != nil {
		v, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("option %q: %q is neither true nor false", key, value)
		}
		*at(n) = &v
		return nil
	}
	switch key {
	case "com.docker.network.driver.mtu":
		v, err := strconv.Atoi(value)
		if err != nil || v <= 0 {
			return fmt.Errorf("option %q: %q is no MTU; want a number of bytes", key, value)
		}
		n.MTU = v
		return nil
	case optPrefix:
		if value == "" || len(value) > 12 || strings.ContainsAny(value, "/: \t\n\v\f\r\x00%") {
			return fmt.Errorf("option %q: %q can't begin an interface's name; want 1 to 12 bytes such as eth", key, value)
		}
		n.Labels[LabelPrefix] = value
		return nil
	}
	if want := instead[key]; want != "" {
		return fmt.Errorf("option %q: is not known here; want %s", key, want)
	}
	if to := driverOptions[key]; to != "" {
		key = to
	}
	if strings.HasPrefix(key, "com.docker.") || strings.HasPrefix(key, "seine.") {
		return fmt.Errorf("option %q: is not known; want one of %s", key, strings.Join(known(), ", "))
	}
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	n.Options[key] = value // the driver's own; the engine refuses one that it does not have
	return nil
}

// known gives the options that are honoured with every driver.
func known() []string {
	out := append(slices.Collect(maps.Keys(texts)), slices.Collect(maps.Keys(flags))...)
	out = append(out, "com.docker.network.driver.mtu", optPrefix)
	for key := range driverOptions {
		if strings.HasPrefix(key, "com.docker.") {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// checkEndpointOptions refuses options of an endpoint that have no effect. Those that Docker adds by itself, newer ones
// among them, begin with its name.
func checkEndpointOptions(options map[string]any) error {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		if want := instead[key]; want != "" {
			return fmt.Errorf("--driver-opt %q: has no effect; want %s", key, want)
		}
		if !strings.HasPrefix(key, "com.docker.") {
			return fmt.Errorf("--driver-opt %q: is not known; want none", key)
		}
	}
	return nil
}

// gwAllocCheck answers Docker, which asks since version 28 before it gives a network gateways that nobody named: where the
// machine is not on the network, there is none by itself.
func (d *Door) gwAllocCheck(r networkRequest) (any, error) {
	options, err := generic(r.Options)
	if err != nil {
		return nil, err
	}
	skip := slices.Contains([]string{"macvlan", "ipvlan", "vlan"}, options[optDriver])
	return map[string]any{"SkipIPv4": skip, "SkipIPv6": skip}, nil
}
