package cni

import (
	"net/netip"
	"strings"
)

// envArgs is CNI_ARGS: "K=V;K=V". Every plugin takes every key that any plugin knows, as a runtime can't know which of
// them reads which.
type envArgs struct {
	// MAC is the hardware address to give the container's interface; "" for none.
	MAC string
	// IP and Gateway are lists with commas; "" for none.
	IP, Gateway string
	// Pod and PodNamespace are what Kubernetes and Podman call the container; "" for none.
	Pod, PodNamespace string
}

const (
	argsWant   = "IP, MAC, GATEWAY, IgnoreUnknown and K8S_POD_…, or IgnoreUnknown=1 beside it"
	podPrefix  = "K8S_POD_"
	ignoreName = "IgnoreUnknown"
)

// parseArgs reads CNI_ARGS. What it could read it gives along with an error, for DEL, which fails for none of it.
func parseArgs(s string) (envArgs, error) {
	var out envArgs
	var unknown string
	var bad error
	ignore := false
	for _, pair := range strings.Split(s, ";") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			bad = errorf(CodeEnvironment, "CNI_ARGS %q: is no pair; want KEY=VALUE", pair)
			continue
		}
		switch {
		case key == "MAC":
			out.MAC = value
		case key == "IP":
			out.IP = value
		case key == "GATEWAY":
			out.Gateway = value
		case key == ignoreName:
			switch strings.ToLower(value) {
			case "1", "true":
				ignore = true
			case "0", "false":
				ignore = false
			default:
				bad = errorf(CodeEnvironment, "CNI_ARGS %s %q: is no boolean; want 1, 0, true or false", ignoreName, value)
			}
		case key == podPrefix+"NAME":
			out.Pod = value
		case key == podPrefix+"NAMESPACE":
			out.PodNamespace = value
		case strings.HasPrefix(key, podPrefix):
		default:
			unknown = key
		}
	}
	if unknown != "" && !ignore && bad == nil {
		bad = errorf(CodeEnvironment, "CNI_ARGS key %q: is not known; want %s", unknown, argsWant)
	}
	return out, bad
}

// parseAddrs reads addresses that a runtime asks for, with or without the length of the subnet.
func parseAddrs(field string, list []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range list {
		a, err := netip.ParseAddr(s)
		if err != nil {
			p, perr := netip.ParsePrefix(s)
			if a, err = p.Addr(), perr; err != nil {
				return nil, invalid(field, s, "is no address", "an address such as 10.1.0.2")
			}
		}
		if a.Zone() != "" || a.IsUnspecified() {
			return nil, invalid(field, s, "is no address of a container", "an address such as 10.1.0.2")
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

// splitList splits a list with commas; "" gives none.
func splitList(s string) []string {
	if s == "" {
		return nil
	}
	out := strings.Split(s, ",")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}
