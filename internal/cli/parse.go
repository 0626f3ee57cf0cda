package cli

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
)

// parsePort reads what --publish takes: [IP:]HOST:CONTAINER[/PROTOCOL], an IPv6 address in brackets.
func parsePort(s string) (api.Port, error) {
	const want = "[IP:]HOST:CONTAINER[/tcp|udp|sctp], such as 8080:80 or [::1]:53:53/udp"
	bad := func(message string) (api.Port, error) {
		return api.Port{}, api.FieldError("", "--publish", s, message, want)
	}
	var p api.Port
	rest, protocol, given := strings.Cut(s, "/")
	switch {
	case !given:
	case protocol == "tcp", protocol == "udp", protocol == "sctp":
		p.Protocol = protocol
	default:
		return bad(fmt.Sprintf("has %q for a protocol", protocol))
	}
	var ok bool
	if rest, p.ContainerPort, ok = cutPort(rest); !ok {
		return bad("has no port of the container from 1 to 65535")
	}
	if rest == "" {
		return bad("has no port of the machine")
	}
	if rest, p.HostPort, ok = cutPort(rest); !ok {
		return bad("has no port of the machine from 1 to 65535")
	}
	if rest == "" {
		if strings.HasPrefix(s, ":") {
			return bad("has an empty address")
		}
		return p, nil
	}
	inner, bracketed := strings.CutPrefix(rest, "[")
	if bracketed {
		if inner, ok = strings.CutSuffix(inner, "]"); !ok {
			return bad("has a bracket that is not closed")
		}
	}
	a, err := netip.ParseAddr(inner)
	switch {
	case err == nil && a.Is6() && !bracketed:
		return bad("has an IPv6 address without brackets")
	case err != nil || a.Is4() == bracketed || a.Zone() != "" || a.Is4In6():
		return bad(fmt.Sprintf("has %q for an address", rest))
	}
	p.HostIP = a
	return p, nil
}

// cutPort cuts the last ":"-separated part off and reads it as a port.
func cutPort(s string) (rest string, port uint16, ok bool) {
	digits := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		rest, digits = s[:i], s[i+1:]
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	return rest, uint16(n), err == nil && n > 0
}

// parseAddr reads an address of a family.
func parseAddr(flag, s string, v4 bool) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Is4() != v4 || a.Zone() != "" {
		want := "an IPv6 address such as fd00::2"
		if v4 {
			want = "an IPv4 address such as 10.1.0.2"
		}
		return netip.Addr{}, api.FieldError("", flag, s, "is no such address", want)
	}
	return a, nil
}

// parsePairs reads KEY=VALUE arguments; a KEY alone has an empty value.
func parsePairs(flag string, args []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range args {
		k, v, _ := strings.Cut(s, "=")
		if k == "" {
			return nil, api.FieldError("", flag, s, "has no key", "KEY=VALUE")
		}
		if _, ok := out[k]; ok {
			return nil, api.FieldError("", flag, s, "is a key that was given already", "each key once")
		}
		out[k] = v
	}
	return out, nil
}

// splitKey reads NETWORK/ENDPOINT.
func splitKey(s string) (network, name string, err error) {
	network, name, ok := strings.Cut(s, "/")
	if !ok || network == "" || name == "" {
		return "", "", api.FieldError("", "ENDPOINT", s, "is no endpoint", "NETWORK/NAME, as `seine endpoint ls` shows them")
	}
	return network, name, nil
}
